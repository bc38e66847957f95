"""The GPU check runs on a machine without one, so that it does not fail on the day for a silly reason."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from activefreq_engine.kernels import triton_support

from bench.gpu_check import targets
from bench.machine import Limits, Machine
from bench.measurements import Check, Row, poison
from tests import cuda_on_host

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1]),
    pytest.mark.skipif(cuda_on_host.GPP is None, reason="g++ is not installed"),
]


def test_the_dry_run_does_it_all(tmp_path):
    command = [sys.executable, "-m", "bench.gpu_check", "--dry-run", "--out", str(tmp_path), "--minutes", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    with (tmp_path / "gpu_check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row for row in rows if row["note"]] == []
    seen = {(row["op"], row["implementation"], row["graph"]) for row in rows}
    expected = {
        "region_stats": ({"ours"}, {"ours", "public op", "cv2 on the host", "cupyx.scipy.ndimage"}),
        "distance_transform": ({"ours"}, {"ours", "cv2 on the host"}),
        "click_maps": ({"ours"}, {"ours", "torch"}),
        "mask_output": ({"ours", "torch"}, {"ours", "torch"}),
        "freq_module": ({"ours", "torch.fft", "torch.compile"},) * 2,
        "freq_module_residual": ({"ours", "ours, then add"},) * 2,
    }
    assert seen == {
        (op, name, str(graph))
        for op, (captured, eager) in expected.items()
        for graph, names in ((True, captured), (False, eager))
        for name in names
    }
    assert all(float(row["median_us"]) > 0 and row["device"] and row["commit"] for row in rows)
    summary = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {step["status"] for step in summary["steps"]} == {"passed"}
    assert [step["name"] for step in summary["steps"]][-3:] == ["clicks on the device", "memcheck", "racecheck"]
    assert len(summary["targets"]) == 5
    assert summary["failures"] == []


def check(seconds=60.0):
    made = Check(Machine("cpu"), True, time.monotonic() + seconds)
    made.limits = Limits(node_us=2, bytes_per_us=100, flops_per_us=1000)
    return made


def test_what_is_wrong_gets_no_time():
    made = check()

    def right(out):
        if out != 4:
            raise AssertionError("not 4")
        return 0.0

    runs = {"ours": lambda: 5, "other": lambda: 4}
    made.compare("op", "case", 1, runs, right, moved=1, not_captured=("ours", "other"))
    assert [(row.implementation, row.note) for row in made.rows] == [
        ("ours", "failed: AssertionError: not 4"),
        ("other", ""),
    ]
    assert made.rows[0].median_us != made.rows[0].median_us
    assert made.failures() == ["op case ours: failed: AssertionError: not 4"]


def test_what_comes_too_late_is_said_to_be_skipped():
    made = check(-1)
    made.compare("op", "case", 1, {"ours": lambda: 1}, float, moved=1)
    made.step("a step", lambda: "done")
    assert [row.note for row in made.rows] == ["skipped: no time was left"] * 2
    assert [step.status for step in made.steps] == ["skipped"]


def test_a_step_that_raises_fails_and_the_next_one_runs():
    made = check()
    made.step("bad", lambda: {}["missing"])
    made.step("good", lambda: "done")
    assert [(step.name, step.status) for step in made.steps] == [("bad", "failed"), ("good", "passed")]
    assert made.failures() == ["bad: KeyError: 'missing'"]


def test_floors():
    limits = Limits(node_us=2, bytes_per_us=100, flops_per_us=1000)
    assert limits.floor_us(100) == 2
    assert limits.floor_us(1000, 3000) == 10
    assert limits.floor_us(100, 30000, nodes=6) == 30
    assert limits.floor_us(100, 0, nodes=6) == 12


@pytest.mark.parametrize(("ours", "reached"), [(10.0, True), (40.0, False)])
def test_targets(ours, reached):
    rows = [
        Row("freq_module", "B0 64x32x32", 8, "ours", True, median_us=ours, floor_us=6),
        Row("freq_module", "B0 64x32x32", 8, "torch.fft", False, median_us=100),
        Row("freq_module", "B0 64x32x32", 8, "torch.fft", True, median_us=30),
        Row("freq_module", "B0 32x112x112", 1, "ours", True, median_us=50),
        Row("freq_module", "B0 32x112x112", 1, "torch.fft", False, median_us=60),
        Row("region_stats", "blobs", 1, "ours", True, median_us=ours),
        Row("region_stats", "blobs", 1, "cv2 on the host", False, median_us=600),
        Row("region_stats", "noise", 1, "ours", True, note="failed: wrong"),
    ]
    verdict = targets(rows)
    expected = [100 / ours, 30 / ours, ours / 6, 600 / ours, ours]
    assert [target.worst for target in verdict] == pytest.approx(expected)
    assert [target.reached for target in verdict] == [reached] * 5
    assert [target.reached for target in targets([])] == [None] * 5


def test_poison_reaches_every_output():
    tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.bool)]
    poison(tuple(tensors))
    poison(single := torch.zeros(2))
    assert all(bool(t.all()) for t in (*tensors, single))
