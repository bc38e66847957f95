"""The end of the program while other threads are in calls of ours.

The interpreter stops daemon threads on their way back to Python.  Within torch's or OpenCV's C++ that is an abort in
place of the program's exit code.  So at the end calls that are under way are waited for, and no new ones begin.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref

from activefreq_engine.errors import ActiveFreqError

_PATIENCE = 10.0  # seconds that the end of the program waits for calls, and calls for the end of the program
_LOOK = 0.01  # seconds between two looks whether calls are still under way

under_way: list[int] = []
"""The threads that are in public calls, one entry for each call.  `memory.typed` adds and removes them."""
_halted: list[int] = []
"""Those of them that wait for the end."""
_end = math.inf
"""When they get an error, in seconds of `time.monotonic`."""
_ender: int | None = None
"""The thread that ends the program; its calls go on, for handlers that run later."""


def halt() -> None:
    """Once the program is ending, wait until the process is gone.  Called where a thread is in no library's code and
    more work of the network, or somebody else's call, lies before it.

    Raises:
        ActiveFreqError: the process is still there after a while: a handler of the program's own waits for this thread.
    """
    thread = threading.get_ident()
    if _end == math.inf or thread == _ender:
        return
    _halted.append(thread)
    time.sleep(max(0.0, _end - time.monotonic()))  # in one piece: a thread that wakes is stopped beside exit()
    raise ActiveFreqError("the program is ending, and answers no more calls")


weakref.finalize(halt, int).detach()
"""The first finalizer of a process registers what runs them all at its end.  One of torch's takes our operators apart;
handlers run in reverse order, so ours comes before that, whether torch was imported already or not."""


@atexit.register
def _before_exit() -> None:
    global _end, _ender
    _ender, _end = threading.get_ident(), time.monotonic() + _PATIENCE
    while set(under_way) - {_ender, *_halted} and time.monotonic() < _end:
        time.sleep(_LOOK)


def _after_fork() -> None:
    """The child has the thread that forked, and no other."""
    own = threading.get_ident()
    under_way[:] = [thread for thread in under_way if thread == own]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
