"""Image features are computed once for each region and kept within a limit of memory."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from activefreq_engine import Engine, Session
from activefreq_engine.runtime.plan.plan import PrepareModule
from activefreq_engine.session.features import SHARED, Budget, FeatureCache

from .modules import random_model


def features(kilobytes):
    """A tuple of two tensors."""
    return torch.zeros(kilobytes * 128), torch.zeros(kilobytes * 128)


def boxes(cache):
    return [box[0] for box in cache]


def test_the_least_recently_used_make_room():
    budget = Budget(limit=4096)
    cache = FeatureCache(budget)
    for i in range(4):
        cache.keep((i, 0, 9, 9), features(1))
    assert boxes(cache) == [0, 1, 2, 3]
    assert budget.nbytes == 4096
    assert cache.get((1, 0, 9, 9)) is not None
    cache.keep((4, 0, 9, 9), features(2))
    assert boxes(cache) == [3, 1, 4]
    assert cache.get((0, 0, 9, 9)) is None
    cache.keep((3, 0, 9, 9), features(1))  # known: neither twice in memory nor forgotten
    assert boxes(cache) == [1, 4, 3]


def test_the_latest_stays_however_large():
    cache = FeatureCache(Budget(limit=4096))
    cache.keep((0, 0, 9, 9), features(1))
    cache.keep((1, 0, 9, 9), features(9))
    assert boxes(cache) == [1]


def test_pictures_make_room_for_each_other():
    budget = Budget(limit=4096)
    first, second, third = (FeatureCache(budget) for _ in range(3))
    first.keep((0, 0, 9, 9), features(1))
    second.keep((0, 0, 9, 9), features(1))
    first.keep((1, 0, 9, 9), features(1))
    assert first.get((0, 0, 9, 9)) is not second.get((0, 0, 9, 9))  # the same box of another picture
    third.keep((5, 0, 9, 9), features(2))
    assert (boxes(first), boxes(second), boxes(third)) == ([0], [0], [5])
    third.keep((6, 0, 9, 9), features(4))
    assert (boxes(first), boxes(second), boxes(third)) == ([], [], [6])
    del third
    assert budget.nbytes == 0


def test_each_device_has_its_own_limit(monkeypatch):
    """What is kept on a CUDA device takes nothing from the host, nor from another device."""
    properties = {0: SimpleNamespace(total_memory=1 << 30), 1: SimpleNamespace(total_memory=16384)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties[device.index])
    budget = Budget(limit=4096, cuda_limit=8192)
    caches = [FeatureCache(budget) for _ in range(3)]
    for cache, device in zip(caches, ("cpu", "cuda:0", "cuda:1"), strict=True):
        for i in range(10):
            cache.keep((i, 0, 9, 9), (SimpleNamespace(nbytes=1024, device=torch.device(device)),))
    assert [len(cache.regions) for cache in caches] == [4, 8, 2]  # the last has an eighth of a small device
    assert boxes(caches[1]) == [*range(2, 10)]
    assert budget.nbytes == 14 * 1024


def test_many_threads_stay_within_the_limit():
    budget = Budget(limit=64 * 1024)

    def work(number):
        for turn in range(60):  # a new picture each time, as sessions come and go
            cache = FeatureCache(budget)
            for i in range(12):
                cache.keep((i, number, 99, 99), (torch.full((128 * (1 + i % 3),), float(number)),))
                found = cache.get((int(i * turn % 12), number, 99, 99))
                assert found is None or bool((found[0] == number).all())
                assert budget.nbytes <= 64 * 1024
        return cache

    with ThreadPoolExecutor(8) as threads:
        kept = list(threads.map(work, range(8)))
    assert 0 < budget.nbytes == sum(k.nbytes for cache in kept for k in cache.regions.values())


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
    engine.get_ready(192, 256)  # as the first image of this shape would have it done
    calls = []
    forward = PrepareModule.forward
    monkeypatch.setattr(PrepareModule, "forward", lambda self, image: calls.append(image.shape) or forward(self, image))
    seen = set()
    with Session(engine=engine) as s:
        # too small for a second look at a first click, which prepares a region that no step may end with
        s.set_image(rng.integers(0, 256, (750, 1000, 3), np.uint8))
        for _ in range(3):
            s.click(int(rng.integers(1000)), int(rng.integers(750)), positive=bool(rng.integers(2)))
            seen.add(s._scene.history.step.roi)
            s.undo()
            s.click(int(rng.integers(1000)), int(rng.integers(750)))
            seen.add(s._scene.history.step.roi)
    assert len(calls) == len(seen)


@pytest.mark.parametrize("end", ["close", "set_image", "dropped"])
def test_features_go_with_their_picture_at_once(engine, end, rng):
    """By references alone: nobody waits for the garbage collector."""
    image = rng.integers(0, 256, (150, 200, 3), np.uint8)
    s = Session(engine=engine)
    s.set_image(image)
    result = s.click(50, 40)
    s.suggest(k=1)
    s.undo()
    s.redo()
    cache = weakref.ref(s._scene.picture.features)
    assert cache() in SHARED.caches
    assert len(cache().regions) == 1
    gc.disable()
    try:
        if end == "close":
            s.close()
        elif end == "set_image":
            s.set_image(image)
        else:
            del s
        assert cache() is None
    finally:
        gc.enable()
    assert result.mask.shape == (150, 200)


def test_what_another_session_drove_out_is_computed_again_the_same(engine, monkeypatch, rng):
    """Two sessions that take turns with room for one region have the bits of sessions with room for all."""
    pictures = [rng.integers(0, 256, (150, 200, 3), np.uint8) for _ in range(2)]
    clicks = [(int(rng.integers(200)), int(rng.integers(150))) for _ in range(4)]

    def masks(budgets):
        sessions = []
        for picture, budget in zip(pictures, budgets, strict=True):
            s = Session(engine=engine)
            s.set_image(picture)
            s._scene.picture.features = FeatureCache(budget)
            sessions.append(s)
        found = []
        for x, y in clicks:
            for s in sessions:
                s.click(x, y, not s.mask[y, x])
                found.append(s.probs)
        return found, sessions

    one = Budget(limit=1)
    (narrow, _kept), (wide, _) = masks([one, one]), masks([Budget(), Budget()])
    assert sum(len(list(cache)) for cache in one.caches) == 1
    for got, expected in zip(narrow, wide, strict=True):
        assert np.array_equal(got, expected)


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
