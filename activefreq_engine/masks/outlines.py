"""Converts masks to polygons along the edges of their pixels, and back, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidArgumentError, InvalidMaskError
from activefreq_engine.images import MAX_PIXELS
from activefreq_engine.images.raster import strips
from activefreq_engine.masks.png import array_of, as_mask
from activefreq_engine.masks.simplify import Ring, simplified
from activefreq_engine.memory import typed
from activefreq_engine.values import finite, short, whole


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One 4-connected piece of a mask.

    Each ring is int32 `[N, 2]` (x, y) with N >= 4.  It is open: the first point is not repeated at the end.  No edge of
    a ring runs along another edge of the same or another ring.

    Points lie on the corners of pixels: pixel column i spans ``i <= x <= i + 1``.  One pixel is a square of area 1, and
    the area of a polygon is the number of its pixels.
    """

    exterior: Ring
    """Outer edge of the piece, clockwise as seen on a screen (x to the right, y down)."""
    holes: tuple[Ring, ...] = ()
    """Edges of the holes, the other way round."""


@typed
def to_polygons(mask: Any, *, holes: Literal["keep", "drop"] = "keep", tolerance: float = 0.0) -> list[Polygon]:
    """Outlines of the 4-connected pieces of a mask along the edges of its pixels.

    Pixels that touch by a corner are pieces of their own, so that every polygon is valid by the rules of OGC (shapely,
    GeoJSON, PostGIS), and its area is the number of its pixels.

    Args:
        mask: see `as_mask`.
        holes: "keep" lists the holes with their piece, so that `from_polygons` restores the mask exactly; "drop" fills
            them.
        tolerance (float): leave out corners that lie within so many pixels of the line that replaces them
            (Douglas-Peucker).  0 keeps the outline exact.  Polygons stay valid and do not cross each other, even where
            the mask is thinner than the tolerance: there more corners are kept.

    Raises:
        InvalidMaskError: the argument is not a mask.
        InvalidArgumentError: `tolerance` is not a number from 0 up.
    """
    if not isinstance(holes, str) or holes not in ("keep", "drop"):
        raise InvalidMaskError(f"holes is {holes!r}; allowed are 'keep' and 'drop'")
    allowed = finite(tolerance)
    if allowed is None or allowed < 0:
        raise InvalidArgumentError(f"tolerance is {short(tolerance)}; allowed are numbers from 0 up, pixels")
    image = np.ascontiguousarray(as_mask(mask)).view(np.uint8)
    left, top, width, height = cv2.boundingRect(image)
    image = image[top : top + height, left : left + width]
    if not image.size:
        return []
    rings = _rings(image)
    points = np.concatenate(rings).astype(np.int64)
    starts = np.cumsum([0, *map(len, rings)])[:-1]
    nexts = np.arange(1, len(points) + 1)
    nexts[np.append(starts[1:], len(points)) - 1] = starts
    x, y = points.T
    areas = np.add.reduceat(x * y[nexts] - x[nexts] * y, starts)
    # the pixel of the mask at a ring's first edge, which runs along x with the mask on its right
    east = (x[starts + 1] > x[starts]).astype(np.int64)
    _, labels = cv2.connectedComponents(image, connectivity=4)
    pieces = labels[y[starts] - 1 + east, x[starts] - 1 + east].tolist()
    if allowed > 0:
        rings = simplified(rings, min(allowed, float(width + height)))
    outer: dict[int, Ring] = {}
    inner: dict[int, list[Ring]] = {}
    for ring, area, piece in zip(rings, areas.tolist(), pieces, strict=True):
        ring += (left, top)
        if area > 0:
            outer[piece] = ring
        else:
            inner.setdefault(piece, []).append(ring)
    kept = inner if holes == "keep" else {}
    return [Polygon(ring, tuple(kept.get(piece, ()))) for piece, ring in sorted(outer.items())]


