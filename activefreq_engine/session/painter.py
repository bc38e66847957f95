"""Small probability maps enlarged to image pixels, tile by tile.

A tile whose values all lie on one side of the threshold is filled without being enlarged: interpolation stays between
its corners.  What a mask costs is then its outline and not its area.  A map on a small box is enlarged as a whole,
which is quicker there.  Every pixel of a map is computed by the same arithmetic whatever else is painted, so
`threshold` and `paint` agree bit by bit.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.types import Box

_TILE = 128  # pixels along a tile's side, at least; fewer take longer to begin than to fill
_CELLS = 16  # values along a tile's side, at least
_SMALL = 1 << 19  # pixels of a box: enlarged as a whole in 0.1 to 0.3 ms
_MARGIN = 1e-6  # above what rounding adds to an interpolated probability
_ABOVE, _BELOW, _BOTH, _HIDDEN = range(4)  # where the values of a tile lie; hidden: it does not matter


class _Axis:
    """Where the pixels of one axis lie between the values: pixel i is `values[low] + weight * (next - values[low])`."""

    def __init__(self, pixels: int, values: int) -> None:
        self.low, self.weight = neighbours((np.arange(pixels) + 0.5) * (values / pixels) - 0.5, values)
        self.values = values
        self.cells = max(_CELLS, -(-_TILE * values // pixels))
        starts = np.arange(0, max(1, values - 1), self.cells)
        self.edges = [*np.searchsorted(self.low, starts).tolist(), pixels]
        """Tile k has the pixels from `edges[k]` to `edges[k + 1]`."""

    def pixels(self, tile: int) -> slice:
        return slice(self.edges[tile], self.edges[tile + 1])

    def reach(self, tile: int) -> slice:
        """The values that the pixels of a tile lie between."""
        first = tile * self.cells
        return slice(first, min(first + self.cells + 1, self.values))

    def within(self, start: int, stop: int) -> NDArray[np.bool_]:
        """bool `[tiles]`: which tiles have no pixel before `start` or from `stop` on."""
        edges = np.array(self.edges)
        return (start <= edges[:-1]) & (edges[1:] <= stop)

    def reduce(self, values: NDArray[np.float32], ufunc: np.ufunc) -> NDArray[np.float32]:
        """`[h, w]` -> `[tiles, w]`: the rows that each tile reaches, reduced to one."""
        starts = np.arange(len(self)) * self.cells
        out = ufunc.reduceat(values, starts, axis=0)
        out[:-1] = ufunc(out[:-1], values[starts[1:]])  # a tile reaches the first row of the next one
        return out

    def __len__(self) -> int:
        return len(self.edges) - 1


class Painter:
    """Paints one map on one box of the image.

    Args:
        box (Box): where, image pixels.
        values (float32 `[h, w]`): neither side longer than the box's.
    """

    def __init__(self, box: Box, values: NDArray[np.float32]) -> None:
        self._box, self._values = box, values
        height, width = box[3] - box[1], box[2] - box[0]
        self._whole: NDArray[np.float32] | None = None
        if height * width <= _SMALL:
            whole: Any = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
            self._whole = np.minimum(whole, 1, out=whole)  # rounding may have left that range
        else:
            self._y, self._x = _Axis(height, values.shape[0]), _Axis(width, values.shape[1])

    def paint(self, strip: NDArray[np.float32], y0: int, y1: int) -> None:
        """Write the pixels of image rows y0 to y1 into float32 `[y1 - y0, W]`."""
        left, top = self._box[0], self._box[1]
        first, last = max(y0 - top, 0), min(y1, self._box[3]) - top
        if self._whole is not None:
            if first < last:
                strip[first + top - y0 : last + top - y0, left : self._box[2]] = self._whole[first:last]
            return
        for i in range(len(self._y)):
            rows, across = self._y.pixels(i), self._y.reach(i)
            rows = slice(max(rows.start, first), min(rows.stop, last))
            if rows.start >= rows.stop:
                continue
            part = strip[rows.start + top - y0 : rows.stop + top - y0]
            for j in range(len(self._x)):
                columns, reach = self._x.pixels(j), (across, self._x.reach(j))
                part[:, columns.start + left : columns.stop + left] = self._enlarge(rows, columns, reach)

    def threshold(
        self, mask: NDArray[np.bool_], threshold: float, *, blank: bool = False, hidden: Box | None = None
    ) -> None:
        """Write the pixels' being above a threshold into a mask.

        Args:
            mask (bool `[H, W]`): the image's.
            threshold (float): between 0 and 1.
            blank (bool): the mask is all False so far.
            hidden (Box, optional): will be painted over: tiles that lie in it are left as they are.
        """
        out = mask[self._box[1] : self._box[3], self._box[0] : self._box[2]]
        if self._whole is not None:
            np.greater(self._whole, threshold, out=out)
            return
        sides = np.full((len(self._y), len(self._x)), _BOTH)
        sides[self._extremes(np.minimum) > threshold + _MARGIN] = _ABOVE
        sides[self._extremes(np.maximum) <= threshold - _MARGIN] = _BELOW
        if hidden is not None:
            sides[
                self._y.within(hidden[1] - self._box[1], hidden[3] - self._box[1])[:, None]
                & self._x.within(hidden[0] - self._box[0], hidden[2] - self._box[0])
            ] = _HIDDEN
        for i, row in enumerate(sides.tolist()):
            rows = self._y.pixels(i)
            for side, run in groupby(range(len(row)), row.__getitem__):
                tiles = list(run)
                columns = slice(self._x.edges[tiles[0]], self._x.edges[tiles[-1] + 1])
                if side == _BOTH:
                    reach = slice(self._x.reach(tiles[0]).start, self._x.reach(tiles[-1]).stop)
                    enlarged = self._enlarge(rows, columns, (self._y.reach(i), reach))
                    np.greater(enlarged, threshold, out=out[rows, columns])
                elif side == _ABOVE or (side == _BELOW and not blank):
                    out[rows, columns] = side == _ABOVE

    def _extremes(self, least: np.ufunc) -> NDArray[np.float32]:
        """float32 `[tiles, tiles]`: the least or greatest of the values that the pixels of each tile lie between."""
        return self._x.reduce(self._y.reduce(self._values, least).T, least).T

    def _enlarge(self, rows: slice, columns: slice, reach: tuple[slice, slice]) -> NDArray[np.float32]:
        """The pixels of `rows` and `columns`, both within the box; they lie between the values of `reach`."""
        if self._values.shape == (len(self._y.low), len(self._x.low)):
            return self._values[rows, columns]
        values = self._values[reach]
        values = interpolate(values.T, self._x.low[columns] - reach[1].start, self._x.weight[columns]).T
        return interpolate(values, self._y.low[rows] - reach[0].start, self._y.weight[rows])


def neighbours(at: NDArray[np.floating[Any]], values: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For positions among `values` values, counted from their centres: the value before each, and the weight of the
    one after it.  Positions beyond the ends are held there."""
    at = np.clip(at, 0, values - 1)
    low = np.minimum(at.astype(np.intp), max(0, values - 2))
    return low, (at - low).astype(np.float32)


def interpolate(values: NDArray[np.float32], low: NDArray[np.intp], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows between the rows of `[h, w]`, at what `neighbours` says."""
    out = values.take(np.minimum(low + 1, len(values) - 1), axis=0)
    start = values.take(low, axis=0)
    out -= start
    out *= weight[:, None]
    out += start
    return out
