"""Image features are computed once for each region and kept within a limit of memory."""

import numpy as np
import pytest
import torch

from activefreq_engine import Engine, Session
from activefreq_engine.runtime.plan.plan import PrepareModule
from activefreq_engine.session.features import FeatureCache

from .modules import random_model


def features(kilobytes):
    """A tuple of two tensors."""
    return torch.zeros(kilobytes * 128), torch.zeros(kilobytes * 128)


def boxes(cache):
    return [box[0] for box in cache]


def test_the_least_recently_used_make_room():
    cache = FeatureCache(limit=4096)
    for i in range(4):
        cache.keep((i, 0, 9, 9), features(1))
    assert boxes(cache) == [0, 1, 2, 3]
    assert cache.nbytes == 4096
    assert cache.get((1, 0, 9, 9)) is not None
    cache.keep((4, 0, 9, 9), features(2))
    assert boxes(cache) == [3, 1, 4]
    assert cache.get((0, 0, 9, 9)) is None
    cache.keep((3, 0, 9, 9), features(1))  # known: neither twice in memory nor forgotten
    assert boxes(cache) == [1, 4, 3]


def test_the_latest_stays_however_large():
    cache = FeatureCache(limit=4096)
    cache.keep((0, 0, 9, 9), features(1))
    cache.keep((1, 0, 9, 9), features(9))
    assert boxes(cache) == [1]


@pytest.fixture(scope="module")
def engine():
    return Engine(random_model(dtype=torch.float32, refine_size=64), precision="fp32")


def test_prepare_runs_once_for_each_image_and_region(engine, monkeypatch, rng):
    """Not at a click in a known region, not at undo or redo, not for another object in the same region."""
    engine.get_ready(192, 256)  # as the first image of this shape would have it done
    calls = []
    forward = PrepareModule.forward
    monkeypatch.setattr(PrepareModule, "forward", lambda self, image: calls.append(image.shape) or forward(self, image))
    with Session(engine=engine, zoom=False) as s:
        s.set_image(rng.integers(0, 256, (150, 200, 3), np.uint8))
        s.click(50, 40)
        assert len(calls) == 1
        s.click(60, 70, positive=False)
        s.undo()
        s.redo()
        s.undo()
        s.click(120, 90)
        s.next_object()
        s.click(20, 30)
        s.select_object(1)
        s.click(21, 30)
        assert len(calls) == 1
        s.set_image(rng.integers(0, 256, (150, 200, 3), np.uint8))
        s.click(50, 40)
        assert len(calls) == 2


def test_prepare_runs_once_for_each_region_of_a_zooming_session(engine, monkeypatch, rng):
    calls = []
    forward = PrepareModule.forward
    monkeypatch.setattr(PrepareModule, "forward", lambda self, image: calls.append(image.shape) or forward(self, image))
    seen = set()
    with Session(engine=engine) as s:
        s.set_image(rng.integers(0, 256, (900, 1200, 3), np.uint8))
        for _ in range(3):
            s.click(int(rng.integers(1200)), int(rng.integers(900)), positive=bool(rng.integers(2)))
            seen.add(s._scene.history.step.roi)
            s.undo()
            s.click(int(rng.integers(1200)), int(rng.integers(900)))
            seen.add(s._scene.history.step.roi)
    assert len(calls) == len(seen)


def test_timings(engine, rng):
    with Session(engine=engine, zoom=False) as s:
        s.set_image(rng.integers(0, 256, (150, 200, 3), np.uint8))
        assert s.click(50, 40).timings is None
        known = s.click(60, 40, not s.mask[40, 60], profile=True)  # one that agrees is answered without the network
        s.set_image(rng.integers(0, 256, (150, 200, 3), np.uint8))
        fresh = s.click(60, 40, profile=True)
    for result, stages in (
        (known, {"look", "click", "focus", "paint"}),
        (fresh, {"look", "prepare", "click", "focus"}),
    ):
        assert set(result.timings) >= stages
        assert set(result.timings) <= {"look", "prepare", "click", "focus", "refine", "paint"}
        assert all(ms >= 0 for ms in result.timings.values())
        assert sum(result.timings.values()) <= result.elapsed_ms
    assert "prepare" not in known.timings
    assert fresh.timings["click"] > 0
