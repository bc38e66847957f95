"""What prompts mean: which pixels they decide, and how they are shown to the network.

The network has three input maps: the previous answer, positive disks and negative disks.  A click is a disk.  A
scribble is several, spread along it.  A box and a lasso are drawn into the previous answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.conventions import SLOTS
from activefreq_engine.errors import InvalidPromptError
from activefreq_engine.masks.outlines import enclosed
from activefreq_engine.session import boxes
from activefreq_engine.session.packed_mask import PackedMask
from activefreq_engine.types import Box, BoxPrompt, Click, Lasso, Prompt, Scribble

DISK = 5
"""Radius of the network's disks, network pixels."""
MOST_DISKS = 8
"""Most disks that show a scribble; their centres are at least two radii apart along it."""
_MOST_ROWS = 1 << 22  # rows that all edges of a lasso may cross together: filling it takes half a second and 300 MB


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A scribble or a lasso with its pixels, in the image."""

    prompt: Scribble | Lasso
    box: Box
    """Around the pixels."""
    pixels: PackedMask
    """The pixels, in that box: those under the scribble, or those that the lasso encloses."""
    deepest: Click
    """The pixel of a lasso that is farthest from its border; the first one of a scribble."""
    holds: bool = True
    """Whether a negative lasso still keeps its pixels out: no later positive prompt has touched it."""

    @property
    def positive(self) -> bool:
        """The prompt's sign."""
        return self.prompt.positive

    @property
    def decides(self) -> bool:
        """Whether its pixels take its sign.  Those of a positive lasso are left to the network."""
        return self.holds and (isinstance(self.prompt, Scribble) or not self.positive)

    def inside(self) -> NDArray[np.bool_]:
        """The pixels as a bool array of the shape of `box`."""
        return self.pixels.unpack()

    def covered(self, clicks: Iterable[Click]) -> set[Click]:
        """Those of the clicks whose pixels are among its own."""
        near = [click for click in clicks if boxes.contains(self.box, click)]
        if not near:
            return set()
        inside, (x0, y0, _, _) = self.inside(), self.box  # unpacked once for all of them
        return {click for click in near if inside[int(click.y) - y0, int(click.x) - x0]}


Mark = Click | BoxPrompt | Drawn
"""A prompt as a canvas holds it."""


