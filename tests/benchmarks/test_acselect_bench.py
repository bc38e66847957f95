"""The comparison of AcSelect's settings: its robots, its annotator, its tables, and that it can be interrupted."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from activefreq_engine import Click, Suggestion, create_model
from activefreq_engine.acselect import AcSelect
from activefreq_engine.eval import evaluate, load_dataset
from activefreq_engine.eval.clickers import AcSelectClicker, RitmClicker
from activefreq_engine.models import save_checkpoint
from bench.quality import acselect as bench
from tests.eval.fakes import DiskPainter, write_pairs

SIZES = [(33, 47), (41, 29), (36, 36)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs") / "fancy"
    write_pairs(root, SIZES)
    return root


def played(folder, clicker, max_clicks=8):
    return evaluate(load_dataset(folder), predictors=[DiskPainter()], clicker=clicker, max_clicks=max_clicks)


def two_errors():
    """A wide error of 14 x 14 pixels and a longer one of 9 x 40, on a truth of 50 x 71."""
    truth = np.zeros((50, 71), np.int8)
    truth[5:19, 5:19] = truth[30:39, 20:60] = 1
    return truth


def test_the_largest_region_is_the_one_of_most_pixels():
    truth = two_errors()
    empty, probs = np.zeros(truth.shape, bool), np.where(truth == 1, np.float32(0.3), np.float32(0))
    click = AcSelectClicker(truth, bench.LargestRegion()).next_click(empty, probs)
    assert click is not None
    assert click.y == 34  # the middle of the long one
    assert RitmClicker(truth).next_click(empty).y < 19


def test_any_region_is_drawn_anew_and_by_its_seed():
    truth = two_errors()
    empty, probs = np.zeros(truth.shape, bool), np.where(truth == 1, np.float32(0.3), np.float32(0))

    def rows(seed):
        policy = bench.AnyRegion(seed)
        return [policy.oracle(probs, empty, truth == 1)[0].y > 20 for _ in range(40)]

    assert rows(3) == rows(3)
    assert 5 < sum(rows(3)) < 35


def test_every_setting_is_compared_once():
    settings = [repr(p) for p in bench.policies().values()]
    assert len(set(settings)) == len(settings) == 2 * (2 + 2 * 4) + 2
    assert repr(AcSelect()) == repr(bench.policies()["acselect"])


def test_the_widest_region_is_the_protocols_rule(folder):
    widest = AcSelect(prominence=1, min_area=0, min_radius=0)
    a = played(folder, ("widest", lambda truth, seed: AcSelectClicker(truth, widest)))
    b = played(folder, "ritm")
    # Where two places are equally deep, each takes another one; the first clicks rarely tie.
    assert [s.ious[0] for s in a.samples] == pytest.approx([s.ious[0] for s in b.samples], abs=0.05)


class FakeSession:
    ahead = False

    def __init__(self, shape, *suggestions):
        self.clicks = ()
        self.uncertainty = np.zeros(shape, np.float32)
        self._suggestions = suggestions

    def suggest(self, k, look_ahead):
        assert (k, look_ahead) == (3, self.ahead)
        return [Suggestion(x, y, positive, 1.0, (0, 0, 1, 1), 1, 0.5, 0.5, 0.5) for x, y, positive in self._suggestions]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    ("suggestions", "looks_at", "follows", "first_wrong", "any_wrong"),
    [
        ([(40, 34, True), (0, 0, True)], 1, True, True, True),
        ([(0, 0, True), (40, 34, True)], 1, False, False, True),
        ([(0, 0, True), (40, 34, True)], 3, True, False, True),
        ([(0, 0, True)], 3, False, False, False),
        ([], 1, False, False, False),
    ],
)
def test_an_annotator_follows_suggestions_only_onto_errors(
    suggestions, looks_at, follows, first_wrong, any_wrong, ahead
):
    truth = two_errors()
    mask = np.zeros(truth.shape, bool)
    session, offers = FakeSession(truth.shape, *suggestions), []
    session.ahead = ahead
    session.uncertainty[30:32, 19:24] = 0.95  # ten uncertain pixels, eight of them wrong
    annotator = bench.SuggestionFollower(truth, session, "a", looks_at, session.ahead, offers)
    own = RitmClicker(truth).next_click(mask)
    assert annotator.next_click(mask) == own
    assert offers == []  # nothing is offered before the first click
    session.clicks = (own,)
    second = bench.SuggestionFollower(truth, session, "a", looks_at, session.ahead, offers).next_click(mask)
    assert second == (Click(40.0, 34.0, True) if follows else own)
    assert offers == [bench.Offer("a", 2, len(suggestions), first_wrong, any_wrong, follows, 10, 8)]


def test_an_annotator_stops_at_a_perfect_mask_and_passes_over_ignored_pixels():
    truth = two_errors()
    session, offers = FakeSession(truth.shape, (40, 34, True)), []
    session.clicks = (Click(1.0, 1.0, False),)
    assert bench.SuggestionFollower(truth, session, "a", 1, False, offers).next_click(truth == 1) is None
    truth[30:39, 20:60] = -1
    click = bench.SuggestionFollower(truth, session, "a", 1, False, offers).next_click(np.zeros(truth.shape, bool))
    assert click.y < 19
    assert [o.first_wrong for o in offers] == [False]


def test_differences_are_paired(folder):
    report = played(folder, "ritm", max_clicks=6)
    hit = np.float32(0.95)
    shifted = tuple(replace(s, ious=(hit,) * 6) for s in report.samples)
    slow = tuple(replace(s, ious=(np.float32(0.5),) * (2 + i) + (hit,) * (4 - i)) for i, s in enumerate(report.samples))
    more = bench.difference(replace(report, samples=slow), replace(report, samples=shifted))
    assert more["more90"] == pytest.approx(np.mean([2, 3, 4]))
    assert 2 <= more["more90_low"] <= more["more90"] <= more["more90_high"] <= 4
    assert set(bench.difference(report, None).values()) == {None}


def test_offers_are_summed_up_until_the_target():
    offers = [
        bench.Offer("a", 2, 3, True, True, True, 10, 5),
        bench.Offer("a", 3, 0, False, False, False, 0, 0),
        bench.Offer("a", 4, 3, True, True, True, 10, 10),  # after the target
        bench.Offer("b", 2, 1, False, True, False, 10, 1),
    ]
    rows = bench.offer_rows("one", offers, {"a": 3, "b": 5})
    assert [row["click"] for row in rows] == ["2", "3", "all"]
    assert [row["samples"] for row in rows] == [2, 1, 3]
    assert rows[0] | {"click": 2} == {
        "annotator": "one",
        "click": 2,
        "samples": 2,
        "empty": 0,
        "first_on_error": 50,
        "any_on_error": 100,
        "uncertain_pixel_wrong": pytest.approx(30),
        "followed": 50,
    }
    assert rows[1]["first_on_error"] is None
    assert rows[1]["empty"] == 100
    assert rows[2]["followed"] == pytest.approx(100 / 3)


def test_the_command_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    weights, app = tmp_path / "random.safetensors", Typer()
    save_checkpoint(create_model(), weights)
    app.command()(bench.main)
    made = []
    monkeypatch.setattr(bench, "evaluate", lambda *a, **o: made.append(o["clicker"]) or evaluate(*a, **o))

    def run(*arguments):
        fixed = [str(folder), "--out", str(tmp_path / "out"), "--model", str(weights), "--max-clicks", "2"]
        result = CliRunner().invoke(app, [*fixed, *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    few = ["--limit", "2", "--only", "ritm", "--only", "suggest-any"]
    text = run(*few)
    assert [c if isinstance(c, str) else c[0] for c in made] == ["ritm", "suggest-any"]
    assert run(*few) == text
    assert len(made) == 2
    run(*few, "--only", "acselect")
    assert len(made) == 3
    with (tmp_path / "out" / "robots.csv").open() as stream:
        rows = {row["robot"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["ritm", "acselect"]
    assert rows["ritm"]["samples"] == "2"
    assert float(rows["ritm"]["more90"]) == 0
    assert (tmp_path / "out" / "suggestions.csv").read_text().startswith("annotator,click,samples,empty,")
    assert (tmp_path / "out" / "acselect.md").read_text() in run(*few)
    assert len(made) == 3
    run("--every", "2", "--only", "ritm")  # other images: another run
    assert len(made) == 4
    assert CliRunner().invoke(app, [str(folder), "--out", str(tmp_path), "--only", "best"]).exit_code == 2
