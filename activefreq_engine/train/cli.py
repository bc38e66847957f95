"""``activefreq train``: training on the command line.  The application in `activefreq_engine.cli` registers it."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.files import alone_in

if TYPE_CHECKING:
    from activefreq_engine.train.config import TrainConfig
    from activefreq_engine.train.record import Validation

GROWING = "128,192@0.35,256@0.85"
"""Crops of 128 pixels, from 35 % of the steps on of 192, from 85 % on of 256."""


def train_command(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Folders with images/ and masks/, labels/ or instances/; or one file made by `activefreq pack`.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the run; a run in it goes on.", show_default=False),
    ],
    model: Annotated[str, typer.Option(help="Model name.")] = "freqformer_b0",
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from.")] = None,
    guide: Annotated[
        Path | None, typer.Option(help="MobileSAM's mobile_sam.pt: give the network its encoder as a frozen guide.")
    ] = None,
    stage: Annotated[str, typer.Option(help="coarse, or refiner: the refiner alone, on --init.")] = "coarse",
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps; this or --hours.")] = None,
    hours: Annotated[float | None, typer.Option(help="Length of the run in hours.")] = None,
    minutes: Annotated[float | None, typer.Option(help="The same in minutes.")] = None,
    on_device: Annotated[
        bool, typer.Option("--on-device", help="Make samples and clicks on the device too: for a GPU.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Samples a step, in each process.")] = 16,
    per_crop: Annotated[int, typer.Option(help="Samples of each crop: other objects, or other clicks.")] = 1,
    sizes: Annotated[
        str,
        typer.Option(metavar="SIZE[@FROM],...", help="Crop sizes, each from this part of the run on; else evenly."),
    ] = GROWING,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps until the learning rate is reached.")] = 200,
    teacher: Annotated[
        Path | None, typer.Option(help="Folder made by `activefreq teacher`: learn its features as well.")
    ] = None,
    clicker: Annotated[str, typer.Option(help="Where simulated clicks fall: ritm or acselect.")] = "ritm",
    frozen_norms: Annotated[
        float, typer.Option(help="From this part of the run on BatchNorm's statistics stay; 0 in further training.")
    ] = 0.7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    workers: Annotated[int, typer.Option(help="Loader processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    validate: Annotated[Path | None, typer.Option(help="Held-out data to evaluate on, as for eval.")] = None,
    validate_every: Annotated[float, typer.Option(metavar="MINUTES", help="Time between evaluations.")] = 15.0,
    validate_limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on the first N samples only.")] = None,
    save_every: Annotated[float, typer.Option(metavar="MINUTES", help="Time between saves.")] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Pack the data and train two tiny steps.")] = False,
) -> None:
    """Train a model.  Interrupt it at any time: the same command goes on where it was saved last."""
    from activefreq_engine.train.config import TrainConfig, launched
    from activefreq_engine.train.loop import train
    from activefreq_engine.train.record import Validation

    if minutes is not None:
        if hours is not None:
            raise InvalidArgumentError("give the length of the run either as hours or as minutes")
        hours = minutes / 60
    config = TrainConfig(
        data=tuple(str(folder) for folder in data),
        model=model,
        init=None if init is None else str(init),
        guide=None if guide is None else str(guide),
        stage=stage,  # type: ignore[arg-type]  # checked there
        steps=steps,
        hours=hours,
        batch=batch,
        per_crop=per_crop,
        sizes=parse_sizes(sizes),
        lr=lr,
        warmup=warmup,
        seed=seed,
        workers=workers,
        teacher=None if teacher is None else str(teacher),
        clicker=clicker,  # type: ignore[arg-type]  # checked there
        on_device=on_device,
        frozen_norms=frozen_norms,
    )
    if not validate_every > 0 or not save_every > 0:
        raise InvalidArgumentError("--validate-every and --save-every are minutes above 0")
    chief = launched()[1] == 0
    # where there is no terminal there is no progress bar: the log says how far the run is
    quiet = sys.stderr.isatty() or not chief
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s")
    validation = None if validate is None else Validation(str(validate), validate_every, validate_limit)
    if dry_run:
        seconds = _dry_run(config, out, device, validation)
        done = f"the set-up works: two steps of 2 samples took {seconds:.1f} s; the data is packed in {out / 'data'}"
    else:
        done = str(train(config, out, device=device, save_every=60 * save_every, validation=validation))
    if chief:
        typer.echo(done)


def pack_command(
    mix: Annotated[
        Path,
        typer.Argument(help="A mix: a JSON file, or `general`, the one of the general weights.", show_default=False),
    ],
    root: Annotated[Path, typer.Argument(help="The folder that the mix's folders lie in.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.", show_default=False)],
    side: Annotated[int, typer.Option(min=64, max=4096, help="Longest side of an image, pixels.")] = 512,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the WebP images.")] = 75,
) -> None:
    """Pack the sets of a mix into one file to train on, small enough to be taken to another machine."""
    from activefreq_engine.train.mix import read_mix
    from activefreq_engine.train.parcel import make_parcel

    with tempfile.TemporaryDirectory() as work:
        make_parcel(read_mix(mix, root), out, Path(work), side, quality)
    typer.echo(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


def teacher_command(
    data: Annotated[
        list[Path], typer.Argument(help="The folders that the training run will be given.", show_default=False)
    ],
    weights: Annotated[Path, typer.Option(help="MobileSAM's published mobile_sam.pt.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the features.", show_default=False)],
    side: Annotated[int, typer.Option(help="Longer side of the images shown to the teacher, pixels.")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Write MobileSAM's features of all training images, for `activefreq train --teacher`."""
    from activefreq_engine.train.distill import load_teacher, make_teacher
    from activefreq_engine.train.loop import pick_device

    typer.echo(make_teacher(data, load_teacher(weights), out, side=side, device=pick_device(device)))


def _dry_run(config: TrainConfig, out: Path, device: str, validation: Validation | None) -> float:
    """Every part of a run at its smallest; returns its seconds, without those of the packing."""
    from activefreq_engine.train.config import launched
    from activefreq_engine.train.loop import pack_data, train

    if launched()[0] > 1:
        raise InvalidArgumentError("--dry-run is for one process; run it once without torchrun")
    with alone_in(out):
        packed = pack_data(config.data, out / "data")
    smallest = min(size for _, size in config.sizes)
    tiny = replace(config, steps=2, hours=None, batch=2, sizes=((0.0, smallest),), iterations=((1, 1.0),))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        one = replace(validation, limit=1) if validation else None
        train(tiny, Path(folder), device=device, validation=one, packed=packed)
    return time.monotonic() - started


def parse_sizes(text: str) -> tuple[tuple[float, int], ...]:
    """``"128,192@0.35"`` -> ((0.0, 128), (0.35, 192)).  A size without ``@`` starts at its place in an even division.

    Raises:
        InvalidArgumentError: anything else.
    """
    parts = text.split(",")
    sizes = []
    for i, part in enumerate(parts):
        size, at, start = part.strip().partition("@")
        try:
            sizes.append((float(start) if at else i / len(parts), int(size)))
        except ValueError:
            raise InvalidArgumentError(
                f"--sizes is {text!r}; expected sizes separated by commas, such as 128,192,256 or {GROWING}"
            ) from None
    return tuple(sizes)
