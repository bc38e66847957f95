"""One prompt through the engine: decide where to look, run the network, refine, and write down the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.conventions import OUTLINED, SLOTS
from activefreq_engine.runtime import levels
from activefreq_engine.runtime.engine import Engine, RefineRequest, StepAnswer, StepRequest
from activefreq_engine.runtime.painting import PaintRequest
from activefreq_engine.runtime.timing import Stopwatch
from activefreq_engine.session import boxes, zoom
from activefreq_engine.session.canvas import Canvas, Layer, changed_bbox, merge
from activefreq_engine.session.click_tally import ClickTally
from activefreq_engine.session.history import Pass, Picture, Step
from activefreq_engine.session.packed_mask import PackedMask
from activefreq_engine.session.painter import limit
from activefreq_engine.session.prompts import (
    Drawn,
    Mark,
    agrees,
    area_on,
    disks,
    outline,
    pixel_box,
    prompt_of,
    says_inside,
)
from activefreq_engine.types import Box, BoxPrompt, Click, Lasso, Scribble

FAR = 4  # image pixels to a network pixel from which an object may be too small for the first look
UNLIKE = 2.5  # a clicked spot that lies so many deviations of the mask's colours from their mean is another thing
SHADES = 4.0  # grey levels that are added to these deviations, for the noise of even grounds
SURE = 0.85  # at a lower probability of the clicked spot the first look may not have seen it
EDGED = 0.6  # an object's colours are so many deviations, its own and its surroundings' added, from these
LEFT_OVER = 0.3  # of a piece with a click that the network denies may be in its answer; what has more was moved
READY = 4  # regions that are looked at before the next click comes, where the object has pieces
LARGER = 10  # the first mask must be so many times larger than that of the second look


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of prompts on an object."""

    step: Step
    """The step to add to the history; its event is the newest prompt."""
    mask: NDArray[np.bool_]
    """bool `[H, W]`, read-only."""
    changed: Box | None
    """Box of the pixels that changed in the mask, or None."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """New prompts on one object on their way through the engine."""

    picture: Picture
    step: Step
    """The state that the prompts add to."""
    new: Pass
    marks: tuple[Mark, ...]
    """All prompts on the object that count, the new ones last."""
    clicked: ClickTally | None
    """The tally of the marks, if the new ones are clicks and so are all others but a box at the beginning."""
    roi: Box | None
    box: Box
    """Where the network looks: the region, the whole image where there is none, or a piece of the object."""
    partial: bool
    """Whether what lies outside of `box` stays as it was: the user looks at a part, or the network at a piece."""
    request: StepRequest


def advance(
    engine: Engine,
    states: Sequence[tuple[Picture, Step]],
    passes: Sequence[Pass],
    watch: Stopwatch | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Answer new, checked prompts on an object of each of several images, in one batched pass.

    The states that are passed in do not change; only what pictures remember to save work does.  Prompts that agree with
    the mask (`_agrees`) are not shown to the network; it sees them together with the next prompt that does not agree.

    `watch` is told the time of each stage: "look" (choosing and cutting out the region), the engine's stages, "focus"
    (choosing and cutting out the part to redraw) and "paint" (the mask at image resolution).  `go_on` is called between
    stages; it raises if nobody wants the outcome any more.
    """
    turns: list[_Turn | None] = [
        None if _agrees(picture, step, new) else prepare(engine, picture, step, new)
        for (picture, step), new in zip(states, passes, strict=True)
    ]
    asked = [t for t in turns if t is not None]
    if watch:
        watch.lap("look")
    go_on()
    answers = engine.run([t.request for t in asked], watch, go_on) if asked else []
    go_on()
    for i, (turn, answer) in enumerate(zip(asked, answers, strict=True)):
        closer = _closer(engine, turn, answer)
        if closer is not None:
            (second,) = engine.run([closer.request], watch, go_on)
            go_on()
            if _is_the_object(turn, answer, closer, second):
                asked[i], answers[i] = closer, second
    held = [_kept(t, a.levels) for t, a in zip(asked, answers, strict=True)]
    layers = [
        [Layer.of(t.box, _keeping(a.levels, h, t.request.previous))]
        for t, a, h in zip(asked, answers, held, strict=True)
    ]
    focus = [_focus(engine, t, a) for t, a in zip(asked, answers, strict=True)]
    if watch:
        watch.lap("focus")
    wanted = [f[1] for f in focus if f is not None]
    refined = iter(engine.refine(wanted, watch, go_on) if wanted else [])
    go_on()
    for turn, own, f, h in zip(asked, layers, focus, held, strict=True):
        if f is not None:
            own.append(Layer.of(f[0], _keeping_detail(turn, f[0], next(refined), h)))
    for turn, answer in zip(asked, answers, strict=True):
        turn.picture.features.keep(turn.box, answer.features)
    found = iter([_outcome(t, tuple(own), a) for t, own, a in zip(asked, layers, answers, strict=True)])
    outcomes = [
        _unmoved(picture, step, new) if turn is None else next(found)
        for turn, (picture, step), new in zip(turns, states, passes, strict=True)
    ]
    if watch:
        watch.lap("paint")
    go_on()
    return outcomes


