"""The result of an evaluation: JSON (complete, mergeable), CSV (a row a sample), Markdown (a table), PNG (a plot).

Everything but the timings is computed from the samples' IoU curves, in the order of the samples.  So the merge of the
shards of a run equals the unsharded run exactly; times are measurements and are pooled.
"""

import csv
import hashlib
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from activefreq_engine.conventions import MIOU_CLICKS
from activefreq_engine.errors import DatasetError, InvalidArgumentError
from activefreq_engine.eval import metrics
from activefreq_engine.eval.datasets import Dataset
from activefreq_engine.files import write_file, writing
from activefreq_engine.types import Click
from activefreq_engine.values import finite, printable, short

FORMAT = "activefreq-eval-1"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was run; shards of one run have equal settings."""

    model: str
    clicker: str
    max_clicks: int
    stop_at: float | None
    seed: int
    batch_size: int
    about: dict[str, Any]
    """Options and engine of the sessions, sha256 of the weights; empty for another predictor."""
    dataset: str
    layout: str
    dataset_samples: int
    dataset_digest: str
    """Digest of the ids of all samples of the data set, see `dataset_digest`."""
    versions: dict[str, str]
    ignore_label: int | None = None
    """As for `load_dataset`; reports from before it was noted have None."""


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One sample's run."""

    number: int
    """0-based, in the data set."""
    id: str
    object: int
    ious: tuple[float, ...]
    """IoU after click 1, 2, ... max_clicks; after the last placed click the value is repeated."""
    clicks: tuple[Click, ...]
    """The clicks placed: fewer than max_clicks if the mask became perfect or the sample was stopped."""
    milliseconds: tuple[float, ...]
    """Wall time of the call that served each click; samples that run side by side share calls."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be read."""

    number: int
    """0-based, in the data set."""
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """A run over a data set or over one shard of it."""

    settings: Settings
    samples: tuple[SampleResult, ...]
    seconds: float
    """Wall time of the whole loop: decoding, robot, model and IoU."""
    shard: tuple[int, int] | None = None
    failed: tuple[Failure, ...] = ()
    """Samples that could not be read; they count in no number."""
    expected: int | None = None
    """If the run was cut short, the number of samples that it was to have; None if all are done."""

    @property
    def curves(self) -> metrics.Curves:
        """float32 ``[N, max_clicks]``: IoU after each click."""
        return np.array([s.ious for s in self.samples], dtype=np.float32).reshape(-1, self.settings.max_clicks)

    def metrics(self) -> dict[str, Any]:
        """The protocol's numbers.

        Returns:
            ``noc80 noc85 noc90 noc95`` (None above `stop_at`), ``nof90`` and ``never90`` (counts), ``miou`` (click as
            a string -> mean IoU in 0..1), ``intervals`` (95 % BCa bootstrap over samples: ``noc90``, ``miou2``, None
            where undefined), ``samples``, ``clicks``, ``spc`` (seconds of the whole loop per click) and ``latency_ms``
            (p50, p95, p99 of the calls that served the clicks).  A shard of which no sample could be read has None in
            their place.
        """
        curves = self.curves
        settings = self.settings
        some = len(curves) > 0
        reachable = [t for t in metrics.IOU_TARGETS if some and (settings.stop_at is None or t <= settings.stop_at)]
        times = [ms for sample in self.samples for ms in sample.milliseconds]
        out: dict[str, Any] = {
            f"noc{t * 100:.0f}": float(metrics.noc(curves, t).mean()) if t in reachable else None
            for t in metrics.IOU_TARGETS
        }
        has90 = 0.9 in reachable
        out["nof90"] = metrics.nof(curves, 0.9) if has90 else None
        out["never90"] = metrics.never_reached(curves, 0.9) if has90 else None
        ks = [k for k in MIOU_CLICKS if k <= settings.max_clicks]
        out["miou"] = {str(k): metrics.mean_iou(curves, k) if some else None for k in ks}
        out["intervals"] = {
            "noc90": metrics.bootstrap_interval(metrics.noc(curves, 0.9)) if has90 else None,
            "miou2": metrics.bootstrap_interval(curves[:, 1]) if some and settings.max_clicks >= 2 else None,
        }
        out["samples"] = len(self.samples)
        out["clicks"] = len(times)
        out["spc"] = self.seconds / len(times) if times else None
        out["latency_ms"] = metrics.percentiles(times) if times else None
        return out

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON types: the metrics and settings at the top level, ``per_sample`` below."""
        settings = asdict(self.settings)
        return {
            "format": FORMAT,
            **self.metrics(),
            "clicker": settings.pop("clicker"),
            "model": settings.pop("model"),
            "threshold": self.settings.about.get("threshold"),
            "settings": settings,
            "shard": None if self.shard is None else list(self.shard),
            "seconds": self.seconds,
            "expected": self.expected,
            "failed": [asdict(f) for f in self.failed],
            "per_sample": [
                {
                    "number": s.number,
                    "id": s.id,
                    "object": s.object,
                    "iou": [_short(v) for v in s.ious],
                    "clicks": [[c.x, c.y, int(c.positive)] for c in s.clicks],
                    "ms": list(s.milliseconds),
                }
                for s in self.samples
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Report":
        """The inverse of `to_json`; derived numbers are computed anew.

        Raises:
            DatasetError: `data` is not a report of this format, or is damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            got = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise DatasetError(f"not an evaluation report: format is {got!r}, expected {FORMAT!r}")
        try:
            settings = Settings(clicker=data["clicker"], model=data["model"], **data["settings"])
            _check_settings(settings)
            samples = tuple(_sample_from_json(entry, settings.max_clicks) for entry in data["per_sample"])
            shard = None if data["shard"] is None else (int(data["shard"][0]), int(data["shard"][1]))
            failed = tuple(Failure(int(f["number"]), str(f["id"]), str(f["reason"])) for f in data.get("failed", ()))
            expected = None if data.get("expected") is None else int(data["expected"])
            return Report(settings, samples, float(data["seconds"]), shard, failed, expected)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise DatasetError(f"damaged evaluation report: {type(error).__name__}: {error}") from error

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``report.json``, ``samples.csv``, ``report.md`` and ``curve.png``; return their paths.

        The plot needs matplotlib (extra ``eval``).

        Raises:
            DatasetError: matplotlib is not installed.
            FileWriteError, InvalidArgumentError: the folder or a file cannot be written, `folder` is no path.
        """
        with writing(folder):
            root = Path(folder)
            root.mkdir(parents=True, exist_ok=True)
        paths = [root / name for name in ("report.json", "samples.csv", "report.md", "curve.png")]
        write_json(self, paths[0])
        write_file(paths[1], to_csv(self).encode(errors="backslashreplace"))
        write_file(paths[2], to_markdown([self]).encode())
        plot([self], paths[3])
        return paths


def _check_settings(settings: Settings) -> None:
    """Whether they have the types that all readers of a report rely on.  Raises TypeError or ValueError."""
    kinds: dict[type, tuple[str, ...]] = {
        str: ("model", "clicker", "dataset", "layout", "dataset_digest"),
        int: ("max_clicks", "seed", "batch_size", "dataset_samples"),
        dict: ("about", "versions"),
    }
    for kind, names in kinds.items():
        for name in names:
            if type(value := getattr(settings, name)) is not kind:
                raise TypeError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    if settings.max_clicks < 1:
        raise ValueError(f"max_clicks is {settings.max_clicks}")
    if settings.stop_at is not None and finite(settings.stop_at) is None:
        raise TypeError(f"stop_at is {short(settings.stop_at)}, not a number")
    if settings.ignore_label is not None and type(settings.ignore_label) is not int:
        raise TypeError(f"ignore_label is {short(settings.ignore_label)}, not a whole number")


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: curves stay exact and readable in JSON."""
    return float(str(np.float32(value)))


