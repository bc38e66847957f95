"""Is the uncertainty that we show true? Of pixels called 30 % object, 30 % should be object.

    python -m bench.quality.calibration VAL ... --model freqformer_b0_general --table bench/results/calibration.csv
        --plot docs/performance/calibration.png

Clicks are those of the protocol's robot. Only pixels near the object count, those in the box around truth and mask,
1.4 times as wide and high: all the others are background that any model is sure of, and would make every error small.
The expected calibration error (ECE) is the mean over pixels of |mean probability - share of object| in ten bins of
equal width. Each object counts the same, whatever its size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine import Engine, Session
from activefreq_engine.eval.clickers import RitmClicker
from activefreq_engine.eval.datasets import Sample
from activefreq_engine.session import boxes
from activefreq_engine.session.zoom import EXPANSION
from bench.tools import plots, rows, sets
from bench.tools.machine import Machine

BINS = 10
CLICKS = (1, 2, 5)
"""Masks after so many clicks are looked at."""


def bins(
    probs: NDArray[np.floating], truth: NDArray[np.integer], mask: NDArray[np.bool_]
) -> NDArray[np.float64] | None:
    """Of one mask: `[3, BINS]` with the share of pixels in each bin, of their probabilities and of object pixels, each
    as a part of all pixels that count; None when neither truth nor mask holds anything."""
    box = boxes.mask_bbox((truth == 1) | mask)
    if box is None:
        return None
    height, width = truth.shape
    x0, y0, x1, y1 = boxes.to_pixels(boxes.expand(box, EXPANSION, 1), (0, 0, width, height))
    counted = truth[y0:y1, x0:x1] >= 0
    p, is_object = probs[y0:y1, x0:x1][counted].astype(np.float64), truth[y0:y1, x0:x1][counted] == 1
    index = np.minimum((p * BINS).astype(int), BINS - 1)
    weights = (np.ones_like(p), p, is_object.astype(np.float64))
    return np.stack([np.bincount(index, w, BINS) for w in weights]) / len(p)


def follow(session: Session, sample: Sample) -> dict[int, NDArray[np.float64]]:
    """The robot's clicks on a sample: `bins` after each number of `CLICKS`."""
    session.set_image(sample.load_image())
    truth = sample.load_mask()
    robot, mask, found = RitmClicker(truth), np.zeros(truth.shape, np.bool_), {}
    for n in range(1, max(CLICKS) + 1):
        click = robot.next_click(mask)
        if click is None:
            break
        mask = session.click(click.x, click.y, click.positive).mask
        if n in CLICKS and (counted := bins(session.probs, truth, mask)) is not None:
            found[n] = counted
    return found


def table(name: str, weights: str, found: Sequence[dict[int, NDArray[np.float64]]]) -> list[dict[str, Any]]:
    """A row a number of clicks and bin, and one (bin "all") with the ECE in per cent."""
    out = []
    for n in CLICKS:
        own = [f[n] for f in found if n in f]
        if not own:
            continue
        share, p, y = np.mean(own, axis=0)
        about = {"run": f"{weights}, {name}", "weights": weights, "set": name, "clicks": n, "objects": len(own)}
        out.append({**about, "bin": "all", "pixels": 1.0, "ece": 100 * float(np.abs(p - y).sum())})
        for k in np.flatnonzero(share):
            row = {"bin": int(k), "pixels": share[k], "probability": p[k] / share[k], "object": y[k] / share[k]}
            out.append({**about, **{key: v if key == "bin" else float(v) for key, v in row.items()}})
    return out


def main(
    data: Annotated[list[Path], typer.Argument(help="validation folders; a set is named by its parent folder")],
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint")] = "freqformer_b0_guided",
    limit: Annotated[int, typer.Option(min=1, help="objects of each set, drawn with a fixed seed")] = 24,
    file: Annotated[Path | None, typer.Option("--table", help="write rows to this CSV file")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="reliability diagram of the sets, after each number of clicks")
    ] = None,
) -> None:
    """Measure how true probabilities are, by set and number of clicks."""
    engine, measured = Engine(model), []
    weights = Path(model).stem
    for folder in data:
        name, _, found = sets.drawn(folder, limit)
        with Session(engine=engine) as session:
            clicked = [follow(session, s) for s in tqdm(found.samples, desc=name, unit="object")]
        own = table(name, weights, clicked)
        for row in own:
            if row["bin"] == "all":
                typer.echo(f"{name}  clicks {row['clicks']}  objects {row['objects']}  ECE {row['ece']:.1f} %")
        if file is not None:
            rows.write(file, own, Machine("cpu").describe(), replace="run")
        measured += own
    if plot is not None:
        plots.reliability([{k: str(v) for k, v in r.items()} for r in measured], plot)


if __name__ == "__main__":
    typer.run(main)