def loaded_step(picture: Picture, mask: NDArray[np.bool_], packed: PackedMask) -> Step:
    """The step that starts from a given mask; `packed` is the same mask, packed."""
    canvas = Canvas(*picture.shape, picture.settings.threshold, fixed=packed)
    return Step(packed, canvas, None, boxes.mask_bbox(mask), packed)


def _agrees(picture: Picture, step: Step, new: Pass) -> bool:
    """Whether the mask has the labels of all new prompts already, and the network has looked at this view."""
    if new.view is not None and new.view != step.roi:
        return False
    blank = step.canvas.fixed is None and not step.canvas.layers
    if blank and not any(says_inside(m) for m in (*step.canvas.marks, *new.marks)):
        return True  # there is no object yet
    mask = picture.mask(step.canvas)
    return all(agrees(m, mask) for m in new.marks)


def _unmoved(picture: Picture, step: Step, new: Pass) -> Outcome:
    """The outcome of prompts that change nothing."""
    shown = picture.showing(step.canvas)
    marks, picture.clicked = picture.after(step, new)
    canvas = replace(step.canvas, marks=marks)
    picture.shown = shown.beneath(canvas)
    event = prompt_of(new.marks[-1])
    return Outcome(replace(step, event=event, canvas=canvas, passes=(*step.passes, new)), shown.mask, None)


def prepare_next(
    engine: Engine, picture: Picture, step: Step, view: Box | None = None, go_on: Callable[[], None] | None = None
) -> None:
    """Have the engine's features ready for the next click on an object, and the engine for its region's shape.

    The click will be answered from the view, else from the region of the present mask, or of one of its `READY` largest
    pieces.  Only a positive click outside of that region, or a click outside of the view, makes it another one.
    """
    roi = view
    if roi is None and picture.settings.zoom:
        marks, clicked = step.canvas.marks, picture.clicked
        said = clicked.inside if clicked is not None and clicked.marks is marks else zoom.said_inside(marks)
        roi = zoom.next_roi(*picture.shape, step.mask_box, said, len(marks) + 1, step.roi)
    box = roi or picture.bounds
    wanted = [box]
    if view is None and picture.settings.zoom and len(step.canvas.marks) + 1 >= zoom.PIECEWISE:
        previous = _previous(step.canvas, box, *zoom.network_shape(box, engine.size), outlined=False)
        wanted += _pieces(picture, step.canvas, box, previous).regions()
    for region in wanted[:READY]:
        if go_on is not None:
            go_on()
        if picture.features.get(region) is None:
            h, w = zoom.network_shape(region, engine.size)
            engine.get_ready(h, w)
            picture.features.keep(region, engine.prepare(zoom.crop_rgb(picture.image, region, h, w), go_on))