def _sample_from_json(entry: Mapping[str, Any], max_clicks: int) -> SampleResult:
    result = SampleResult(
        number=int(entry["number"]),
        id=str(entry["id"]),
        object=int(entry["object"]),
        ious=tuple(float(np.float32(v)) for v in entry["iou"]),
        clicks=tuple(Click(float(x), float(y), bool(positive)) for x, y, positive in entry["clicks"]),
        milliseconds=tuple(float(v) for v in entry["ms"]),
    )
    if len(result.ious) != max_clicks or not all(0 <= v <= 1 for v in result.ious):
        raise ValueError(f"sample {result.id}: {len(result.ious)} IoU values in 0..1, expected {max_clicks}")
    if len(result.clicks) != len(result.milliseconds):
        raise ValueError(f"sample {result.id}: {len(result.clicks)} clicks but {len(result.milliseconds)} times")
    return result


def write_json(report: Report, path: str | Path) -> None:
    """Write the complete report; `read_json` reads it back."""
    # One line a sample: a report of thousands of samples stays readable and small.
    data = report.to_json()
    rows = ",\n".join("  " + json.dumps(row) for row in data.pop("per_sample"))
    head = json.dumps(data, indent=1)
    document = head.removesuffix("\n}") + ',\n "per_sample": [\n' + rows + "\n ]\n}\n"
    write_file(path, document.encode())


