"""Small objects in large pictures: photographs shrunk and blended into made surroundings.

    python -m bench.quality.distant VAL --model freqformer_b0 --table bench/results/distant.csv

The network sees the whole picture at the first click, so an object a tenth as wide as the picture is 25 pixels wide in
it.  Data sets of lesions hold few such pictures; a photograph of a back or of a slide is one.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from activefreq_engine import Engine
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.eval import evaluate, load_dataset
from activefreq_engine.eval.datasets import Dataset, Sample
from bench.tools import rows
from bench.tools.machine import Machine

SHAPE = (1125, 1500)  # of the made picture, (H, W)
SIDES = (160, 320, 640)  # of the photograph in it
CLICKS = 10
Pixels = NDArray[Any]


def even(colour: Pixels, rng: np.random.Generator) -> Pixels:
    """One colour with spots of 20 pixels."""
    noise = cv2.GaussianBlur(rng.normal(0, 60, (*SHAPE, 3)).astype(np.float32), (0, 0), 8)
    return colour + noise


def uneven(colour: Pixels, rng: np.random.Generator) -> Pixels:
    """Light that falls off to one side, dark pores, a strip of cloth."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    corner_x, corner_y = rng.uniform(0.2, 0.8, 2)
    light = 1 - 0.35 * np.hypot(x / SHAPE[1] - corner_x, y / SHAPE[0] - corner_y)
    pores = cv2.GaussianBlur((rng.random(SHAPE) > 0.995).astype(np.float32), (0, 0), 1) * 60
    out = colour * light[..., None] - pores[..., None] + rng.normal(0, 4, (*SHAPE, 1))
    cloth = SHAPE[1] // 8
    out[:, :cloth] = 0.5 * out[:, :cloth] + 0.5 * np.array([40, 60, 90])
    return out


BACKDROPS = {"even": even, "uneven": uneven}


def place(image: Pixels, truth: Pixels, side: int, backdrop: str, seed: int) -> tuple[Pixels, Pixels]:
    """`image` at `side` pixels, blended into a backdrop of its border's colour and of `SHAPE`; the truth there."""
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    edge = max(4, side // 40)
    border = np.concatenate([small[:edge].reshape(-1, 3), small[-edge:].reshape(-1, 3)])
    rng = np.random.default_rng(seed)
    canvas = np.clip(BACKDROPS[backdrop](np.median(border, axis=0), rng), 0, 255)
    top, left = (int(rng.integers(length // 10, length - side - length // 10)) for length in SHAPE)
    square = np.s_[top : top + side, left : left + side]
    seam = side // 16
    weight: Pixels = np.zeros(SHAPE, np.float32)
    weight[top + seam : top + side - seam, left + seam : left + side - seam] = 1
    alpha = cv2.GaussianBlur(weight, (0, 0), seam / 2)[square][..., None]
    canvas[square] = alpha * small + (1 - alpha) * canvas[square]
    out = np.zeros(SHAPE, np.int8)
    out[square] = cv2.resize(truth, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return (canvas + 0.5).astype(np.uint8), out


def distant(data: Dataset, side: int, backdrop: str) -> Dataset:
    """The same objects, each in a large picture."""

    def moved(number: int, sample: Sample) -> Sample:
        def picture(part: int) -> Callable[[], Pixels]:
            return lambda: place(sample.load_image(), sample.load_mask(), side, backdrop, number)[part]

        return replace(sample, load_image=picture(0), load_mask=picture(1))

    return replace(data, samples=tuple(moved(i, s) for i, s in enumerate(data.samples)))


def main(
    data: Annotated[Path, typer.Argument(metavar="VAL", help="images with truth, as `activefreq eval` reads them")],
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint")] = DEFAULT_MODEL,
    csv: Annotated[Path | None, typer.Option("--table", help="CSV file to add the rows to")] = None,
    every: Annotated[int, typer.Option(min=1, help="take every n-th image")] = 6,
) -> None:
    """IoU after one to ten clicks on objects shown small in large pictures."""
    photographs = load_dataset(data)
    photographs = replace(photographs, samples=photographs.samples[::every])
    engine = Engine(model)
    table: list[dict[str, Any]] = []
    for backdrop in BACKDROPS:
        for side in SIDES:
            report = evaluate(distant(photographs, side, backdrop), model=model, engine=engine, max_clicks=CLICKS)
            found = report.metrics()
            row: dict[str, Any] = {"run": f"{Path(model).stem}, {backdrop}, {side}", "images": len(report.samples)}
            table.append({**row, **{f"miou{k}": 100 * v for k, v in found["miou"].items()}})
            print(*(f"{k} {v:.1f}" if isinstance(v, float) else v for k, v in table[-1].items()), flush=True)
    if csv is not None:
        rows.write(csv, table, Machine("cpu").describe(), replace="run")


if __name__ == "__main__":
    typer.run(main)
