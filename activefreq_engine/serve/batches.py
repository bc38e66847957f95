"""The one thread that clicks: requests that wait at the same time become one batch of the engine.

Where no click waits, it prepares what the next clicks will need.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from concurrent.futures import Future

from activefreq_engine import ClickResult, Session, click_batch
from activefreq_engine.errors import ActiveFreqError, NoImageError, SessionClosedError
from activefreq_engine.types import Prompt

MOST = 32
"""Clicks in one batch."""

_Click = tuple[Session, Prompt, "Future[ClickResult]"]

_log = logging.getLogger(__name__)


class Batches:
    """Runs clicks of many sessions on the engine that they share.

    Nobody waits for a batch to fill: what arrives while one batch runs makes the next one.  A session may have at most
    one click under way.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[_Click | Session | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="activefreq-clicks", daemon=True)
        self._thread.start()

    def submit(self, session: Session, prompt: Prompt) -> Future[ClickResult]:
        """Hand in a prompt; the future has its result once its batch has run."""
        future: Future[ClickResult] = Future()
        self._waiting.put((session, prompt, future))
        return future

    def prepare(self, session: Session) -> None:
        """Have the session's next click prepared (`Session.prepare`) when no click waits; after a click it is done
        unasked."""
        self._waiting.put(session)

    def close(self) -> None:
        """Finish the clicks that wait and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        unprepared: OrderedDict[Session, None] = OrderedDict()  # the latest one last
        open_ = True
        while open_:
            batch: list[_Click] = []
            while open_ and len(batch) < MOST and not (self._waiting.empty() and (batch or unprepared)):
                item = self._waiting.get()
                if item is None:
                    open_ = False
                elif isinstance(item, Session):
                    unprepared[item] = None
                else:
                    batch.append(item)
            if batch:
                _answer(batch)
                for session, _, _ in batch:
                    unprepared[session] = None
                    unprepared.move_to_end(session)
            elif unprepared and open_:
                _prepare(unprepared.popitem()[0])


def _prepare(session: Session) -> None:
    try:
        session.prepare()
    except (SessionClosedError, NoImageError):
        _log.debug("a session ended before its next click was prepared")
    except Exception as error:  # the thread must live; whatever it is, the click itself will say so
        _log.warning("a click could not be prepared: %r", error)


def _answer(batch: list[_Click]) -> None:
    try:
        results = click_batch([s for s, _, _ in batch], [c for _, c, _ in batch])
    except Exception as error:  # the thread must live; whoever waits for the click is told
        if len(batch) > 1:  # one bad click must not cost the others theirs; nothing has changed yet
            for single in batch:
                _answer([single])
            return
        if not isinstance(error, ActiveFreqError):
            _log.exception("a click failed")
        batch[0][2].set_exception(error)
        return
    for (_, _, future), result in zip(batch, results, strict=True):
        future.set_result(result)