def read_json(path: str | Path) -> Report:
    """Read a report written by `write_json`.  Raises DatasetError when the file is missing or is no report."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return Report.from_json(data)
    except (
        OSError,
        TypeError,  # no path
        ValueError,
        RecursionError,
    ) as error:  # DatasetError is a ValueError too: the path is added to its message
        raise DatasetError(f"cannot read {path}: {error}") from error


def merge(shards: Sequence[Report]) -> Report:
    """Join the shards of one run.  Apart from the timings the result equals the unsharded run exactly.

    Raises:
        InvalidArgumentError: no shard, what is no report, settings that differ, a shard that is missing or given twice.
    """
    if not (isinstance(shards, Sequence) and shards and all(isinstance(shard, Report) for shard in shards)):
        raise InvalidArgumentError("nothing to merge; give the reports of all shards of a run")
    first = shards[0]
    for other in shards[1:]:
        a, b = asdict(first.settings), asdict(other.settings)
        if different := [f"{key}: {a[key]!r} and {b[key]!r}" for key in a if a[key] != b[key]]:
            raise InvalidArgumentError(f"the reports are not shards of one run; {'; '.join(different)}")
    samples = sorted((s for shard in shards for s in shard.samples), key=lambda s: s.number)
    failed = sorted((f for shard in shards for f in shard.failed), key=lambda f: f.number)
    numbers = sorted([s.number for s in samples] + [f.number for f in failed])
    total = first.settings.dataset_samples
    if len(numbers) != total or numbers != list(range(total)):  # a damaged report may claim any total
        covered = {n for n in numbers if 0 <= n < total}
        missing = list(islice((n for n in range(total) if n not in covered), 3))
        twice = sorted({a for a, b in pairwise(numbers) if a == b})
        raise InvalidArgumentError(
            f"the shards do not cover the {total} samples once each: {total - len(covered)} missing (first: "
            f"{missing}), {len(twice)} given twice (first: {twice[:3]}); give every shard of the run exactly once"
        )
    seconds = sum(s.seconds for s in shards)
    return replace(first, samples=tuple(samples), seconds=seconds, shard=None, failed=tuple(failed), expected=None)


def to_csv(report: Report) -> str:
    """One row a sample: id, object, clicks placed, NoC at each target, IoU after each click."""
    curves = report.curves
    nocs = [metrics.noc(curves, t) for t in metrics.IOU_TARGETS]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["id", "object", "clicks", *(f"noc{t * 100:.0f}" for t in metrics.IOU_TARGETS)]
        + [f"iou{k}" for k in range(1, curves.shape[1] + 1)]
    )
    for i, sample in enumerate(report.samples):
        ious = [str(v) for v in curves[i]]
        rows.writerow([sample.id, sample.object, len(sample.clicks), *(int(n[i]) for n in nocs), *ious])
    return text.getvalue()


def to_markdown(reports: Sequence[Report]) -> str:
    """A table with one row a report; IoU in per cent, intervals in brackets."""
    columns = [k for k in MIOU_CLICKS if all(k <= r.settings.max_clicks for r in reports)]
    head = ["model", "clicker", "data", "samples", "NoC@80", "NoC@85", "NoC@90", "NoC@95", "NoF@90 (never)"]
    head += [f"mIoU@{k}" for k in columns] + ["SPC s", "click ms p50/p95/p99"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    notes = []
    for report in reports:
        m, s = report.metrics(), report.settings
        cells = [printable(s.model), s.clicker, printable(s.dataset), str(m["samples"])]
        for key in ("noc80", "noc85", "noc90", "noc95"):
            cells.append(_number(m[key]) + _interval(m["intervals"].get(key), 1))
        cells.append("-" if m["nof90"] is None else f"{m['nof90']} ({m['never90']})")
        for k in columns:
            cells.append(_number(m["miou"][str(k)], 100) + _interval(m["intervals"].get(f"miou{k}"), 100))
        cells.append("-" if m["spc"] is None else f"{m['spc']:.3f}")
        latency = m["latency_ms"]
        cells.append("-" if latency is None else "/".join(f"{latency[p]:.0f}" for p in ("p50", "p95", "p99")))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        known = {key: value for key, value in s.about.items() if value is not None and key != "weights_sha256"}
        about = ", ".join(f"{key} {value}" for key, value in known.items()) or "another predictor"
        notes.append(
            f"{s.model}, {s.clicker}: {s.max_clicks} clicks, {about}; {s.batch_size} samples side by side"
            + (f"; stopped at IoU {s.stop_at}, so later values repeat the last" if s.stop_at is not None else "")
            + (f"; pixels of value {s.ignore_label} do not count" if s.ignore_label is not None else "")
            + (f"; shard {report.shard[0]} of {report.shard[1]} only" if report.shard is not None else "")
        )
        if report.expected is not None:
            notes.append(f"cut short: {len(report.samples) + len(report.failed)} of {report.expected} samples")
        notes += [f"left out: {f.id}: {f.reason}" for f in report.failed[:10]]
        if len(report.failed) > 10:
            notes.append(f"left out: {len(report.failed) - 10} more; the JSON report names all")
    notes.append(
        "Brackets: 95 % BCa bootstrap over samples. SPC: wall time of the whole loop per click, decoding and robot "
        "included. Click ms: wall time of the call that served a click; samples side by side share calls."
    )
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {printable(note)}" for note in notes) + "\n"


def _number(value: float | None, scale: float = 1) -> str:
    return "-" if value is None else f"{scale * value:.2f}"


def _interval(interval: Sequence[float] | None, scale: float) -> str:
    return "" if interval is None else f" [{scale * interval[0]:.2f}, {scale * interval[1]:.2f}]"


def require_plotting() -> None:
    """Raise DatasetError unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise DatasetError('the plot needs matplotlib: pip install ".[eval]" in the checkout')


