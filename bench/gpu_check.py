"""Everything that only a GPU can show about the kernels, in one command and under eight minutes.

    python -m bench.gpu_check              # parity, compute-sanitizer, timings; writes bench/results/gpu_check.*
    python -m bench.gpu_check --dry-run    # the same code on the CPU, tiny: interpreter, and the CUDA sources under g++

Each op is compared with its definition and, only where it agrees, timed against its competitors in the same process.
The tests of the kernels run on the device, and memcheck and racecheck on the CUDA kernels.  Two files are written: CSV
rows, one a measurement (appended), and a JSON file with the device, the steps and the targets.  The exit status is 1
when a step fails or a measured target is missed.
"""

import argparse
import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from bench import gpu_ops
from bench.machine import Machine
from bench.measurements import Check, Row, Skipped
from tests import cuda_on_host

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

NO_DEVICE = ("interpreter", "compile_gate", "cuda_gate", "cuda_sanitizers", "cuda_shim", "gpu_check")
"""Tests of the kernels that run on the CPU wherever they are."""


def command(line: str, timeout: float, tool: tuple[str, ...] = (), **environment: str) -> str:
    """Run a Python module of this checkout, under `tool`; its last line.

    RuntimeError, with the end of its output, if it fails or is not done in `timeout` seconds.
    """
    full = [*tool, sys.executable, "-m", *line.split()]
    try:
        done = subprocess.run(
            full, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"not done after {timeout:.0f} s: {' '.join(full)}") from late
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {' '.join(full)}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout.strip().splitlines()[-1]


def parity(check: Check) -> str:
    """The tests of the kernels, with the kernels on the device."""
    if check.dry:
        where = "tests/kernels/test_distance_cuda.py -k fixed_form"
    else:
        where = "tests/kernels --device cuda -x" + "".join(f" --ignore tests/kernels/test_{n}.py" for n in NO_DEVICE)
    seconds = check.at_most(1200 if check.dry else 150)
    return command(f"pytest -q -p no:cacheprovider {where}", seconds, TRITON_INTERPRET="0")


def replayed_clicks(check: Check) -> str:
    """The tests of clicks as CUDA graphs."""
    where = "tests/runtime/test_contexts.py -k parcel" if check.dry else "tests/runtime/on_device --device cuda -x"
    seconds = check.at_most(1200 if check.dry else 150)
    return command(f"pytest -q -p no:cacheprovider {where}", seconds, TRITON_INTERPRET="0")


def sanitizer(check: Check, name: str) -> str:
    """compute-sanitizer's tool `name` on the CUDA kernels.  Any report fails."""
    exercise = "tests.cuda_on_host.exercise --atomic-reads"
    if check.dry:
        return command(f"{exercise} --batches 2 --side 20", check.at_most(1200))
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        raise Skipped("compute-sanitizer is not installed; it is part of the CUDA toolkit")
    tool = (program, "--tool", name, "--error-exitcode", "9")
    return command(f"{exercise} --device cuda --batches 6 --side 200", check.at_most(75), tool)


@dataclass(frozen=True)
class Target:
    """What must be reached, and the worst of all cases; None where none was measured."""

    name: str
    required: str
    worst: float | None
    reached: bool | None


def targets(rows: list[Row]) -> list[Target]:
    """The speeds that the kernels were written for, from what was measured."""
    times = {(r.op, r.case, r.batch, r.implementation, r.graph): r.median_us for r in rows if not r.note}

    def ratios(slow: tuple[str, bool], op: str) -> list[tuple[Row, float]]:
        """How many times faster ours in a graph is than `slow`, for each case that has both."""
        ours = [r for r in rows if r.op == op and r.implementation == "ours" and r.graph and not r.note]
        pairs = [(r, times.get((r.op, r.case, r.batch, *slow))) for r in ours]
        return [(r, other / r.median_us) for r, other in pairs if other is not None]

    def at_least(name: str, limit: float, values: list[float]) -> Target:
        worst = min(values, default=None)
        return Target(name, f">= {limit:g}x", worst, None if worst is None else worst >= limit)

    def at_most(name: str, limit: float, unit: str, values: list[float]) -> Target:
        worst = max(values, default=None)
        return Target(name, f"<= {limit:g}{unit}", worst, None if worst is None else worst <= limit)

    def small(row: Row) -> bool:
        return int(row.case.rsplit("x", 1)[1]) <= 64

    eager = [ratio for row, ratio in ratios(("torch.fft", False), "freq_module") if small(row)]
    graphed = [ratio for row, ratio in ratios(("torch.fft", True), "freq_module") if small(row)]
    ours = [r for r in rows if r.implementation == "ours" and r.graph and not r.note]
    regions_512 = [r.median_us for r in ours if r.op == "region_stats" and r.batch == 1]
    return [
        at_least("freq_module faster than torch.fft eager, maps up to 64", 3, eager),
        at_least("freq_module faster than torch.fft in a graph, maps up to 64", 1, graphed),
        at_most(
            "freq_module over its floor, batch 8", 2, "x",
            [r.median_us / r.floor_us for r in ours if r.op == "freq_module" and r.batch == 8],
        ),
        at_least(
            "region_stats faster than the host", 20,
            [ratio for row, ratio in ratios(("cv2 on the host", False), "region_stats") if row.batch == 1],
        ),
        at_most("region_stats in a graph", 30, " us", regions_512),
    ]  # fmt: skip


