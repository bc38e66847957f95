"""Where the network looks: the region of interest, the focus box, and the resampling between image and network.

A box maps linearly onto the whole network grid, by the geometry rule of `activefreq_engine.conventions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.conventions import SLOTS, STRIDE
from activefreq_engine.runtime.levels import interpolate as interpolate  # for `compat`, which may not know `runtime`
from activefreq_engine.session.boxes import (
    box_iou,
    clamp,
    contains,
    expand,
    mask_bbox,
    network_pixel,
    to_image,
    to_pixels,
    union,
)
from activefreq_engine.session.prompts import DISK, Drawn, Mark, pixel_box
from activefreq_engine.types import Box, Click

EXPANSION = 1.4  # region of interest and focus box, per side length (RITM, FocalClick)
MIN_CROP = 64  # smallest region of interest, image pixels (docs/experiments.md, 34; RITM has 200)
MIN_OUTLINED = 32  # smallest side of the region around a box or a lasso, image pixels
MIN_GAIN = 2.0  # a region that is enlarged less than this is not worth the surroundings that it loses,
LATE = 5  # until this click: what is still wrong by then is detail
KEEP_IOU = 0.5  # a new region with less overlap replaces the old one (RITM)
PIECEWISE = 6  # from this click on an object of several pieces is looked at piece by piece (docs/experiments.md, 43),
PIECE_GAIN = 1.5  # so many times smaller than the object's region is a piece's, or it is not worth the surroundings
PIECE_REACH = 0.25  # a click that is farther from a piece than this part of its longer side is about another one
CELL = 4  # pieces are told apart on a grid of so many network pixels
_ROW_OF_CELL = np.uint32  # as many bytes
FOCUS_PART = 1 / 3  # a change smaller than this part of the object is looked at in its surroundings (FocalClick)
FOCUS_REACH = 0.2  # these surroundings: click +- this part of the object's longer side (FocalClick)
SHARP = 1.5  # image pixels to a network pixel up to which the refiner has nothing to add (docs/experiments.md, 5 and 9)
MIN_FOCUS = 16.0  # smallest side of a focus box, network pixels
_MANY_DISKS = 128  # from so many on, looking through the whole grid is quicker than drawing them one by one


@lru_cache(maxsize=64)
def network_shape(box: Box, size: int) -> tuple[int, int]:
    """(height, width) of the network input for a region: the long side becomes `size`, the short side the nearest
    multiple of 32 to its proportional length.  The rest, under 16 network pixels, is a stretch: no padding."""
    width, height = box[2] - box[0], box[3] - box[1]
    long = max(width, height)

    def side(length: int) -> int:
        return max(STRIDE, STRIDE * int(size * length / (long * STRIDE) + 0.5))

    return side(height), side(width)


def resize(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resample `[H, W]` or `[H, W, C]` without shift: area averages along axes that shrink, linear along those that
    grow.  An axis at a time where needed, since cv2's INTER_AREA is something else when one axis grows."""
    h, w = values.shape[:2]
    small = (min(w, width), min(h, height))
    if small != (w, h):
        values = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
    if small != (width, height):
        values = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    return values


