"""Timing several things on the CPU side by side, and what the CPU is called."""

import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

from bench.tools.machine import Run, Times


def side_by_side(runs: dict[str, Run], samples: int = 30, turn: int = 1) -> dict[str, Times]:
    """Median and quartiles of each run's microseconds.  They take turns, so that a busy moment hits all of them.

    Args:
        runs: what to time, by name.
        samples: of each.
        turn: calls in a row.  With thread pools of several libraries take several: the first call of a turn, which
            meets the threads of the one before while they still spin, then does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    skipped = 1 if turn > 1 else 0
    for _ in range(1 + -(-samples // (turn - skipped))):
        for name, run in runs.items():
            for i in range(turn):
                start = time.perf_counter()
                run()
                if i >= skipped:
                    times[name].append(1e6 * (time.perf_counter() - start))
    warm_up = turn - skipped
    quartiles = {name: statistics.quantiles(t[warm_up:], n=4, method="inclusive") for name, t in times.items()}
    return {name: Times(median, lower, upper) for name, (lower, median, upper) in quartiles.items()}


def describe(*packages: str) -> str:
    """Processor and versions in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        name = facts.get("model name", name) + f" (family {facts.get('cpu family')}, model {facts.get('model')})"
        name += "".join(
            f" {flag}" for flag in ("avx2", "avx512f", "avx512_bf16") if flag in facts.get("flags", "").split()
        )
    return ", ".join([name, f"Python {platform.python_version()}", *(f"{p} {metadata.version(p)}" for p in packages)])
