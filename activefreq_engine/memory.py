"""What surrounds every public call: a lack of memory becomes our own error, and the program's end waits."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import cv2

from activefreq_engine import ending
from activefreq_engine.errors import ActiveFreqError, MemoryShortageError

P = ParamSpec("P")
R = TypeVar("R")

_SAYINGS = ("allocate", "out of memory", "enough memory", "insufficient memory", "could not create a", "bad_alloc")
"""How torch, oneDNN and OpenCV say that memory is short; they raise plain errors of theirs."""

SHORT = "there is not enough memory; nothing changed. Free some, or use a smaller size="


def is_short(error: BaseException) -> bool:
    """Whether an error that is not ours says that there is not enough memory."""
    if isinstance(error, ActiveFreqError):
        return False
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, cv2.error)) and any(words in str(error).lower() for words in _SAYINGS)


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """For public calls: `MemoryShortageError` in place of whatever a library raises where memory runs out.  The end of
    the program waits for those of other threads, see `ending`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        thread = threading.get_ident()
        ending.under_way.append(thread)
        try:
            ending.halt()
            return function(*args, **kwargs)
        except (MemoryError, RuntimeError, cv2.error) as error:
            if not is_short(error):
                raise
            raise MemoryShortageError(SHORT) from error
        finally:
            ending.under_way.remove(thread)

    return call
