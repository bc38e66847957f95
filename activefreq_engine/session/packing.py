"""Packs steps that are not likely to be asked for soon, beside clicks, so that a history of any length stays small."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

PAUSE = 0.1  # seconds without a click after which steps are packed: packing takes a sixth of a click's processor time
BACKLOG = 32  # steps that wait for a pause; those beyond are packed beside clicks, so that memory stays bounded

_log = logging.getLogger(__name__)

_changing = threading.Lock()
"""Held while any `Packing.process` changes, and during a fork: no child finds it held by a thread that it has not."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_changing.release)


class Packable(Protocol):
    """Something that can be kept in less memory."""

    def pack(self) -> None:
        """Safe while others read it, and more than once."""
        ...


@functools.cache
def _packer(process: int) -> ThreadPoolExecutor:
    """The one thread of a process that packs.  Kept, since to start one takes up to milliseconds of a click; a process
    that was forked has none of its parent's threads, so it is asked for by its number."""
    return ThreadPoolExecutor(1, "activefreq-pack")


@functools.cache
def _say_once(reason: str) -> None:
    _log.warning("older steps stay unpacked and take four times the memory: %s", reason)


class Packing:
    """The steps of one image that wait to be packed, oldest first."""

    __slots__ = ("newest", "process", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Packable] = deque()
        self.newest = 0.0
        """When steps were added last, `time.monotonic` seconds."""
        self.process: int | None = None
        """The process in which `_pack` runs, or is about to; one that was forked from it begins anew."""

    def later(self, steps: Iterable[Packable]) -> None:
        """Pack these, in a pause."""
        self.newest = time.monotonic()
        self.waiting.extend(steps)
        if self.waiting:
            self._start()

    def _start(self) -> None:
        process = os.getpid()
        with _changing:
            start, self.process = self.process != process, process
        if start:
            self._submit(process)

    def _submit(self, process: int) -> None:
        try:
            _packer(process).submit(self._pack)
        except RuntimeError as error:  # no thread is to be had, or the interpreter is about to end
            self.process = None
            if "shutdown" not in str(error):
                _say_once(str(error))

    def _pack(self) -> None:
        """Pack what waits, all of it in a pause and only what is beyond the backlog before it; then look again, after
        other images had their turn.  No click waits for it."""
        rest = self.newest + PAUSE - time.monotonic()
        while len(self.waiting) > (BACKLOG if rest > 0 else 0):
            self.waiting.popleft().pack()
        if rest > 0:
            time.sleep(min(rest, 0.1))
        process = os.getpid()
        with _changing:
            self.process = process if self.waiting else None
        if self.process:
            self._submit(process)
