"""The GPU check runs on a machine without one, so that it does not fail on the day for a silly reason."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from activefreq_engine.kernels import triton_support
from activefreq_engine.kernels.mask_bits import mask_bits
from activefreq_engine.kernels.verification import poison

from bench.gpu import check as gpu_check
from bench.gpu import painting
from bench.gpu.check import CheckStep, StepOutcome, chosen, click_targets, op_targets, read_ops
from bench.gpu.clicks import BOTH
from bench.tools import measurements, rows
from bench.tools.machine import Machine, MachineLimits, commit, tensors
from bench.tools.measurements import Check, Measurement
from tests import cuda_on_host

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1]),
    pytest.mark.skipif(cuda_on_host.GPP is None, reason="g++ is not installed"),
]


def dry_run(out, *arguments):
    command = [sys.executable, "-m", "bench.gpu.check", "--dry-run", "--out", str(out), "--minutes", "60", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    print(done.stdout, done.stderr)
    assert done.returncode == 0


def test_a_dry_run_of_what_is_quick(tmp_path):
    dry_run(tmp_path, "--only", "models", "compile", "painting", "racecheck")
    assert {row["wrong"] for row in rows.read(tmp_path / "painting.csv")} == {""}
    assert {row["call"] for row in rows.read(tmp_path / "models.csv")} == {"next click", "refine"}
    summary = json.loads((tmp_path / "gpu_check.json").read_text())
    expected = {"models": "passed", "compile": "passed", "painting": "passed", "racecheck": "skipped"}
    assert {s["name"]: s["status"] for s in summary["steps"]} == expected
    assert "1 kernels" in (tmp_path / "gpu_check.txt").read_text(encoding="utf-8")


def test_every_step_is_a_module_that_imports(tmp_path):
    names = {s.command.split()[0] for s in gpu_check.steps(tmp_path, None, None)}
    assert len(names) > 8
    for name in names:
        assert callable(importlib.import_module(name).main)


@pytest.mark.slow
def test_the_dry_run_does_it_all(tmp_path):
    dry_run(tmp_path)
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
    rungs = ["plain modules", "ours", "ours painted on the host", "ours without fused kernels", "torch.compile"]
    assert sorted(row["rung"] for row in clicks) == sorted(rungs)
    assert all(float(row["p50_ms"]) > 0 and row["device"] and row["commit"] for row in clicks)
    assert {row["call"] for row in rows.read(tmp_path / "models.csv")} == {"next click", "refine"}
    assert len(rows.read(tmp_path / "launches.csv")) > 10
    suggested = rows.read(tmp_path / "suggestions.csv")
    assert [(row["where"], row["note"]) for row in suggested] == [("device", ""), ("host", ""), (BOTH, "")]
    assert [row["sessions"] for row in rows.read(tmp_path / "sessions.csv")] == ["1", "2"]
    assert len(rows.read(tmp_path / "first.csv")) == 1
    assert len(rows.read(tmp_path / "painting.csv")) == 8
    assert {row["method"] for row in rows.read(tmp_path / "latency.csv")} == {"activefreq"}
    assert json.loads((tmp_path / "latency_cuda.json").read_text())["benchmarks"]
    masks = rows.read(tmp_path / "masks.csv")
    assert [(row["precision"], row["height"], row["width"], row["note"]) for row in masks] == [
        ("fp32", "256", "32", "")
    ]
    assert float(masks[0]["error"]) == 0, "the CPU and itself"
    assert all(row["ok"] == "True" for row in rows.read(tmp_path / "verify.csv"))
    summary = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {s["name"]: s["status"] for s in summary["steps"]} == {
        s.name: "skipped" if s.name == "racecheck" else "passed" for s in gpu_check.dry_steps(tmp_path)
    }
    assert len(summary["targets"]) == 22
    text = (tmp_path / "gpu_check.txt").read_text()
    assert all(f"{s['status']:8s}{s['name']}" in text for s in summary["steps"])


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
    (tmp_path / "fails.py").write_text(
        "print('FAILED first', *range(99), sep='\\n'); print('reason'); raise SystemExit(3)"
    )
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
    assert outcomes[0].detail.startswith("FAILED first\n"), "tests that failed long before a run was killed"
    assert [o.detail for o in outcomes[1:]] == ["a b c", "no time was left; go on with --only 'late'", "no data"]


def test_steps_of_earlier_calls_are_kept_until_they_run_again(tmp_path):
    machine = Machine("cpu")
    gpu_check.record(tmp_path, [StepOutcome("a", "passed", 1, "old"), StepOutcome("b", "failed", 1, "old")], machine)
    gpu_check.record(tmp_path, [StepOutcome("a", "skipped", 0, "late"), StepOutcome("b", "passed", 2, "new")], machine)
    found = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert [(s["name"], s["status"], s["detail"]) for s in found] == [("a", "passed", "old"), ("b", "passed", "new")]


def test_each_step_has_its_share_and_what_others_left(tmp_path):
    planned = [
        CheckStep("a", 3, ""),
        CheckStep("b", 2, "", lacks="no data"),
        CheckStep("c", 1, ""),
        CheckStep("d", 2, ""),
    ]
    a, _, c, d = planned
    assert gpu_check.limit(a, planned, 60) == 30, "nothing is kept for a step that cannot run"
    assert gpu_check.limit(c, planned, 30) == 10, "the first one took all it had"
    assert gpu_check.limit(c, planned, 58) == pytest.approx(58 / 3), "the first one left most of it"
    assert gpu_check.limit(d, planned, 20) == 20
    assert gpu_check.limit(planned[1], [planned[1]], 20) == 0


def test_what_decides_comes_first(tmp_path):
    names = [s.name for s in gpu_check.steps(tmp_path, None, None)]
    assert names[:4] == ["verify", "clicks", "masks", "painting"]
    left, taken = 540.0, {}
    for step in (planned := [s for s in gpu_check.steps(tmp_path, Path("data"), Path("weights")) if not s.lacks]):
        taken[step.name] = gpu_check.limit(step, planned, left)
        left -= taken[step.name]
        assert taken[step.name] >= max(gpu_check.WORTH_IT, step.least), "in nine minutes every step has its turn"
    assert left == pytest.approx(0)


def test_few_minutes_go_to_what_comes_first():
    planned = [CheckStep("a", 1, "", least=40), CheckStep("b", 9, "", least=60), CheckStep("c", 9, "")]
    a, b, c = planned
    assert gpu_check.limit(a, planned, 110) == 40, "its share would be 6, with which it could do nothing"
    assert gpu_check.limit(b, planned, 70) == 60
    assert gpu_check.limit(c, planned, 10) == 10
    assert gpu_check.limit(a, planned, 30) == 30
    assert gpu_check.run(a, 30, {}).status == "skipped"


def test_the_file_is_written_after_every_step_and_a_step_that_overruns_takes_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "WORTH_IT", 0)
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "Machine", lambda device: Machine("cpu"))
    out = tmp_path / "out"
    for name, text in {
        "crash": "import os; os.abort()",
        "hang": "import time; time.sleep(600)",
        "after": f"print(open({str(out / 'gpu_check.txt')!r}).read().count('failed  '), *__import__('sys').argv[1:])",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    planned = [
        CheckStep("crash", 2, "crash"),
        CheckStep("hang", 1, "hang"),
        CheckStep("after", 2, "after --seconds {seconds}"),
    ]
    monkeypatch.setattr(gpu_check, "steps", lambda *folders: planned)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["check", "--out", str(out), "--minutes", "0.5"])
    with pytest.raises(SystemExit) as end:
        gpu_check.main()
    assert end.value.code == 1
    crash, hang, after = json.loads((out / "gpu_check.json").read_text())["steps"]
    assert (crash["status"], hang["status"], after["status"]) == ("failed", "failed", "passed")
    assert "exit status -6" in crash["detail"]
    assert hang["seconds"] < 15
    failed, _, seconds = after["detail"].split()
    assert (failed, int(seconds) < 20) == ("2", True)


def test_targets_of_what_must_be_right():
    kernels = [{"ok": "True"}, {"ok": "True"}]
    masks = [{"precision": p, "error": e} for p, e in (("fp16", "1e-3"), ("fp16", "1.9e-3"), ("fp32", "2e-4"))]
    assert [t.reached for t in gpu_check.kernel_targets(kernels) + gpu_check.mask_targets(masks)] == [True] * 3
    masks[1]["error"], masks[2]["error"] = "0.4", ""  # wrong, and NaN or an exception
    assert [t.reached for t in gpu_check.kernel_targets([*kernels, {"ok": "False"}])] == [False]
    assert [t.reached for t in gpu_check.mask_targets(masks)] == [False, False]
    assert [t.reached for t in gpu_check.kernel_targets([]) + gpu_check.mask_targets([])] == [None] * 3


def test_a_slow_competitor_is_stopped_and_not_asked_again(monkeypatch):
    monkeypatch.setattr(measurements, "PATIENCE", 0.3)
    made, calls = check(), []

    def endless():
        calls.append(1)
        while True:
            time.sleep(0.01)

    runs = {"theirs": endless, "ours": lambda: time.sleep(0.4)}
    for case in ("first", "second"):
        made.compare("op", case, 1, runs, lambda out: 0.0, moved=1, not_captured=("ours",))
    notes = [row.note for row in made.rows if row.implementation == "theirs"]
    assert notes[0] == "failed: TimeoutError: it took longer than 0.3 s"
    assert notes[1:] == ["skipped: too slow in an earlier case"] * 3
    assert len(calls) == 1
    ours = [row for row in made.rows if row.implementation == "ours"]
    assert all(not row.note and row.median_us > 3e5 for row in ours), "ours has no limit"
    assert made.failures() == []


def test_what_is_slow_is_called_less_often(monkeypatch):
    made, calls = Machine("cpu"), []
    made.gpu = True
    monkeypatch.setattr(made, "wait", lambda: None)
    monkeypatch.setattr(made, "_sample", lambda run, batch: [run() for _ in range(batch)] and 1.0)
    made.measure(lambda: calls.append(1))
    assert len(calls) == 1 + 5 + 50 * 10
    calls.clear()
    made.measure(lambda: (calls.append(1), time.sleep(0.05)), seconds=0.5)
    assert 4 <= len(calls) <= 12


def test_the_commit_is_that_of_the_checkout_itself(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "other")
    copy = tmp_path / "copy"
    copy.mkdir()
    assert commit(copy) == "unknown", "a copy inside of another repository"
    assert len(commit(tmp_path)) == 12


def test_steps_are_chosen_by_name(tmp_path):
    planned = gpu_check.steps(tmp_path, None, None)
    assert [s.name for s in chosen(planned, ["ops", "ladder"], [])] == ["ops", "ladder"]
    assert "ops" not in [s.name for s in chosen(planned, [], ["ops"])]
    with pytest.raises(SystemExit, match="no step 'lader'"):
        chosen(planned, ["lader"], [])


def check(seconds=60.0):
    return Check(
        Machine("cpu"), True, time.monotonic() + seconds, MachineLimits(node_us=2, bytes_per_us=100, flops_per_us=1000)
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
    limits = MachineLimits(node_us=2, bytes_per_us=100, flops_per_us=1000)
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


@pytest.mark.parametrize(("ours", "reached"), [(0.25, True), (2.5, False)])
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
    outputs = [torch.zeros(3), torch.zeros(2, dtype=torch.bool)]
    poison(*tensors(tuple(outputs)))
    poison(*tensors(single := torch.zeros(2)))
    assert all(bool((t != 0).all()) for t in (*outputs, single))


def test_a_painted_bit_that_differs_is_told(monkeypatch):
    case = "cpu", (32, 64), (50, 90), 0
    assert painting.differing(*case) == ""

    def flipped(levels, asked, bits, found):
        mask_bits(levels, asked, bits, found)
        bits[0, 3] ^= 1

    monkeypatch.setattr(painting, "mask_bits", flipped)
    assert painting.differing(*case) == "1 of 4500 pixels in round 0 from row 0"
