"""What is one prompt worth? IoU after one click, box, scribble or lasso, each on a fresh object.

    python -m bench.quality.prompts VAL ... --model freqformer_b0_general --table bench/results/prompts.csv

Each prompt is made from the truth: the click is the robot's first one; the box is the object's own, and one that is
farther out on every side by a tenth of the object's width or height; scribble and lasso are drawn as in training
(`train/prompts.py`): a bent line through the object, and a line around it with varying care.  Chance is seeded by the
object's place in the set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine import BoxPrompt, Engine, Lasso, Scribble, Session, click_batch
from activefreq_engine.eval import metrics
from activefreq_engine.eval.clickers import RitmClicker
from activefreq_engine.eval.datasets import Sample
from activefreq_engine.masks import to_polygons
from activefreq_engine.session import boxes
from activefreq_engine.train import prompts as drawn
from activefreq_engine.types import Prompt
from bench.tools import rows, sets
from bench.tools.machine import Machine

LOOSE = 0.1
"""A loose box is farther out on each side by this share of the object's width and height."""
CORNERS = 2000
"""Most points of a lasso."""


def made(truth: NDArray[np.integer], rng: np.random.Generator) -> dict[str, Prompt]:
    """One prompt of each kind for the object of a truth `[H, W]` that holds one."""
    region = truth == 1
    box = boxes.mask_bbox(region)
    click = RitmClicker(truth).next_click(np.zeros(truth.shape, np.bool_))
    assert box is not None
    assert click is not None
    x0, y0, x1, y1 = box
    wide, high = LOOSE * (x1 - x0), LOOSE * (y1 - y0)
    line = drawn.scribble(region, rng, 1.0) + 0.5
    ring = max((p.exterior for p in to_polygons(drawn.lasso(region, rng), holes="drop")), key=len).astype(float)
    ring = ring[:: len(ring) // CORNERS + 1]
    return {
        "click": click,
        "box, tight": BoxPrompt(x0, y0, x1, y1),
        "box, loose": BoxPrompt(x0 - wide, y0 - high, x1 + wide, y1 + high),
        "scribble": Scribble(tuple((x, y) for x, y in line.tolist())),
        "lasso": Lasso(tuple((x, y) for x, y in ring.tolist())),
    }


def answered(session: Session, sample: Sample, rng: np.random.Generator) -> dict[str, float]:
    """The IoU after each of `made`, each from nothing; none where the truth is empty."""
    truth = sample.load_mask()
    if not (truth == 1).any():
        return {}
    session.set_image(sample.load_image())
    found = {}
    for kind, prompt in made(truth, rng).items():
        session.reset()
        found[kind] = metrics.iou(click_batch([session], [prompt])[0].mask, truth)
    return found


def table(name: str, weights: str, found: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """A row a kind of prompt: mean IoU in per cent, with its 95 % interval over objects."""
    values, out = [own for own in found if own], []
    for kind in values[0] if values else ():
        ious = np.array([own[kind] for own in values])
        low, high = metrics.bootstrap_interval(ious) or (float("nan"), float("nan"))
        row = {"run": f"{weights}, {name}", "weights": weights, "set": name, "prompt": kind, "objects": len(ious)}
        out.append({**row, "miou": 100 * float(ious.mean()), "low": 100 * low, "high": 100 * high})
    return out


def main(
    data: Annotated[list[Path], typer.Argument(help="validation folders; a set is named by its parent folder")],
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint")] = "freqformer_b0_guided",
    limit: Annotated[int, typer.Option(min=2, help="objects of each set, drawn with a fixed seed")] = 50,
    file: Annotated[Path | None, typer.Option("--table", help="write rows to this CSV file")] = None,
) -> None:
    """Measure what one prompt of each kind brings, by set."""
    engine, weights = Engine(model), Path(model).stem
    for folder in data:
        name, places, part = sets.drawn(folder, limit)
        with Session(engine=engine) as session:
            found = [
                answered(session, s, np.random.default_rng(i))
                for i, s in zip(places, tqdm(part.samples, desc=name, unit="object"), strict=True)
            ]
        own = table(name, weights, found)
        for row in own:
            typer.echo(
                f"{name}  {row['prompt']:<10}  objects {row['objects']}  IoU {row['miou']:.1f} "
                f"({row['low']:.1f} to {row['high']:.1f})"
            )
        if file is not None:
            rows.write(file, own, Machine("cpu").describe(), replace="run")


if __name__ == "__main__":
    typer.run(main)
