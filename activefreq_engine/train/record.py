"""What a run reports while it goes on: log.csv, curve.png, and validation on held-out data."""

from __future__ import annotations

import csv
import io
import logging
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..conventions import MIOU_CLICKS
from ..errors import DatasetError, InvalidArgumentError
from ..files import beside, write_file
from ..models import FreqFormer
from ..values import printable

if TYPE_CHECKING:
    from ..eval.datasets import Dataset

log = logging.getLogger(__name__)

SCORES = ("noc85", "noc90", *(f"miou{k}" for k in MIOU_CLICKS))
"""Columns of the log that validation fills; mIoU in 0..1."""


@dataclass(frozen=True)
class Validation:
    """Held-out data to evaluate the averaged weights on while a run goes on.  It does not change the run."""

    folder: str  # as `activefreq_engine.eval.load_dataset` takes it
    every: float = 15.0  # minutes of training between evaluations; there is one at the end in any case
    limit: int | None = None  # only the first samples
    clicker: str = "ritm"  # robot clicker

    def open(self) -> Dataset:
        """The samples.  Raises DatasetError."""
        from ..eval import load_dataset

        return load_dataset(self.folder, limit=self.limit)

    def scores(self, dataset: Dataset, model: FreqFormer, device: torch.device) -> dict[str, float]:
        """`SCORES` of a model in evaluation mode.  Samples that cannot be used are left out; the log says so."""
        from ..eval import evaluate
        from ..runtime.engine import Engine

        report = evaluate(dataset, engine=Engine(model, device=str(device)), clicker=self.clicker)
        if report.failed:
            left, first = len(report.failed), report.failed[0].reason
            log.warning("validation is without %d of %d samples; the first: %s", left, len(dataset.samples), first)
        metrics: dict[str, Any] = report.metrics()
        scores = {f"miou{k}": float(metrics["miou"][str(k)]) for k in MIOU_CLICKS}
        return {"noc85": float(metrics["noc85"]), "noc90": float(metrics["noc90"]), **scores}


class Record:
    """log.csv: mean loss of every `EVERY` steps, and validation scores in rows of their own."""

    EVERY = 50
    FIELDS = ("step", "seconds", "loss", "lr", "size", *SCORES)

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self._losses: list[torch.Tensor | float] = []
        # of a resumed run, only the rows up to the last save: the others will come again
        rows = [r for r in read_log(path) if int(r["step"]) <= step] if path.exists() else []
        kept = io.StringIO(newline="")
        writer = csv.DictWriter(kept, self.FIELDS)
        writer.writeheader()
        writer.writerows(rows)
        write_file(path, kept.getvalue().encode())
        self.best = min((float(r["noc90"]) for r in rows if r["noc90"]), default=math.inf)
        """Lowest NoC@90 so far."""
        self.validated = max((int(r["step"]) for r in rows if r["noc90"]), default=-1)
        """Step of the last validation."""

    def add(
        self, step: int, seconds: float, loss: torch.Tensor | float, lr: float, size: int, *, last: bool = False
    ) -> float | None:
        """Note a step's loss; write and return the mean when a row is due (or this is the `last` step).

        Losses stay on their device until then: reading one waits for it.
        """
        self._losses.append(loss)
        if step % self.EVERY and not last:
            return None
        mean = float(np.mean([float(loss) for loss in self._losses]))
        self._losses.clear()
        self._write(step=step, seconds=round(seconds, 1), loss=f"{mean:.5f}", lr=f"{lr:.3e}", size=size)
        return mean

    def add_scores(self, step: int, seconds: float, scores: dict[str, float]) -> bool:
        """Write a validation; True when its NoC@90 is the lowest so far."""
        self._write(step=step, seconds=round(seconds, 1), **{k: f"{v:.4f}" for k, v in scores.items()})
        self.validated = step
        better = scores["noc90"] < self.best
        self.best = min(self.best, scores["noc90"])
        return better

    def _write(self, **row: object) -> None:
        with self.path.open("a", newline="") as f:
            csv.DictWriter(f, self.FIELDS).writerow(row)


def read_log(path: Path) -> list[dict[str, str]]:
    """Rows of a log.csv; a row that a kill cut short is left out, columns that an older log lacks are empty.

    Raises:
        InvalidArgumentError: the file cannot be read or is no log.
    """
    try:
        with path.open(newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f, restval=None)
            names = reader.fieldnames or []
            whole = [r for r in reader if all(r[name] is not None for name in names)]
        rows = [{name: row.get(name) or "" for name in Record.FIELDS} for row in whole]
        for row in rows:
            int(row["step"])
            for value in row.values():
                float(value or 0)
    except (OSError, ValueError, csv.Error) as e:
        raise InvalidArgumentError(
            f"{path} is no log of a run ({e}); mend it, or remove it to begin a new one"
        ) from None
    return rows


def require_plotting() -> None:
    """Raise DatasetError unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise DatasetError('training draws its curve with matplotlib: pip install ".[train]" in the checkout')


def plot(log_path: Path, picture: Path) -> None:
    """Draw a log: loss and learning rate, and below them, where there was validation, NoC and mIoU against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_log(log_path)
    losses = [r for r in rows if r["loss"]]
    checks = [r for r in rows if r["noc90"]]
    figure = Figure(figsize=(8, 8 if checks else 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if checks else 1, sharex=True, squeeze=False)[:, 0]
    steps = [int(r["step"]) for r in losses]
    axes[0].plot(steps, [float(r["loss"]) for r in losses], color="tab:blue")
    axes[0].set(ylabel="training loss")
    axes[0].set_title(printable(log_path.parent.name), parse_math=False)  # a name is no formula, whatever $ is in it
    rate = axes[0].twinx()
    rate.plot(steps, [float(r["lr"]) for r in losses], color="tab:orange", alpha=0.6)
    rate.set_ylabel("learning rate")
    if checks:
        steps = [int(r["step"]) for r in checks]
        for name, colour in (("noc85", "tab:green"), ("noc90", "tab:blue")):
            axes[1].plot(steps, [float(r[name]) for r in checks], "o-", color=colour, label=f"NoC@{name[3:]}")
        axes[1].set_ylabel("clicks (validation)")
        quality = axes[1].twinx()
        for k, style in ((2, "--"), (5, ":")):
            values = [100 * float(r[f"miou{k}"]) for r in checks]
            quality.plot(steps, values, style, color="tab:red", label=f"mIoU@{k}")
        quality.set_ylabel("mIoU, per cent")
        axes[1].legend(handles=[*axes[1].lines, *quality.lines], fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    with beside(picture) as partial:
        figure.savefig(partial, dpi=120, format="png")
