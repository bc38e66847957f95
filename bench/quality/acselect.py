"""AcSelect against other ways to place clicks, and an annotator who follows its suggestions.

    python -m bench.quality.acselect DATA --out bench/results/acselect/SET  # all, in order of value; hours on a CPU
    python -m bench.quality.acselect DATA --out out/few --limit 3 --only ritm --only acselect
    python -m bench.quality.acselect TRAIN --out out/train --every 18 --stop-at 0.9 --max-clicks 10  # to choose by

Two questions.  As a *robot* that knows the truth: how many clicks does the model need when AcSelect picks which error
is clicked next, rather than the protocol's rule (`RitmClicker`)?  As *suggestions* to a person, who alone knows the
truth: how often do they point at an error, and how many clicks then need no search?

Each variant's report is kept in OUT/runs and not made again, so an interrupted run goes on where it stopped.  The
tables are written anew after every variant, from all reports there are.
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine import Click, Session, Suggestion
from activefreq_engine.acselect import RGU_VARIANTS, AcSelect
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.eval import Dataset, Report, evaluate, load_dataset, metrics, read_json, write_json
from activefreq_engine.eval.clickers import AcSelectClicker, ClickerFactory, RitmClicker
from activefreq_engine.eval.report import dataset_digest
from activefreq_engine.files import write_file
from activefreq_engine.runtime.engine import stored_digest

RITM = "ritm"
FOLLOWERS = {"suggest-first": (1, False), "suggest-any": (3, False), "ahead-first": (1, True)}
"""Annotators: how many of the suggestions they look at, and whether these are ranked by look-ahead."""
UNCERTAIN = 0.9  # bits: the pixels that suggestions are made of by default, see `AcSelect.suggest`


class LargestRegion(AcSelect):
    """The region of most pixels, whatever its score; clicked where AcSelect would click it."""

    def oracle(self, *images: Any, **options: Any) -> list[Suggestion]:
        """See `AcSelect.oracle`."""
        return sorted(super().oracle(*images, **options), key=lambda s: -s.area)


class AnyRegion(AcSelect):
    """A region drawn uniformly from those that have AcSelect's minimum size."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = np.random.default_rng(seed)

    def oracle(self, *images: Any, **options: Any) -> list[Suggestion]:
        """See `AcSelect.oracle`."""
        found = super().oracle(*images, **options)
        return [found[i] for i in self._random.permutation(len(found))]


def policies() -> dict[str, AcSelect]:
    """The settings of AcSelect that are compared, by name, in order of value."""
    weights = {"mpe": (1.0, 0.0, 0.0), "ape": (0.0, 1.0, 0.0), "rgu": (0.0, 0.0, 1.0), "all": (1.0, 1.0, 1.0)}
    found = {"acselect": AcSelect()}
    for prominence in (0.0, 0.5):
        for variant in RGU_VARIANTS:
            for terms in ("rgu", "all"):
                found[f"{terms}-{variant}-{prominence:g}"] = AcSelect(weights[terms], variant, prominence=prominence)
        for terms in ("mpe", "ape"):
            found[f"{terms}-{prominence:g}"] = AcSelect(weights[terms], prominence=prominence)
    grid_default = [name for name, policy in found.items() if name != "acselect" and repr(policy) == repr(AcSelect())]
    for name in grid_default:
        del found[name]  # it is "acselect"
    found["all-entropy_share-0.8"] = AcSelect(weights["all"], "entropy_share", prominence=0.8)
    found["widest"] = AcSelect(prominence=1)  # the distance rule by way of AcSelect: a check, its numbers are ritm's
    return found


def clickers() -> dict[str, str | tuple[str, ClickerFactory]]:
    """Every robot, as `evaluate` takes it, by name.  A policy's name in the report is all of its settings."""
    regions: dict[str, str | tuple[str, ClickerFactory]] = {
        RITM: RITM,
        "random": "random",
        "largest-region": ("largest-region", lambda truth, seed: AcSelectClicker(truth, LargestRegion())),
        "any-region": ("any-region", lambda truth, seed: AcSelectClicker(truth, AnyRegion(seed))),
    }
    return regions | {name: (repr(policy), partial(_with_policy, policy)) for name, policy in policies().items()}


def _with_policy(policy: AcSelect, truth: NDArray[np.integer], seed: int) -> AcSelectClicker:
    return AcSelectClicker(truth, policy)


