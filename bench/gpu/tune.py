"""Which split and how many warps are best for each fused kernel of a click, on this device.

    python -m bench.gpu.tune --seconds 240   # writes tune.csv to bench/results/cuda
    python -m bench.gpu.tune --dry-run       # on the CPU, in Triton's interpreter, one kernel

For each kernel that a click of the default model runs, and each way to launch it: it is compiled, by many processes at
a time, compared with its reference, and timed as one of many launches in a CUDA graph; a way that is wrong or cannot
be launched has no time.  The present way and the three fastest are timed again (`again`), and that decides.  What is
launched more than once in a click counts that often in the sum that is printed.  Before a winner is taken over, the
compile gate must accept it: `python -m bench.gates.triton_kernels --check`.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from activefreq_engine.kernels.triton_support import KernelCall
from tqdm import tqdm

from activefreq_engine import create_model
from activefreq_engine.runtime.plan import Folded
from activefreq_engine.runtime.plan.fused import OPS
from bench.gpu.ops import interpret
from bench.tools import rows
from bench.tools.clicking import NETWORK, SIZE
from bench.tools.machine import Machine

WARPS = (1, 2, 4, 8, 16)
CHAIN = 20
"""Launches in a graph: what begins and ends it then counts little."""


@dataclass(frozen=True)
class Way:
    """A kernel on tensors of these sizes, launched in one way."""

    op: str
    arguments: str
    """As `FusedOp.form` describes them, JSON."""
    size: str
    splits: int
    warps: int
    present: bool
    times: int
    """How often a click launches the kernel on such tensors."""

    def call(self, args: list[Any]) -> KernelCall:
        return replace(OPS[self.op].kernel_call(*self.given(args)), num_warps=self.warps)

    def given(self, args: list[Any]) -> list[Any]:
        """The op's arguments with this split."""
        names = OPS[self.op].names
        return [self.splits if name == "splits" else value for name, value in zip(names, args, strict=True)]

    def row(self) -> dict[str, Any]:
        """What tells it from all others; its times are to come."""
        shape = {"op": self.op, "size": self.size, "splits": self.splits, "warps": self.warps}
        key = f"{self.op} {self.size} /{self.splits} {self.warps} warps"
        return {"key": key, **shape, "present": self.present, "times": self.times, "us": math.nan, "again": math.nan}

    def drawn(self, device: torch.device) -> list[Any]:
        drawn = OPS[self.op].drawn(json.loads(self.arguments), torch.Generator().manual_seed(0))
        return [a.to(device) if isinstance(a, torch.Tensor) else a for a in drawn]


