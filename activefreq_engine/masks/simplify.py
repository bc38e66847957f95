"""Simplifies outlines: they get fewer corners, do not cross each other, and move by no more than the tolerance.

After Saalfeld, "Topologically consistent line simplification with the Douglas-Peucker algorithm" (1999): a piece of an
outline may be replaced by a straight line only if no other corner lies between the piece and the line.  So nothing that
was outside a ring can come to lie inside, and lines that did not cross do not cross afterwards: a straight line could
enter the space between piece and line only with one of its ends in it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int32]


def simplified(rings: list[Ring], tolerance: float) -> list[Ring]:
    """The rings of a mask (see `outlines`) with fewer corners, in the same order.

    Every corner that is left out lies within `tolerance` pixels of the line that replaces it.  A ring that would have
    fewer than three corners stays as it is.
    """
    starts = np.cumsum([0, *map(len, rings)])[:-1]
    turned, chosen = zip(*(_chosen(ring, tolerance) for ring in rings), strict=True)
    points, kept = np.concatenate(turned), np.concatenate(chosen)
    corners = np.zeros(points.max(axis=0)[::-1] + 1, np.uint8)
    np.add.at(corners, (points[:, 1], points[:, 0]), 1)
    sums = cv2.integral(corners)
    good = np.zeros(len(points), np.bool_)
    while True:
        # each piece begins at a corner that is kept and ends at the next one; every ring begins with such a corner
        begin = np.flatnonzero(kept)
        length = np.diff(begin, append=len(points))
        last = np.isin(begin + length, starts) | (begin + length == len(points))
        end = np.where(last, starts[np.searchsorted(starts, begin, side="right") - 1], (begin + length) % len(points))
        piece = np.repeat(np.arange(len(begin)), length)
        off = _distances(points, points[begin][piece], points[end][piece])
        bad = np.maximum.reduceat(off, begin) > tolerance
        low = np.minimum(np.minimum.reduceat(points, begin), points[end])
        (x0, y0), (x1, y1) = low.T, np.maximum(np.maximum.reduceat(points, begin), points[end]).T + 1
        others = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0] - length - 1
        for i in np.flatnonzero((length > 1) & ~bad & ~good[begin] & (others > 0)).tolist():
            line = np.concatenate([points[begin[i] : begin[i] + length[i]], points[end[i]][None]]) - low[i]
            bad[i] = _something_between(line, corners[y0[i] : y1[i], x0[i] : x1[i]])
        if not bad.any():
            break
        good[begin[~bad]] = True
        farthest = np.lexsort((off, piece))[begin + length - 1]  # of each piece
        kept[farthest[bad]] = True
    return [p[k] for p, k in zip(np.split(points, starts[1:]), np.split(kept, starts[1:]), strict=True)]


def _chosen(ring: Ring, tolerance: float) -> tuple[Ring, NDArray[np.bool_]]:
    """A ring, turned to begin at a corner that Douglas-Peucker keeps, and which of its corners are kept."""
    fewer = cv2.approxPolyDP(ring[:, None], tolerance, closed=True)[:, 0]
    if len(fewer) < 3:
        return ring, np.ones(len(ring), np.bool_)
    few = set(map(tuple, fewer.tolist()))
    kept = np.array([tuple(p) in few for p in ring.tolist()])
    first = int(kept.argmax())
    return np.roll(ring, -first, axis=0), np.roll(kept, -first)


def _distances(points: Ring, start: Ring, end: Ring) -> NDArray[np.float64]:
    """Distance of each point from the straight line between its `start` and its `end`."""
    along, to = (end - start).astype(np.float64), (points - start).astype(np.float64)
    share = np.clip((along * to).sum(axis=1) / (along * along).sum(axis=1), 0, 1)
    return np.hypot(*(to - share[:, None] * along).T)


def _something_between(line: Ring, corners: NDArray[np.uint8]) -> bool:
    """Whether a corner of another ring, or of another part of this one, lies between a line and the straight line that
    would replace it, or on either.  `corners` holds how many corners there are at each point of the box around the
    line."""
    corners = corners.copy()
    corners[line[:, 1], line[:, 0]] -= 1
    ys, xs = np.nonzero(corners)
    contour = np.ascontiguousarray(line[:, None])
    return any(cv2.pointPolygonTest(contour, p, False) >= 0 for p in zip(xs.tolist(), ys.tolist(), strict=True))
