"""Boxes: their arithmetic, their coordinates in the image and on the network grid, and the boxes of masks.

They follow the geometry rule of `activefreq_engine.conventions`.
"""

import math
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.types import Box, Click

_READ = 1 << 16  # pixels of a mask read at once
_NEAR = 8  # so many rows and columns are read one by one at each side of a box


def aligned(box: Box, step: int, bounds: Box, within: Box) -> Box:
    """The smallest box around `box`, which lies in `within`, whose corners are multiples of `step` or at the end of
    `bounds`, which starts at (0, 0); a side that would leave `within` is the last such one in it."""

    def side(low: int, high: int, end: int, first: int, last: int) -> tuple[int, int]:
        low, high = low // step * step, min(-(-high // step) * step, end)
        return low if low >= first else low + step, high if high <= last else last // step * step

    (x0, x1), (y0, y1) = (side(box[k], box[k + 2], bounds[k + 2], within[k], within[k + 2]) for k in (0, 1))
    return x0, y0, x1, y1


def expand(box: tuple[float, float, float, float], ratio: float, min_side: float) -> tuple[float, float, float, float]:
    """Scale a box about its centre; each side at least `min_side`."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_w, half_h = max(ratio * (box[2] - box[0]), min_side) / 2, max(ratio * (box[3] - box[1]), min_side) / 2
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def clamp(box: tuple[float, float, float, float], bounds: Box) -> tuple[float, float, float, float]:
    """Intersection with `bounds`."""
    return max(box[0], bounds[0]), max(box[1], bounds[1]), min(box[2], bounds[2]), min(box[3], bounds[3])


def to_pixels(box: tuple[float, float, float, float], bounds: Box) -> Box:
    """The smallest whole-pixel box that covers `box` within `bounds`."""
    x0, y0, x1, y1 = clamp(box, bounds)
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def contains(box: Box, click: Click) -> bool:
    """Whether the clicked pixel lies in the box."""
    return box[0] <= int(click.x) < box[2] and box[1] <= int(click.y) < box[3]


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes that are not empty."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, w) * max(0, h)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def union(a: Box | None, b: Box | None) -> Box | None:
    """Smallest box around both; None stands for an empty box."""
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def with_pixel(box: Box | None, x: int, y: int) -> Box:
    """Smallest box around a box and a pixel."""
    if box is None:
        return x, y, x + 1, y + 1
    x0, y0, x1, y1 = box
    if x0 <= x < x1 and y0 <= y < y1:
        return box
    return min(x0, x), min(y0, y), max(x1, x + 1), max(y1, y + 1)


def to_network(x: float, y: float, box: Box, height: int, width: int) -> tuple[float, float]:
    """Image coordinates -> coordinates on the network grid of `box`."""
    return (x - box[0]) * width / (box[2] - box[0]), (y - box[1]) * height / (box[3] - box[1])


def network_pixel(x: float, y: float, box: Box, height: int, width: int) -> tuple[int, int]:
    """(column, row) of the network pixel of `box` in which an image pixel's centre lies; for a pixel outside the box,
    of the nearest one."""
    u, v = to_network(int(x) + 0.5, int(y) + 0.5, box, height, width)
    return min(max(int(u), 0), width - 1), min(max(int(v), 0), height - 1)


def to_image(
    region: tuple[float, float, float, float], box: Box, height: int, width: int
) -> tuple[float, float, float, float]:
    """A region on the network grid of `box` -> image coordinates."""
    sx, sy = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    return box[0] + region[0] * sx, box[1] + region[1] * sy, box[0] + region[2] * sx, box[1] + region[3] * sy


def mask_bbox(mask: NDArray[np.bool_]) -> Box | None:
    """Smallest box around the true pixels of a bool `[H, W]` array, or None."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    return (x, y, x + w, y + h) if w else None


def tightened(mask: NDArray[np.bool_], box: Box, other: NDArray[np.bool_] | None = None) -> Box | None:
    """The smallest box around the mask's pixels, or those in which it differs from another, given a box that is hardly
    larger; None if there are none in it."""

    def part(rows: int | slice, columns: int | slice) -> NDArray[np.bool_]:
        return mask[rows, columns] if other is None else mask[rows, columns] ^ other[rows, columns]

    x0, y0, x1, y1 = box
    for _ in range(_NEAR):
        rows, columns = slice(y0, y1), slice(x0, x1)
        top, bottom = part(y0, columns).any(), part(y1 - 1, columns).any()
        left, right = part(rows, x0).any(), part(rows, x1 - 1).any()
        if top and bottom and left and right:
            return x0, y0, x1, y1
        y0, y1, x0, x1 = y0 + (not top), y1 - (not bottom), x0 + (not left), x1 - (not right)
        if x0 >= x1 or y0 >= y1:
            return None
    found = mask_bbox(part(slice(y0, y1), slice(x0, x1)))
    return None if found is None else (found[0] + x0, found[1] + y0, found[2] + x0, found[3] + y0)


def bbox_from_sides(part: Callable[[Box], NDArray[np.bool_]], within: Box | None) -> Box | None:
    """Smallest box around the true pixels of a mask.  The mask is read from the sides inwards, no further than needed.

    Args:
        part: gives the content of a box of the mask.
        within (Box, optional): the mask is empty outside of it.

    Returns:
        The box, or None when nothing is true.
    """
    if within is None:
        return None
    x0, y0, x1, y1 = within

    def search(strips: Iterator[Box]) -> Box | None:
        for strip in strips:
            found = mask_bbox(part(strip))
            if found is not None:
                left, top = strip[:2]
                return found[0] + left, found[1] + top, found[2] + left, found[3] + top
        return None

    rows = max(1, _READ // (x1 - x0))
    box = search((x0, y, x1, min(y + rows, y1)) for y in range(y0, y1, rows))
    if box is None:
        return None
    box = union(box, search((x0, max(y - rows, box[3]), x1, y) for y in range(y1, box[3], -rows))) or box
    top, bottom = box[1], box[3]
    columns = max(1, _READ // (bottom - top))
    left = search((x, top, min(x + columns, box[0]), bottom) for x in range(x0, box[0], columns))
    right = search((max(x - columns, box[2]), top, x, bottom) for x in range(x1, box[2], -columns))
    return union(union(left, box), right)