@dataclass(frozen=True, slots=True)
class Offer:
    """What an annotator was offered before a click, and what came of it."""

    sample: str
    click: int
    """1-based number of the click that followed."""
    offered: int
    """Suggestions, 0 to 3."""
    first_wrong: bool
    """The first suggestion lies on a pixel whose label is wrong: the suggested click would correct it."""
    any_wrong: bool
    """One of them does."""
    followed: bool
    """The click that followed is a suggested one."""
    uncertain: int
    """Pixels of more than `UNCERTAIN` bits."""
    uncertain_wrong: int
    """And of those, the wrong ones: what a suggestion drawn blindly among them would hit."""


class SuggestionFollower:
    """An annotator who looks at the first suggestions, best first: if the mask is wrong at one, they click it; else
    they look for the largest error themselves, by the protocol's rule.

    Args:
        truth: integer `[H, W]`: 1 object, 0 background, -1 ignored.
        session: the session that is evaluated, and asked for suggestions.
        sample: name of the sample in `offers`.
        looks_at: so many suggestions, 1 to 3.
        ahead: suggestions are ranked by look-ahead, not by AcSelect's score alone.
        offers: an `Offer` is added before every click but the first.
    """

    needs_probs = False

    def __init__(
        self,
        truth: NDArray[np.integer],
        session: Session,
        sample: str,
        looks_at: int,
        ahead: bool,
        offers: list[Offer],
    ) -> None:
        self._truth, self._session, self._sample = truth, session, sample
        self._looks_at, self._ahead, self._offers = looks_at, ahead, offers
        self._robot = RitmClicker(truth)

    def next_click(self, prediction: NDArray[np.bool_], probs: NDArray[np.floating] | None = None) -> Click | None:
        """See `RobotClicker.next_click`."""
        wrong = (self._truth >= 0) & (prediction != (self._truth == 1))
        clicked = len(self._session.clicks)
        if clicked and wrong.any():
            suggestions = self._session.suggest(3, look_ahead=self._ahead)
            hits = [bool(wrong[s.y, s.x]) for s in suggestions]
            uncertain = self._session.uncertainty > UNCERTAIN
            counts = int(uncertain.sum()), int((uncertain & wrong).sum())
            seen = zip(suggestions[: self._looks_at], hits, strict=False)
            followed = [s for s, hit in seen if hit]
            offer = Offer(self._sample, clicked + 1, len(hits), hits[:1] == [True], any(hits), bool(followed), *counts)
            self._offers.append(offer)
            if followed:
                return Click(float(followed[0].x), float(followed[0].y), followed[0].positive)
        return self._robot.next_click(prediction)


def follow_suggestions(data: Dataset, model: str, name: str, **options: Any) -> tuple[Report, list[Offer]]:
    """Evaluate one of `FOLLOWERS`; options as for `evaluate`.  The offers are in the order of clicks."""
    session = Session(model)
    offers: list[Offer] = []
    ids = iter([sample.id for sample in data.samples])  # one session: `evaluate` starts one sample after the other

    def annotator(truth: NDArray[np.integer], seed: int) -> SuggestionFollower:
        return SuggestionFollower(truth, session, next(ids), *FOLLOWERS[name], offers)

    return evaluate(data, model=model, predictors=[session], clicker=(name, annotator), **options), offers


# --- runs that can be interrupted ---