@typed
def from_polygons(polygons: Sequence[Polygon], height: int, width: int) -> NDArray[np.bool_]:
    """Fill polygons: bool `[height, width]`.

    A pixel belongs to a polygon if its centre lies inside the exterior and in none of the holes, by the even-odd rule,
    also where a ring crosses itself.  A polygon inside a hole of another keeps its pixels, whatever the order.

    Raises:
        InvalidMaskError: a point lies outside the image, or is not an (x, y) pair of finite numbers.
    """
    height, width = whole("height", height), whole("width", width)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InvalidMaskError(f"size is {height}x{width}; both must be at least 1, their product at most {MAX_PIXELS}")
    try:
        polygons = list(polygons)
    except TypeError as error:
        raise InvalidMaskError(f"polygons is a {type(polygons).__name__}; expected a list of Polygon") from error
    rings, owner = [], []
    for number, polygon in enumerate(polygons):
        try:
            parts = (polygon.exterior, *polygon.holes)
        except (AttributeError, TypeError) as error:
            raise InvalidMaskError(f"a {type(polygon).__name__} is no Polygon: {error}") from error
        rings += [_checked(r, height, width) for r in parts]
        owner += [number] * len(parts)
    out = np.zeros((height, width), np.bool_)
    if not rings:
        return out
    rows, first, end = _spans(rings, np.array(owner))
    for y0, y1 in strips(height, width):
        i, j = np.searchsorted(rows, (y0, y1))
        depth = np.zeros((y1 - y0, width + 1), np.int32)
        np.add.at(depth, (rows[i:j] - y0, first[i:j]), 1)
        np.subtract.at(depth, (rows[i:j] - y0, end[i:j]), 1)
        np.greater(np.cumsum(depth, axis=1)[:, :-1], 0, out=out[y0:y1])
    return out


