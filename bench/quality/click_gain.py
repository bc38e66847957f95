"""What one click brings, by the rule that places it: every rule from the same masks.

    python -m bench.quality.click_gain DATA --every 36 --out out/gain.csv

Along the clicks of the protocol's robot, each rule of `bench.quality.acselect` says which error it would click next;
each such click is made, its gain in IoU noted, and undone.  So rules are told apart by far fewer clicks than whole
runs need, and by nothing but their choice.  What it cannot show is what a rule does to the clicks after.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine import Session
from activefreq_engine.acselect import AcSelect
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.eval import load_dataset, metrics
from activefreq_engine.eval.clickers import RitmClicker
from bench.quality.acselect import AnyRegion, LargestRegion, policies, write_csv

GOOD = 0.97
"""IoU from which a mask is left alone: what remains is the width of the annotator's line."""


def gains(session: Session, truth: NDArray[np.integer], rules: Mapping[str, AcSelect], clicks: int) -> Iterator[dict]:
    """Follow the protocol's robot on the session's image; after each of so many clicks, try what every rule proposes.

    Yields:
        rule -> IoU after its click minus IoU before, and ``best``, the largest of them; only for masks below `GOOD`
        on which the rules differ.
    """
    robot, mask = RitmClicker(truth), np.zeros(truth.shape, bool)
    for _ in range(clicks):
        click = robot.next_click(mask)
        if click is None:
            return
        mask = session.click(click.x, click.y, click.positive).mask
        before = metrics.iou(mask, truth)
        if before >= GOOD:
            return
        probs, valid = session.probs, truth >= 0
        first = {name: rule.oracle(probs, mask, truth == 1, valid)[0] for name, rule in rules.items()}
        places = {name: (s.x, s.y, s.positive) for name, s in first.items()}
        if len(set(places.values())) < 2:
            continue
        gain = {}
        for place in dict.fromkeys(places.values()):
            gain[place] = metrics.iou(session.click(*place).mask, truth) - before
            session.undo()
        yield {name: gain[place] for name, place in places.items()} | {"best": max(gain.values())}


def summary(rows: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """A row a rule, best first: mean gain in points of IoU, the difference from the reference with its 95 % BCa
    bootstrap interval over images, and the share of clicks that made the mask worse, in per cent."""
    images = list(dict.fromkeys(row["sample"] for row in rows))
    table = []
    for name in (key for key in rows[0] if key != "sample"):
        more = [100 * np.mean([r[name] - r[reference] for r in rows if r["sample"] == image]) for image in images]
        low, high = metrics.bootstrap_interval(np.array(more)) or (None, None)
        values = np.array([row[name] for row in rows])
        table.append(
            {
                "rule": name,
                "masks": len(rows),
                "images": len(images),
                "gain": 100 * float(values.mean()),
                "more": float(np.mean(more)),
                "more_low": low,
                "more_high": high,
                "harmful": 100 * float((values < 0).mean()),
            }
        )
    return sorted(table, key=lambda row: -row["gain"])


def main(
    data: Annotated[Path, typer.Argument(help="images with truth, in any layout that `activefreq eval` reads")],
    out: Annotated[Path, typer.Option(help="the table, CSV")],
    every: Annotated[int, typer.Option(min=1, help="just every n-th image")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="just so many images")] = None,
    clicks: Annotated[int, typer.Option(min=1, help="clicks of the robot, each followed by a trial of all rules")] = 5,
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint")] = DEFAULT_MODEL,
) -> None:
    """Compare the gain of one click between AcSelect's settings."""
    found = load_dataset(data)
    found = replace(found, samples=found.samples[::every][:limit])
    rules = policies() | {"largest-region": LargestRegion(), "any-region": AnyRegion(0)}
    session, rows = Session(model), []
    for sample in tqdm(found.samples, desc="images", unit="image"):
        session.set_image(sample.load_image())
        rows += [{"sample": sample.id, **gain} for gain in gains(session, sample.load_mask(), rules, clicks)]
    if not rows:
        raise typer.BadParameter(f"no mask of {data} leaves a choice; give more images")
    table = summary(rows, "widest")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(out, table)
    for row in table:
        typer.echo("  ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))


if __name__ == "__main__":
    typer.run(main)