@dataclass(frozen=True, slots=True)
class Runs:
    """A folder of finished runs: a JSON file each, named by the variant and a digest of all that the run depends on
    but the code.  So a run with other weights, data or settings is another file, and no stale one is ever read."""

    folder: Path
    data: Dataset
    model: str
    options: Mapping[str, Any]
    """The options that `evaluate` gets: max_clicks and stop_at."""

    def path(self, name: str, suffix: str = ".json") -> Path:
        """Where the run of a variant is, or will be."""
        known = clickers() | {follower: (f"{follower} {AcSelect()!r}", None) for follower in FOLLOWERS}
        what = known[name] if isinstance(known[name], str) else known[name][0]
        parts = stored_digest(self.model), dataset_digest(self.data), sorted(self.options.items()), what
        return self.folder / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}{suffix}"

    def get(self, name: str) -> Report | None:
        """The run of a variant, None if it has not been made."""
        path = self.path(name)
        return read_json(path) if path.exists() else None

    def offers(self, name: str) -> list[Offer]:
        """What was offered in the run of one of `FOLLOWERS`, in the order of clicks."""
        with self.path(name, ".csv").open(newline="", encoding="utf-8") as stream:
            return [_offer(**row) for row in csv.DictReader(stream)]

    def make(self, name: str) -> None:
        """Run a variant and keep its report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if name in FOLLOWERS:
            report, offers = follow_suggestions(self.data, self.model, name, **self.options)
            write_csv(self.path(name, ".csv"), [asdict(offer) for offer in offers])
        else:
            report = evaluate(self.data, model=self.model, clicker=clickers()[name], **self.options)
        write_json(report, self.path(name))  # last: where it is, the run is complete


def _offer(sample: str, **row: str) -> Offer:
    n = {key: int(value) for key, value in row.items()}
    flags = {key: bool(n.pop(key)) for key in ("first_wrong", "any_wrong", "followed")}
    return Offer(sample, **n, **flags)


# --- tables ---


def robot_rows(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """A row a robot: settings, NoC, the difference of NoC@90 from `RITM`'s on the same images with its 95 % interval,
    NoF, mean IoU in per cent.  None where something was not measured."""
    policy, rows = policies(), []
    for name, report in reports.items():
        p, m = policy.get(name), report.metrics()
        stopped = report.settings.stop_at is not None
        rows.append(
            {
                "robot": name,
                "weights": None if p is None else ", ".join(f"{w:g}" for w in p.weights),
                "rgu": None if p is None else p.rgu,
                "prominence": None if p is None else p.prominence,
                "samples": m["samples"],
                **{key: m[key] for key in ("noc85", "noc90", "noc95")},
                **difference(report, reports.get(RITM)),
                "nof90": m["nof90"],
                **{f"miou{k}": None if stopped else 100 * v for k, v in m["miou"].items()},
            }
        )
    return rows


def difference(report: Report, reference: Report | None) -> dict[str, float | None]:
    """NoC@90 of a report minus the reference's, sample by sample: the mean and its 95 % BCa bootstrap interval."""
    if reference is None or report.metrics()["noc90"] is None:
        return {"more90": None, "more90_low": None, "more90_high": None}
    more = metrics.noc(report.curves, 0.9) - metrics.noc(reference.curves, 0.9)
    low, high = metrics.bootstrap_interval(more) or (None, None)
    return {"more90": float(more.mean()), "more90_low": low, "more90_high": high}


