"""Everything that only a GPU can show, in one command: is it right, how fast is it, what is missed.

    python -m bench.gpu.check --minutes 8                # all steps, what decides first
    python -m bench.gpu.check --only ladder peers        # some of them; --skip leaves some out
    python -m bench.gpu.check --dry-run                  # the same code on the CPU, tiny

The order is that of what matters: the kernels of a click at 384 px beside their references, what a click takes, masks
beside the CPU's, the tests, every other kernel, and then everything that is compared.  Each step is a process of its
own and has a share of the minutes, with what earlier steps left; then it is killed, so none can take the others' time,
nor their device.  On a machine whose caches are empty a step needs some seconds before it measures anything: one that
has fewer left is skipped, so that few minutes give few results and not none.  What a step has measured lies in a file
of the output folder when it ends or is killed; gpu_check.json and gpu_check.txt say after each step how all have gone,
those of earlier calls included, and which targets were met.  The exit status is 1 when a step fails or a measured
target is missed.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from activefreq_engine.files import write_file
from bench.gpu import masks
from bench.gpu.clicks import BOTH
from bench.tools import rows
from bench.tools.machine import Machine
from bench.tools.measurements import Measurement

ROOT = Path(__file__).parents[2]
WORTH_IT = 5
"""Seconds: with less of them left no step begins, unless it says that it needs more."""
NO_DEVICE = ("interpreter", "cuda_sanitizers", "cuda_shim")
"""Tests of the kernels that run on the CPU wherever they are."""


@dataclass(frozen=True)
class CheckStep:
    """A Python module of this checkout and its arguments."""

    name: str
    share: float
    """How much of the time it may take, beside the shares of the other steps."""
    command: str
    """`{seconds}` in it becomes the time that it has, less what it takes to end in order."""
    tool: tuple[str, ...] = ()
    """What it runs under."""
    lacks: str = ""
    """Why it cannot run."""
    least: float = 0
    """Seconds that it needs on a machine whose caches are empty, before its first result."""


@dataclass(frozen=True)
class StepOutcome:
    """How a step went."""

    name: str
    status: str
    """"passed", "failed", or "skipped"."""
    seconds: float
    detail: str
    """The last line of its output; of one that failed, the end of it."""


def steps(out: Path, data: Path | None, mobile_sam: Path | None) -> list[CheckStep]:
    """On the device."""
    to = f"--out {shlex.quote(str(out))}"
    tests = "pytest -v --tb=short --maxfail 9 -p no:cacheprovider --device cuda"  # a killed run names what failed too
    if importlib.util.find_spec("xdist"):  # nothing is timed here, and a compiler runs for every size of a map
        tests += f" -n {min(12, len(os.sched_getaffinity(0)))}"
    parity = " ".join(["tests/kernels", *(f"--ignore tests/kernels/test_{n}.py" for n in NO_DEVICE)])
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    exercise = "tests.cuda_on_host.exercise --atomic-reads --device cuda --batches 6 --side 200"
    no_tool = "" if Path(sanitizer).exists() else "compute-sanitizer is not installed; the CUDA toolkit has it"
    peers = f"bench.peers.run latency {shlex.quote(str(data))} --mobile-sam {shlex.quote(str(mobile_sam))}"
    no_peers = "" if data and mobile_sam else "give --data and --mobile-sam"
    clicks = f"bench.gpu.clicks {to}"
    timings = shlex.quote(f"--benchmark-json={out}/latency_cuda.json")
    return [
        CheckStep("verify", 8, f"bench.gpu.verify {to} --first", least=40),
        CheckStep("clicks", 12, f"{clicks} --only clicks launches suggestions --sequences 8", least=30),
        CheckStep("masks", 6, f"bench.gpu.masks {to} --first", least=30),
        CheckStep("painting", 4, f"bench.gpu.painting {to} --seconds {{seconds}}", least=20),
        CheckStep("sessions", 4, f"{clicks} --only sessions", least=20),
        CheckStep("first clicks", 6, f"{clicks} --only first", least=30),
        CheckStep("click tests", 8, f"{tests} tests/runtime/on_device", least=40),
        CheckStep("kernel tests", 16, f"{tests} {parity}", least=60),
        CheckStep("verify all", 18, f"bench.gpu.verify {to} --seconds {{seconds}}", least=40),
        CheckStep("masks of all sizes", 10, f"bench.gpu.masks {to}", least=30),
        CheckStep("models", 6, f"{clicks} --only models --seconds {{seconds}}", least=20),
        CheckStep("tune", 10, f"bench.gpu.tune {to} --seconds {{seconds}}", least=60),
        CheckStep("compile", 8, "bench.gpu.compile"),
        CheckStep("ops", 10, f"bench.gpu.ops {to} --seconds {{seconds}}", least=20),
        CheckStep("ladder", 8, f"bench.speed.ladder --device cuda {to} --pictures {shlex.quote(str(out))}", least=20),
        CheckStep("peers", 6, f"{peers} --limit 10 --device cuda --skip grabcut {to}", lacks=no_peers),
        *(
            CheckStep(name, 4, exercise, (sanitizer, "--tool", name, "--error-exitcode", "9"), no_tool)
            for name in ("memcheck", "racecheck")
        ),
        CheckStep("compiled", 12, f"{clicks} --only compiled --sequences 6", least=40),
        CheckStep("latency suite", 8, f"pytest -q -p no:cacheprovider --benchmark -k cuda {timings}"),
    ]


def dry_steps(out: Path) -> list[CheckStep]:
    """The same on the CPU, as little as there can be of each; the longest first."""
    shutil.copy(rows.RESULTS / "ladder_cpu.csv", out)
    folder, tests = shlex.quote(str(out)), "pytest -q -p no:cacheprovider"
    others = " ".join(f"--skip {name}" for name in ("activefreq@384", "mobile_sam", "sam_vit_b", "grabcut"))
    suite = f"{tests} --benchmark --benchmark-json={folder}/latency_cuda.json bench/speed/test_region_stats.py -k giant"
    return [
        CheckStep("clicks", 9, f"bench.gpu.clicks --only clicks launches suggestions --dry-run --out {folder}"),
        CheckStep("first clicks", 9, f"bench.gpu.clicks --only first --dry-run --out {folder}"),
        CheckStep("sessions", 9, f"bench.gpu.clicks --only sessions --dry-run --out {folder}"),
        CheckStep("ops", 9, f"bench.gpu.ops --dry-run --out {folder}"),
        CheckStep("compiled", 9, f"bench.gpu.clicks --only compiled --dry-run --out {folder}"),
        CheckStep("compile", 9, "bench.gpu.compile --dry-run"),
        CheckStep("tune", 9, f"bench.gpu.tune --dry-run --out {folder}"),
        CheckStep("models", 9, f"bench.gpu.clicks --only models --dry-run --out {folder}"),
        CheckStep("verify", 9, f"bench.gpu.verify --dry-run --out {folder}"),
        CheckStep("masks", 9, f"bench.gpu.masks --dry-run --out {folder}"),
        CheckStep("painting", 9, f"bench.gpu.painting --dry-run --out {folder}"),
        CheckStep("kernel tests", 9, f"{tests} tests/kernels/test_distance_cuda.py -k fixed_form"),
        CheckStep("click tests", 9, f"{tests} tests/runtime/test_contexts.py -k transfer"),
        CheckStep("memcheck", 9, "tests.cuda_on_host.exercise --atomic-reads --batches 2 --side 20"),
        CheckStep("racecheck", 9, "", lacks="on the CPU it is memcheck"),
        CheckStep("ladder", 9, f"bench.speed.ladder --plot --out {folder} --pictures {folder}"),
        CheckStep(
            "peers", 9, f"bench.peers.run latency {shlex.quote(str(pair(out)))} --limit 1 {others} --out {folder}"
        ),
        CheckStep("latency suite", 9, suite),
    ]


def pair(out: Path) -> Path:
    """A folder with one image and its mask."""
    from PIL import Image

    from bench.tools.scene import scene

    on = scene(90, 120, radius=20)
    for name, pixels in (("images", on.image), ("masks", (on.image[..., 0] < 150) * 255)):
        (out / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(out / "data" / name / "spot.png")
    return out / "data"


_running: set[subprocess.Popen] = set()


def kill(child: subprocess.Popen) -> None:
    """End a process and all that it started, if it still runs."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def interrupted(number: int, frame: object) -> None:
    """What runs must not outlive the check."""
    for child in list(_running):
        kill(child)
    os._exit(128 + number)


