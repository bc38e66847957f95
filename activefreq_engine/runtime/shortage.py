"""What to do when memory runs out: say so in a typed error, and have clicks work again once there is some."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from activefreq_engine.errors import MemoryShortageError
from activefreq_engine.memory import SHORT, is_short

T = TypeVar("T")

_log = logging.getLogger(__name__)

_STUCK = "could not create a"
_ENOUGH = 64 << 20  # bytes, more than a click on a new network shape takes; to ask for them takes microseconds


class _Here(threading.local):
    elsewhere: ThreadPoolExecutor | None = None
    """The thread that does this thread's work; None if it does its work itself."""


_here = _Here()


def _after_fork() -> None:
    """The child has none of its parent's threads."""
    _here.elsewhere = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def guarded(work: Callable[[], T], *, ask: bool = True) -> T:
    """Do the work; where memory runs out, raise our own error.

    With `ask` the work is begun only if some memory can be had, because a failed allocation within oneDNN's products
    ends the process.  Asking takes 5 to 20 us.

    oneDNN remembers for each thread that it could not make a kernel, and keeps failing when there is memory again.  So
    once this has happened to a thread, a fresh thread does its work from then on.

    Raises:
        MemoryShortageError: there is not enough memory.
    """
    if ask and not _is_there():
        raise MemoryShortageError(SHORT)
    try:
        return _attempt(work)
    except MemoryShortageError as error:
        if _STUCK not in str(error.__cause__) or not _is_there():
            raise
        _log.warning("oneDNN remembers that memory was short; clicks of this thread are done by another one now")
        _here.elsewhere = ThreadPoolExecutor(1, "activefreq-click")
        return _attempt(work)


def _attempt(work: Callable[[], T]) -> T:
    try:
        return work() if _here.elsewhere is None else _here.elsewhere.submit(work).result()
    except Exception as error:
        if not is_short(error):
            raise
        raise MemoryShortageError(SHORT) from error


def _is_there() -> bool:
    """Whether there is memory to be had."""
    try:
        mmap.mmap(-1, _ENOUGH).close()
    except (OSError, MemoryError, ValueError):
        return False
    return True