def offer_rows(name: str, offers: Sequence[Offer], until: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row a click number, and one for all: how many annotators clicked so often and what they were offered, in per
    cent.  Clicks of a sample after the one that reached the target (`until`) are left out."""
    needed = [offer for offer in offers if offer.click <= until[offer.sample]]
    groups = {str(k): [o for o in needed if o.click == k] for k in range(2, 1 + max(until.values(), default=0))}
    return [
        {"annotator": name} | _offer_row(click, group) for click, group in (*groups.items(), ("all", needed)) if group
    ]


def _offer_row(click: str, offers: Sequence[Offer]) -> dict[str, Any]:
    with_one = [o for o in offers if o.offered]
    pixels = [o for o in offers if o.uncertain]
    return {
        "click": click,
        "samples": len(offers),
        "empty": 100 * (1 - len(with_one) / len(offers)),
        "first_on_error": _percent([o.first_wrong for o in with_one]),
        "any_on_error": _percent([o.any_wrong for o in with_one]),
        "uncertain_pixel_wrong": _percent([o.uncertain_wrong / o.uncertain for o in pixels]),
        "followed": 100 * sum(o.followed for o in offers) / len(offers),
    }


def _percent(values: Sequence[float]) -> float | None:
    return 100 * float(np.mean(values)) if values else None


def markdown(head: str, robots: Sequence[Mapping[str, Any]], offers: Sequence[Mapping[str, Any]], summary: str) -> str:
    """Both tables, with a note on each."""
    text = f"{head}\n\n## Robots\n\n" + _table([_readable_robot(row) for row in robots])
    text += "\nThe column behind NoC@90 is the mean difference from the `ritm` robot on the same images, with its 95 % "
    text += "BCa bootstrap interval over images.  Mean IoU in per cent.  -: not measured.\n"
    if offers:
        text += f"\n## Suggestions\n\n{summary}\n\n" + _table(offers)
        text += (
            "\nPer cent.  first, any: of the lists that are not empty.  uncertain_pixel_wrong: share of wrong pixels "
        )
        text += f"among those above {UNCERTAIN} bits, mean over masks: what a blind choice among them would hit.\n"
    return text


def _readable_robot(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["more90_low"], row["more90_high"]
    interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    shown = {k: v for k, v in row.items() if not k.startswith("more90")}
    more = None if row["more90"] is None else f"{row['more90']:+.2f}{interval}"
    names = list(shown)
    after = names.index("noc90") + 1
    return {k: shown[k] for k in names[:after]} | {"to ritm": more} | {k: shown[k] for k in names[after:]}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "Nothing has run yet.\n"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(v) for v in row.values()] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def suggestion_summary(name: str, report: Report, reference: Report | None, offers: Sequence[Offer]) -> str:
    """What following the suggestions costs or saves, in words and numbers."""
    lines = []
    for target in (0.85, 0.9):
        until = clicks_until(report, target)
        needed = [o for o in offers if o.click <= until[o.sample]]
        count, followed = sum(until.values()), sum(o.followed for o in needed)
        text = f"- {name}, to IoU {target:.2f}: NoC {np.mean(list(until.values())):.2f}"
        if reference is not None:
            more = metrics.noc(report.curves, target) - metrics.noc(reference.curves, target)
            low, high = metrics.bootstrap_interval(more) or (np.nan, np.nan)
            text += f", {more.mean():+.2f} [{low:+.2f}, {high:+.2f}] to an annotator who always searches"
        text += f"; {followed} of {count} clicks ({100 * followed / count:.0f} %) were suggestions, "
        lines.append(text + f"{(count - followed) / len(until):.2f} a sample had to be searched for.")
    return "\n".join(lines)


def clicks_until(report: Report, target: float) -> dict[str, int]:
    """Sample -> its NoC."""
    return {s.id: int(n) for s, n in zip(report.samples, metrics.noc(report.curves, target), strict=True)}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with the columns of the first row; an empty cell for None."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _plain(v) for k, v in row.items()} for row in rows)
    write_file(path, stream.getvalue().encode())


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return round(value, 4) if isinstance(value, float) else value


def write_tables(runs: Runs, out: Path) -> str:
    """Write ``acselect.md``, ``robots.csv`` and ``suggestions.csv`` of all finished runs; return the text."""
    reports = {name: report for name in clickers() if (report := runs.get(name)) is not None}
    robots = robot_rows(reports)
    write_csv(out / "robots.csv", robots)
    offered: list[dict[str, Any]] = []
    summary: list[str] = []
    for name in FOLLOWERS:
        if (report := runs.get(name)) is not None:
            offers = runs.offers(name)
            offered += offer_rows(name, offers, clicks_until(report, 0.9))
            summary.append(suggestion_summary(name, report, reports.get(RITM), offers))
    write_csv(out / "suggestions.csv", offered)
    head = f"{runs.data.name}, {len(runs.data.samples)} samples; {Path(runs.model).stem}, weights sha256 "
    head += f"{stored_digest(runs.model)[:12]}; " + ", ".join(f"{k} {v}" for k, v in runs.options.items())
    text = markdown(head, robots, offered, "\n".join(summary))
    write_file(out / "acselect.md", text.encode())
    return text


def main(
    data: Annotated[Path, typer.Argument(help="images with truth, in any layout that `activefreq eval` reads")],
    out: Annotated[Path, typer.Option(help="folder of the tables; finished runs are kept in its folder runs")],
    only: Annotated[list[str] | None, typer.Option(help="just this variant; may be repeated")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="just so many images")] = None,
    every: Annotated[int, typer.Option(min=1, help="just every n-th image")] = 1,
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint")] = DEFAULT_MODEL,
    max_clicks: Annotated[int, typer.Option(min=1, help="clicks an image")] = 20,
    stop_at: Annotated[float | None, typer.Option(help="stop an image at this IoU: quicker, but no mean IoU")] = None,
) -> None:
    """Compare AcSelect's ways to choose the next click."""
    names = [RITM, "acselect", *FOLLOWERS]
    names += [name for name in clickers() if name not in names]
    if unknown := sorted(set(only or ()) - set(names)):
        raise typer.BadParameter(f"unknown variant {unknown[0]!r}; choose from {', '.join(names)}")
    found = load_dataset(data)
    found = replace(found, samples=found.samples[::every][:limit])
    runs = Runs(out / "runs", found, model, {"max_clicks": max_clicks, "stop_at": stop_at})
    out.mkdir(parents=True, exist_ok=True)
    for name in tqdm([n for n in names if n in (only or names)], desc="variants", unit="variant"):
        if runs.get(name) is None:
            runs.make(name)
        write_tables(runs, out)
    typer.echo(write_tables(runs, out))


if __name__ == "__main__":
    typer.run(main)