def run(step: CheckStep, seconds: float, environment: dict[str, str]) -> StepOutcome:
    """Run a step, for so many seconds at most; then it is killed, and what it started with it."""
    if step.lacks:
        return StepOutcome(step.name, "skipped", 0, step.lacks)
    if seconds < max(WORTH_IT, step.least):
        return StepOutcome(step.name, "skipped", 0, f"no time was left; go on with --only '{step.name}'")
    start = time.monotonic()
    command = step.command.replace("{seconds}", f"{max(1.0, 0.8 * seconds - 5):.0f}")
    full = [*step.tool, sys.executable, "-m", *shlex.split(command)]
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            full, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        _running.add(child)
        try:
            code: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _running.discard(child)
            kill(child)
        output.seek(0)
        lines = [line.rpartition("\r")[2] for line in output.read().strip().split("\n")]
    took = round(time.monotonic() - start, 1)
    if code == 0:
        return StepOutcome(step.name, "passed", took, lines[-1][:200])
    why = f"killed after {took} s" if code is None else f"exit status {code}"
    failed = [line for line in lines[:-60] if "FAILED" in line or "ERROR" in line][:40]
    return StepOutcome(step.name, "failed", took, "\n".join([*failed, *lines[-60:], f"{why}: {' '.join(full)}"]))


