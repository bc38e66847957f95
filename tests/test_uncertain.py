"""Regions found on a device: the same suggestions as the host's, in one piece of work that waits once.

The CUDA sources run on the host (`tests.cuda_on_host`); with --device cuda the same tests run on the GPU.
"""

import importlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from activefreq_engine.kernels import dispatch
from activefreq_engine.kernels.uncertain import uncertain_regions

from activefreq_engine import Engine, InvalidArgumentError, Session
from activefreq_engine.acselect import AcSelect
from activefreq_engine.runtime import engine
from activefreq_engine.runtime.graphs import regions
from activefreq_engine.runtime.graphs.contexts import Contexts
from activefreq_engine.runtime.graphs.regions import RegionContext
from activefreq_engine.runtime.levels import Stretched
from activefreq_engine.session.zoom import neighbours
from tests import cuda_on_host
from tests.runtime.runners import Eager, FakeGraphs

TOLERANCE = 4e-6  # of scores: the device adds entropies up in units of 2^-20


@pytest.fixture
def host(device, monkeypatch) -> Iterator[cuda_on_host.Host]:
    """Lets operators run by the cupy implementations, on the host where there is no GPU."""
    if device.type == "cuda":
        pytest.importorskip("cupy")
        yield cuda_on_host.Host()
    elif cuda_on_host.GPP is None:
        pytest.skip("g++ is not installed")
    else:
        for op in ("region_stats_fixed", "inscribed_points_fixed"):
            registered = dispatch._registry[op]
            anywhere = replace(registered["cupy"], devices=("cpu",), verify=lambda *_, **__: (True, ""), trial=None)
            monkeypatch.setitem(registered, "cupy", anywhere)
        importlib.import_module("torch._dynamo")  # what is imported while it is installed is forgotten, Triton too
        with cuda_on_host.installed() as installed:
            yield installed


@pytest.fixture
def small(monkeypatch):
    """A grid that the host's imitation of a device fills soon."""
    monkeypatch.setattr(regions, "SUGGESTION_SIDE", 64)
    monkeypatch.setattr(engine, "SUGGESTION_SIDE", 64)
    monkeypatch.setattr(regions, "CAPACITY", 64)