def write(check: Check, folder: Path, verdict: list[Target]) -> None:
    """Append the rows to gpu_check.csv and replace gpu_check.json."""
    folder.mkdir(parents=True, exist_ok=True)
    about = check.machine.describe()
    columns = [f.name for f in fields(Row)] + ["device", "torch", "triton", "cuda", "commit", "date"]
    file = folder / "gpu_check.csv"
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        for row in check.rows:
            rounded = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow({**about, **rounded})
    summary = {
        "machine": about,
        "limits": asdict(check.limits) if check.limits else None,
        "steps": [asdict(step) for step in check.steps],
        "targets": [asdict(target) for target in verdict],
        "failures": check.failures(),
    }
    (folder / "gpu_check.json").write_text(json.dumps(summary, indent=2) + "\n")


def report(check: Check, verdict: list[Target]) -> None:
    for row in check.rows:
        what = f"{row.op:18s} {row.case:32s} B{row.batch} {row.implementation:20s} {'graph' if row.graph else 'eager'}"
        print(what, row.note or f"{row.median_us:9.1f} us  floor {row.floor_us:7.1f} us  {row.gb_per_s:7.0f} GB/s")
    for target in verdict:
        reached = {True: "reached", False: "MISSED", None: "not measured"}[target.reached]
        reached = "dry run" if check.dry else reached
        worst = "-" if target.worst is None else f"{target.worst:.3g}"
        print(f"{reached:12s} {target.name}: {worst}, required {target.required}")
    for failure in check.failures():
        print("FAILED", failure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny; times mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of gpu_check.csv and .json")
    parser.add_argument("--minutes", type=float, default=7.5, help="nothing begins later; measurements: 0.6 of it")
    arguments = parser.parse_args()
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        # The interpreter must be chosen before Triton is imported, and it is by now.
        again = [sys.executable, "-m", "bench.gpu_check", *sys.argv[1:]]
        sys.exit(subprocess.run(again, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}).returncode)
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit("error: torch sees no CUDA device; --dry-run checks this script on the CPU")

    machine = Machine("cpu" if arguments.dry_run else "cuda")
    start, seconds = time.monotonic(), 60 * arguments.minutes
    check = Check(machine, arguments.dry_run, start + 0.6 * seconds)
    with cuda_on_host.installed() if check.dry else contextlib.nullcontext():
        check.limits = machine.limits()
        check.step("regions", lambda: gpu_ops.check_regions(check))
        check.step("distance", lambda: gpu_ops.check_distance(check))
        check.step("click maps", lambda: gpu_ops.check_click_maps(check))
        check.step("mask output", lambda: gpu_ops.check_mask_output(check))
        check.step("FreqModule", lambda: gpu_ops.check_freq_module(check))
        check.deadline = start + seconds
        check.step("tests on the device", lambda: parity(check))
        check.step("clicks on the device", lambda: replayed_clicks(check))
        check.step("memcheck", lambda: sanitizer(check, "memcheck"))
        check.step("racecheck", lambda: sanitizer(check, "racecheck"))
    verdict = targets(check.rows)
    write(check, arguments.out, verdict)
    report(check, verdict)
    missed = not check.dry and any(target.reached is False for target in verdict)
    sys.exit(1 if check.failures() or missed else 0)


if __name__ == "__main__":
    main()