def ways(side: int) -> list[Way]:
    """What can be launched at all: splits that the op's own limits allow."""
    fused = Folded(create_model(NETWORK), "cpu", "fp16").fuse()
    assert fused is not None
    calls = [(name, OPS[name], args) for name, args in fused.calls(side, side)]
    often = Counter((name, json.dumps(op.form(*args).arguments["arguments"])) for name, op, args in calls)
    found: dict[tuple[str, str, int, int], Way] = {}
    for name, op, args in calls:
        described, size = json.dumps(op.form(*args).arguments["arguments"]), op.form(*args).size
        now = args[op.names.index("splits")] if "splits" in op.names else 1
        warps = op.kernel_call(*args).num_warps
        for splits in sorted({max(1, now // 2), now, 2 * now, 4 * now}) if "splits" in op.names else [1]:
            trial = Way(name, described, size, splits, warps, False, often[name, described])
            if not OPS[name].limits(*trial.given(list(args))):
                for w in WARPS:
                    present = (splits, w) == (now, warps)
                    found[name, described, splits, w] = replace(trial, warps=w, present=present)
    return list(found.values())


def compiled(way: Way, kind: str) -> str:
    """Compile a way, run it once and compare; returns what is wrong with it.  In a process of its own."""
    torch.set_num_threads(1)
    op, device = OPS[way.op], torch.device(kind)
    original = op.kernel_call
    try:
        args = way.given(way.drawn(device))
        op.kernel_call = lambda *a, out=None: replace(original(*a, out=out), num_warps=way.warps)  # type: ignore[method-assign]
        wrong = [p for p in op.compare(args) if not p.ok]
        return f"its error in {wrong[0].name} is {wrong[0].error:.2g}" if wrong else ""
    except Exception as error:  # whatever a compiler or a driver raises: this way cannot be launched
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
    finally:
        op.kernel_call = original  # type: ignore[method-assign]


def tried(wanted: list[Way], kind: str, workers: int) -> Iterator[tuple[Way, str]]:
    """Ways with what is wrong with them, as they are compiled; what is launched now comes first."""
    wanted = sorted(wanted, key=lambda way: not way.present)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        waiting = {pool.submit(compiled, way, kind): way for way in wanted}
        for done in tqdm(as_completed(waiting), total=len(waiting), desc="compile", unit="kernel"):
            problem = done.exception()  # an illegal memory access has ended the process, and with it the pool
            yield waiting[done], "its process ended" if problem else done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def launched(way: Way, machine: Machine, launches: int = CHAIN) -> float:
    """Microseconds of one launch within a graph of many, on inputs that are in the device's cache, as in a click."""
    call = way.call(way.drawn(machine.device))

    def chain() -> None:
        for _ in range(launches):
            call.run()

    return machine.measure(machine.graph(chain)[0], seconds=0.05).median / launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, one kernel; times mean nothing")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of tune.csv")
    parser.add_argument("--seconds", type=float, default=240, help="two thirds of them for compiling")
    parser.add_argument("--only", nargs="+", choices=sorted(OPS), default=sorted(OPS), help="these kernels")
    arguments = parser.parse_args()
    dry, end = arguments.dry_run, time.monotonic() + arguments.seconds
    if dry:
        interpret()
    wanted = [way for way in ways(32 if dry else SIZE) if way.op in arguments.only]
    wanted = [way for way in wanted if way.op == "norm_linear" and way.present][:1] if dry else wanted
    machine, kind = Machine("cpu" if dry else "cuda"), "cpu" if dry else "cuda"
    about = machine.describe()
    found: list[dict[str, Any]] = []
    ready: list[tuple[Way, str]] = []
    for way, wrong in tried(wanted, kind, 1 if dry else min(14, len(os.sched_getaffinity(0)))):
        ready.append((way, wrong))
        if time.monotonic() > end - arguments.seconds / 3:
            break
    launches = 1 if dry else CHAIN
    for way, wrong in tqdm(ready, desc="time", unit="kernel"):
        if time.monotonic() > end - arguments.seconds / 10:
            break
        found.append({**way.row(), "us": math.nan if wrong else launched(way, machine, launches), "note": wrong})
        rows.write(arguments.out / "tune.csv", found, about, replace="key")
    ways_of = {way.row()["key"]: way for way, _ in ready}
    for row in tqdm(finalists(found), desc="again", unit="kernel"):
        if time.monotonic() < end:
            row["again"] = launched(ways_of[row["key"]], machine, launches)
    rows.write(arguments.out / "tune.csv", found, about, replace="key")
    report(found)


def by_kernel(found: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each kernel on tensors of one size that have a time, the fastest first."""
    for op, size in dict.fromkeys((row["op"], row["size"]) for row in found):
        mine = [r for r in found if (r["op"], r["size"]) == (op, size) and not math.isnan(r["us"])]
        yield sorted(mine, key=lambda r: r["us"])


def finalists(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The present way of each kernel and its three fastest: of many noisy times the smallest one flatters."""
    return [row for mine in by_kernel(found) for row in (*mine[:3], *(r for r in mine[3:] if r["present"]))]


def report(found: list[dict[str, Any]]) -> None:
    """The best way of each kernel beside the present one, and what a click's kernels take together."""
    total, best_total = 0.0, 0.0
    for mine in by_kernel([row for row in found if not math.isnan(row["again"])]):
        present, best = next((r for r in mine if r["present"]), None), min(mine, key=lambda r: r["again"])
        name = f"{best['op']} {best['size']}"
        if present is None:
            print(f"{name}: how it is launched now has no time")
            continue
        total, best_total = total + present["times"] * present["again"], best_total + best["times"] * best["again"]
        was, now = (f"/{r['splits']} {r['warps']} warps {r['again']:.1f} us" for r in (present, best))
        print(f"{present['times']} x {name}: {was}; best {now}")
    print(f"all of a click: {total:.0f} us; the best ways {best_total:.0f} us")


if __name__ == "__main__":
    main()