@dataclass(frozen=True)
class CheckTarget:
    """What must be reached, and the worst of all cases; None where none was measured."""

    name: str
    required: str
    worst: float | None
    reached: bool | None

    @classmethod
    def at_least(cls, name: str, limit: float, values: Sequence[float], unit: str = "x") -> "CheckTarget":
        worst = min(values, default=None)
        return cls(name, f">= {limit:g}{unit}", worst, None if worst is None else worst >= limit)

    @classmethod
    def at_most(cls, name: str, limit: float, unit: str, values: Sequence[float]) -> "CheckTarget":
        worst = max(values, default=None)
        return cls(name, f"<= {limit:g}{unit}", worst, None if worst is None else worst <= limit)


def op_targets(measured: Sequence[Measurement]) -> list[CheckTarget]:
    """The speeds that the kernels were written for."""
    times = {(r.op, r.case, r.batch, r.implementation, r.graph): r.median_us for r in measured if not r.note}

    def ratios(slow: tuple[str, bool], op: str) -> list[tuple[Measurement, float]]:
        """How many times faster ours in a graph is than `slow`, for each case that has both."""
        ours = [r for r in measured if r.op == op and r.implementation == "ours" and r.graph and not r.note]
        pairs = [(r, times.get((r.op, r.case, r.batch, *slow))) for r in ours]
        return [(r, other / r.median_us) for r, other in pairs if other is not None]

    def small(row: Measurement) -> bool:
        return int(row.case.rsplit("x", 1)[1]) <= 64

    eager = [ratio for row, ratio in ratios(("torch.fft", False), "freq_module") if small(row)]
    graphed = [ratio for row, ratio in ratios(("torch.fft", True), "freq_module") if small(row)]
    ours = [r for r in measured if r.implementation == "ours" and r.graph and not r.note]
    host = [ratio for row, ratio in ratios(("cv2 on the host", False), "region_stats") if row.batch == 1]
    over_floor = [r.median_us / r.floor_us for r in ours if r.op == "freq_module" and r.batch == 8]
    regions = [r.median_us for r in ours if r.op == "region_stats" and r.batch == 1]
    return [
        CheckTarget.at_least("freq_module faster than torch.fft eager, maps up to 64", 3, eager),
        CheckTarget.at_least("freq_module faster than torch.fft in a graph, maps up to 64", 1, graphed),
        CheckTarget.at_most("freq_module over its floor, batch 8", 2, "x", over_floor),
        CheckTarget.at_least("region_stats faster than the host", 20, host),
        CheckTarget.at_most("region_stats in a graph", 30, " us", regions),
    ]


def click_targets(ways: Sequence[dict], models: Sequence[dict], peers: Sequence[dict]) -> list[CheckTarget]:
    """The speeds of a click; rows of clicks.csv, models.csv and latency.csv."""

    def number(row: dict, column: str) -> list[float]:
        return [float(row[column])] if row[column] else []

    def p50(found: Sequence[dict], **wanted: str) -> list[float]:
        return [v for row in found if wanted.items() <= row.items() for v in number(row, "p50_ms")]

    ours = [row for row in ways if row["rung"] == "ours"]
    click, decoder = p50(ways, rung="ours"), p50(peers, method="mobile_sam", call="decoder")

    def faster(than: Sequence[float]) -> list[float]:
        return [t / c for t in than for c in click]

    return [
        CheckTarget.at_most("click to mask, B0 at 384 px, p50", 0.6, " ms", click),
        CheckTarget.at_most("the same, p99", 1, " ms", [v for row in ours for v in number(row, "p99_ms")]),
        CheckTarget.at_least("click faster than the plain modules", 25, faster(p50(ways, rung="plain modules"))),
        CheckTarget.at_least("click faster than torch.compile", 5, faster(p50(ways, rung="torch.compile"))),
        CheckTarget.at_least("click faster than MobileSAM's decoder", 1, faster(decoder)),
        CheckTarget.at_most(
            "B3 at 384 px, the engine's click", 0.8, " ms",
            p50(models, model="freqformer_b3", size="384", batch="1", call="next click"),
        ),
    ]  # fmt: skip


