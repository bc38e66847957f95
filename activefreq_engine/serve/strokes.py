"""Strokes that come as pixels, as the lines that were drawn."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 20_000
"""Of a stroke that are followed one by one; a larger one is followed on a coarser grid."""
MOST_LINES = 16
"""Of one stroke; what is left then are specks."""


def paths(drawn: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Lines of pixels (x, y) along a drawing, each step to a neighbour: for each 8-connected piece the longest of the
    shortest ways through it, then through what lies farther away from it than the stroke is thick.

    Args:
        drawn: bool `[H, W]` with at least one pixel.
    """
    step = int(np.ceil((np.count_nonzero(drawn) / MOST_PIXELS) ** 0.5))  # a coarser grid has a pixel for each cell
    at = {(y // step, x // step): (x, y) for y, x in np.argwhere(drawn).tolist()}
    thick = float(cv2.distanceTransform(np.pad(drawn.view(np.uint8), 1), cv2.DIST_L2, 5).max()) / step + 1.5
    left = set(at)
    lines: list[list[tuple[int, int]]] = []
    while left and len(lines) < MOST_LINES:
        end = _ways(next(iter(left)), left)[0]
        far, came = _ways(end, left)
        line = [far]
        while line[-1] != end:
            line.append(came[line[-1]])
        lines.append([at[cell] for cell in line])
        left = _apart(left, line, thick)
    return lines


_Cell = tuple[int, int]


def _ways(start: _Cell, cells: set[_Cell]) -> tuple[_Cell, dict[_Cell, _Cell]]:
    """The cell that is farthest from a start, and from where each was reached first."""
    came, waiting, last = {start: start}, deque([start]), start
    while waiting:
        last = y, x = waiting.popleft()
        for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            if near in cells and near not in came:
                came[near] = last
                waiting.append(near)
    return last, came


def _apart(cells: set[_Cell], line: list[_Cell], distance: float) -> set[_Cell]:
    """The cells that are farther from a line than so."""
    rest = np.array(sorted(cells))
    low = rest.min(0)
    away = np.ones(rest.max(0) - low + 1, np.uint8)
    away[tuple((np.array(line) - low).T)] = 0
    far = cv2.distanceTransform(away, cv2.DIST_L2, 5)[tuple((rest - low).T)] > distance
    return {(int(y), int(x)) for y, x in rest[far]}
