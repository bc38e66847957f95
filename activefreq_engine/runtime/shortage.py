"""What to do when memory runs out: say so in a typed error, and have clicks work again once there is some."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from activefreq_engine.errors import ActiveFreqError, MemoryShortageError

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SAYINGS = ("allocate", "out of memory", "could not create a", "bad_alloc")
"""How torch and oneDNN say that memory is short; they raise plain RuntimeErrors."""
_STUCK = "could not create a"
_SHORT = "there is not enough memory; nothing changed. Free some, or use a smaller size="
_ENOUGH = 64 << 20  # bytes, more than a click on a new network shape takes; to ask for them takes microseconds


class _Here(threading.local):
    elsewhere: ThreadPoolExecutor | None = None
    """Where this thread's work is done; None for itself."""


_here = _Here()


def _after_fork() -> None:
    """The child has none of its parent's threads."""
    _here.elsewhere = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def guarded(work: Callable[[], T], *, ask: bool = True) -> T:
    """Do it, with a typed error where memory runs out.

    It is not begun unless some memory can be had, if that is to be asked: within oneDNN's products a failed allocation
    ends the process.  Asking takes 5 to 20 us.

    oneDNN keeps, for each thread, that it could not make a kernel, and goes on saying so when there is memory again.  A
    thread to which that happened has its work done by a fresh one from then on.

    Raises:
        MemoryShortageError: there is not enough memory.
    """
    if ask and not _is_there():
        raise MemoryShortageError(_SHORT)
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
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in text for words in _SAYINGS)
        if isinstance(error, ActiveFreqError) or not short:
            raise
        raise MemoryShortageError(_SHORT) from error


def _is_there() -> bool:
    """Whether memory can be had."""
    try:
        mmap.mmap(-1, _ENOUGH).close()
    except (OSError, MemoryError, ValueError):
        return False
    return True
