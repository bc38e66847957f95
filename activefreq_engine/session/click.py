"""One click through the engine: decide where to look, run the network, refine, and write down the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.runtime.engine import Engine, RefineRequest, StepAnswer, StepRequest
from activefreq_engine.runtime.timing import Stopwatch
from activefreq_engine.session import boxes, zoom
from activefreq_engine.session.canvas import Canvas, Layer, PackedMask, changed_bbox, merge_click
from activefreq_engine.session.history import Scene, Step
from activefreq_engine.types import Box, Click


@dataclass(frozen=True, slots=True)
class _Turn:
    """One scene's click on its way through the engine."""

    scene: Scene
    click: Click
    clicks: tuple[Click, ...]
    """All clicks on the object, this one last."""
    roi: Box | None
    box: Box
    """The region, or the whole image."""
    request: StepRequest


def advance(
    engine: Engine, scenes: Sequence[Scene], clicks: Sequence[Click], watch: Stopwatch | None = None
) -> list[Box | None]:
    """Make one checked click on the current object of each scene, in one batched pass; all scenes advance, or none.

    `watch` is told the time of each stage: "look" (choosing and cutting out the region), the engine's stages, "focus"
    (the same for the part to redraw) and "paint" (the mask at image resolution).

    Returns:
        For each scene the box of the pixels that changed in the mask, or None.
    """
    turns = [_turn(engine, s, c) for s, c in zip(scenes, clicks, strict=True)]
    if watch:
        watch.lap("look")
    answers = engine.run([t.request for t in turns], watch)
    layers = [[Layer.of(t.box, a.levels)] for t, a in zip(turns, answers, strict=True)]
    focus = [_focus(engine, t, a) for t, a in zip(turns, answers, strict=True)]
    if watch:
        watch.lap("focus")
    refined = iter(engine.refine([f[1] for f in focus if f is not None], watch))
    for own, f in zip(layers, focus, strict=True):
        if f is not None:
            own.append(Layer.of(f[0], next(refined)))
    outcomes = [_outcome(t, tuple(own)) for t, own in zip(turns, layers, strict=True)]
    for turn, answer, (step, mask, _) in zip(turns, answers, outcomes, strict=True):
        turn.scene.features.keep(turn.box, answer.features)
        turn.scene.history.push(step)
        turn.scene.show(step.canvas, mask)
    if watch:
        watch.lap("paint")
    return [changed for _, _, changed in outcomes]


def loaded_step(scene: Scene, mask: NDArray[np.bool_], packed: PackedMask) -> Step:
    """The step that starts from a given mask; `packed` is the same mask, packed."""
    blank = scene.blank.canvas
    canvas = Canvas(blank.height, blank.width, blank.threshold, fixed=packed)
    return Step(packed, canvas, None, boxes.mask_bbox(mask))


def _turn(engine: Engine, scene: Scene, click: Click) -> _Turn:
    """Decide where to look and prepare what the network sees there."""
    step = scene.history.step
    height, width = scene.image.shape[:2]
    clicks = (*step.canvas.clicks, click)
    roi = zoom.next_roi(height, width, step.mask_box, clicks, step.roi) if scene.settings.zoom else None
    box = roi or scene.bounds
    h, w = zoom.network_shape(box, engine.size)
    features = scene.features.get(box)
    request = StepRequest(
        crop=zoom.crop_rgb(scene.image, box, h, w) if features is None else None,
        features=features,
        previous=step.canvas.sample(box, h, w),
        points=zoom.point_slots(clicks, box, h, w),
    )
    return _Turn(scene, click, clicks, roi, box, request)


def _focus(engine: Engine, turn: _Turn, answer: StepAnswer) -> tuple[Box, RefineRequest] | None:
    """The box to refine, in image pixels, and what to ask for; None when there is nothing to refine."""
    side = engine.refine_size
    if side is None or not turn.scene.settings.refine:
        return None
    h, w = answer.levels.shape
    if zoom.sharp(turn.box, h, w):
        return None
    u, v = boxes.to_network(int(turn.click.x) + 0.5, int(turn.click.y) + 0.5, turn.box, h, w)
    # a negative click may lie outside the region
    at = min(max(int(u), 0), w - 1), min(max(int(v), 0), h - 1)
    focus = zoom.focus_box(turn.request.previous, answer.probs, at, turn.scene.settings.threshold)
    if focus is None:
        return None
    box = boxes.to_pixels(boxes.to_image(focus, turn.box, h, w), turn.box)
    halvings = zoom.halvings(box, side)  # what a crop costs then does not grow with the image
    box = boxes.aligned(box, 2**halvings, turn.scene.bounds)
    return box, RefineRequest(
        coarse=answer.coarse,
        box=(*boxes.to_network(box[0], box[1], turn.box, h, w), *boxes.to_network(box[2], box[3], turn.box, h, w)),
        crop=turn.scene.crop(box, halvings, side, side),
        points=zoom.point_slots(turn.clicks, box, side, side),
    )


def _outcome(turn: _Turn, layers: tuple[Layer, ...]) -> tuple[Step, NDArray[np.bool_], Box | None]:
    """The finished step, its mask, and the box of what changed."""
    last = turn.scene.history.step.canvas
    before = turn.scene.mask(last)
    canvas = Canvas(last.height, last.width, last.threshold, layers, turn.clicks)
    mask, reach = canvas.mask(), canvas.reach()
    before_box = turn.scene.history.step.mask_box
    if last.fixed is not None:
        mask, reach = merge_click(before, mask, turn.click, turn.box), boxes.union(before_box, reach)
        canvas = Canvas(last.height, last.width, last.threshold, layers, turn.clicks, PackedMask.of(mask))
    mask_box = boxes.bbox_from_sides(lambda box: mask[box[1] : box[3], box[0] : box[2]], reach)
    changed = changed_bbox(before, mask, boxes.union(before_box, mask_box))
    return Step(turn.click, canvas, turn.roi, mask_box), mask, changed
