"""Suggestions by look-ahead: each candidate is clicked on trial, and ranked by what the answer would be worth.

AcSelect says where the network is unsure.  That is not yet what a click is worth: along a contour pixels are unsure
whatever the mask is like, and a click there moves the contour only a little.  So for some of AcSelect's regions the
network answers the click that contradicts the mask (a click that agrees would change nothing).  The score is

    P(the mask is wrong there)^2 * sqrt(1 - IoU(present mask, mask after the click)).

The expected gain would be the plain product.  But the network's probabilities exaggerate errors: where they say that
the mask is wrong with 45 %, it is wrong in 30 % of all cases; where they say 15 %, in 1 %.  And the larger a change
that the network offers, the smaller the part of it that is right.  The square and the root follow what was measured
(docs/experiments.md, 27).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.acselect import AcSelect, check_count
from activefreq_engine.runtime import levels
from activefreq_engine.runtime.engine import Engine
from activefreq_engine.session import boxes
from activefreq_engine.session.click import prepare
from activefreq_engine.session.history import Pass, Scene
from activefreq_engine.session.suggest import propose
from activefreq_engine.types import Click, Suggestion

CANDIDATES = 8  # most places that are tried
UNSURE = (0.9, 0.6)  # bits from which pixels are candidates: a probability of 0.32 to 0.68, and of 0.15 to 0.85
TOGETHER = 2  # places tried in one pass of the network; a click made meanwhile waits for one such pass at most


def propose_ahead(
    engine: Engine, scene: Scene, selector: AcSelect, k: int, wanted: Callable[[], bool] = lambda: True
) -> list[Suggestion]:
    """At most `k` suggestions for the scene's current object, best first, with the score above.

    `wanted` is asked between passes; once it says False the list is empty.
    """
    check_count(k)
    found: dict[tuple[int, int], Suggestion] = {}
    for tau in UNSURE:
        for s in propose(scene, selector, CANDIDATES // 2, engine.uncertain_regions, tau):
            found.setdefault((s.x, s.y), s)
    candidates = list(found.values())
    scores: list[float] = []
    for first in range(0, len(candidates), TOGETHER):
        if not wanted():
            return []
        scores += _scores(engine, scene, candidates[first : first + TOGETHER])
    ranked = sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0])
    return [replace(s, score=score) for score, s in ranked[:k] if score > 0]


def _scores(engine: Engine, scene: Scene, candidates: list[Suggestion]) -> list[float]:
    """The score of each candidate."""
    history, picture = scene.history, scene.picture
    threshold = picture.settings.threshold
    clicks = [Click(s.x, s.y, s.positive) for s in candidates]
    turns = [prepare(engine, picture, history.step, Pass((click,), scene.view), whole=True) for click in clicks]
    scores = []
    answers = engine.run([replace(t.request, paint=None) for t in turns])
    for s, turn, answer in zip(candidates, turns, answers, strict=True):
        picture.features.keep(turn.box, answer.features)
        before, after = levels.probabilities(turn.request.previous), answer.probs
        u, v = boxes.network_pixel(s.x, s.y, turn.box, *before.shape)
        p = float(before[v, u])
        wrong = p if s.positive else 1.0 - p
        scores.append(wrong**2 * math.sqrt(1.0 - _iou(before > threshold, after > threshold)))
    return scores


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """1 where both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
