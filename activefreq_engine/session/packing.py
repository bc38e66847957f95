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

from activefreq_engine.runtime.engine import hold_in_forks

PAUSE = 0.1  # seconds; steps are packed when there was no click for so long: it takes a sixth of a click's work
BACKLOG = 32  # so many steps may wait for a pause; further ones are packed beside clicks, which bounds the memory

_log = logging.getLogger(__name__)

_changing = threading.RLock()  # a signal's handler may click, too
"""Held while any `Packing.process` changes."""
hold_in_forks(_changing)


class Packable(Protocol):
    """Something that can be kept in less memory."""

    def pack(self) -> None:
        """Safe while others read it, and more than once."""
        ...


@functools.cache
def _packer(process: int) -> ThreadPoolExecutor:
    """The one thread of a process that packs.  It is kept, since starting a thread can take milliseconds of a click.  A
    forked process has none of its parent's threads, so the number of the process is the key."""
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
        """When steps were added last, in seconds of `time.monotonic`."""
        self.process: int | None = None
        """The process in which `_pack` runs or is about to run; a process that is forked from it begins anew."""

    def later(self, steps: Iterable[Packable]) -> None:
        """Pack these steps in the next pause."""
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
        except (RuntimeError, MemoryError) as error:  # no thread is to be had, or the interpreter is about to end
            self.process = None
            if "shutdown" not in str(error):
                _say_once(str(error))

    def _pack(self) -> None:
        """Pack steps that wait: all of them in a pause, before it only those beyond the backlog.  Then look again,
        after other images had their turn.  No click waits for this."""
        rest = self.newest + PAUSE - time.monotonic()
        try:
            while len(self.waiting) > (BACKLOG if rest > 0 else 0):
                self.waiting[0].pack()
                self.waiting.popleft()
        except MemoryError:  # there may be some after a while
            _say_once("there is not enough memory to pack them")
            rest = PAUSE
        if rest > 0:
            time.sleep(min(rest, 0.1))
        process = os.getpid()
        with _changing:
            self.process = process if self.waiting else None
        if self.process:
            self._submit(process)
