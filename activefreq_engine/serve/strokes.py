"""Recover the lines that a person drew from the pixels of the drawing."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 20_000
"""A drawing of up to so many pixels is followed pixel by pixel, a larger one on a coarser grid."""
MOST_LINES = 16
"""At most so many lines are returned; what they leave uncovered are specks."""


def paths(drawn: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Lines along a drawing, each a list of pixels (x, y).

    In each 8-connected piece the first line is the longest of the shortest ways through it.  The pixels that lie
    farther from that line than the stroke is thick are then treated in the same way, until none is left.  Each step of
    a line goes to a neighbouring pixel, or to a neighbouring cell of the coarser grid.

    Args:
        drawn: bool `[H, W]` with at least one pixel.
    """
    step = int(np.ceil((np.count_nonzero(drawn) / MOST_PIXELS) ** 0.5))
    # in a coarser grid one pixel stands for each cell
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
    """The cell that is farthest from `start`, and for each cell the one from which it was first reached."""
    came, waiting, last = {start: start}, deque([start]), start
    while waiting:
        last = y, x = waiting.popleft()
        for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            if near in cells and near not in came:
                came[near] = last
                waiting.append(near)
    return last, came


def _apart(cells: set[_Cell], line: list[_Cell], distance: float) -> set[_Cell]:
    """The cells that are farther from a line than `distance`."""
    rest = np.array(sorted(cells))
    low = rest.min(0)
    away = np.ones(rest.max(0) - low + 1, np.uint8)
    away[tuple((np.array(line) - low).T)] = 0
    far = cv2.distanceTransform(away, cv2.DIST_L2, 5)[tuple((rest - low).T)] > distance
    return {(int(y), int(x)) for y, x in rest[far]}
