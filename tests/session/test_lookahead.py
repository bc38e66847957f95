"""Suggestions ranked by what the network would answer."""

import math

import numpy as np
import pytest

from activefreq_engine import Engine, InvalidArgumentError, Session
from activefreq_engine.acselect import AcSelect
from activefreq_engine.session.lookahead import CANDIDATES, TOGETHER, UNSURE, propose_ahead
from activefreq_engine.session.suggest import propose

from .fakes import SquareModel, random_image


class TwoGuesses(SquareModel):
    """Unsure about two blocks on the right.  A click in the lower one turns all of it, one in the upper a corner."""

    def answer(self, image, clicks):
        out = super().answer(image, clicks) * 3
        h, w = out.shape[2:]
        for rows, part in ((slice(0, 3 * h // 8), 4), (slice(5 * h // 8, h), 1)):
            block = out[..., rows, 5 * w // 8 :]
            block[:] = -0.2  # below the threshold, by a little
            clicked = clicks[:, 1, rows, 5 * w // 8 :].flatten(1).any(1)
            block[clicked, :, : block.shape[2] // part, : block.shape[3] // part] = 3.0
        return out


@pytest.fixture
def session(rng):
    with Session(engine=Engine(TwoGuesses()), zoom=False, refine=False) as s:
        s.set_image(random_image(rng, 192, 256))  # the network's own grid
        s.click(20, 100)
        yield s


def test_the_click_that_changes_more_comes_first(session):
    found = session.suggest(look_ahead=True)
    assert len(found) == 2
    assert all(s.positive and s.x >= 160 for s in found)
    assert found[0].y >= 120 > 72 > found[1].y
    assert {(s.x, s.y) for s in found} == {(s.x, s.y) for s in session.suggest()}
    assert [s.score for s in found] != [s.score for s in session.suggest()]


def test_scores_are_what_a_session_finds_by_clicking(session):
    before, probs = session.mask.copy(), session.probs.copy()
    for s in session.suggest(look_ahead=True):
        after = session.click(s.x, s.y, s.positive).mask
        assert session.undo()
        iou = (before & after).sum() / (before | after).sum()
        assert s.score == pytest.approx(
            probs[s.y, s.x] ** 2 * math.sqrt(1 - iou), rel=5e-3
        )  # clicked pixels are turned as well
    assert np.array_equal(session.mask, before)


def test_a_thought_leaves_no_trace(session):
    before = session.state_dict(), session.mask.copy(), session.clicks
    found = session.suggest(5, look_ahead=True)
    assert found == session.suggest(5, look_ahead=True)
    assert session.state_dict() == before[0]
    assert np.array_equal(session.mask, before[1])
    assert session.clicks == before[2]
    assert session.redo() is None


def test_a_click_meanwhile_ends_it(session, monkeypatch):
    """After the pass that runs: nobody waits for suggestions about a mask that is gone."""
    engine, passes = session._engine, []
    run = Engine.run

    def noted(self, requests, *rest):
        passes.append(len(requests))
        answer = run(self, requests, *rest)
        if len(passes) == 1:
            session.click(60, 150)
        return answer

    monkeypatch.setattr("activefreq_engine.session.lookahead.TOGETHER", 1)
    monkeypatch.setattr(Engine, "run", noted)
    assert session.suggest(look_ahead=True) == []
    assert passes == [1, 1]  # the thought and the click
    assert propose_ahead(engine, session._opened(), AcSelect(), 3, lambda: False) == []
    assert passes == [1, 1]


def test_candidates_are_acselects(session):
    scene = session._opened()
    known = {(s.x, s.y) for tau in UNSURE for s in propose(scene, AcSelect(), CANDIDATES // 2, lambda *_: None, tau)}
    assert {(s.x, s.y) for s in session.suggest(100, look_ahead=True)} <= known
    assert TOGETHER < CANDIDATES


def test_before_the_first_click_and_bad_numbers(rng):
    s = Session(engine=Engine(TwoGuesses()))
    s.set_image(random_image(rng, 50, 70))
    assert s.suggest(look_ahead=True) == []
    for bad in (0, -1, 1.5, "3", True):
        with pytest.raises(InvalidArgumentError):
            s.suggest(bad, look_ahead=True)
