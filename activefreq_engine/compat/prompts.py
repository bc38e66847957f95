"""Prompts without memory, as SAM has them: an answer depends on its own prompts only, not on what was asked before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.conventions import THRESHOLD
from activefreq_engine.errors import InvalidClickError, InvalidMaskError
from activefreq_engine.runtime.engine import Engine
from activefreq_engine.session import boxes
from activefreq_engine.session.arguments import click_list
from activefreq_engine.session.canvas import Canvas, Layer
from activefreq_engine.session.click import advance, prepare_next
from activefreq_engine.session.history import Pass, Picture, Scene, SessionSettings, Step
from activefreq_engine.session.prompts import Mark, at_once
from activefreq_engine.session.zoom import interpolate, neighbours
from activefreq_engine.types import BoxPrompt, Click

LOW = 256
"""Side of the low-resolution logits."""
THRESHOLDS = (THRESHOLD, 0.8, 0.2)
"""Probabilities above which a pixel is in each of the three masks: as in sessions; surely inside; possibly inside."""
_BATCH = 16  # prompts in one pass of the network
_LEAST = 2.0**-17  # below any probability that a layer can hold but 0: the logits stay finite


@dataclass(frozen=True, slots=True, eq=False)
class MaskPrompt:
    """The prompts for one mask, in pixels of the picture."""

    clicks: tuple[Click, ...] = ()
    box: BoxPrompt | None = None
    start: NDArray[np.float32] | None = None
    """float32 `[LOW, LOW]`: the probabilities of an earlier answer, on the picture's square."""


Extent = tuple[int, int]
"""Width and height, in pixels of the picture, of what the low-resolution logits cover, from its corner (0, 0) on."""


def open_picture(image: NDArray[np.uint8]) -> Picture:
    """A picture to ask for masks in."""
    return Picture(image, None, SessionSettings(THRESHOLD, zoom=True, refine=True))


def prepare(engine: Engine, picture: Picture) -> None:
    """Let the engine look at a whole picture, so that a first click need not wait for that later."""
    prepare_next(engine, picture, Scene.of(picture).blank)


def read_points(picture: Picture, coords: Any, labels: Any) -> tuple[Click, ...]:
    """Points `[N, 2]` and labels `[N]` as checked clicks; a point of label -1 only fills up a batch.

    Raises:
        InvalidClickError: not such arrays, or a point outside the picture.
    """
    if coords is None and labels is None:
        return ()
    if coords is None or labels is None:
        raise InvalidClickError("point_coords and point_labels belong together; one of them is None")
    points, signs = np.asarray(coords, np.float64), np.asarray(labels)
    if points.shape[:1] == signs.shape and points.ndim == 2:
        points, signs = points[signs != -1], signs[signs != -1]
    return tuple(click_list(Scene.of(picture), points, signs))


def read_logits(logits: Any, extent: Extent, picture: Picture) -> NDArray[np.float32]:
    """Low-resolution logits as probabilities on the picture's own grid of at most `LOW` a side.

    Args:
        logits: `[1, LOW, LOW]` or `[LOW, LOW]`, as an earlier answer had them: above 0 is inside.

    Raises:
        InvalidMaskError: another shape, or not finite numbers.
    """
    try:
        values = np.asarray(logits, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidMaskError(f"mask_input cannot be read as numbers: {error}") from error
    if values.shape not in ((1, LOW, LOW), (LOW, LOW)):
        raise InvalidMaskError(
            f"mask_input has shape {values.shape}; expected [1, {LOW}, {LOW}], the low-resolution logits of one mask"
        )
    if not np.isfinite(values).all():
        raise InvalidMaskError("mask_input has NaN or infinite values; expected finite logits")
    odds = np.clip(values.reshape(LOW, LOW), -30, 30).astype(np.float64) + _logit(THRESHOLD)
    probs = (1 / (1 + np.exp(-odds))).astype(np.float32)
    height, width = picture.shape
    for length, whole in ((height, extent[1]), (width, extent[0])):
        cells = max(1, round(LOW * length / whole))
        at = (np.arange(cells) + 0.5) * (LOW * length / (whole * cells)) - 0.5
        probs = np.ascontiguousarray(interpolate(probs, *neighbours(at, LOW)).T)
    return probs


def answer(engine: Engine, picture: Picture, prompts: Sequence[MaskPrompt]) -> list[Canvas]:
    """The canvas for each prompt.  The same prompts have the same answer, whatever was asked before."""
    found = [_start(picture, p) for p in prompts]
    # as in `Session.predict`: a box takes a pass of its own, before the clicks; so do clicks for which no slot is free
    passes: list[list[tuple[Mark, ...]]] = [[*([(p.box,)] if p.box else []), *at_once(p.clicks)] for p in prompts]
    for marks in zip_longest(*passes, fillvalue=()):
        asked = [i for i, m in enumerate(marks) if m]
        for first in range(0, len(asked), _BATCH):
            part = asked[first : first + _BATCH]
            outcomes = advance(engine, [(picture, found[i]) for i in part], [Pass(marks[i]) for i in part])
            for i, outcome in zip(part, outcomes, strict=True):
                found[i] = outcome.step
    return [step.canvas for step in found]


def _start(picture: Picture, prompt: MaskPrompt) -> Step:
    """The state that the clicks of a prompt add to."""
    blank = Scene.of(picture).blank
    if prompt.start is None:
        return blank
    canvas = replace(blank.canvas, layers=(Layer.of(picture.bounds, prompt.start),))
    return Step(None, canvas, None, boxes.mask_bbox(canvas.mask()))


def expected_iou(probs: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """The IoU of the mask with the object to expect, if each pixel belongs to the object with its probability."""
    common = float(probs[mask].sum(dtype=np.float64))
    union = np.count_nonzero(mask) + float(probs.sum(dtype=np.float64)) - common
    return common / union if union > 0 else 0.0


def to_logits(probs: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """float32 of the same shape: above 0 where the probability is above the threshold."""
    held = np.clip(probs, _LEAST, 1 - _LEAST)
    return np.log(held / (1 - held)) - np.float32(_logit(threshold))


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))
