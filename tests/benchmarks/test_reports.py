"""The ladder, the sweeps and the targets: that they say what they measured, and nothing about what is wrong."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from activefreq_engine import Engine, Session
from activefreq_engine.models import FreqFormer, FreqFormerConfig
from bench.speed import floor, ladder, scaling, targets
from bench.speed.targets import Target
from bench.tools import memory, plots, rows
from bench.tools.clicking import SETTLED, ClickTimes, close_in, next_clicks, opened
from bench.tools.scene import scene
from tests.session.fakes import SquareModel


class Shifted(SquareModel):
    """Its squares are larger."""

    def answer(self, image, clicks):
        return super().answer(image, clicks) + 6 * torch.nn.functional.max_pool2d(clicks[:, 1:2], 101, 1, 50)


@dataclass(frozen=True)
class Fake(ladder.Rung):
    """A rung on one of the models above; counts what it computes."""

    model: torch.nn.Module | None = None

    def engine(self, device, size):
        return (Engine if self.cached else ladder.Forgetful)(self.model, device, size=size)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(ladder, "picture", lambda: scene(210, 230, radius=40))
    monkeypatch.setattr(ladder, "CLICKS", 6)


def test_the_ladder_times_rungs_that_agree_and_only_those():
    models = [SquareModel(refine_size=64) for _ in range(2)]
    rungs = [
        Fake("plain", cached=False, model=models[0]),
        Fake("cached", model=models[1]),
        Fake("wrong", model=Shifted(refine_size=64)),
    ]
    plain, cached, wrong = ladder.climb(rungs, "cpu", 256, sequences=1)
    assert plain["clicks"] == cached["clicks"] == ladder.CLICKS - SETTLED
    assert plain["p50_ms"] > 0
    assert cached["faster_than_first"] == pytest.approx(plain["p50_ms"] / cached["p50_ms"])
    assert plain["note"] == cached["note"] == ""
    assert cached["pixels_that_differ"] == 0
    assert "differ" in wrong["note"]
    assert math.isnan(wrong["p50_ms"])
    assert math.isnan(wrong["faster_than_first"])
    assert models[0].count["encode"] == models[0].count["decode"] > 3 * models[1].count["encode"]


def test_the_backend_of_a_rung_is_chosen_for_it_alone(monkeypatch):
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", "auto")
    with ladder.CPU[0].backend_chosen():
        assert ladder.os.environ["ACTIVEFREQ_BACKEND"] == "reference"
    assert ladder.os.environ["ACTIVEFREQ_BACKEND"] == "auto"
    monkeypatch.delenv("ACTIVEFREQ_BACKEND")
    with ladder.CPU[0].backend_chosen():
        pass
    assert "ACTIVEFREQ_BACKEND" not in ladder.os.environ


def test_percentiles_that_few_samples_cannot_tell_are_left_out():
    few, more, many = (ClickTimes.of(range(n)) for n in (19, 20, 100))
    assert (few.n, few.p50) == (19, 9)
    assert math.isnan(few.p95)
    assert not math.isnan(more.p95)
    assert math.isnan(more.p99)
    assert many.p99 == pytest.approx(98.01)


def test_rows_of_the_same_kind_are_replaced_and_others_stay(tmp_path):
    file = tmp_path / "deep" / "rows.csv"
    about = {"device": "one", "commit": "a", "unknown": "x"}
    rows.write(
        file, [{"sweep": "clicks", "p50": 1.23456789}, {"sweep": "objects", "p50": math.nan}], about, replace="sweep"
    )
    rows.write(file, [{"sweep": "clicks", "p50": 2.0, "new": 3}], {**about, "commit": "b"}, replace="sweep")
    assert rows.read(file) == [
        {"sweep": "objects", "p50": "", "new": "", "device": "one", "commit": "a"},
        {"sweep": "clicks", "p50": "2", "new": "3", "device": "one", "commit": "b"},
    ]


def test_targets_are_met_or_missed():
    assert Target("speed", 2.5, least=2.5).met
    missed = Target("speed", 2.49, least=2.5)
    assert not missed.met
    assert str(missed).split() == ["MISSED", "speed:", "2.49,", "required", ">=", "2.5"]
    assert Target("growth", 50, most=50).met
    assert not Target("growth", math.nan, most=50).met


def test_an_object_closed_in_on_has_the_scene_s_mask_and_a_region_of_its_own():
    on = scene(900, 1100, radius=90)
    session = opened(Engine(SquareModel(), "cpu", size=256), on)
    close_in(session, on)
    rows_, columns = np.nonzero(session.mask)
    assert abs(columns.mean() - on.x) < 2
    assert abs(rows_.mean() - on.y) < 2
    assert len(rows_) == pytest.approx(np.pi * 90**2, rel=0.02)
    session.click(on.x + 20, on.y)
    assert session._scene.history.step.roi == (on.x - 126, on.y - 126, on.x + 126, on.y + 126)


def test_clicks_of_other_stages_are_not_compared(monkeypatch):
    monkeypatch.setattr(targets, "engine", lambda device: Engine(SquareModel(refine_size=64), device, size=256))
    monkeypatch.setattr(targets, "shape_of", lambda megapixels: (1203, 1300))
    stages = {False: {"look", "click", "focus", "paint"}, True: {"look", "click", "focus", "refine", "paint"}}

    def profiled(session, on, count, seed):
        return [(5.0, stages[on.radius == 300])] * count

    monkeypatch.setattr(targets, "profiled", profiled)
    assert [t.figure for t in targets.flat_in_megapixels_by_stages(1)] == [1] * 4
    stages[True] = stages[False]
    same, _, wrong, _ = targets.flat_in_megapixels_by_stages(1)
    assert same.met
    assert not wrong.met
    assert "not compared" in str(wrong)


def test_the_floor_counts_multiply_adds_of_a_click():
    with torch.device("meta"):
        model, bare = FreqFormer(), FreqFormer(FreqFormerConfig(refiner_width=0))
    small, large = (floor.click_gmac(model, side, side) for side in (256, 512))
    without = floor.click_gmac(bare, 256, 256)
    assert 0 < without < small < 1
    assert 3.5 < large / small < 4.5  # four times the pixels, but for the refiner's crop
    # the refiner: stem, depth-wise and point-wise twice in each of two places, context, two heads, at 96 x 96
    refiner = (6 * 32 * 9 + 4 * (9 * 32 + 32 * 32) + 128 * 32 + 2 * 32 * 9) * 96 * 96 / 1e9
    assert small - without == pytest.approx(refiner, rel=1e-6)


def test_the_scene_holds_the_object_where_it_says():
    on = scene(300, 410, radius=60, seed=3)
    assert on.image.shape == (300, 410, 3)
    dark = on.image.mean(2) < 115
    rows_, columns = np.nonzero(dark)
    assert abs(columns.mean() - on.x) < 4
    assert abs(rows_.mean() - on.y) < 4
    assert dark.sum() == pytest.approx(np.pi * on.radius**2, rel=0.1)
    assert not np.array_equal(on.image, scene(300, 410, radius=60, seed=4).image)
    assert np.array_equal(scene(40, 50).image, scene(40, 50).image)


class Dark(SquareModel):
    """Its mask is what is dark: the object of a scene."""

    def answer(self, image, clicks):
        return -20 * image.mean(1, keepdim=True)


def test_the_region_settles_after_the_first_clicks():
    """What counts as a next click finds its image features known."""
    model, on = Dark(refine_size=64), scene(1200, 1200, radius=180)
    (times,) = next_clicks([opened(Engine(model), on)], on, 12)
    assert len(times) == 12 - SETTLED
    assert model.count["decode"] == 12
    assert model.count["encode"] == SETTLED


@pytest.mark.skipif(not memory.STATUS.exists(), reason="memory is measured on Linux only")
def test_memory_is_seen():
    before = memory.resident()
    memory.reset_peak(torch.device("cpu"))
    held = np.ones(30_000_000, np.uint8)
    assert memory.resident() - before == pytest.approx(30, abs=3)
    del held
    assert memory.resident() - before < 5
    assert memory.peak() - before > 27


@pytest.fixture
def fast_engine(monkeypatch):
    engine = Engine(SquareModel(refine_size=64), size=256)
    monkeypatch.setattr(scaling, "engine", lambda *args, **kwargs: engine)
    monkeypatch.setattr(scaling, "SIZES", (256,))
    monkeypatch.setattr(scaling, "LONG", 20)
    monkeypatch.setattr(scaling, "MEGAPIXELS", (0.1, 0.3))
    monkeypatch.setattr(scaling, "FIXED_RADIUS", 30)
    monkeypatch.setattr(scaling, "OBJECTS", (1, 2, 4))
    monkeypatch.setattr(scaling, "SESSIONS", (1, 3))
    monkeypatch.setattr(floor, "peak", lambda device, dtype: floor.Peak(100, 10))


@pytest.mark.usefixtures("fast_engine")
@pytest.mark.parametrize("name", scaling.SWEEPS)
def test_every_sweep_can_be_measured_written_and_drawn(name, tmp_path):
    measured = scaling.sweep(name, "cpu", effort=0.01)
    assert measured
    assert all(r["sweep"] == name and r["n"] >= 1 and r["p50_ms"] > 0 for r in measured)
    about = {"device": "a machine", "torch": "2", "commit": "abc"}
    rows.write(tmp_path / "rows.csv", measured, about, replace="sweep")
    plots.scaling(rows.read(tmp_path / "rows.csv"), tmp_path, "cpu")
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_ladder_is_drawn(tmp_path):
    measured = ladder.climb([Fake("one", model=SquareModel()), Fake("two", model=SquareModel())], "cpu", 256, 1)
    rows.write(tmp_path / "rows.csv", measured, {"device": "d", "torch": "2", "commit": "c"}, replace="size")
    plots.ladder(rows.read(tmp_path / "rows.csv"), tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_threads_raise_what_their_clicks_raise():
    session = Session(engine=Engine(SquareModel()))
    session.set_image(np.zeros((50, 60), np.uint8))
    inside = next(scene(50, 60).clicks())
    times, seconds = scaling.at_once([session], [[inside, inside]])
    assert len(times) == 2
    assert sum(times) / 1e3 <= seconds
    with pytest.raises(Exception, match="outside"):
        scaling.at_once([session], [[inside, replace(inside, x=60)]])
