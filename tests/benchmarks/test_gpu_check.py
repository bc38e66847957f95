"""The GPU check runs on a machine without one, so that it does not fail on the day for a silly reason."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from activefreq_engine.kernels import triton_support

from bench.gpu import check as gpu_check
from bench.gpu.check import CheckStep, Outcome, chosen, click_targets, op_targets, read_ops
from bench.tools import rows
from bench.tools.machine import Limits, Machine
from bench.tools.measurements import Check, Measurement, poison
from tests import cuda_on_host

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1]),
    pytest.mark.skipif(cuda_on_host.GPP is None, reason="g++ is not installed"),
]


def test_the_dry_run_does_it_all(tmp_path):
    command = [sys.executable, "-m", "bench.gpu.check", "--dry-run", "--out", str(tmp_path), "--minutes", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    seen = {(row.op, row.implementation, row.graph) for row in read_ops(tmp_path / "ops.csv")}
    expected = {
        "region_stats": ({"ours"}, {"ours", "public op", "cv2 on the host", "cupyx.scipy.ndimage"}),
        "distance_transform": ({"ours"}, {"ours", "cv2 on the host"}),
        "click_maps": ({"ours"}, {"ours", "torch"}),
        "mask_output": ({"ours", "torch"}, {"ours", "torch"}),
        "freq_module": ({"ours", "torch.fft", "torch.compile"},) * 2,
        "freq_module_residual": ({"ours", "ours, then add"},) * 2,
    }
    assert seen == {
        (op, name, graph)
        for op, (captured, eager) in expected.items()
        for graph, names in ((True, captured), (False, eager))
        for name in names
    }
    assert all(r.median_us > 0 and not r.note for r in read_ops(tmp_path / "ops.csv"))
    clicks = rows.read(tmp_path / "clicks.csv")
    assert [row["rung"] for row in clicks] == ["plain modules", "torch.compile", "ours"]
    assert all(float(row["p50_ms"]) > 0 and row["device"] and row["commit"] for row in clicks)
    assert {row["call"] for row in rows.read(tmp_path / "models.csv")} == {"next click", "refine"}
    assert len(rows.read(tmp_path / "launches.csv")) > 10
    assert {row["method"] for row in rows.read(tmp_path / "latency.csv")} == {"activefreq"}
    assert json.loads((tmp_path / "latency_cuda.json").read_text())["benchmarks"]
    summary = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {s["name"]: s["status"] for s in summary["steps"]} == {
        s.name: "skipped" if s.name == "racecheck" else "passed" for s in gpu_check.steps(tmp_path, None, None)
    }
    assert len(summary["targets"]) == 11


def test_what_hangs_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "WORTH_IT", 0)
    note = tmp_path / "pid"
    (tmp_path / "hang.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"print('begun'); open({str(note)!r}, 'w').write(str(child.pid)); sys.stdout.flush(); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    outcome = gpu_check.run(CheckStep("hang", 4, "hang"), 4, environment)
    assert (outcome.name, outcome.status) == ("hang", "failed")
    assert "begun" in outcome.detail
    assert "killed after" in outcome.detail
    state = Path(f"/proc/{note.read_text()}/stat")
    for _ in range(100):  # until it is gone, or waits for somebody to ask how it ended
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("what it started still runs")


def test_how_a_step_went(tmp_path):
    (tmp_path / "fails.py").write_text("print('reason'); raise SystemExit(3)")
    (tmp_path / "works.py").write_text("import sys; print('first'); print('a bar\\ra', *sys.argv[1:])")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    outcomes = [
        gpu_check.run(step, seconds, environment)
        for step, seconds in (
            (CheckStep("fails", 60, "fails"), 60),
            (CheckStep("works", 60, "works 'b c'"), 60),
            (CheckStep("late", 60, "works"), 1),
            (CheckStep("lacks", 60, "works", lacks="no data"), 60),
        )
    ]
    assert [o.status for o in outcomes] == ["failed", "passed", "skipped", "skipped"]
    assert "reason\nexit status 3" in outcomes[0].detail
    assert [o.detail for o in outcomes[1:]] == ["a b c", "no time was left; go on with --only 'late'", "no data"]


def test_steps_of_earlier_calls_are_kept_until_they_run_again(tmp_path):
    machine = Machine("cpu")
    gpu_check.record(tmp_path, [Outcome("a", "passed", 1, "old"), Outcome("b", "failed", 1, "old")], machine)
    gpu_check.record(tmp_path, [Outcome("a", "skipped", 0, "late"), Outcome("b", "passed", 2, "new")], machine)
    found = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert [(s["name"], s["status"], s["detail"]) for s in found] == [("a", "passed", "old"), ("b", "passed", "new")]


def test_steps_are_chosen_by_name(tmp_path):
    planned = gpu_check.steps(tmp_path, None, None)
    assert [s.name for s in chosen(planned, ["ops", "ladder"], [])] == ["ops", "ladder"]
    assert "ops" not in [s.name for s in chosen(planned, [], ["ops"])]
    with pytest.raises(SystemExit, match="no step 'lader'"):
        chosen(planned, ["lader"], [])


def check(seconds=60.0):
    return Check(
        Machine("cpu"), True, time.monotonic() + seconds, Limits(node_us=2, bytes_per_us=100, flops_per_us=1000)
    )


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
    assert [row.note for row in made.rows] == ["skipped: no time was left"] * 2


def test_floors():
    limits = Limits(node_us=2, bytes_per_us=100, flops_per_us=1000)
    assert limits.floor_us(100) == 2
    assert limits.floor_us(1000, 3000) == 10
    assert limits.floor_us(100, 30000, nodes=6) == 30
    assert limits.floor_us(100, 0, nodes=6) == 12


@pytest.mark.parametrize(("ours", "reached"), [(10.0, True), (40.0, False)])
def test_targets_of_the_ops(ours, reached):
    measured = [
        Measurement("freq_module", "B0 64x32x32", 8, "ours", True, median_us=ours, floor_us=6),
        Measurement("freq_module", "B0 64x32x32", 8, "torch.fft", False, median_us=100),
        Measurement("freq_module", "B0 64x32x32", 8, "torch.fft", True, median_us=30),
        Measurement("freq_module", "B0 32x112x112", 1, "ours", True, median_us=50),
        Measurement("freq_module", "B0 32x112x112", 1, "torch.fft", False, median_us=60),
        Measurement("region_stats", "blobs", 1, "ours", True, median_us=ours),
        Measurement("region_stats", "blobs", 1, "cv2 on the host", False, median_us=600),
        Measurement("region_stats", "noise", 1, "ours", True, note="failed: wrong"),
    ]
    verdict = op_targets(measured)
    expected = [100 / ours, 30 / ours, ours / 6, 600 / ours, ours]
    assert [target.worst for target in verdict] == pytest.approx(expected)
    assert [target.reached for target in verdict] == [reached] * 5
    assert [target.reached for target in op_targets([])] == [None] * 5


@pytest.mark.parametrize(("ours", "reached"), [(0.9, True), (2.5, False)])
def test_targets_of_a_click(ours, reached):
    def ways(**p50: float) -> list[dict[str, str]]:
        return [{"rung": name.replace("_", " "), "p50_ms": str(t), "p99_ms": str(2 * t)} for name, t in p50.items()]

    found = [*ways(ours=ours, plain_modules=20), {"rung": "torch.compile", "p50_ms": "2", "p99_ms": ""}]
    models = [
        {"model": name, "size": size, "batch": "1", "call": "next click", "p50_ms": str(t)}
        for name, size, t in (
            ("freqformer_b3", "384", 3 * ours),
            ("freqformer_b3", "512", 9),
            ("freqformer_b0", "384", 9),
        )
    ]
    peers = [
        {"method": "mobile_sam", "call": call, "p50_ms": t} for call, t in (("decoder", "2.4"), ("set_image", "1"))
    ]
    verdict = click_targets(found, models, peers)
    expected = [ours, 2 * ours, 20 / ours, 2 / ours, 2.4 / ours, 3 * ours]
    assert [target.worst for target in verdict] == pytest.approx(expected)
    assert [target.reached for target in verdict] == [reached] * 6
    wrong = [{"rung": "ours", "p50_ms": "", "p99_ms": ""}]  # where masks differ there is no time
    assert [target.reached for target in click_targets(wrong, [], [])] == [None] * 6


def test_poison_reaches_every_output():
    tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.bool)]
    poison(tuple(tensors))
    poison(single := torch.zeros(2))
    assert all(bool(t.all()) for t in (*tensors, single))
