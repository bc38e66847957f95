"""Which ways to launch the fused kernels are tried, and what is said of them."""

import pytest
import torch
from activefreq_engine.kernels import triton_support

from bench.gpu import tune

pytestmark = pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1])


@pytest.fixture(scope="module")
def ways():
    return tune.ways(384)


def test_every_kernel_is_tried_as_it_is_launched_now_and_otherwise(ways):
    kernels = {(way.op, way.arguments) for way in ways}
    present = [way for way in ways if way.present]
    assert {(way.op, way.arguments) for way in present} == kernels
    assert len(present) == len(kernels)
    assert sum(way.times for way in present) == 32  # as tests/runtime/on_device/test_fused_click.py has it
    assert {(way.op, way.arguments) for way in ways if not way.present} == kernels
    assert len(set(ways)) == len(ways)


def test_a_way_is_launched_as_it_says(ways):
    for way in ways:
        args = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in way.drawn(torch.device("meta"))]
        call = way.call(args)
        assert call.num_warps == way.warps
        assert call.arguments.get("SPLITS", way.splits) == way.splits


NAN = float("nan")
ROW = {"op": "attention", "size": "48x48x64", "splits": 1, "warps": 4, "present": True, "times": 2, "us": 7.0}


def test_what_is_wrong_or_cannot_be_launched_does_not_win(capsys):
    others = [{**ROW, "warps": 2, "present": False, "us": NAN}, {**ROW, "warps": 8, "present": False, "us": 5.0}]
    tune.report([{**row, "again": row["us"]} for row in (ROW, *others)])
    said = capsys.readouterr().out
    assert "2 x attention 48x48x64: /1 4 warps 7.0 us; best /1 8 warps 5.0 us" in said
    assert "all of a click: 14 us; the best ways 10 us" in said


def test_the_second_time_decides(capsys):
    flattered = {**ROW, "warps": 8, "present": False, "us": 1.0, "again": 9.0}
    tune.report([{**ROW, "again": 7.0}, flattered, {**ROW, "warps": 2, "present": False, "us": 0.5, "again": NAN}])
    assert "best /1 4 warps 7.0 us" in capsys.readouterr().out


def test_the_fastest_ways_and_the_present_one_are_timed_again():
    found = [{**ROW, "warps": 2**w, "present": w == 0, "us": 9.0 - w} for w in range(5)]
    assert [row["warps"] for row in tune.finalists(found)] == [16, 8, 4, 1]


def test_a_wrong_way_says_so(ways, monkeypatch):
    way = next(way for way in ways if way.op == "norm_linear")
    monkeypatch.setattr(tune.OPS["norm_linear"], "compare", lambda args: [tune_part(1.0)])
    assert tune.compiled(way, "cpu") == "its error in output 0 is 1"
    monkeypatch.setattr(tune.OPS["norm_linear"], "compare", lambda args: [tune_part(0.0)])
    assert tune.compiled(way, "cpu") == ""


def tune_part(error):
    from activefreq_engine.kernels.verification import Part

    return Part("output 0", error, 1e-3)