def device_targets(
    launches: Sequence[dict],
    models: Sequence[dict],
    suggestions: Sequence[dict],
    ways: Sequence[dict],
    sessions: Sequence[dict],
) -> list[CheckTarget]:
    """What a click and its suggestions cost on the device; rows of the files of these names, and of clicks.csv."""
    ours = [row for row in launches if row["size"] == "384"]
    count, busy = ([sum(float(row[k]) for row in ours)] if ours else [] for k in ("per_click", "us_per_click"))
    b0 = {"model": "freqformer_b0", "size": "384", "batch": "1", "call": "next click"}
    alone = [float(row["p50_ms"]) for row in models if b0.items() <= row.items() and row["p50_ms"]]
    times = {row["rung"]: float(row["p50_ms"]) for row in ways if row["p50_ms"]}
    fused = (
        [times["ours without fused kernels"] / times["ours"]]
        if {"ours", "ours without fused kernels"} <= set(times)
        else []
    )
    wrong = [float(bool(row["note"])) for row in suggestions]
    both = [float(row["p50_ms"]) for row in suggestions if row["where"] == BOTH and not row["note"]]
    per_s = [float(row["per_s"]) for row in sessions]
    return [
        CheckTarget.at_most("launches and copies of a click", 50, "", count),
        CheckTarget.at_most("time of a click on the device", 150, " us", busy),
        CheckTarget.at_most("the engine's click alone, B0 at 384 px", 0.3, " ms", alone),
        CheckTarget.at_least("fused kernels faster than the plan's layers", 1, fused),
        CheckTarget.at_most("suggestions that differ from the host's", 0, "", [max(wrong)] if wrong else []),
        CheckTarget.at_most("click and suggestions", 0.9, " ms", both),
        CheckTarget.at_least("clicks of many sessions", 6000, [max(per_s)] if per_s else [], " a second"),
    ]


def read_ops(file: Path) -> list[Measurement]:
    """The rows of ops.csv."""
    kinds: dict[str, Any] = {"batch": int, "graph": lambda text: text == "True"}
    kinds |= dict.fromkeys(("op", "case", "implementation", "note"), str)

    def value(name: str, text: str) -> Any:
        return kinds[name](text) if name in kinds else float(text or "nan")

    return [Measurement(**{f.name: value(f.name, row[f.name]) for f in fields(Measurement)}) for row in table(file)]


def limit(step: CheckStep, planned: Sequence[CheckStep], left: float) -> float:
    """Seconds that a step may take when so many are left for it and all that come after it in `planned`.

    Each of them has its share then: nobody's time is taken, and what is not used is passed on.  But each has what it
    needs at least, the first ones first where that is too much for all.
    """
    coming = [s for s in planned[planned.index(step) :] if not s.lacks]
    if not coming:
        return 0.0
    share = left * step.share / sum(s.share for s in coming)
    kept = sum(max(WORTH_IT, s.least) for s in coming[1:])
    return max(min(step.least, left), min(share, left - kept))


def table(file: Path) -> list[dict[str, str]]:
    return rows.read(file) if file.exists() else []


def mask_targets(measured: Sequence[dict]) -> list[CheckTarget]:
    """Rows of masks.csv; one without an error is a shape that gave none, and none is right then."""
    found: list[CheckTarget] = []
    for precision, most in masks.LIMITS.items():
        mine = [row for row in measured if row["precision"] == precision]
        errors = [float(row["error"] or "inf") for row in mine]
        found.append(CheckTarget.at_most(f"masks in {precision} differ from the CPU's in float32", most, "", errors))
    return found


def kernel_targets(measured: Sequence[dict]) -> list[CheckTarget]:
    """Rows of verify.csv."""
    wrong = [float(row["ok"] != "True") for row in measured]
    return [CheckTarget.at_most("kernels that are wrong", 0, "", [sum(wrong)] if wrong else [])]


def painting_targets(measured: Sequence[dict]) -> list[CheckTarget]:
    """Rows of painting.csv."""
    wrong = [float(bool(row["wrong"])) for row in measured]
    name = "regions whose mask differs from the host's in a bit"
    return [CheckTarget.at_most(name, 0, "", [sum(wrong)] if wrong else [])]


