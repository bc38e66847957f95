"""The optimisation ladder: the same clicks with one optimisation more at each rung.

    python -m bench.speed.ladder                  # the CPU's rungs; writes bench/results/ladder_cpu.csv and the picture
    python -m bench.speed.ladder --device cuda    # the GPU's
    python -m bench.speed.ladder --plot           # the picture again, from the CSV

Click-to-mask is a whole `Session.click`: from the call to the mask in host memory, refiner included, after the region
has settled on the object.  The rungs take turns at sequences of clicks.  A rung whose masks at their ends differ from
the first rung's has no time.
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from activefreq_engine.kernels.dispatch import ENVIRONMENT_VARIABLE
from tqdm import tqdm

from activefreq_engine import Engine, Session
from activefreq_engine.runtime.cpu import has_bf16
from activefreq_engine.runtime.engine import StepAnswer, StepRequest
from bench.tools import memory, plots, rows
from bench.tools.clicking import NETWORK, SETTLED, ClickTimes, clicks, next_clicks, opened
from bench.tools.machine import Machine
from bench.tools.scene import Spot, scene
from bench.tools.verify import sessions_agree

CLICKS = 20
"""So many clicks has each sequence, on a blank object."""


class Forgetful(Engine):
    """Hands out the crop in the place of image features, so that every click computes them anew."""

    def run(self, requests: Sequence[StepRequest], *rest: Any) -> list[StepAnswer]:
        whole = [r if r.features is None else replace(r, crop=r.features[0].numpy(), features=None) for r in requests]
        answers = super().run(whole, *rest)
        return [replace(a, features=(torch.from_numpy(r.crop),)) for a, r in zip(answers, whole, strict=True)]


@dataclass(frozen=True)
class Rung:
    """One way to run the network."""

    name: str
    plan: bool = True
    cached: bool = True
    precision: str = "fp32"
    backend: str = "reference"
    """Backend of the kernels, see `kernels.dispatch`."""
    graph: bool = False
    """Whether clicks run as CUDA graphs, on a GPU."""

    @contextmanager
    def backend_chosen(self) -> Iterator[None]:
        before = os.environ.get(ENVIRONMENT_VARIABLE)
        os.environ[ENVIRONMENT_VARIABLE] = self.backend
        try:
            yield
        finally:
            os.environ.pop(ENVIRONMENT_VARIABLE)
            if before is not None:
                os.environ[ENVIRONMENT_VARIABLE] = before

    def engine(self, device: str, size: int) -> Engine:
        made = (Engine if self.cached else Forgetful)(
            NETWORK, device=device, precision=self.precision, size=size, plan=self.plan, graph=self.graph
        )
        made.warmup()
        return made


FLOAT32 = (Rung("plain modules", plan=False, cached=False), Rung("folded", cached=False), Rung("cached"))
CPU = (*FLOAT32, Rung("bfloat16", precision="bf16")) if has_bf16() else FLOAT32
CUDA = (
    *FLOAT32,
    Rung("half precision", precision="fp16"),
    Rung("Triton and CuPy", precision="fp16", backend="auto"),
    Rung("graph", precision="fp16", backend="auto", graph=True),
)


def picture() -> Spot:
    return scene(1200, 1200, radius=180)


def climb(
    rungs: Sequence[Rung],
    device: str,
    size: int,
    sequences: int,
    on: Spot | None = None,
    count: int | None = None,
) -> list[dict[str, Any]]:
    """Time and compare the rungs; one row each.

    Args:
        rungs: the first one is what the others are compared with.
        device, size: of their engines.
        sequences: how many objects are clicked.
        on (Spot, optional): the picture. Default: `picture()`.
        count (int, optional): clicks on each object. Default: `CLICKS`.
    """
    on, count = on or picture(), count or CLICKS
    sessions: list[Session] = []
    for rung in rungs:
        with rung.backend_chosen():
            sessions.append(opened(rung.engine(device, size), on))
            clicks(sessions[-1], on, SETTLED + 1)
    times: list[list[float]] = [[] for _ in rungs]
    errors = [0.0] * len(rungs)
    different = [0.0] * len(rungs)
    notes = [""] * len(rungs)
    for seed in tqdm(range(sequences), desc="ladder", unit="object"):
        for i, (rung, session) in enumerate(zip(rungs, sessions, strict=True)):
            with rung.backend_chosen():
                times[i] += next_clicks([session], on, count, seed)[0]
            different[i] = max(different[i], float((session.mask != sessions[0].mask).mean()))
            try:
                errors[i] = max(errors[i], sessions_agree(session, sessions[0]))
            except AssertionError as problem:
                notes[i] = notes[i] or f"no time: {problem} (seed {seed})"
    result = []
    for i, rung in enumerate(rungs):
        t = ClickTimes.of(times[i])
        if notes[i]:
            t = ClickTimes(t.n, *[math.nan] * 5)
        first = ClickTimes.of(times[0]).p50
        before = first if i == 0 else result[-1]["p50_ms"]
        result.append(
            {
                "rung": rung.name,
                "size": size,
                "clicks": t.n,
                **{f"{k}_ms": v for k, v in asdict(t).items() if k != "n"},
                "faster_than_first": first / t.p50,
                "faster_than_last": before / t.p50,
                "pixels_that_differ": different[i],
                "probability_error": errors[i],
                "note": notes[i],
            }
        )
    return result


def memory_of(rung: Rung, device: str, size: int) -> dict[str, float]:
    """Peak memory of one rung, above what the process takes before there is an engine.  For a process of its own."""
    on = picture()
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
    before = memory.resident()
    where = torch.device(device)
    memory.reset_peak(where)
    with rung.backend_chosen():
        clicks(opened(rung.engine(device, size), on), on, 2 * SETTLED)
    return {"peak_mb": memory.peak() - before, "device_peak_mb": memory.device_peak(where)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=384, help="long side of the network input, pixels")
    parser.add_argument("--sequences", type=int, default=12, help=f"sequences of {CLICKS} clicks")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder of the CSV file")
    parser.add_argument("--pictures", type=Path, default=plots.PICTURES, help="folder of the picture")
    parser.add_argument("--plot", action="store_true", help="measure nothing, draw what was measured before")
    arguments = parser.parse_args()
    file = arguments.out / f"ladder_{arguments.device}.csv"
    if not arguments.plot:
        rungs = CUDA if arguments.device == "cuda" else CPU
        measured = climb(rungs, arguments.device, arguments.size, arguments.sequences)
        for rung, row in zip(tqdm(rungs, desc="memory", unit="rung"), measured, strict=True):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                row |= alone.submit(memory_of, rung, arguments.device, arguments.size).result()
        rows.write(file, measured, Machine(arguments.device).describe(), replace="size")
        for row in measured:
            print(
                f"{row['rung']:16s} p50 {row['p50_ms']:8.2f}  p95 {row['p95_ms']:8.2f}  p99 {row['p99_ms']:8.2f} ms  "
                f"{row['faster_than_first']:5.2f}x  pixels that differ {row['pixels_that_differ']:.2e}  "
                f"memory {row['peak_mb']:.0f} MB  {row['note']}"
            )
    plots.ladder(rows.read(file), arguments.pictures / f"ladder_{arguments.device}.png")


if __name__ == "__main__":
    main()