def neighbours(at: NDArray[np.floating[Any]], values: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For positions among `values` values, counted from their centres: the value before each, and the weight of the
    one after it.  Positions beyond the ends are held there."""
    at = np.clip(at, 0, values - 1)
    low = np.minimum(at.astype(np.intp), max(0, values - 2))
    return low, (at - low).astype(np.float32)


def crop_rgb(image: NDArray[np.uint8], box: Box, height: int, width: int) -> NDArray[np.uint8]:
    """The content of `box`, resampled from the original pixels: uint8 `[height, width, 3]`."""
    crop = resize(image[box[1] : box[3], box[0] : box[2]], height, width)
    return np.ascontiguousarray(crop if crop.ndim == 3 else np.broadcast_to(crop[..., None], (height, width, 3)))


def halvings(box: Box, side: int) -> int:
    """How often an image may be halved and still have two pixels for each one of a crop of `box`, `side` x `side`."""
    return max(0, int(np.log2(min(box[2] - box[0], box[3] - box[1]) / (2 * side))))


def shrunk(image: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """The image with each square of `step` pixels averaged to one; the last row and column average what is left."""
    height, width = (-(-side // step) for side in image.shape[:2])
    out = np.empty((height, width, *image.shape[2:]), np.uint8)
    rows, columns = image.shape[0] // step, image.shape[1] // step
    for ys, source_ys in ((slice(rows), slice(rows * step)), (slice(rows, None), slice(rows * step, None))):
        for xs, source_xs in (
            (slice(columns), slice(columns * step)),
            (slice(columns, None), slice(columns * step, None)),
        ):
            part = image[source_ys, source_xs]
            if part.size:
                out[ys, xs] = resize(part, *out[ys, xs].shape[:2]).reshape(out[ys, xs].shape)
    return out


def said_inside(marks: Sequence[Mark]) -> Box | None:
    """The box around the pixels of positive clicks and drawn prompts; None when there are none."""
    said: Box | None = None
    for mark in marks:
        if isinstance(mark, (Click, Drawn)) and mark.positive:
            said = union(said, pixel_box(mark))
    return said


def next_roi(
    height: int,
    width: int,
    mask_box: Box | None,
    said: Box | None,
    count: int,
    current: Box | None,
    *,
    min_crop: int = MIN_CROP,
) -> Box | None:
    """RITM's zoom-in rule with hysteresis, where it enlarges enough to be worth the lost surroundings.

    Args:
        height, width (int): of the image.
        mask_box (Box, optional): box of the mask before this click; None when it is empty.
        said (Box, optional): see `said_inside`, of all prompts on the object, the new one included.
        count (int): how many these are.
        current (Box, optional): the region in use; None when the whole image is.
        min_crop (int): smallest side before clamping to the image.

    Returns:
        The region to look at, or None for the whole image: there is no mask yet, or the region would be enlarged less
        than `MIN_GAIN` times and there are fewer than `LATE` prompts.  `current` is kept unless a positive one lies
        outside it or its IoU with the new region is below `KEEP_IOU`.
    """
    if mask_box is None:
        return None
    object_box = union(mask_box, said) or mask_box
    wanted = to_pixels(expand(object_box, EXPANSION, min_crop), (0, 0, width, height))
    if current is not None and box_iou(wanted, current) >= KEEP_IOU and union(current, said) == current:
        return current
    gain = max(height, width) / _longer(wanted)
    return wanted if gain >= MIN_GAIN or count >= LATE else None


class Pieces:
    """The pieces of an object, and where to look for a click on one of them.

    Pieces are 8-connected; what is less than a `CELL` or two apart is one.

    Args:
        previous (uint16 or float32 `[h, w]`): levels or probabilities on the grid of `box`; h and w are multiples of
            `CELL`.
        limit (float): what is above it is the object.
        box (Box): the region of the whole object.
        bounds (Box): the image.
        known (sequence of Box): regions that were looked at before, the latest last.  One of them is used again if it
            holds piece and click and its IoU with the region that would be chosen is `KEEP_IOU` at least.
    """

    def __init__(
        self,
        previous: NDArray[np.uint16] | NDArray[np.float32],
        limit: float,
        box: Box,
        bounds: Box,
        known: Sequence[Box],
    ) -> None:
        rows = previous > limit
        rows = rows[::CELL] | rows[1::CELL] | rows[2::CELL] | rows[3::CELL]  # quicker than a reduction
        cells = (rows.view(_ROW_OF_CELL) != 0).view(np.uint8)
        count, self._labels = cv2.connectedComponents(cells, connectivity=8)  # the background is one
        self._found = np.empty((0, 4), np.int32)
        """`[N, 4]`: left, top, width and height of each piece where there are several, in cells."""
        if count > 2:
            self._found = cv2.connectedComponentsWithStats(cells, connectivity=8)[2][1:, :4]
        self._box, self._bounds, self._known = box, bounds, known

    def region(self, click: Click) -> Box | None:
        """The region around the piece to which a click belongs, or None where the whole object should be looked at: it
        is of one piece, the click is far from all pieces, or the region would hardly be smaller than the object's."""
        if not len(self._found):
            return None
        column, row = network_pixel(click.x, click.y, self._box, *self._labels.shape)
        number = int(self._labels[row, column])
        if not number:
            rows, columns = np.nonzero(self._labels)
            away = np.hypot(rows - row, columns - column)
            nearest = away.argmin()
            number = int(self._labels[rows[nearest], columns[nearest]])
            if away[nearest] > PIECE_REACH * max(self._found[number - 1, 2:]):
                return None
        return self._around(number - 1, click)

    def regions(self) -> list[Box]:
        """The regions of all pieces for clicks on them or close to them, of large pieces first."""
        largest = np.argsort(-self._found[:, 2] * self._found[:, 3], kind="stable").tolist()
        regions = [self._around(k, None) for k in largest]
        return [region for region in regions if region is not None]

    def _around(self, k: int, click: Click | None) -> Box | None:
        x, y, w, h = self._found[k].tolist()
        rows, columns = self._labels.shape
        inner = to_pixels(to_image((x, y, x + w, y + h), self._box, rows, columns), self._bounds)
        wanted = to_pixels(expand(inner, EXPANSION, MIN_CROP), self._bounds)
        if click is not None and not contains(wanted, click):
            inner = union(inner, pixel_box(click)) or inner
            wanted = to_pixels(expand(inner, EXPANSION, MIN_CROP), self._bounds)
        if _longer(self._box) < PIECE_GAIN * _longer(wanted):
            return None
        for region in reversed(self._known):
            held = union(region, inner) == region and (click is None or contains(region, click))
            if held and box_iou(wanted, region) >= KEEP_IOU:
                return region
        return wanted


def _longer(box: Box) -> int:
    """The longer side."""
    return max(box[2] - box[0], box[3] - box[1])


def outlined_roi(area: Box, bounds: Box) -> Box:
    """The region to look at for an object in a box or a lasso of this extent."""
    return to_pixels(expand(area, EXPANSION, MIN_OUTLINED), bounds)


def sharp(box: Box, height: int, width: int) -> bool:
    """Whether a network input of this size shows a region in such detail that the refiner has nothing to add."""
    return _longer(box) <= SHARP * max(width, height)


def focus_box(
    previous: NDArray[np.float32], coarse: NDArray[np.float32], click: tuple[int, int], threshold: float
) -> tuple[float, float, float, float] | None:
    """Where the last click changed something: the box that the refiner redraws (FocalClick).

    Args:
        previous (float32 `[h, w]`): probabilities before the click, on the network grid.
        coarse (float32 `[h, w]`): the network's answer.
        click ((int, int)): (x, y) of the last click, network pixels.
        threshold (float): of both masks.

    Returns:
        Box in network pixels, within the grid: around the 8-connected component of the change that holds the click;
        around the click where that component is small or the click changed nothing; around the object when there
        was no mask before.  None when there is nothing to refine.
    """
    before, after = previous > threshold, coarse > threshold
    target = mask_bbox(after) or mask_bbox(before)
    if target is None:
        return None
    grid = (0, 0, coarse.shape[1], coarse.shape[0])
    if not before.any():
        return clamp(expand(target, EXPANSION, MIN_FOCUS), grid)
    x, y = click
    side_x, side_y = target[2] - target[0], target[3] - target[1]
    change = (before ^ after).astype(np.uint8)
    if change[y, x]:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(change, connectivity=8)
        left, top, w, h = (int(v) for v in stats[labels[y, x], :4])
        if w >= FOCUS_PART * side_x and h >= FOCUS_PART * side_y:
            return clamp(expand((left, top, left + w, top + h), EXPANSION, MIN_FOCUS), grid)
    reach = FOCUS_REACH * max(side_x, side_y)
    around = (x + 0.5 - reach, y + 0.5 - reach, x + 0.5 + reach, y + 0.5 + reach)
    return clamp(expand(around, 1.0, MIN_FOCUS), grid)


class Slots:
    """Clicks as `click_maps` wants them, on one region; the next one makes the next slots.

    A click means the centre of its pixel.  The newest `SLOTS` of each sign inside the region are kept, positive ones
    first; (-1, -1) marks an empty slot.  The others are left out.
    """

    __slots__ = ("_cells", "_held", "grid", "points", "used")

    def __init__(
        self,
        grid: tuple[Box, int, int],
        points: NDArray[np.float32],
        used: tuple[int, int],
        cells: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None,
        held: NDArray[np.uint8] | None = None,
    ) -> None:
        self.grid, self.points, self.used, self._cells, self._held = grid, points, used, cells, held
        """The region with height and width of the network's grid; float32 `[2 * SLOTS, 2]` (x, y) on that grid; how
        many positive clicks and negative ones there are.  Only where some have no slot: the pixels of the grid, row
        after row, in which positive clicks and negative ones lie, oldest first."""

    @classmethod
    def of(
        cls,
        columns: NDArray[np.intp],
        rows: NDArray[np.intp],
        signs: NDArray[np.bool_],
        box: Box,
        height: int,
        width: int,
    ) -> Slots:
        """Clicked pixels with their signs, oldest first, no pixel twice."""
        x0, y0, x1, y1 = box
        within = (x0 <= columns) & (columns < x1) & (y0 <= rows) & (rows < y1)
        signs = signs[within]
        u = (columns[within] + 0.5 - x0) * width / (x1 - x0)
        v = (rows[within] + 0.5 - y0) * height / (y1 - y0)
        points = np.full((2, SLOTS, 2), -1, np.float32)
        inside, outside = np.flatnonzero(signs), np.flatnonzero(~signs)
        for own, side in zip(points, (inside, outside), strict=True):
            seen = side[-SLOTS:]
            own[: len(seen), 0], own[: len(seen), 1] = _on_grid(u[seen]), _on_grid(v[seen])
        used, cells = (len(inside), len(outside)), None
        if max(used) > SLOTS:
            places = v.astype(np.intp) * width + u.astype(np.intp)
            cells = places[inside], places[outside]
        return cls((box, height, width), points.reshape(-1, 2), used, cells)

    def then(self, x: int, y: int, positive: bool) -> Slots | None:
        """The slots with one more click, on a pixel on which there was none; None if it is the first one that leaves
        another without a slot: then they must be made anew."""
        (x0, y0, x1, y1), height, width = self.grid
        if not (x0 <= x < x1 and y0 <= y < y1):
            return self
        u, v = (x + 0.5 - x0) * width / (x1 - x0), (y + 0.5 - y0) * height / (y1 - y0)
        inside, outside = self.used
        slot = inside if positive else outside
        cells, held = self._cells, self._held
        if slot >= SLOTS and cells is None:
            return None
        points, first = self.points.copy(), 0 if positive else SLOTS
        if cells is not None:
            own = cells[0 if positive else 1]
            longer = np.empty(len(own) + 1, np.intp)
            longer[:-1], longer[-1] = own, int(v) * width + int(u)
            cells = (longer, cells[1]) if positive else (cells[0], longer)
            if slot >= SLOTS:  # the oldest one leaves
                points[first : first + SLOTS - 1] = points[first + 1 : first + SLOTS]
                if held is not None:
                    held = held.copy()
                    draw_disks(held, own[-SLOTS:][:1])
        points[first + min(slot, SLOTS - 1)] = max(0.0, u - 0.5), max(0.0, v - 0.5)
        used = (inside + 1, outside) if positive else (inside, outside + 1)
        return Slots(self.grid, points, used, cells, held)

    @property
    def left_out(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The pixels of the grid in which positive clicks and negative ones without a slot lie."""
        none = np.empty(0, np.intp)
        return (none, none) if self._cells is None else (self._cells[0][:-SLOTS], self._cells[1][:-SLOTS])

    @property
    def shown(self) -> NDArray[np.intp]:
        """The pixels of the grid of the clicks that have slots, where others have none."""
        assert self._cells is not None
        return np.concatenate([own[-SLOTS:] for own in self._cells])

    def held(self) -> NDArray[np.uint8]:
        """uint8 `[height, width]`, not to be written to: 1 on the disks around the clicks that have no slot."""
        if self._held is None:
            self._held = np.zeros(self.grid[1:], np.uint8)
            draw_disks(self._held, np.concatenate(self.left_out))
        return self._held


def _on_grid(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places on the network grid, counted from the first pixel's centre."""
    return np.maximum(at - 0.5, 0.0)  # the first half pixel must not read as an empty slot


def draw_disks(out: NDArray[np.uint8], cells: NDArray[np.intp]) -> None:
    """Write 1 on the network's disks around some pixels of a grid `[h, w]`, as indices into it row after row."""
    if len(cells) > _MANY_DISKS:
        centres = np.zeros_like(out)
        centres.reshape(-1)[cells] = 1
        np.maximum(out, cv2.dilate(centres, _disk()), out=out)
        return
    width = out.shape[1]
    for cell in cells.tolist():
        v, u = divmod(cell, width)
        cv2.circle(out, (u, v), DISK, 1, -1)


@lru_cache(maxsize=1)
def _disk() -> NDArray[np.uint8]:
    """What `cv2.circle` draws."""
    disk = np.zeros((2 * DISK + 1,) * 2, np.uint8)
    cv2.circle(disk, (DISK, DISK), DISK, 1, -1)
    return disk


def point_slots(clicks: Sequence[Click], box: Box, height: int, width: int) -> NDArray[np.float32]:
    """The slots of clicks, oldest first, on the network grid of `box`.  Where a pixel was clicked again the newest
    click counts."""
    newest: dict[tuple[int, int], bool] = {}
    for c in clicks:
        pixel = int(c.x), int(c.y)
        newest.pop(pixel, None)
        newest[pixel] = c.positive
    at = np.array(list(newest), np.intp).reshape(-1, 2)
    return Slots.of(at[:, 0], at[:, 1], np.array(list(newest.values()), np.bool_), box, height, width).points
