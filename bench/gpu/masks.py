"""Masks on the device beside those of the CPU in float32: every size, five shapes of region, fp16 and fp32; at 256 and
384 px in fp16 also those of the network with a guide.

    python -m bench.gpu.masks              # writes masks.csv to bench/results/cuda
    python -m bench.gpu.masks --first      # 384 px in fp16
    python -m bench.gpu.masks --dry-run    # on the CPU, one size

Two clicks on a photograph, the second on the first one's answer, each once with an image that is new and once with its
features known.  The network is asked directly, so that the region is what is asked for.  Each size and precision has a
process of its own.  The exit status is 1 where a probability differs by more than `LIMITS` allows.
"""

import argparse
import functools
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from activefreq_engine import Engine
from activefreq_engine.conventions import SLOTS
from activefreq_engine.runtime.engine import SIZES, StepRequest
from activefreq_engine.session.zoom import network_shape
from bench.tools import rows
from bench.tools.clicking import NETWORK, SIZE
from bench.tools.machine import Machine

LIMITS = {"fp16": 2e-3, "fp32": 3e-4}
"""Largest difference of a probability."""

RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (5, 27))
"""Width to height of the region; the last one reaches the network very narrow."""

IMAGES = Path(__file__).parents[2] / "examples" / "images"


@functools.cache
def engines(device: str, model: str, size: int, precision: str) -> tuple[Engine, Engine]:
    """What is judged, and what judges it."""
    torch.set_num_threads(2)
    return (
        Engine(model, device=device, precision=precision, size=size),
        Engine(model, device="cpu", precision="fp32", size=size),
    )


def compared(device: str, model: str, size: int, precision: str, ratio: tuple[int, int]) -> dict[str, Any]:
    """The row of one shape; in a process that is asked for this model, size and precision alone."""
    height, width = network_shape((0, 0, 100 * ratio[0], 100 * ratio[1]), size)
    key = f"{precision} {size} {height}x{width}" + ("" if model == NETWORK else f" {model}")
    row: dict[str, Any] = {"key": key, "model": model, "precision": precision, "size": size}
    row |= {"height": height, "width": width, "limit": LIMITS[precision], "error": float("nan"), "note": ""}
    photograph = Image.open(min(IMAGES.glob("*.jpg"))).convert("RGB").resize((width, height))
    try:
        row["error"] = error(*engines(device, model, size, precision), np.array(photograph))
    except Exception as problem:
        row["note"] = f"{type(problem).__name__}: {str(problem)[:200]}"
    return row


def error(here: Engine, there: Engine, crop: np.ndarray) -> float:
    """Largest difference of a probability; NaN where one is NaN."""
    height, width = crop.shape[:2]
    previous, points, differences = np.zeros((height, width), np.float32), np.full((2 * SLOTS, 2), -1, np.float32), []
    for x, y, slot in ((0.4, 0.5, 0), (0.8, 0.2, SLOTS)):  # a positive click, then a negative one
        points[slot] = x * width, y * height
        (expected,) = there.run([StepRequest(crop, None, previous, points.copy())])
        (new,) = here.run([StepRequest(crop, None, previous, points.copy())])
        (known,) = here.run([StepRequest(None, new.features, previous, points.copy())])
        differences += [np.abs(answer.probs - expected.probs).max() for answer in (new, known)]
        previous = expected.probs
    return float(np.max(differences))  # which keeps NaN


def right(row: dict[str, Any]) -> bool:
    return row["error"] <= row["limit"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, one size")
    parser.add_argument("--first", action="store_true", help=f"{SIZE} px, in fp16")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of masks.csv")
    arguments = parser.parse_args()
    dry = arguments.dry_run
    device, ratios = ("cpu", RATIOS[-1:]) if dry else ("cuda", RATIOS)
    sizes = [min(SIZES)] if dry else sorted(SIZES, key=lambda size: (size != SIZE, size))
    cases = [(NETWORK, size, precision) for size in sizes for precision in (("fp32",) if dry else LIMITS)]
    cases = cases[:1] if arguments.first else cases
    if not dry and not arguments.first:
        cases += [("freqformer_b0_guided", size, "fp16") for size in (SIZE, min(SIZES))]
    about, found, died = Machine(device).describe(), [], []
    with ExitStack() as stack:
        alone = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in cases]
        waiting = {
            pool.submit(compared, device, *case, ratio): " ".join(map(str, (*case, *ratio)))
            for ratio in ratios
            for pool, case in zip(alone, cases, strict=True)
        }
        for done in tqdm(as_completed(waiting), total=len(waiting), desc="masks", unit="shape"):
            if problem := done.exception():  # the process is gone
                died.append(f"{waiting[done]}: {type(problem).__name__}: {str(problem)[:200]}")
                continue
            found.append(done.result())
            rows.write(arguments.out / "masks.csv", found, about, replace="key")
    for row in sorted(found, key=lambda row: row["key"]):
        print(
            f"{row['key']:44s} {row['error']:.1e} of {row['limit']:.0e}  {'' if right(row) else 'WRONG'} {row['note']}"
        )
    wrong = [row for row in found if not right(row)]
    print(*died, sep="\n")
    print(f"{len(found)} shapes, {len(wrong)} differ from the CPU by more than is allowed, {len(died)} have no answer")
    sys.exit(1 if wrong or died else 0)


if __name__ == "__main__":
    main()