def prepare(
    engine: Engine, picture: Picture, step: Step, new: Pass, region: Box | None = None, *, whole: bool = False
) -> _Turn:
    """Decide where to look, unless `region` says it, and prepare what the network sees there.  With `whole` that is
    never a piece of the object."""
    height, width = picture.shape
    marks, clicked = picture.after(step, new)
    newest = marks[-1]
    begins = None if clicked is not None else _begins(step, newest)
    roi: Box | None = None
    if begins is not None:
        area = begins.box if isinstance(begins, Drawn) else outline(begins, picture.bounds)
        roi = zoom.outlined_roi(area, picture.bounds) if picture.settings.zoom else None
    elif new.view is not None and all(_within(new.view, m) for m in new.marks):
        roi = new.view
    elif region is not None:
        roi = region
    elif picture.settings.zoom:
        said = zoom.said_inside(marks) if clicked is None else clicked.inside
        roi = zoom.next_roi(height, width, step.mask_box, said, len(marks), step.roi)
    box = roi or picture.bounds
    partial = roi is not None and roi == new.view
    h, w = zoom.network_shape(box, engine.size)
    outlined = clicked is None and (
        isinstance(newest, BoxPrompt) or (isinstance(newest, Drawn) and isinstance(newest.prompt, Lasso))
    )
    if begins is not None:
        previous: NDArray[Any] = np.zeros((h, w), np.float32)
    else:
        previous = _previous(step.canvas, box, h, w, outlined)
    if clicked is not None and not (whole or partial or region) and picture.settings.zoom:
        piece = _piece(picture, step, new, len(marks), box, previous)
        if piece is not None:
            partial, box = True, piece
            h, w = zoom.network_shape(box, engine.size)
            previous = _previous(step.canvas, box, h, w, outlined)
    features = picture.features.get(box)
    if outlined:
        assert not isinstance(newest, Click)
        inside = area_on(newest, box, h, w, picture.bounds)
        if says_inside(newest):
            previous = np.where(inside, np.maximum(previous, OUTLINED), previous)
        else:
            previous = np.where(inside, np.float32(0), previous)
    paint = None
    if engine.paints and clicked is not None and not partial and _plain(engine, picture, step, box):
        shown = picture.shown
        known = shown.painted if shown is not None and shown.canvas is step.canvas else None
        paint = PaintRequest(box, limit(picture.settings.threshold), known)
    request = StepRequest(
        crop=zoom.crop_rgb(picture.image, box, h, w) if features is None else None,
        features=features,
        previous=previous,
        points=_tally(clicked, marks, box, h, w).points(box, h, w),
        paint=paint,
        meanwhile=None if features is not None else lambda: picture.features.get(box),
    )
    return _Turn(picture, step, new, marks, clicked, roi, box, partial, request)


def _previous(canvas: Canvas, box: Box, h: int, w: int, outlined: bool) -> NDArray[Any]:
    """The answer before, on the grid of a region: levels where they are there already, else probabilities."""
    kept = None if outlined else canvas.kept(box, h, w)
    return canvas.sample(box, h, w) if kept is None else kept


def _piece(picture: Picture, step: Step, new: Pass, count: int, box: Box, previous: NDArray[Any]) -> Box | None:
    """The region of the piece that a late click is about, where the object has several; None: see to all of it.

    All pieces at once are too small for the network to tell their outlines well, and what it answers to a click on one
    of them changes the others, too (docs/experiments.md, 43).
    """
    if count < zoom.PIECEWISE or len(new.marks) > 1 or step.mask_box is None:
        return None
    (click,) = new.marks
    assert isinstance(click, Click)
    return _pieces(picture, step.canvas, box, previous).region(click)


def _pieces(picture: Picture, canvas: Canvas, box: Box, previous: NDArray[Any]) -> zoom.Pieces:
    """The pieces of an object, as they are on the grid of its region."""
    limit_before = picture.settings.threshold
    if previous.dtype == np.uint16:
        limit_before = int(limit_before * levels.ONE)  # a whole number is compared five times as fast
    known = [layer.box for layer in canvas.layers if layer.box != box]
    return zoom.Pieces(previous, limit_before, box, picture.bounds, known)


