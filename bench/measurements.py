"""What a run has measured: rows of times, none without a right output, and steps that passed or failed."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.machine import Limits, Machine, Run, tensors

OURS = ("ours", "public op")
"""Implementations whose failure fails the run; where a competitor fails, there is merely no comparison."""


@dataclass(frozen=True)
class Row:
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
class Step:
    """What was done, how it ended ("passed", "failed" or "skipped"), and what there is to say."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""


@dataclass
class Check:
    """One run."""

    machine: Machine
    dry: bool
    deadline: float
    """Of `time.monotonic`; what has not begun by then is skipped."""
    rows: list[Row] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    limits: Limits | None = None

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def at_most(self, seconds: float) -> float:
        """`seconds`, or what is left of them."""
        return max(1.0, min(seconds, self.deadline - time.monotonic()))

    def step(self, name: str, run: Callable[[], str]) -> None:
        """Run one step; what it raises fails the step and is recorded, and the next one begins."""
        start = time.monotonic()
        if self.late():
            self.steps.append(Step(name, "skipped", 0.0, "no time was left; raise --minutes"))
            return
        try:
            self.steps.append(Step(name, "passed", 0.0, run()))
        except Skipped as reason:
            self.steps.append(Step(name, "skipped", 0.0, str(reason)))
        except Exception:
            self.steps.append(Step(name, "failed", 0.0, traceback.format_exc()))
        self.steps[-1].seconds = round(time.monotonic() - start, 1)
        print(f"{self.steps[-1].status:8s} {name} ({self.steps[-1].seconds} s)", flush=True)

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
        assert self.limits is not None
        floor = self.limits.floor_us(moved, flops, nodes)
        for name, run in runs.items():
            for graph in (False, True):
                if graph and name in not_captured:
                    continue
                row: dict[str, Any] = {"op": op, "case": case, "batch": batch, "implementation": name}
                row |= {"graph": graph, "floor_us": floor}
                if self.late():
                    self.rows.append(Row(**row, note="skipped: no time was left"))
                    continue
                try:
                    again, out = self.machine.graph(run) if graph else (run, run())
                    if graph:
                        poison(out)
                        again()
                    self.machine.wait()
                    error = check(out)
                    t = self.machine.measure(again)
                except Exception as problem:
                    self.rows.append(Row(**row, note=f"failed: {type(problem).__name__}: {str(problem)[:300]}"))
                    continue
                self.rows.append(
                    Row(
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
        failed = [f"{s.name}: {s.detail.strip().splitlines()[-1]}" for s in self.steps if s.status == "failed"]
        ours = [r for r in self.rows if r.implementation in OURS and r.note.startswith("failed")]
        return failed + [f"{r.op} {r.case} {r.implementation}: {r.note}" for r in ours]


class Skipped(Exception):  # noqa: N818
    """A step cannot run here; the message says why."""


def poison(out: Any) -> None:
    """Overwrite what a graph returned, so that a graph that recorded nothing is found out."""
    for tensor in tensors(out):
        tensor.fill_(1)
