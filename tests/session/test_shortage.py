"""Memory that runs out anywhere in a call: a typed error, the session as it was, and the right answer afterwards."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import activefreq_engine
from activefreq_engine import Click, Engine, MemoryShortageError, Session, click_batch
from activefreq_engine.session import packing

from .fakes import SquareModel, random_image

OURS = [Path(activefreq_engine.__file__).parent / part for part in ("session", "runtime", "masks", "acselect.py")]
SHORTAGES: list[Exception] = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 123 bytes."),
    cv2.error("OpenCV(4.12.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 8 bytes"),
]
ENGINE = Engine(SquareModel(refine_size=64))
OTHER = Session(engine=ENGINE)
MASK = np.zeros((165, 240), np.bool_)
MASK[45:100, 30:125] = True

CALLS: dict[str, Callable[[Session], Any]] = {
    "click": lambda s: s.click(150, 130),
    "negative click": lambda s: s.click(120, 85, False),
    "box": lambda s: s.box(25, 30, 150, 140),
    "scribble": lambda s: s.scribble([(55, 55), (75, 80), (90, 100)]),
    "lasso": lambda s: s.lasso([(100, 75), (140, 75), (130, 125)], False),
    "predict": lambda s: s.predict([(50, 50), (150, 125)], [0, 1], box=(45, 40, 200, 160)),
    "load_mask": lambda s: s.load_mask(MASK),
    "undo": lambda s: s.undo(),
    "redo": lambda s: s.redo(),
    "select_object": lambda s: s.select_object(1),
    "mask_of": lambda s: s.mask_of(1),
    "labels": lambda s: s.labels,
    "probs": lambda s: s.probs,
    "suggest": lambda s: s.suggest(3),
    "look ahead": lambda s: s.suggest(3, look_ahead=True),
    "to_coco_rle": lambda s: s.to_coco_rle(),
    "to_polygons": lambda s: s.to_polygons(),
    "state_dict": lambda s: s.state_dict(),
    "restore": lambda s: Session.restore(s.state_dict(), s._scene.picture.image, engine=ENGINE).mask,
    "click_batch": lambda s: click_batch([OTHER, s], [Click(30, 25, True), Click(150, 130, True)]),
}


@pytest.fixture(scope="module")
def session() -> Session:
    rng = np.random.default_rng(5)
    for s in (OTHER, Session(engine=ENGINE)):
        s.set_image(random_image(rng, 165, 240))
        s.click(150, 125)
        s.next_object()
        s.click(120, 90)
        s.click(100, 80, False)
        s.click(125, 100, False)
        s.undo()
    return s


def forget(session: Session) -> None:
    """Everything that is remembered to save work, so that each call does all of its work."""
    picture = session._scene.picture
    picture.shown = picture.clicked = picture.digest = None
    picture.shrunk.clear()
    picture.features.regions.clear()


def state(session: Session) -> Any:
    kept = [s.mask.tobytes() for s in (session, OTHER)]
    said = json.dumps(session.state_dict()), session.prompts, session.object_number, session.object_count
    return (*kept, session.probs.tobytes(), session.labels.tobytes(), *said)


def plain(result: Any) -> Any:
    if isinstance(result, np.ndarray):
        return result.tobytes()
    if isinstance(result, list):
        return [plain(r) for r in result]
    if hasattr(result, "changed_bbox"):
        return result.mask.tobytes(), result.changed_bbox, result.clicks
    return repr(result)


@functools.cache
def is_ours(file: str) -> bool:
    path = Path(file)
    return path.name != "shortage.py" and any(path.is_relative_to(o) for o in OURS)


def entered(call: Callable[[], Any], fail_in: Any = None, error: Exception | None = None) -> list[Any]:
    """The functions of ours that a call enters.  On entering `fail_in` for the first time, `error` is raised."""
    seen: dict[Any, None] = {}

    def look(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and is_ours(code.co_filename):
            first = code not in seen
            seen[code] = None
            if code is fail_in and first:
                assert error is not None
                raise error

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    return list(seen)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_without_memory_changes_nothing(session: Session, name: str, rng: np.random.Generator) -> None:
    call = CALLS[name]
    scenes = session._scene, OTHER._scene
    forget(session)
    right = plain(call(session))
    session._scene, OTHER._scene = scenes
    before = state(session)
    forget(session)
    places = entered(lambda: call(session))
    assert len(places) > 3
    refused, some = 0, rng.permutation(len(places))[:12]
    for number in some:
        place = places[number]
        session._scene, OTHER._scene = scenes
        forget(session)
        try:
            entered(lambda: call(session), place, SHORTAGES[rng.integers(len(SHORTAGES))])
        except MemoryShortageError:
            refused += 1
            assert state(session) == before, place
            assert not session._lock.locked(), place
            assert not ENGINE._lock._is_owned(), place
        assert plain(call(session)) == right, place
    session._scene, OTHER._scene = scenes
    assert refused >= len(some) - 1  # what is not made ready is made later


def test_steps_that_could_not_be_packed_are_packed_later(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    class Stubborn:
        tries = 0

        def pack(self) -> None:
            self.tries += 1
            if self.tries < 3:
                raise MemoryError

    monkeypatch.setattr(packing, "PAUSE", 0.01)
    packing._say_once.cache_clear()
    waits, step = packing.Packing(), Stubborn()
    waits.later([step])
    until = time.monotonic() + 30
    while waits.waiting and time.monotonic() < until:
        time.sleep(0.01)
    assert (step.tries, len(waits.waiting)) == (3, 0)
    assert caplog.text.count("not enough memory") == 1
