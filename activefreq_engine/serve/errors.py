"""What a client is told when something cannot be done: an HTTP status and a sentence."""

from activefreq_engine.errors import ActiveFreqError


class ServeError(ActiveFreqError):
    """A request that cannot be served; `status` is its HTTP status."""

    status = 400


class NotAllowedError(ServeError):
    """The token is missing or wrong."""

    status = 401


class ForbiddenError(ServeError):
    """The request comes from a place that may not ask: another site, or a host name that is not ours."""

    status = 403


class NotFoundError(ServeError):
    """There is no such thing here."""

    status = 404


class LateError(ServeError):
    """The request did not come to its end in time."""

    status = 408


class ConflictError(ServeError):
    """The session cannot do this in its present state."""

    status = 409


class GoneError(ServeError):
    """There was such a session; it is over."""

    status = 410


class TooLargeError(ServeError):
    """More bytes, pixels or steps than this server takes."""

    status = 413


class FullError(ServeError):
    """All places are taken; try again later."""

    status = 503


class StorageError(ServeError):
    """The disk takes nothing more, or cannot be written to; nothing was done."""

    status = 507
