"""Where a difference between the device's probabilities and the CPU's in float32 comes from.

    python -m bench.gpu.blame                      # the default model at 384 px in fp16
    python -m bench.gpu.blame --model freqformer_b0_guided --size 256 --precision fp32
    python -m bench.gpu.blame --dry-run            # on the CPU, tiny

Two clicks on a photograph.  "all" is the device's answer beside the CPU's; "click" the device's on the CPU's image
features; "image" the CPU's on the device's features.  Then the same with the reference in place of one op after the
other: where the error falls, the op is to blame.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from activefreq_engine import Engine
from activefreq_engine.conventions import SLOTS
from activefreq_engine.runtime.engine import SIZES, StepAnswer, StepRequest
from activefreq_engine.runtime.plan import PRECISIONS
from activefreq_engine.runtime.plan.fused import OPS
from bench.gpu.masks import IMAGES
from bench.speed.ladder import Rung
from bench.tools.clicking import NETWORK

Judged = tuple[StepRequest, StepAnswer]
"""A click, and the CPU's answer in float32."""


def turns(judge: Engine, crop: np.ndarray) -> list[Judged]:
    """A positive click, then a negative one on the answer."""
    height, width = crop.shape[:2]
    previous, points, found = np.zeros((height, width), np.float32), np.full((2 * SLOTS, 2), -1, np.float32), []
    for x, y, slot in ((0.4, 0.5, 0), (0.8, 0.2, SLOTS)):
        points[slot] = x * width, y * height
        request = StepRequest(crop, None, previous, points.copy())
        (answer,) = judge.run([request])
        found.append((request, answer))
        previous = answer.probs
    return found


def moved(features: Any, like: Any) -> Any:
    """Image features on the device, in the type and in the layout of others."""
    pairs = zip(features, like, strict=True)
    return type(like)(*(torch.empty_like(other).copy_(t.to(other.device)) for t, other in pairs))


def errors(here: Engine, judge: Engine, clicked: Sequence[Judged]) -> dict[str, float]:
    """Largest difference of a probability: of the whole answer, of the click's half, of the image's half."""
    found: dict[str, list[float]] = {"all": [], "click": [], "image": []}
    for request, expected in clicked:
        (answer,) = here.run([request])
        known = StepRequest(None, moved(expected.features, answer.features), request.previous, request.points)
        (click,) = here.run([known])
        own = StepRequest(None, moved(answer.features, expected.features), request.previous, request.points)
        (image,) = judge.run([own])
        for name, other in (("all", answer), ("click", click), ("image", image)):
            found[name].append(float(np.abs(other.probs - expected.probs).max()))
    return {name: float(np.max(values)) for name, values in found.items()}  # which keeps NaN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=NETWORK, help="a shipped model or a checkpoint")
    parser.add_argument("--size", type=int, choices=SIZES, default=384, help="long side of the network input, pixels")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the device")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny, two of the ops")
    arguments = parser.parse_args()
    dry = arguments.dry_run
    device, side = ("cpu", 64) if dry else ("cuda", arguments.size)
    crop = np.array(Image.open(min(IMAGES.glob("*.jpg"))).convert("RGB").resize((side, side)))
    judge = Engine(arguments.model, device="cpu", precision="fp32", size=arguments.size)
    clicked = turns(judge, crop)
    ops = ["freq_module", *OPS][: 2 if dry else None]
    ways = {
        "as it is": "auto",
        "references only": "reference",
        **{f"{op} by its reference": f"{op}=reference" for op in ops},
    }
    for name, value in ways.items():
        with Rung(name, backend=value).backend_chosen():
            here = Engine(arguments.model, device=device, precision=arguments.precision, size=arguments.size)
            found = errors(here, judge, clicked)
        print(f"{name:36s}", *(f"{part} {error:.1e}" for part, error in found.items()), flush=True)


if __name__ == "__main__":
    main()