def enclosed(line: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """bool `[height, width]`: the pixels whose centres a closed line goes around, once or more often (the non-zero
    winding rule).

    Args:
        line (float64 `[N, 2]`): (x, y) within the size, checked; the last point is joined to the first.
    """
    edge, rows, columns = _crossings(line, end := np.roll(line, -1, axis=0))
    turn = np.where(end[:, 1] > line[:, 1], 1, -1)[edge]
    order = np.argsort(rows, kind="stable")
    rows, columns, turn = rows[order], columns[order], turn[order]
    out = np.zeros((height, width), np.bool_)
    for y0, y1 in strips(height, width):
        i, j = np.searchsorted(rows, (y0, y1))
        winding = np.zeros((y1 - y0, width + 1), np.int32)
        np.add.at(winding, (rows[i:j] - y0, columns[i:j]), turn[i:j])
        np.not_equal(np.cumsum(winding, axis=1)[:, :-1], 0, out=out[y0:y1])
    return out


def hole_free(mask: NDArray[np.bool_], x: int = 0, y: int = 0) -> list[Ring]:
    """The rings of a mask for formats that have no holes: pieces with holes are cut through their holes.

    The rings do not overlap, and together they cover exactly the mask.  (x, y) is added to all points.
    """
    rings = []
    for polygon in to_polygons(mask):
        if not polygon.holes:
            rings.append(polygon.exterior + np.array([x, y], np.int32))
            continue
        left, top = polygon.exterior.min(axis=0)
        right, bottom = polygon.exterior.max(axis=0)
        # cut in the middle of all holes, so that the depth of the recursion is the logarithm of their number
        cut = int(np.median([(r[:, 0].min() + r[:, 0].max()) / 2 for r in polygon.holes])) - int(left)
        cut = min(max(cut, 1), int(right - left) - 1)
        piece = from_polygons([polygon], *mask.shape)[top:bottom, left:right]
        rings += hole_free(piece[:, :cut], x + int(left), y + int(top))
        rings += hole_free(piece[:, cut:], x + int(left) + cut, y + int(top))
    return rings


def _rings(image: NDArray[np.uint8]) -> list[Ring]:
    """All simple rings of a mask.  The mask lies on the right of each edge, and the first edge runs along x."""
    padded = np.pad(image, 1)
    # at each corner of the grid, the four pixels around it
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    upper, lower = nw != ne, sw != se  # an edge along y above, below the corner
    west, east = nw != sw, ne != se  # an edge along x left, right of it
    ys, xs = np.nonzero((upper | lower) & (west | east))  # a corner, or (all four) two pixels that touch by theirs
    touch = (upper & lower)[ys, xs]
    if not len(ys):
        return []
    # two rings pass through such a corner, so it counts twice
    second = np.concatenate([np.zeros(len(ys), np.bool_), np.ones(np.count_nonzero(touch), np.bool_)])
    ys, xs, touch = (np.concatenate([v, v[touch]]) for v in (ys, xs, touch))
    # along x, the first of the two ends the edge that comes from the west, the second begins the one to the east
    along_x = np.lexsort((second, xs, ys))
    # along y, what belongs to the same pixel of the mask goes together: with the north-west pixel in the mask, west and
    # north share a ring, and so do east and south; with the north-east one, east and north, west and south
    lies_south = touch & (second == (nw[ys, xs] > 0))
    along_y = np.lexsort((lies_south, ys, xs))
    across = np.empty(len(ys), np.int64)
    across[along_x[0::2]], across[along_x[1::2]] = along_x[1::2], along_x[0::2]
    down = np.empty(len(ys), np.int64)
    down[along_y[0::2]], down[along_y[1::2]] = along_y[1::2], along_y[0::2]
    # an edge along x has the mask on its right if it runs east below it, or west above it
    west_end = along_x[0::2]
    inside_below = padded[ys[west_end] + 1, xs[west_end] + 1] > 0
    begins = np.where(inside_below, west_end, across[west_end])
    step, follow = across.tolist(), down.tolist()
    done = [False] * len(step)
    order: list[int] = []
    starts: list[int] = []
    for begin in begins.tolist():
        if done[begin]:
            continue
        starts.append(len(order))
        at = begin
        while not done[at]:
            done[at] = True
            end = step[at]
            order += (at, end)
            at = follow[end]
    points = np.stack([xs[order], ys[order]], axis=1).astype(np.int32)
    meets = np.add.reduceat(touch[order], starts, dtype=np.int64) > 1
    rings = []
    for i, ring in enumerate(np.split(points, starts[1:])):
        rings += _split(ring) if meets[i] else [ring]
    return rings


def _split(ring: Ring) -> list[Ring]:
    """Split a ring that may touch itself in corners into rings that do not."""
    rings = []
    path: list[tuple[int, int]] = []
    seen: dict[tuple[int, int], int] = {}
    for point in map(tuple, ring.tolist()):
        if point in seen:
            start = seen[point]
            rings.append(path[start:])
            for gone in path[start + 1 :]:
                del seen[gone]
            del path[start + 1 :]
        else:
            seen[point] = len(path)
            path.append(point)
    rings.append(path)
    return [np.array(_from_an_edge_along_x(r), np.int32) for r in rings]


def _from_an_edge_along_x(ring: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return ring if ring[0][1] == ring[1][1] else ring[1:] + ring[:1]


def _spans(rings: list[NDArray[np.float64]], owner: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """(row, first column, end column) of all runs of pixels whose centres lie inside, sorted by row.  The even-odd rule
    is applied to the rings of each owner separately."""
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(r, -1, axis=0) for r in rings])
    owner = np.repeat(owner, [len(r) for r in rings])
    edge, rows, columns = _crossings(start, end)
    order = np.lexsort((columns, owner[edge], rows))
    return rows[order[0::2]], columns[order[0::2]], columns[order[1::2]]


def _crossings(start: NDArray[np.float64], end: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
    """(edge, row, first column right of the edge) wherever an edge crosses the line through the centres of a row."""
    # from its upper end, so that an edge and the same one backwards cross in the same column, also through a centre
    downwards = (start[:, 1] <= end[:, 1])[:, None]
    start, end = np.where(downwards, start, end), np.where(downwards, end, start)
    top = np.ceil(start[:, 1] - 0.5).astype(np.int64)  # rows whose centre the edge passes
    count = np.ceil(end[:, 1] - 0.5).astype(np.int64) - top
    edge = np.repeat(np.arange(len(start)), count)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + top[edge]
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    # the first pixel whose centre lies right of the edge
    columns = np.ceil(start[edge, 0] + (rows + 0.5 - start[edge, 1]) * slope - 0.5).astype(np.int64)
    return edge, rows, columns


def _checked(points: Any, height: int, width: int) -> NDArray[np.float64]:
    ring = array_of(points, "polygon")
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or ring.dtype.kind not in "uif":
        raise InvalidMaskError(
            f"polygon has shape {ring.shape}, dtype {ring.dtype}; expected numbers [N, 2] (x, y), at least three points"
        )
    ring = ring.astype(np.float64)
    if not ((ring >= 0) & (ring <= [width, height])).all():
        raise InvalidMaskError(f"polygon has points outside the image of width {width}, height {height}; x comes first")
    return ring