def smooth(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Probabilities with regions of many sizes; the levels of a network."""
    import cv2

    coarse = rng.normal(0, 4, (-(-h // 7), -(-w // 7))).astype(np.float32)
    logits = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    return (np.round(65535 / (1 + np.exp(-logits))) / 65535).astype(np.float32)


def same(got, expected) -> None:
    """In the same order, but for those whose scores are as good as equal."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert abs(a.score - b.score) <= TOLERANCE
    for a, b in zip(*(sorted(found, key=lambda s: (s.x, s.y)) for found in (got, expected)), strict=True):
        for name in ("x", "y", "positive", "region_bbox", "area"):
            assert getattr(a, name) == getattr(b, name), name
        for name in ("score", "mpe", "ape", "rgu"):
            assert abs(getattr(a, name) - getattr(b, name)) <= TOLERANCE, name


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rgu", ["entropy_share", "mean_prob"])
def test_the_same_suggestions_as_the_host(host, rgu, rng):
    runner = FakeGraphs()
    context = RegionContext(runner, stretched=False, backend="cupy")
    selector, seen = AcSelect(rgu=rgu, min_area=4), 0

    def find(*arguments):
        with runner.active(), torch.inference_mode():
            return context(*arguments)

    for h, w in ((61, 43), (17, 64), (1, 1)):
        probs, before, valid = smooth(rng, h, w), smooth(rng, h, w), rng.random((h, w)) < 0.97
        for previous in (None, before):
            got = selector.suggest_by(find, probs, previous, valid, k=500)
            same(got, selector.suggest(probs, previous, k=500, valid=valid))
            seen += len(got)
    assert seen
    assert (runner.captures, runner.replays, runner.waits) == (1, 6, 6)


@pytest.mark.usefixtures("small")
def test_more_regions_than_there_is_room_for_are_looked_at_by_the_host(host, rng):
    probs = np.where(np.add.outer(np.arange(40), np.arange(60)) % 4 == 0, 0.5, 0.0).astype(np.float32)
    probs[::3] = 0
    runner = FakeGraphs()
    context, valid = RegionContext(runner, stretched=False, backend="cupy"), np.ones(probs.shape, bool)
    selector = AcSelect(min_area=1, min_radius=0)

    def find(*arguments):
        with runner.active(), torch.inference_mode():
            return context(*arguments)

    assert find(probs, None, valid, (0.49, 0.9, 0.4))[:, 0, 0].max() > 64
    same(selector.suggest_by(find, probs, None, valid, 500), selector.suggest(probs, k=500, valid=valid))


def stretched(values: np.ndarray, h: int, w: int) -> Stretched:
    """Levels on a grid of h x w."""
    places = (neighbours((np.arange(n) + 0.5) * (m / n) - 0.5, m) for n, m in zip((h, w), values.shape, strict=True))
    return Stretched(np.round(values * 65535).astype(np.uint16), *places)


@pytest.mark.usefixtures("small")
def test_levels_give_the_same_table_as_the_probabilities_interpolated_from_them(host, rng):
    """Bit by bit, also where the last call left other levels, and for two steps whose levels have different shapes."""
    runner = FakeGraphs()
    of_levels, of_floats = (RegionContext(runner, stretched=kind, backend="cupy") for kind in (True, False))
    seen = 0
    for (h, w), shape, older in (
        ((64, 50), (48, 40), (20, 33)),
        ((23, 64), (9, 17), (1, 64)),
        ((5, 7), (5, 1), (1, 1)),
    ):
        now, before = stretched(smooth(rng, *shape), h, w), stretched(smooth(rng, *older), h, w)
        valid = rng.random((h, w)) < 0.97
        for previous in (None, before):
            floats = None if previous is None else np.asarray(previous)
            with runner.active(), torch.inference_mode():
                got = of_levels(now, previous, valid, (0.49, 0.9, 0.4))
                expected = of_floats(np.asarray(now), floats, valid, (0.49, 0.9, 0.4))
            assert np.array_equal(got, expected)
            assert got.shape[1] == 1 + got[:, 0, 0].max()
            seen += got[:, 0, 0].sum()
    assert seen


@pytest.mark.usefixtures("small")
def test_levels_that_are_in_place_are_not_sent_again(host, rng, monkeypatch):
    """After a click the present levels are those of the step before; both may have the same."""
    runner = FakeGraphs()
    of_levels, of_floats = (RegionContext(runner, stretched=kind, backend="cupy") for kind in (True, False))
    sent = []
    fill = of_levels.levels._fill
    monkeypatch.setattr(of_levels.levels, "_fill", lambda slot, levels: (sent.append(levels), fill(slot, levels)))
    a, b, c, d = (stretched(smooth(rng, 32, 48), 64, 50) for _ in range(4))
    e = stretched(smooth(rng, 17, 40), 64, 50)
    valid = np.ones((64, 50), np.bool_)
    for now, before, new in (
        (a, None, [a]),
        (b, a, [b]),
        (c, b, [c]),
        (b, a, [a]),  # undone
        (b, b, []),
        (d, e, [d, e]),
        (d, None, []),
        (e, d, []),
    ):
        sent.clear()
        with runner.active(), torch.inference_mode():
            got = of_levels(now, before, valid, (0.49, 0.9, 0.4))
            expected = of_floats(*(s and np.asarray(s) for s in (now, before)), valid, (0.49, 0.9, 0.4))
        assert np.array_equal(got, expected)
        assert {id(levels) for levels in sent} == {id(s.levels) for s in new}


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_a_device_interpolates_as_the_host_does(device, rng, default):
    """All levels there are, and places at the ends and in between, whatever floats the program around works with."""
    runner, before = Eager(device), torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        context = RegionContext(runner, stretched=True, backend="reference" if device.type == "cpu" else "auto")
    finally:
        torch.set_default_dtype(before)
    for values in (np.arange(65536), rng.permutation(65536)):
        for rows in (values[:32768], values[32768:]):
            now = stretched(rows.reshape(128, 256) / 65535, 512, 400)
            assert np.array_equal(now.levels, rows.reshape(128, 256))
            with runner.active(), torch.inference_mode():
                context(now, None, np.zeros((512, 400), np.bool_), (0.49, 0.9, 0.4))
                found = context.levels.interpolated()[0, :512, :400].cpu().numpy()
            assert np.array_equal(found, np.asarray(now))


def test_the_table_is_that_of_the_reference(host, device, rng):
    """Without a host that waits: on a GPU this raises where it does."""
    probs, before = (torch.from_numpy(smooth(rng, 37, 53)) for _ in range(2))
    valid, rules = (
        torch.from_numpy(rng.random((37, 53)) < 0.9),
        torch.tensor([0.49, 0.9, 0.4, 1.0], dtype=torch.float64),
    )
    expected = uncertain_regions(probs, before, valid, rules, capacity=40, backend="reference")
    got = uncertain_regions(*(t.to(device) for t in (probs, before, valid, rules)), capacity=40, backend="cupy").cpu()
    assert expected[:, 0, 0].min() > 0
    assert (got - expected).abs().max() <= 2e-6
    probs[3, 4] = float("nan")
    assert uncertain_regions(probs, before, valid, rules, capacity=4, backend="reference")[0, 0, 1] == 1


def test_numbers_that_are_no_probabilities_are_an_error():
    def find(*_):
        table = np.zeros((2, 5, 13))
        table[:, 0, 1] = 1
        return table

    with pytest.raises(InvalidArgumentError, match=r"in 0\.\.1"):
        AcSelect().suggest_by(find, np.full((4, 4), 2, np.float32), None, np.ones((4, 4), bool))


@pytest.mark.usefixtures("small")
def test_a_session_asks_the_engine(host, rng, monkeypatch):
    """On a device `Session.suggest` takes the engine's table; its answer is the host's."""
    engine = Engine("freqformer_b0", device="cpu", precision="fp32")
    whole = np.ones((5, 7), bool)
    assert engine.uncertain_regions(np.zeros((5, 7), np.float32), None, whole, (0.49, 0.9, 0.4)) is None
    engine._executor = Contexts(engine._executor.model, FakeGraphs())
    with Session(engine=engine, acselect=AcSelect(min_area=1, min_radius=0)) as session:
        session.set_image(rng.integers(0, 256, (47, 61, 3), np.uint8))
        session.click(40, 30)
        got = session.suggest(500)
        assert engine._regions.made.keys() == {False}
        monkeypatch.setattr(engine, "uncertain_regions", lambda *_: None)
        same(got, session.suggest(500))


def test_a_session_sends_levels_where_the_grid_is_finer(rng, monkeypatch):
    """And suggests the same, bit by bit, as with the probabilities that the host interpolates from them."""
    engine = Engine("freqformer_b0", device="cpu", precision="fp32")
    engine._executor = Contexts(engine._executor.model, Eager(torch.device("cpu")))
    asked, holding = [], engine._executor.holding
    monkeypatch.setattr(engine._executor, "holding", lambda levels: asked.append(holding(levels)) or asked[-1])
    with Session(engine=engine, acselect=AcSelect(min_area=1, min_radius=0), refine=False, zoom=False) as session:
        session.set_image(rng.integers(0, 256, (470, 610, 3), np.uint8))
        for x in (400, 150):
            session.click(x, 300)
            got = session.suggest(500)
            assert got
            assert engine._regions.made.keys() == {True}
            with monkeypatch.context() as patch:
                find = RegionContext(Eager(torch.device("cpu")), stretched=False)
                patch.setattr(engine, "uncertain_regions", lambda *given, find=find: find(*given))
                assert session.suggest(500) == got
                patch.setattr(engine, "uncertain_regions", lambda *_: None)
                same(got, session.suggest(500))
        assert [there is not None for there in asked] == [True, True]  # an answer is on the device until the next click
        with Session(engine=engine, refine=False, zoom=False) as other:
            other.set_image(np.zeros((470, 610, 3), np.uint8))
            other.click(9, 9)
        engine._regions = None
        assert session.suggest(500) == got
        assert [there is not None for there in asked] == [True, True, False, False]