def targets(out: Path) -> list[CheckTarget]:
    """All targets, judged by what the folder holds."""
    clicks, models, peers, kernels, shapes, launches, suggestions, painted, sessions = (
        table(out / f"{name}.csv")
        for name in (
            "clicks",
            "models",
            "latency",
            "verify",
            "masks",
            "launches",
            "suggestions",
            "painting",
            "sessions",
        )
    )
    right = kernel_targets(kernels) + mask_targets(shapes) + painting_targets(painted)
    on_device = device_targets(launches, models, suggestions, clicks, sessions)
    return right + click_targets(clicks, models, peers) + on_device + op_targets(read_ops(out / "ops.csv"))


def record(out: Path, outcomes: Sequence[StepOutcome], machine: Machine) -> None:
    """Write gpu_check.json; steps of earlier calls stay in it unless they have run again."""
    file = out / "gpu_check.json"
    known = json.loads(file.read_text())["steps"] if file.exists() else []
    mine = {o.name: asdict(o) for o in outcomes}
    kept = {s["name"]: s for s in known} | {n: o for n, o in mine.items() if o["status"] != "skipped"}
    summary = {
        "machine": machine.describe(),
        "steps": list((mine | kept).values()),
        "targets": [asdict(t) for t in targets(out)],
    }
    write_file(file, (json.dumps(summary, indent=2) + "\n").encode())
    write_file(out / "gpu_check.txt", report(summary).encode())


def report(summary: dict[str, Any]) -> str:
    """What gpu_check.json says, for people."""
    lines = [f"{name}: {value}" for name, value in summary["machine"].items()]
    lines += ["", *(f"{s['status']:8s}{s['name']} ({s['seconds']} s) {s['detail'].strip()}" for s in summary["steps"])]
    lines += ["", *(describe(CheckTarget(**target)) for target in summary["targets"])]
    return "\n".join(lines) + "\n"


def describe(target: CheckTarget) -> str:
    """One line."""
    reached = {True: "reached", False: "MISSED", None: "not measured"}[target.reached]
    worst = "-" if target.worst is None else f"{target.worst:.3g}"
    return f"{reached:14s}{target.name}: {worst}, required {target.required}"


def chosen(planned: Sequence[CheckStep], only: Sequence[str], skip: Sequence[str]) -> list[CheckStep]:
    """SystemExit where a name is unknown."""
    names = [s.name for s in planned]
    for name in (*only, *skip):
        if name not in names:
            raise SystemExit(f"error: there is no step {name!r}; there are {', '.join(names)}")
    return [s for s in planned if (not only or s.name in only) and s.name not in skip]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny; times mean nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="these steps")
    parser.add_argument("--skip", nargs="+", default=[], metavar="STEP", help="all but these steps")
    parser.add_argument("--minutes", type=float, default=9, help="for all together; each step has a share")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of what is written")
    parser.add_argument("--data", type=Path, help="folder of images with masks, for the peers")
    parser.add_argument("--mobile-sam", type=Path, help="MobileSAM's weights, for the peers")
    arguments = parser.parse_args()
    out, dry, end = arguments.out.resolve(), arguments.dry_run, time.monotonic() + 60 * arguments.minutes
    out.mkdir(parents=True, exist_ok=True)
    if not dry and not torch.cuda.is_available():
        sys.exit("error: torch sees no CUDA device; --dry-run checks this script on the CPU")
    machine = Machine("cpu" if dry else "cuda")
    given = (path and path.resolve() for path in (arguments.data, arguments.mobile_sam))
    planned = dry_steps(out) if dry else steps(out, *given)
    wanted = chosen(planned, arguments.only, arguments.skip)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": "1"}
    outcomes: list[StepOutcome] = []

    def one(step: CheckStep) -> None:
        left = end - time.monotonic()
        outcome = run(step, left if dry else limit(step, wanted, left), environment)
        outcomes.append(outcome)
        print(f"{outcome.status:8s}{outcome.name} ({outcome.seconds} s) {outcome.detail.strip()}", flush=True)
        if not dry:
            record(out, outcomes, machine)

    # on a device one at a time, as they are timed
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if dry else 1) as pool:
        list(pool.map(one, wanted))
    record(out, outcomes, machine)
    verdict = targets(out)
    for target in () if dry else verdict:  # times of a dry run mean nothing
        print(describe(target))
    for outcome in outcomes:
        print(f"{outcome.status:14s}{outcome.name}")
    missed = not dry and any(target.reached is False for target in verdict)
    sys.exit(1 if missed or any(o.status == "failed" for o in outcomes) else 0)


if __name__ == "__main__":
    main()
