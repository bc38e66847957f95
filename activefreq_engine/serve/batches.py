"""The one thread that clicks: requests that wait at the same time become one batch of the engine."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future

from activefreq_engine import ClickResult, Session, click_batch
from activefreq_engine.errors import ActiveFreqError
from activefreq_engine.types import Prompt

MOST = 32
"""Clicks in one batch."""

_log = logging.getLogger(__name__)


class Batches:
    """Runs clicks of many sessions on the engine that they share.

    Nobody waits for a batch to fill: what arrives while one batch runs makes the next one.  A session may have at most
    one click under way.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Session, Prompt, Future[ClickResult]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="activefreq-clicks", daemon=True)
        self._thread.start()

    def submit(self, session: Session, prompt: Prompt) -> Future[ClickResult]:
        """Hand in a prompt; the future has its result once its batch has run."""
        future: Future[ClickResult] = Future()
        self._waiting.put((session, prompt, future))
        return future

    def close(self) -> None:
        """Finish what waits and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = []
            item = self._waiting.get()
            while item is not None:
                batch.append(item)
                if len(batch) == MOST or self._waiting.empty():
                    break
                item = self._waiting.get()
            open_ = item is not None
            if batch:
                _answer(batch)


def _answer(batch: list[tuple[Session, Prompt, Future[ClickResult]]]) -> None:
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