def mark_of(prompt: Prompt, height: int, width: int) -> Mark:
    """The mark of a checked prompt in an image.

    Raises:
        InvalidPromptError: a lasso encloses no pixel, or is too long to be filled.
    """
    if isinstance(prompt, (Click, BoxPrompt)):
        return prompt
    points = np.array(prompt.points)
    low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
    if isinstance(prompt, Scribble):
        at = points.astype(np.int32)
        low, high = at.min(0), at.max(0) + 1
        pixels = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.polylines(pixels, [at - low.astype(np.int32)], False, 1)
        pixels[at[:, 1] - low[1], at[:, 0] - low[0]] = 1
        first = Click(float(points[0, 0]), float(points[0, 1]), prompt.positive)
        return Drawn(prompt, (*_pair(low), *_pair(high)), PackedMask.of(pixels.view(np.bool_)), first)
    rows = np.abs(np.diff(points[:, 1], append=points[:1, 1])).sum()
    if rows > _MOST_ROWS:
        raise InvalidPromptError(
            f"the lasso goes up and down over {rows:.0f} rows; allowed are {_MOST_ROWS}: simplify it"
        )
    inside = enclosed(points - low, *_pair(np.maximum(high - low, 1))[::-1])
    box = boxes.mask_bbox(inside)
    if box is None:
        raise InvalidPromptError("the lasso encloses no pixel's centre; draw it larger, or click")
    depth = cv2.distanceTransform(np.pad(inside.view(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = (int(i) for i in np.unravel_index(int(depth.argmax()), depth.shape))
    left, top = _pair(low)
    return Drawn(
        prompt,
        (box[0] + left, box[1] + top, box[2] + left, box[3] + top),
        PackedMask.of(inside[box[1] : box[3], box[0] : box[2]]),
        Click(x + left + 0.5, y + top + 0.5, prompt.positive),
    )


def prompt_of(mark: Mark) -> Prompt:
    """The prompt of a mark."""
    return mark.prompt if isinstance(mark, Drawn) else mark


def with_marks(marks: tuple[Mark, ...], new: Iterable[Mark]) -> tuple[Mark, ...]:
    """The marks on an object after new ones were added.  A box makes a fresh start; a positive prompt that touches
    negative lassos ends their hold on their pixels."""
    for mark in new:
        if isinstance(mark, BoxPrompt):
            marks = (mark,)
            continue
        if mark.positive:
            marks = tuple(_lifted(mark, m) for m in marks)
        marks = (*marks, mark)
    return marks


def pixel_box(mark: Click | Drawn) -> Box:
    """The box around a mark's pixels."""
    if isinstance(mark, Drawn):
        return mark.box
    x, y = int(mark.x), int(mark.y)
    return x, y, x + 1, y + 1


def says_inside(mark: Mark) -> bool:
    """Whether a mark says that something belongs to the object."""
    return isinstance(mark, BoxPrompt) or mark.positive


def agrees(mark: Mark, mask: NDArray[np.bool_]) -> bool:
    """Whether a mask `[H, W]` has the prompt's label on the prompt's pixels already.  A box never agrees: it makes a
    fresh start."""
    if isinstance(mark, BoxPrompt):
        return False
    if isinstance(mark, Click):
        return bool(mask[int(mark.y), int(mark.x)]) == mark.positive
    x0, y0, x1, y1 = mark.box
    return bool((mask[y0:y1, x0:x1][mark.inside()] == mark.positive).all())


def enforce(marks: Sequence[Mark], out: NDArray[np.bool_] | NDArray[np.float32], y0: int = 0) -> None:
    """Give the pixels that marks decide their sign, the newest one last.

    Args:
        marks: oldest first.
        out: bool or float32 `[rows, W]`, rows of the image from `y0` on; written to.
        y0 (int): the first of these rows.
    """
    y1 = y0 + len(out)
    for mark in marks:
        if isinstance(mark, Click):
            if y0 <= int(mark.y) < y1:
                out[int(mark.y) - y0, int(mark.x)] = mark.positive
        elif isinstance(mark, Drawn) and mark.decides:
            left, top, right, bottom = mark.box
            first, last = max(top, y0), min(bottom, y1)
            if first < last:
                inside = mark.pixels.bool_rows(mark.pixels.rows(), first - top, last - top)
                out[first - y0 : last - y0, left:right][inside] = mark.positive


def area_on(area: BoxPrompt | Drawn, box: Box, height: int, width: int, bounds: Box) -> NDArray[np.bool_]:
    """bool `[height, width]` over `box`: where the centre of a network pixel lies in a box or a lasso.

    If the box or lasso is so small that it contains no centre, the one network pixel that contains its middle (of a
    lasso: its deepest pixel) is true, if that lies in `box`.
    """
    xs = np.floor(box[0] + (np.arange(width) + 0.5) * ((box[2] - box[0]) / width)).astype(np.intp)
    ys = np.floor(box[1] + (np.arange(height) + 0.5) * ((box[3] - box[1]) / height)).astype(np.intp)
    x0, y0, x1, y1 = area.box if isinstance(area, Drawn) else outline(area, bounds)
    columns, rows = (x0 <= xs) & (xs < x1), (y0 <= ys) & (ys < y1)
    out = rows[:, None] & columns
    if isinstance(area, Drawn):
        out[np.ix_(rows, columns)] = area.inside()[np.ix_(ys[rows] - y0, xs[columns] - x0)]
        middle = area.deepest
    else:
        middle = Click((x0 + x1) // 2, (y0 + y1) // 2)
    if not out.any() and boxes.contains(box, middle):
        u, v = boxes.to_network(int(middle.x) + 0.5, int(middle.y) + 0.5, box, height, width)
        out[min(int(v), height - 1), min(int(u), width - 1)] = True
    return out


def outline(prompt: BoxPrompt, bounds: Box) -> Box:
    """All pixels of the image that a box touches."""
    return boxes.to_pixels((prompt.x0, prompt.y0, prompt.x1, prompt.y1), bounds)


def disks(marks: Sequence[Mark], box: Box, height: int, width: int) -> list[Click]:
    """The clicks that stand for the marks when the network looks at `box` on a grid `[height, width]`.

    A click is left out if a later scribble or negative lasso of the other sign covers it.

    A scribble counts as up to `MOST_DISKS` clicks, a negative lasso as one on its deepest pixel.
    """
    found: list[Click] = []
    for mark in marks:
        if isinstance(mark, Drawn):
            if mark.decides:  # also over what was said before
                hidden = mark.covered(c for c in found if c.positive != mark.positive)
                found = [c for c in found if c not in hidden]
            if isinstance(mark.prompt, Scribble):
                found += _along(mark.prompt, box, height, width)
            elif mark.decides:
                found.append(mark.deepest)
        elif isinstance(mark, Click):
            found.append(mark)
    return found


def _along(scribble: Scribble, box: Box, height: int, width: int) -> list[Click]:
    """Clicks spread evenly along the part of a scribble that lies in a box."""
    points = np.floor(np.array(scribble.points)) + 0.5
    start, end = (points[:-1], points[1:]) if len(points) > 1 else (points, points)
    low, high = np.array(box[:2], np.float64), np.array(box[2:], np.float64)
    # the part of each segment within the box, as shares of its length (Liang and Barsky)
    step = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (low - start) / step, (high - start) / step
    still = step == 0
    within = (low <= start) & (start < high)
    near, far = np.where(still, 0.0, np.minimum(near, far)), np.where(still, 1.0, np.maximum(near, far))
    first, last = near.max(1).clip(0), far.min(1).clip(max=1)
    kept = (first <= last) & (within | ~still).all(1)
    if not kept.any():
        return []
    start, step, first, last = start[kept], step[kept], first[kept], last[kept]
    scale = np.array([width, height]) / (high - low)
    lengths = np.hypot(*(step * scale).T) * (last - first)
    ends = np.cumsum(lengths)
    count = int(np.clip(ends[-1] // (2 * DISK), 1, MOST_DISKS))
    at = np.linspace(0, ends[-1], count) if count > 1 else ends[-1:] / 2
    segment = np.minimum(np.searchsorted(ends, at), len(ends) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num((at - (ends - lengths)[segment]) / lengths[segment]).clip(0, 1)
    share = first[segment] + share * (last - first)[segment]
    xy = (start[segment] + share[:, None] * step[segment]).clip(low, np.nextafter(high, low))
    return [Click(x, y, scribble.positive) for x, y in xy.tolist()]


def _lifted(mark: Click | Drawn, other: Mark) -> Mark:
    """An earlier mark after a positive one: a negative lasso that has a pixel in common with it holds no more."""
    if isinstance(other, Drawn) and isinstance(other.prompt, Lasso) and other.decides and _touch(mark, other):
        return replace(other, holds=False)
    return other


def _touch(mark: Click | Drawn, other: Drawn) -> bool:
    if isinstance(mark, Click):
        return bool(other.covered([mark]))
    x0, y0 = max(mark.box[0], other.box[0]), max(mark.box[1], other.box[1])
    x1, y1 = min(mark.box[2], other.box[2]), min(mark.box[3], other.box[3])
    if x0 >= x1 or y0 >= y1:
        return False
    mine, its = (m.inside()[y0 - m.box[1] : y1 - m.box[1], x0 - m.box[0] : x1 - m.box[0]] for m in (mark, other))
    return bool((mine & its).any())


def _pair(values: NDArray[np.integer]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def at_once(marks: Sequence[Mark]) -> list[tuple[Mark, ...]]:
    """Clicks in groups of which the network can be shown each as a whole: at most `SLOTS` of a sign."""
    groups: list[tuple[Mark, ...]] = []
    first, count = 0, {True: 0, False: 0}
    for i, mark in enumerate(marks):
        if count[says_inside(mark)] == SLOTS:
            groups.append(tuple(marks[first:i]))
            first, count = i, {True: 0, False: 0}
        count[says_inside(mark)] += 1
    return [*groups, tuple(marks[first:])] if marks else []
