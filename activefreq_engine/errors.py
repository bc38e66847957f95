"""Every error the package raises on purpose.  All derive from `ActiveFreqError`.

A message says what was got, what is allowed, and what to do.  Each class also derives from the built-in exception
that a caller would expect, so ``except ValueError`` keeps working in code that knows nothing of this package.
"""

_LONGEST = 10_000  # characters; messages are read by people


class ActiveFreqError(Exception):
    """Base of all errors of activefreq_engine."""

    def __str__(self) -> str:
        """The message; of a very long one, which quotes what it was given, the middle is left out."""
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class InvalidImageError(ActiveFreqError, ValueError):
    """The image cannot be used: unreadable file, empty, wrong shape or type, not finite, or too large."""


class InvalidClickError(ActiveFreqError, ValueError):
    """A click is not a finite (x, y) inside the image, or clicks and labels do not fit together."""


class InvalidPromptError(ActiveFreqError, ValueError):
    """A box, a scribble or a lasso is malformed or does not lie in the image."""


class InvalidMaskError(ActiveFreqError, ValueError):
    """A mask or an encoded mask has the wrong shape, type or content."""


class InvalidArgumentError(ActiveFreqError, ValueError):
    """Any other argument of a public operation that is out of its allowed range."""


class NoImageError(ActiveFreqError, RuntimeError):
    """The session needs an image first: call `Session.set_image`."""


class SessionBusyError(ActiveFreqError, RuntimeError):
    """A second thread called a session that is still at work.  A session is not re-entrant."""


class ClickCancelledError(ActiveFreqError, RuntimeError):
    """`Session.cancel` stopped the call; the session is as it was before."""


class MemoryShortageError(ActiveFreqError, MemoryError):
    """There was not enough memory for a call.  Nothing changed, and the call works once there is enough memory."""


class SessionClosedError(ActiveFreqError, RuntimeError):
    """The session was closed; make a new one."""


class SessionStateError(ActiveFreqError, ValueError):
    """A saved session state is damaged, of an unknown version, or belongs to another image, model or other weights."""


class FileWriteError(ActiveFreqError, OSError):
    """A file cannot be written: a full disk, no permission, no such folder.  An existing file stays as it was."""


class ModelLoadError(ActiveFreqError, RuntimeError):
    """A checkpoint or a model name cannot be turned into a model."""


class BackendUnavailableError(ActiveFreqError, RuntimeError):
    """A device or backend asked for by name cannot run here; the message carries the reason."""


class DatasetError(ActiveFreqError, ValueError):
    """Evaluation or training data that is missing, incomplete or inconsistent."""
