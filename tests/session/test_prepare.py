"""What the next click needs of the image can be worked out before it is made; no mask may depend on that."""

import logging
import threading
import time

import numpy as np
import pytest

from activefreq_engine import Engine, NoImageError, Session, SessionClosedError
from activefreq_engine.errors import MemoryShortageError
from activefreq_engine.models import FreqFormer

from .fakes import SquareModel


def encoded(engine: Engine) -> int:
    """How many image regions the network has looked at."""
    return engine._executor.model.count["encode"]


def wait() -> None:
    """Until no preparation is under way."""
    for thread in threading.enumerate():
        if thread.name == "activefreq-prepare":
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def session(engine, rng):
    with Session(engine=engine, refine=False) as session:
        session.set_image(rng.integers(0, 256, (600, 900, 3), np.uint8))
        yield session


def test_a_prepared_click_need_not_look_at_the_image(session, engine):
    assert encoded(engine) == 0
    session.prepare()
    assert encoded(engine) == 1
    session.click(400, 300)
    session.prepare()  # the object is small, so the next click is answered from the region around it
    assert encoded(engine) == 2
    result = session.click(410, 310, positive=False, profile=True)
    assert "prepare" not in result.timings
    assert encoded(engine) == 2
    session.undo()
    session.prepare()  # known already
    assert encoded(engine) == 2


def test_the_view_is_prepared(session, engine):
    session.look(100, 100, 300, 250)
    session.prepare()
    session.click(200, 200)
    assert encoded(engine) == 1
    session.look(None)
    session.prepare()
    assert encoded(engine) == 2
    session.next_object()
    session.prepare()
    assert encoded(engine) == 3  # a new object begins with the whole image


def test_a_session_that_does_not_zoom_prepares_the_whole_image_once(engine, rng):
    with Session(engine=engine, zoom=False, refine=False) as session:
        session.set_image(rng.integers(0, 256, (300, 500), np.uint8))
        for x in (50, 450, 250):
            session.prepare()
            session.click(x, 100)
    assert encoded(engine) == 1


def test_masks_are_the_same_bit_by_bit(rng):
    """With a real network, over regions that prepared clicks hit and others that they miss."""
    engine = Engine("freqformer_b0", device="cpu")
    picture = rng.integers(0, 256, (420, 560, 3), np.uint8)
    with Session(engine=engine) as plain, Session(engine=engine) as ahead:
        for session in (plain, ahead):
            session.set_image(picture)
        for _ in range(6):
            x, y, positive = int(rng.integers(560)), int(rng.integers(420)), bool(rng.integers(4))
            ahead.prepare()
            expected, got = plain.click(x, y, positive), ahead.click(x, y, positive)
            assert np.array_equal(expected.mask, got.mask)
            assert np.array_equal(plain.probs, ahead.probs)


class Slow(SquareModel):
    """Waits, once it was told to, in the middle of looking at an image."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def encode_image(self, image):
        self.begun.set()
        assert self.go_on.wait(60)
        return super().encode_image(image)


@pytest.fixture
def slow(rng):
    engine = Engine(Slow())
    with Session(engine=engine) as session:
        session.set_image(rng.integers(0, 256, (600, 900, 3), np.uint8))
        yield session, engine, engine._executor.model


def test_a_click_takes_what_another_thread_is_preparing(slow):
    """It waits for the rest of that, and does not begin anew."""
    session, engine, model = slow
    model.go_on.clear()
    session.prepare(background=True)
    assert model.begun.wait(60)
    clicking = threading.Thread(target=session.click, args=(400, 300))
    clicking.start()
    time.sleep(0.05)
    assert clicking.is_alive()
    model.go_on.set()
    clicking.join(60)
    wait()
    assert encoded(engine) == 1
    assert session.mask.any()


def test_what_has_not_begun_is_left_undone_once_the_session_has_moved_on(slow):
    session, engine, _ = slow
    with engine._lock:  # another session's click
        session.prepare(background=True)
        time.sleep(0.05)
        assert encoded(engine) == 0
        session.look(100, 100, 300, 250)
        wait()  # although the engine is still in use
    assert encoded(engine) == 0
    session.click(200, 200)
    assert encoded(engine) == 1


def test_a_failure_in_the_background_is_in_the_log(slow, monkeypatch, caplog):
    session, engine, _ = slow

    def short(*_):
        raise MemoryShortageError("there is not enough memory")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(engine, "prepare", short)
        session.prepare(background=True)
        wait()
        with pytest.raises(MemoryShortageError):
            session.prepare()
    assert "first clicks may take longer: there is not enough memory" in caplog.text
    session.click(400, 300)
    assert session.mask.any()


def test_there_must_be_an_image_and_an_open_session(engine):
    session = Session(engine=engine)
    for background in (False, True):
        with pytest.raises(NoImageError):
            session.prepare(background=background)
    session.close()
    with pytest.raises(SessionClosedError):
        session.prepare()


def test_the_features_are_those_of_a_click(rng):
    model = FreqFormer()
    engine = Engine(model, precision="fp32", device="cpu")
    with Session(engine=engine) as ahead, Session(engine=engine) as plain:
        picture = rng.integers(0, 256, (96, 160, 3), np.uint8)
        for session in (ahead, plain):
            session.set_image(picture)
        ahead.prepare()
        plain.click(20, 30)
        first, second = (s._scene.picture.features.get((0, 0, 160, 96)) for s in (ahead, plain))
        assert all(bool((a == b).all()) for a, b in zip(first, second, strict=True))
