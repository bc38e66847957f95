"""Writing files whole or not at all."""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from activefreq_engine.errors import ActiveFreqError, FileWriteError, InvalidArgumentError


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Turns errors of the system into ours.  A broken pipe stays what it is: nothing is wrong with the file then.

    Raises:
        FileWriteError: the system refuses.
        InvalidArgumentError: `path` is no path.
    """
    try:
        yield
    except (BrokenPipeError, ActiveFreqError):
        raise
    except OSError as error:
        raise FileWriteError(error.errno, error.strerror or str(error), str(path)) from error
    except (TypeError, ValueError) as error:  # no path at all, a NUL within
        raise InvalidArgumentError(f"cannot write to {str(path)[:200]!r}: {error}") from error


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: beside the target, then sync, then rename.  If the disk is full or the process
    is killed, the old file is still there.

    A new file gets the permissions that the umask gives; an old one keeps its own.  What is not a regular file (a pipe,
    ``/dev/stdout``) is written to directly.  A link stays a link: the file that it points to is replaced.

    Raises:
        FileWriteError: the file cannot be written; the target is then as it was.
        InvalidArgumentError: `path` is no path.
    """
    with writing(path):
        _write(os.path.realpath(path), content)


def _write(target: str, content: bytes) -> None:
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            file.write(content)
        return
    partial = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            if mode is not None:
                os.chmod(partial, stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


_SYSTEM = re.compile(r"(?:os error |Os { code: )(\d+)")  # new and old releases of safetensors quote it like this


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """For writers that want a path: gives another path beside `path`; at the end its file is synced and renamed to
    `path`.

    One process at a time writes to a path.

    Raises:
        FileWriteError: the file cannot be written; the target is then as it was.
    """
    partial = path.with_name(f"{path.name}.partial")  # always the same: what a kill leaves is written over
    try:
        yield partial
        with writing(path):
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            with writing(path):
                raise
        number = _SYSTEM.search(str(error)) if isinstance(error, SafetensorError) else None
        if number is not None:  # its writer hides the system's error in its own
            with writing(path):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