def _closer(engine: Engine, turn: _Turn, answer: StepAnswer) -> _Turn | None:
    """A second look at an object's first click, at the image's own resolution, if the first one cannot have seen what
    was clicked: the image is much larger than the network's input, and the clicked spot looks like nothing in the mask
    or has a low probability.

    An object of a few network pixels is lost among its surroundings, and the mask is often these (docs/experiments.md).
    """
    picture, size = turn.picture, engine.size
    if turn.step.mask_box is not None or turn.roi is not None or len(turn.marks) > 1 or not picture.settings.zoom:
        return None
    click, (height, width) = turn.marks[0], picture.shape
    if not isinstance(click, Click) or turn.new.view is not None or max(height, width) < FAR * size:
        return None
    mask = answer.probs > picture.settings.threshold
    radius = max(1, max(height, width) // (2 * size))
    x, y = int(click.x), int(click.y)
    spot = picture.image[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
    if mask.any():
        inside = _seen(turn, *mask.shape)[mask].astype(np.float32)
        apart = np.abs(spot.mean((0, 1), dtype=np.float32) - inside.mean(0)) / (inside.std(0) + SHADES)
        column, row = boxes.network_pixel(click.x, click.y, picture.bounds, *mask.shape)
        if apart.max() < UNLIKE and answer.probs[row, column] >= SURE:
            return None
    side = min(size, height, width)
    x0, y0 = (min(max(0, at - side // 2), length - side) for at, length in ((x, width), (y, height)))
    return prepare(engine, picture, turn.step, turn.new, (x0, y0, x0 + side, y0 + side))


def _is_the_object(turn: _Turn, answer: StepAnswer, closer: _Turn, found: StepAnswer) -> bool:
    """Whether a second look shows a small object: whole within its region, with an edge in the picture, and much
    smaller than the first mask."""
    threshold, box, bounds = turn.picture.settings.threshold, closer.box, turn.picture.bounds
    near = found.probs > threshold
    inner = zoom.mask_bbox(near)
    if inner is None:
        return False
    h, w = near.shape
    edge = (max(1, w // 16), max(1, h // 16)) * 2
    room = (inner[0], inner[1], w - inner[2], h - inner[3])
    whole = all(r >= e or b == a for r, e, b, a in zip(room, edge, box, bounds, strict=True))
    area = near.mean() * (box[2] - box[0]) * (box[3] - box[1])
    far = (answer.probs > threshold).mean() * bounds[2] * bounds[3]
    return whole and bool(far == 0 or far > LARGER * area) and _edged(closer, near)


def _edged(turn: _Turn, mask: NDArray[np.bool_]) -> bool:
    """Whether the picture has other colours on the mask than a few network pixels around it."""
    crop = _seen(turn, *mask.shape)
    on = mask.astype(np.uint8)
    inner = cv2.erode(on, np.ones((3, 3), np.uint8)) > 0
    ring = (cv2.dilate(on, np.ones((9, 9), np.uint8)) > 0) & (cv2.dilate(on, np.ones((3, 3), np.uint8)) == 0)
    if not ring.any():
        return False
    there, around = (crop[part].astype(np.float32) for part in (inner if inner.any() else mask, ring))
    apart = np.abs(there.mean(0) - around.mean(0)) / (there.std(0) + around.std(0) + SHADES)
    return bool(apart.max() >= EDGED)


def _seen(turn: _Turn, h: int, w: int) -> NDArray[np.uint8]:
    """What the network saw, RGB.  A request whose features were known does not bring it."""
    crop = turn.request.crop
    return zoom.crop_rgb(turn.picture.image, turn.box, h, w) if crop is None else crop


def _tally(clicked: ClickTally | None, marks: tuple[Mark, ...], box: Box, h: int, w: int) -> ClickTally:
    """The tally of the clicks that stand for the marks when the network looks at a box."""
    found = clicked if clicked is not None else ClickTally.of(tuple(disks(marks, box, h, w)))
    assert found is not None  # they are clicks
    return found


def _plain(engine: Engine, picture: Picture, step: Step, box: Box) -> bool:
    """Whether the next mask depends on the clicks and the network's answer on `box` alone: no loaded mask, no refiner.
    For objects that have clicks only, and looks at all of one."""
    if step.canvas.fixed is not None:
        return False
    refines = engine.refine_size is not None and picture.settings.refine
    return not refines or zoom.sharp(box, *zoom.network_shape(box, engine.size))


def _begins(step: Step, newest: Mark) -> BoxPrompt | Drawn | None:
    """The newest prompt, if the object begins with it: a box, or a positive lasso on an empty mask."""
    if isinstance(newest, BoxPrompt):
        return newest
    if isinstance(newest, Drawn) and isinstance(newest.prompt, Lasso) and newest.positive and step.mask_box is None:
        return newest
    return None


def _within(view: Box, mark: Mark) -> bool:
    return not isinstance(mark, BoxPrompt) and boxes.union(view, pixel_box(mark)) == view


def _kept(turn: _Turn, found: NDArray[np.uint16]) -> NDArray[np.uint8] | None:
    """uint8 of the answer's shape: 1 where all stays as it was, for one reason or the other."""
    held, forgotten = _held(turn, found), _forgotten(turn, found)
    if held is None or forgotten is None:
        return forgotten if held is None else held
    return held | forgotten


def _forgotten(turn: _Turn, found: NDArray[np.uint16]) -> NDArray[np.uint8] | None:
    """uint8 of the answer's shape: 1 on the pieces of the object that the network's answer denies, though a positive
    click on them was shown to it, and on which no new negative click lies.  None: there is none.

    Where an object has many pieces, the network may forget one while it sees to another.  A piece is denied if the
    click is outside of the answer and no more than `LEFT_OVER` of the piece is inside.
    """
    if turn.clicked is None or len(turn.marks) == len(turn.new.marks):
        return None
    box, (h, w) = turn.box, found.shape
    slots = turn.clicked.slots(box, h, w)
    before, threshold = turn.request.previous, turn.picture.settings.threshold
    limit_now = threshold * levels.ONE
    limit_then = limit_now if before.dtype == np.uint16 else threshold
    now, then = memoryview(cast(Any, found)), memoryview(cast(Any, before))  # for so few pixels quicker than NumPy
    shown = [(int(y + 0.5), int(x + 0.5)) for x, y in slots.points[: min(slots.used[0], SLOTS)].tolist()]
    denied = [at for at in shown if now[at] <= limit_now and then[at] > limit_then]
    if not denied:  # as nearly always
        return None
    count, pieces = cv2.connectedComponents((levels.probabilities(before) > threshold).astype(np.uint8), connectivity=8)
    gone = np.zeros(count, np.bool_)
    gone[[pieces[at] for at in denied]] = True
    gone[0] = False
    for mark in turn.new.marks:
        if isinstance(mark, Click) and not mark.positive:
            column, row = boxes.network_pixel(mark.x, mark.y, box, h, w)
            gone[pieces[row, column]] = False
    left = np.bincount(pieces[levels.probabilities(found) > threshold], minlength=count)
    gone &= left <= LEFT_OVER * np.bincount(pieces.reshape(-1), minlength=count)
    return gone[pieces].astype(np.uint8) if gone.any() else None


def _held(turn: _Turn, found: NDArray[np.uint16]) -> NDArray[np.uint8] | None:
    """uint8 of the answer's shape: 1 where the network's answer does not count, since a click that it was not shown
    lies there; there all stays as it was.  None: it counts everywhere.

    If a click without a slot lies on a piece of the object on which no click with a slot lies, the whole piece stays;
    otherwise the disk around the click stays.
    """
    box, (h, w) = turn.box, found.shape
    if turn.clicked is not None and len(turn.marks) <= SLOTS:  # as nearly always
        return None
    tally = _tally(turn.clicked, turn.marks, box, h, w)
    slots = tally.slots(box, h, w)
    inside, outside = slots.left_out
    if not len(inside) and not len(outside):
        return None
    shown = slots.shown
    if tally.twice:  # the earlier click of such a pixel is none without a slot
        pixels = [p for p in tally.twice if box[0] <= p[0] < box[2] and box[1] <= p[1] < box[3]]
        grid = [boxes.network_pixel(x, y, box, h, w) for x, y in pixels]
        shown = np.concatenate([shown, np.array([v * w + u for u, v in grid], np.intp)])
    held = slots.held()
    if len(inside):
        above = levels.probabilities(turn.request.previous) > turn.picture.settings.threshold
        count, pieces = cv2.connectedComponents(above.astype(np.uint8), connectivity=8)
        alone = np.ones(count, np.bool_)
        alone[pieces.reshape(-1)[shown]] = alone[0] = False
        on = pieces.reshape(-1)[inside]
        whole = alone[on]
        if whole.any():
            held = np.zeros((h, w), np.uint8)
            zoom.draw_disks(held, np.concatenate([inside[~whole], outside]))
            kept = np.zeros(count, np.uint8)
            kept[on[whole]] = 1
            held |= kept[pieces]
    seen = np.zeros((h, w), np.uint8)
    zoom.draw_disks(seen, shown)
    return held & ~seen  # where both lie, the clicks that were shown decide


def _keeping(found: NDArray[np.uint16], held: NDArray[np.uint8] | None, before: NDArray[Any]) -> NDArray[np.uint16]:
    """An answer, but what was there before, levels or probabilities, where it is held."""
    if held is None:
        return found
    if before.dtype != np.uint16:
        before = np.rint(before * float(levels.ONE)).astype(np.uint16)
    out = found.copy()
    cv2.copyTo(before, held, out)  # a fifth of the time of `np.where`
    return out


def _keeping_detail(
    turn: _Turn, box: Box, found: NDArray[np.uint16], held: NDArray[np.uint8] | None
) -> NDArray[np.uint16]:
    """The same for the refiner's answer on a part of the region.  The refiner redraws the network's answer and knows
    the clicks in its box, but not what the network was not shown."""
    if held is None:
        return found
    (rows, columns), (h, w) = held.shape, found.shape
    x0, y0 = boxes.to_network(box[0], box[1], turn.box, rows, columns)
    x1, y1 = boxes.to_network(box[2], box[3], turn.box, rows, columns)
    at = [
        np.clip(low + (np.arange(n) + 0.5) * ((high - low) / n), 0, most - 1).astype(np.intp)
        for low, high, n, most in ((y0, y1, h, rows), (x0, x1, w, columns))
    ]
    # one more network pixel all around: at the finer resolution an outline runs within it
    wider = np.asarray(cv2.dilate(held, np.ones((3, 3), np.uint8)), np.uint8)
    return _keeping(found, wider[np.ix_(*at)], turn.step.canvas.sample(box, h, w))


def _focus(engine: Engine, turn: _Turn, answer: StepAnswer) -> tuple[Box, RefineRequest] | None:
    """The box to refine, in image pixels, and what to ask for; None when there is nothing to refine."""
    side = engine.refine_size
    if side is None or not turn.picture.settings.refine:
        return None
    h, w = answer.levels.shape
    if zoom.sharp(turn.box, h, w):
        return None
    previous = levels.probabilities(turn.request.previous)
    newest = turn.new.marks[-1]
    drawn = isinstance(newest, Drawn) and isinstance(newest.prompt, Scribble)
    at = disks([newest], turn.box, h, w) if drawn else [newest] if isinstance(newest, Click) else []
    if len(turn.new.marks) > 1 or not at:  # several clicks, or an outline, may have changed the whole object
        previous, at = np.zeros_like(previous), at[-1:] or [Click(*turn.box[:2])]
    found = []
    for click in at:
        pixel = boxes.network_pixel(click.x, click.y, turn.box, h, w)  # a negative click may lie outside the region
        found.append(zoom.focus_box(previous, answer.probs, pixel, turn.picture.settings.threshold))
    corners = np.array([f for f in found if f is not None])
    if not len(corners):
        return None
    focus = (*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist())
    box = boxes.to_pixels(boxes.to_image(focus, turn.box, h, w), turn.box)
    halvings = zoom.halvings(box, side)  # what a crop costs then does not grow with the image
    box = boxes.aligned(box, 2**halvings, turn.picture.bounds, turn.box)
    return box, RefineRequest(
        coarse=answer.coarse,
        box=(*boxes.to_network(box[0], box[1], turn.box, h, w), *boxes.to_network(box[2], box[3], turn.box, h, w)),
        crop=turn.picture.crop(box, halvings, side, side),
        points=_tally(turn.clicked, turn.marks, box, side, side).slots(box, side, side).points,
    )


def _outcome(turn: _Turn, layers: tuple[Layer, ...], answer: StepAnswer) -> Outcome:
    """The finished step."""
    painted = answer.painted if len(layers) == 1 and layers[0].data is answer.levels else None
    picture, step, new = turn.picture, turn.step, turn.new
    last = step.canvas
    before = picture.showing(last)
    fresh = isinstance(new.marks[-1], BoxPrompt)
    if turn.partial and not fresh:
        layers = (*last.beside(turn.box), *layers)
    canvas = Canvas(last.height, last.width, last.threshold, layers, turn.marks)
    if last.fixed is None or fresh:
        picture.shown, mask_box, changed = before.then(canvas, step.mask_box, turn.clicked, painted)
        mask = picture.shown.mask
    else:
        redrawn, mask = canvas.mask(turn.clicked), before.mask
        for mark in new.marks:
            if isinstance(mark, (Click, Drawn)):
                mask = merge(mask, redrawn, mark, turn.box)
        reach = boxes.union(step.mask_box, canvas.reach(turn.clicked))
        canvas = Canvas(last.height, last.width, last.threshold, layers, turn.marks, PackedMask.of(mask))
        mask_box = boxes.bbox_from_sides(lambda box: mask[box[1] : box[3], box[0] : box[2]], reach)
        changed = changed_bbox(before.mask, mask, boxes.union(step.mask_box, mask_box))
        mask = picture.show(canvas, mask)
    picture.clicked = turn.clicked
    start, passes = (None, (new,)) if fresh else (step.start, (*step.passes, new))
    return Outcome(Step(prompt_of(new.marks[-1]), canvas, turn.roi, mask_box, start, passes), mask, changed)
