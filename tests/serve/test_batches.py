"""The thread that clicks: what it does between clicks, and that nothing ends it."""

import threading

import pytest

from activefreq_engine import Click, Engine, Session
from activefreq_engine.serve.batches import Batches

from .client import PATIENCE, picture

INSIDE = Click(60.5, 60.0)


class Prepared(Session):
    """Says when it was prepared."""

    def __init__(self, engine: Engine, name: str, order: list[str]) -> None:
        super().__init__(engine=engine)
        self.name, self.order, self.done = name, order, threading.Event()
        self.set_image(picture())

    def prepare(self, *, background: bool = False) -> None:
        self.order.append(self.name)
        self.done.set()
        super().prepare(background=background)


@pytest.fixture
def batches():
    made = Batches()
    yield made
    made.close()
    assert not made._thread.is_alive()


def test_after_a_click_the_next_one_is_prepared(engine, batches):
    session = Prepared(engine, "a", [])
    assert batches.submit(session, INSIDE).result(PATIENCE).mask.any()
    assert session.done.wait(PATIENCE)


def test_clicks_come_first_and_then_the_session_clicked_last(engine, batches):
    order: list[str] = []
    first, second, third = (Prepared(engine, name, order) for name in "abc")
    with engine._lock:  # the thread waits for the engine, so that the rest piles up
        batches.submit(first, INSIDE).add_done_callback(lambda _: order.append("click"))
        for session in (second, third, second):  # once is enough
            batches.prepare(session)
        batches.submit(third, INSIDE).add_done_callback(lambda _: order.append("click"))
    for session in (first, second, third):
        assert session.done.wait(PATIENCE)
    assert order[:3] == ["click", "click", "c"]
    assert sorted(order[3:]) == ["a", "b"]


@pytest.mark.parametrize("fault", ["closed", "no image", "broken"])
def test_no_failure_ends_the_thread(engine, batches, fault, monkeypatch, caplog):
    session, other = Session(engine=engine), Prepared(engine, "b", [])
    if fault != "no image":
        session.set_image(picture())
    if fault == "closed":
        session.close()
    if fault == "broken":
        monkeypatch.setattr(session, "prepare", lambda: 1 / 0)
    batches.prepare(session)
    assert batches.submit(other, INSIDE).result(PATIENCE).mask.any()
    batches.prepare(session)
    assert batches.submit(other, Click(3, 3)).result(PATIENCE).clicks == 2
    assert other.done.wait(PATIENCE)
    batches.close()  # all that waits has been done by then, or dropped
    assert batches._thread.is_alive() is False
    assert ("could not be prepared" in caplog.text) <= (fault == "broken")


def test_closing_does_not_wait_for_preparations(engine):
    order: list[str] = []
    made = Batches()
    with engine._lock:
        made.submit(Prepared(engine, "a", order), INSIDE)
        waiting = [Prepared(engine, str(i), order) for i in range(20)]
        for session in waiting:
            made.prepare(session)
        made._waiting.put(None)
    made._thread.join(PATIENCE)
    assert not made._thread.is_alive()
    assert len(order) < 20
