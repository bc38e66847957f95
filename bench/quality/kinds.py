"""How good is a network on each kind of image, beside MobileSAM on the same objects, and what does it fail at?

    python -m bench.quality.kinds DATA/usgra/val DATA/hc18/val ... --table bench/results/kinds.csv --worst docs/worst
    python -m bench.quality.kinds DATA/usgra/val ... --mobile-sam mobile_sam.pt --table bench/results/kinds.csv

Every set's rows are written when it is done.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from activefreq_engine import Engine, Session
from activefreq_engine.eval import Dataset, Report, evaluate
from activefreq_engine.files import beside
from bench.peers import mobile_sam
from bench.quality import worst
from bench.tools import rows, sets
from bench.tools.machine import Machine

SHOWN = 6
"""Failures shown of each set."""


def row(name: str, weights: str, measured: Report) -> dict[str, Any]:
    """Clicks to 85 and 90 % IoU and mean IoU in per cent after some clicks, with 95 % intervals over objects."""
    m = measured.metrics()
    out = {
        "run": f"{weights}, {name}",
        "weights": weights,
        "set": name,
        "objects": m["samples"],
        "noc85": m["noc85"],
        "noc90": m["noc90"],
        **_span("noc90", m["intervals"]["noc90"], 1),
        "never90": m["never90"],
    }
    for click, value in m["miou"].items():
        out[f"miou{click}"] = 100 * value
        if click == "2":
            out.update(_span("miou2", m["intervals"]["miou2"], 100))
    return out


def _span(name: str, interval: tuple[float, float] | None, scale: float) -> dict[str, float]:
    low, high = interval or (float("nan"), float("nan"))
    return {f"{name}_low": scale * low, f"{name}_high": scale * high}


def failures(engine: Engine, data: Dataset, measured: Report, out: Path) -> None:
    """Draw the objects that need the most clicks."""
    with Session(engine=engine) as session:
        chosen = worst.worst(measured, SHOWN)
        cases = [worst.replay(session, data, measured, n) for n in chosen]
    picture = worst.sheet(cases, [measured.samples[n].ious for n in chosen])
    out.parent.mkdir(parents=True, exist_ok=True)
    with beside(out) as unfinished:
        picture.save(unfinished, Image.registered_extensions()[out.suffix], quality=worst.QUALITY)


def parse_labels(given: list[str]) -> Mapping[str, list[int]]:
    """``["vocalfolds=1,3"]`` -> ``{"vocalfolds": [1, 3]}``.

    Raises:
        typer.BadParameter: not of this form.
    """
    found = {}
    for text in given:
        name, _, values = text.partition("=")
        try:
            found[name] = [int(v) for v in values.split(",")]
        except ValueError:
            raise typer.BadParameter(f"got --labels {text}; expected SET=VALUE,VALUE,...") from None
    return found


def main(
    data: Annotated[list[Path], typer.Argument(help="validation folders; a set is named by its parent folder")],
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint")] = "freqformer_b0_guided",
    peer: Annotated[
        Path | None, typer.Option("--mobile-sam", help="mobile_sam.pt: measure MobileSAM and not --model")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="objects of each set, drawn with a fixed seed")] = 150,
    labels: Annotated[
        list[str] | None, typer.Option(metavar="SET=V,V", help="label values of a set that are objects; repeat it")
    ] = None,
    work: Annotated[Path, typer.Option(help="folder for MobileSAM's embeddings")] = Path("out/embeddings"),
    file: Annotated[Path | None, typer.Option("--table", help="write rows to this CSV file")] = None,
    pictures: Annotated[
        Path | None, typer.Option("--worst", help="folder for a picture of each set's failures")
    ] = None,
) -> None:
    """Measure clicks and quality by set, with the robot of RITM."""
    values = parse_labels(labels or [])
    if peer is None:
        engine, weights = Engine(model, precision="fp32"), Path(model).stem
        measure = partial(evaluate, engine=engine)
    else:
        weights, machine = "mobile_sam", mobile_sam.SamPeer(mobile_sam.mobile_sam(peer), work)
        measure = partial(evaluate, predictors=[machine], model=weights)
    for folder in data:
        name, _, part = sets.drawn(folder, limit, values.get(folder.resolve().parent.name))
        measured = measure(part)
        own = row(name, weights, measured)
        typer.echo(
            f"{weights}  {name}  objects {own['objects']}  NoC@90 {own['noc90']:.2f} ({own['noc90_low']:.2f} to "
            f"{own['noc90_high']:.2f})  mIoU@2 {own['miou2']:.1f} ({own['miou2_low']:.1f} to {own['miou2_high']:.1f})"
        )
        if file is not None:
            rows.write(file, [own], Machine("cpu").describe(), replace="run")
        if pictures is not None and peer is None:
            failures(engine, part, measured, pictures / f"{name}.jpg")


if __name__ == "__main__":
    typer.run(main)