def plot(reports: Sequence[Report], path: str | Path) -> None:
    """Draw mean IoU against clicks, one line a report, and save it as PNG.

    Raises:
        DatasetError: matplotlib is not installed.
        InvalidArgumentError: there is no report.
        FileWriteError: the file cannot be written.
    """
    if not reports:
        raise InvalidArgumentError("nothing to plot; give at least one report")
    require_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for report in reports:
        curves = report.curves
        mean = 100 * (curves.mean(axis=0, dtype=np.float64) if len(curves) else np.full(curves.shape[1], np.nan))
        name = printable(Path(report.settings.model).stem)
        label = f"{name}, {report.settings.clicker}, n = {len(report.samples)}"
        axes.plot(range(1, len(mean) + 1), mean, marker="o", markersize=3.5, linewidth=1.6, label=label)
    axes.axhline(90, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xlabel="clicks", ylabel="mean IoU, %")
    # names are no formulas, whatever $ is in them
    axes.set_title(", ".join(sorted({printable(r.settings.dataset) for r in reports})), parse_math=False)
    most = max(r.settings.max_clicks for r in reports)
    axes.set_xticks([k for k in MIOU_CLICKS if k <= most])
    axes.set_ylim(top=100)
    axes.grid(alpha=0.25)
    for text in axes.legend(loc="best", frameon=False).get_texts():
        text.set_parse_math(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    write_file(path, out.getvalue())


def dataset_digest(data: Dataset) -> str:
    """Digest of the ids of all samples in order: shards of the same data set have the same."""
    return hashlib.sha256("\n".join(s.id for s in data.samples).encode(errors="surrogatepass")).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import torch

    from activefreq_engine import __version__

    return {
        "activefreq_engine": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
    }
