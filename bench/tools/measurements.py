"""What has been measured: rows of times, none without a right output."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from activefreq_engine.kernels.verification import poison

from bench.tools.machine import Machine, MachineLimits, Run, tensors

OURS = ("ours", "public op")
"""Implementations whose failure fails the run; where a competitor fails, there is merely no comparison."""


PATIENCE = 10.0
"""Seconds that a competitor may take for one case, its check and its times together."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """TimeoutError in the block after so many seconds; in the main thread only.  None sets no limit.

    It is raised between two steps of Python, so one call that never returns is not ended by it.
    """

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Measurement:
    """One measurement.  `note` says why there is no time; empty if there is one."""

    op: str
    case: str
    batch: int
    implementation: str
    graph: bool
    median_us: float = float("nan")
    lower_us: float = float("nan")
    upper_us: float = float("nan")
    error: float = float("nan")
    floor_us: float = float("nan")
    gb_per_s: float = float("nan")
    tflop_per_s: float = float("nan")
    note: str = ""


@dataclass
class Check:
    """One run."""

    machine: Machine
    dry: bool
    deadline: float
    """A time of `time.monotonic`; what has not begun by then is skipped."""
    limits: MachineLimits
    rows: list[Measurement] = field(default_factory=list)
    slow: set[tuple[str, str]] = field(default_factory=set)
    """Competitors (op, name) that took too long once: they are not asked again."""

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def compare(
        self,
        op: str,
        case: str,
        batch: int,
        runs: dict[str, Run],
        check: Callable[[Any], float],
        *,
        moved: float,
        flops: float = 0,
        nodes: int = 1,
        not_captured: tuple[str, ...] = (),
    ) -> None:
        """Check and time each of `runs`, eagerly and, unless it waits for the host, in a graph.

        `check` takes an output, raises AssertionError where it is wrong and returns its error.
        """
        floor = self.limits.floor_us(moved, flops, nodes)
        for name, run in runs.items():
            for graph in (False, True):
                if graph and name in not_captured:
                    continue
                row: dict[str, Any] = {"op": op, "case": case, "batch": batch, "implementation": name}
                row |= {"graph": graph, "floor_us": floor}
                if self.late():
                    self.rows.append(Measurement(**row, note="skipped: no time was left"))
                    continue
                if (op, name) in self.slow:
                    self.rows.append(Measurement(**row, note="skipped: too slow in an earlier case"))
                    continue
                try:
                    with time_limit(None if name in OURS else PATIENCE):
                        again, out = self.machine.graph(run) if graph else (run, run())
                        if graph:
                            poison(*tensors(out))  # a graph that recorded nothing is found out
                            again()
                        self.machine.wait()
                        error = check(out)
                        t = self.machine.measure(again)
                except Exception as problem:
                    if isinstance(problem, TimeoutError):
                        self.slow.add((op, name))
                    self.rows.append(Measurement(**row, note=f"failed: {type(problem).__name__}: {str(problem)[:300]}"))
                    continue
                self.rows.append(
                    Measurement(
                        **row,
                        median_us=t.median,
                        lower_us=t.lower,
                        upper_us=t.upper,
                        error=error,
                        gb_per_s=moved / t.median / 1e3,
                        tflop_per_s=flops / t.median / 1e6,
                    )
                )

    def failures(self) -> list[str]:
        ours = [r for r in self.rows if r.implementation in OURS and r.note.startswith("failed")]
        return [f"{r.op} {r.case} {r.implementation}: {r.note}" for r in ours]
