"""What the refiner is worth: the same images and clicks with it and without.

    python -m bench.quality.refined VAL --model freqformer_b0 --table bench/results/refined.csv

The refiner shows what the network cannot see: an image of many pixels to a network pixel.  The images at hand have few
pixels, so the network is given fewer still.  128 px see an image of 384 px as 384 px see one of 1,152.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from activefreq_engine import Engine
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.eval import evaluate, load_dataset
from activefreq_engine.eval.metrics import bootstrap_interval, noc
from bench.tools import rows
from bench.tools.machine import Machine

SMALL = (128, 192)  # sizes of the network's input, below what `Session` allows
CLICKS = 10
SHOWN = (1, 2, 3, 5, 10)  # clicks after which IoU is told


def compare(without: np.ndarray, refined: np.ndarray) -> dict[str, float | None]:
    """Mean IoU (per cent) and NoC@90 without the refiner, and the change with it, with 95 % intervals over images.

    without, refined: float `[images, clicks]`, IoU after each click.
    """
    found: dict[str, float | None] = {}
    pairs = {f"miou{k}": (100 * without[:, k - 1], 100 * refined[:, k - 1]) for k in SHOWN}
    pairs["noc90"] = (noc(without, 0.9).astype(float), noc(refined, 0.9).astype(float))
    for name, (before, after) in pairs.items():
        low, high = bootstrap_interval(after - before) or (None, None)
        found |= {
            name: before.mean(),
            f"{name}_more": (after - before).mean(),
            f"{name}_low": low,
            f"{name}_high": high,
        }
    return found


def main(
    data: Annotated[Path, typer.Argument(metavar="VAL", help="images with truth, as `activefreq eval` reads them")],
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint")] = DEFAULT_MODEL,
    csv: Annotated[Path | None, typer.Option("--table", help="CSV file to add the rows to")] = None,
    every: Annotated[int, typer.Option(min=1, help="take every n-th object")] = 1,
) -> None:
    """IoU after one to ten clicks with the refiner, less that without it."""
    objects = load_dataset(data)
    objects = replace(objects, samples=objects.samples[::every])
    table: list[dict[str, Any]] = []
    for size in SMALL:
        engine = Engine(model)
        engine.size = size
        curves = [
            evaluate(objects, model=model, engine=engine, refine=refine, max_clicks=CLICKS).curves
            for refine in (False, True)
        ]
        run = f"{Path(model).stem}, {data.parent.name or data.name}, {size}"
        table.append({"run": run, "objects": len(objects.samples), **compare(*(np.asarray(c) for c in curves))})
        print(*(f"{k} {v:.2f}" if isinstance(v, float) else v for k, v in table[-1].items()), flush=True)
    if csv is not None:
        rows.write(csv, table, Machine("cpu").describe(), replace="run")


if __name__ == "__main__":
    typer.run(main)
