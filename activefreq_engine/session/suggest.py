"""Suggestions in image pixels: `AcSelect` on the region that the network looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.conventions import SUGGESTION_SIDE
from activefreq_engine.session import boxes
from activefreq_engine.session.history import Scene
from activefreq_engine.session.prompts import Drawn, Mark, area_on, disks
from activefreq_engine.types import Box, Suggestion

if TYPE_CHECKING:
    from activefreq_engine.acselect import AcSelect, Finder

TAU = 0.9  # the default of `AcSelect.suggest`
AWAY = 3  # no suggestion lies within so many pixels of that grid from an earlier click


def propose(scene: Scene, selector: AcSelect, k: int, find: Finder, tau: float = TAU) -> list[Suggestion]:
    """At most `k` suggestions for the scene's current object, best first; see `Session.suggest`.

    `find` is `Engine.uncertain_regions`; `tau` is the entropy in bits above which a pixel counts as uncertain, see
    `AcSelect.suggest`.
    """
    history = scene.history
    step, box = history.step, history.step.roi or scene.picture.bounds
    width, height = box[2] - box[0], box[3] - box[1]
    shrink = min(1.0, SUGGESTION_SIDE / max(width, height))
    h, w = max(1, round(height * shrink)), max(1, round(width * shrink))
    before = history.previous.canvas.grid(box, h, w) if len(history.done) > 1 else None
    valid = _away_from(step.canvas.marks, box, h, w, scene.picture.bounds)
    found = selector.suggest_by(find, step.canvas.grid(box, h, w), before, valid, k, tau)
    mask = scene.picture.mask(step.canvas)
    return [_to_image(s, box, h, w, mask) for s in found]


def _away_from(marks: Sequence[Mark], box: Box, height: int, width: int, bounds: Box) -> NDArray[np.bool_]:
    """bool `[height, width]`: False near earlier clicks and where prompts decide, since a click there would tell
    little.
    """
    valid = np.ones((height, width), np.bool_)
    for mark in marks:
        if isinstance(mark, Drawn) and mark.decides:
            valid &= ~area_on(mark, box, height, width, bounds)
    for c in disks(marks, box, height, width):
        x, y = boxes.to_network(int(c.x) + 0.5, int(c.y) + 0.5, box, height, width)
        u, v = int(x), int(y)
        if 0 <= u < width and 0 <= v < height:
            valid[max(0, v - AWAY) : v + AWAY + 1, max(0, u - AWAY) : u + AWAY + 1] = False
    return valid


def _to_image(s: Suggestion, box: Box, height: int, width: int, mask: NDArray[np.bool_]) -> Suggestion:
    """A suggestion on the grid of `box` in image pixels."""
    x, y, *_ = (int(p) for p in boxes.to_image((s.x + 0.5, s.y + 0.5, 0, 0), box, height, width))
    region = boxes.to_pixels(boxes.to_image(s.region_bbox, box, height, width), box)
    pixels = (box[2] - box[0]) * (box[3] - box[1]) / (height * width)
    return Suggestion(
        x, y, not mask[y, x], s.score, region, max(1, round(s.area * pixels)), mpe=s.mpe, ape=s.ape, rgu=s.rgu
    )
