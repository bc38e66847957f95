"""Which pixels a small map of levels puts into the mask: in whole numbers, so that everybody finds the same ones.

**The rule.**  A map of levels (0 to 65535, see `runtime.levels`) lies on a box of the image.  Along each axis, of m
pixels and n levels, a pixel takes shares of levels, in 256ths that add up to 256:

- n <= m: the centre of pixel i is at ((2 i + 1) n - m) / 2m, counted from the centre of the first level, and held
  within 0 .. n - 1.  The level before it has 256 - w and the one after it w, the rest of that position in 256ths,
  rounded to the nearest, halves up.
- n > m: pixel i covers the levels from i n / m to (i + 1) n / m.  Up to the end of each level it has covered a part of
  itself, in 256ths, rounded to the nearest, halves up; a level's share is the part at its end less that at its start.

A pixel's *sum* is that of its levels, each times its shares along both axes: at most 65535 * 65536, so it fits 32 bits.
The pixel's probability is the sum over that, rounded to float32; the pixel is in the mask when its sum is above
`limit(threshold)`, which says the same as the probability's being above the threshold.

Nothing is rounded on the way and no order of additions matters: this module, a kernel on a device, and a
session that was restored elsewhere agree in every bit.

**Cells.**  Where no axis has more levels than pixels, the pixels between four neighbouring levels are a cell.  Where
all four lie on one side of the limit so do the pixels; what has to be computed is the outline, and from one click to
the next the cells that changed sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.conventions import PARTS
from activefreq_engine.runtime.levels import ONE
from activefreq_engine.session.boxes import mask_bbox, tightened, union
from activefreq_engine.types import Box

_PARTS = np.uint32(PARTS)
_WHOLE = float(ONE * PARTS * PARTS)
_AT_ONCE = 1 << 15  # pixels computed at once: what is used for it stays in the processor's cache
_STRIP = 1 << 20  # pixels of the inside filled at once, for the same reason
_LARGE = 1 << 19  # pixels of the inside from which on its runs are looked for
_RUN = 512  # pixels that are filled one by one while a run of them begins and ends
_ALL = 4  # levels of a cell
_CORNERS = np.arange(2)[:, None]
_LOW_BITS = np.uint64(0x0707070707070707)


@lru_cache(maxsize=16)
def limit(threshold: float) -> int:
    """The largest sum whose probability, a float32, is not above the threshold."""
    least, most = 0, ONE * PARTS * PARTS  # the sum is in least .. most
    while least < most:
        middle = (least + most + 1) // 2
        if np.float32(middle / _WHOLE) > np.float32(threshold):
            most = middle - 1
        else:
            least = middle
    return least


class _Axis:
    """Where the pixels of one axis lie between the levels, by the rule."""

    def __init__(self, pixels: int, values: int) -> None:
        self.shrinks = values > pixels
        i = np.arange(pixels)
        if self.shrinks:
            first = i * values // pixels
            reach = np.arange(2 + (values - 1) // pixels + 1)[:, None] + first  # the levels it may touch, and one more
            covered = np.clip(reach * pixels - i * values, 0, values)
            self.shares: NDArray[np.uint32] = np.diff((2 * PARTS * covered + values) // (2 * values), axis=0).astype(
                np.uint32
            )
            self.levels: NDArray[np.intp] = np.minimum(reach[:-1], values - 1)
            return
        place = np.clip((2 * i + 1) * values - pixels, 0, 2 * pixels * (values - 1))
        self.low: NDArray[np.intp] = np.minimum(place // (2 * pixels), max(0, values - 2))
        rest = place - self.low * (2 * pixels)
        weight = ((rest * PARTS + pixels) // (2 * pixels)).astype(np.uint32)
        self.levels = np.stack([self.low, np.minimum(self.low + 1, values - 1)])
        """`[shares of a pixel, pixels]`: of which levels."""
        self.shares = np.stack([_PARTS - weight, weight])
        """Likewise: how much."""
        self.edges: NDArray[np.intp] = np.searchsorted(self.low, np.arange(max(1, values - 1) + 1))
        """Cell k has the pixels from `edges[k]` to `edges[k + 1]`, at least one."""
        count = np.diff(self.edges)
        within = np.minimum(np.arange(count.max())[:, None], count - 1)  # the last one of a smaller cell comes again
        self.pixels: NDArray[np.int32] = (self.edges[:-1] + within).astype(np.int32)
        """`[most pixels of a cell, cells]`."""
        self.weights: NDArray[np.uint32] = weight[self.pixels]


_axis = lru_cache(maxsize=64)(_Axis)
"""The regions of an object stay the same for many clicks."""


@lru_cache(maxsize=64)
def _starts(pixels: int, values: int, origin: int, width: int) -> NDArray[np.intp]:
    """`_Axis.pixels`, down an image of this width, as indices into the flat image; `origin` is that of the box."""
    return _axis(pixels, values).pixels.astype(np.intp) * width + origin


class Painter:
    """Paints one map on one box of the image.

    Args:
        box (Box): where, image pixels.
        levels (uint16 `[h, w]`): of any size; not to be written to later.
        limit (int): see `limit`.
    """

    def __init__(self, box: Box, levels: NDArray[np.uint16], limit: int) -> None:
        self.box, self.limit = box, np.uint32(limit)
        self.shape = levels.shape
        self._y, self._x = _axis(box[3] - box[1], levels.shape[0]), _axis(box[2] - box[0], levels.shape[1])
        self._levels = levels
        self._dense = self._y.shrinks or self._x.shrinks
        if self._dense:
            return
        if 1 in levels.shape:  # a cell has two levels along each axis; the weight of a second one is 0
            levels = np.pad(levels, [(0, int(side == 1)) for side in levels.shape], mode="edge")
        self._levels, self._width = np.ascontiguousarray(levels), levels.shape[1]
        self._most = len(self._y.pixels) * len(self._x.pixels)
        self._above = (self._levels.reshape(-1) > np.uint16(self.limit >> 16)).view(np.uint8)
        """`[h w]`: 1 for levels above the limit."""
        self._found_sides: NDArray[np.uint8] | None = None

    @property
    def _sides(self) -> NDArray[np.uint8]:
        """`[cells]`: how many of each cell's levels are above the limit, 0 to 4; see `_counted`.

        Kept without `functools.cached_property`: up to Python 3.11 all painters share its lock, and a process forked
        while another thread holds it would wait forever.
        """
        if self._found_sides is None:
            self._found_sides = self._counted(self._above)[: self._above.size - self._width]
        return self._found_sides

    def _counted(self, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The sum of each cell's four numbers.  Cell (i, j) is entry i w + j, and 0 where j is the last column, which
        begins no cell; zeros fill it up to a multiple of 8."""
        w, count = self._width, levels.size - self._width
        columns = levels[:-w] + levels[w:]
        sums = np.empty(-(-count // 8) * 8, np.uint8)
        np.add(columns[:-1], columns[1:], out=sums[: count - 1])
        sums[w - 1 : count : w] = 0
        sums[count:] = 0
        return sums

    def paint(self, strip: NDArray[np.float32], y0: int, y1: int) -> None:
        """Write the probabilities of image rows y0 to y1 into float32 `[y1 - y0, W]`."""
        left, top, right, bottom = self.box
        first, last = max(y0, top), min(y1, bottom)
        if first < last:
            sums = self._rows(first - top, last - top)
            np.divide(sums, _WHOLE, out=strip[first - y0 : last - y0, left:right], casting="same_kind")

    def threshold(self, mask: NDArray[np.bool_], *, blank: bool = False, hidden: Box | None = None) -> None:
        """Write the pixels' being in the mask.

        Args:
            mask (bool `[H, W]`): the image's, contiguous.
            blank (bool): it is all False so far.
            hidden (Box, optional): will be painted over: cells that lie in it are left as they are.
        """
        x0, y0, x1, y1 = self.box
        out = mask[y0:y1, x0:x1]
        if self._dense:
            self._all(out)
            return
        if not blank:
            out[...] = False
        self._fill(out)
        outline = (self._sides & 3) > 0
        if hidden is not None:
            rows = _within(self._y, hidden[1] - y0, hidden[3] - y0)
            columns = _within(self._x, hidden[0] - x0, hidden[2] - x0)
            outline.reshape(-1, self._width)[rows, columns] = False
        cells = np.flatnonzero(outline)
        if cells.size * self._most > out.size // 2:
            self._all(out)
            return
        flat = mask.reshape(-1)
        for part in self._parts(cells):
            i, j = self._places(part)
            flat[self._at(i, j, mask.shape[1])] = self._sums(part, i, j) > self.limit

    def repaint(
        self, mask: NDArray[np.bool_], before: Painter, pixels: NDArray[np.intp], labels: NDArray[np.bool_]
    ) -> tuple[Box | None, Box | None] | None:
        """The same as `threshold`, in a mask that another painter of the same cells painted; then the clicked
        pixels' signs.

        Args:
            mask (bool `[H, W]`): contiguous; with the labels of clicks that were made before.
            before (Painter): what was painted.
            pixels (intp `[N]`): the clicked ones, each once, as indices into the flat mask.
            labels (bool `[N]`): their newest signs.

        Returns:
            The box of the pixels at the outline that are in the mask, and the box of those that changed; a clicked
            pixel that lies elsewhere is in neither.  None when so much has changed that `threshold` is quicker; the
            mask is then as it was.
        """
        cells = self._unsettled(before)
        if cells.size * self._most > (self.box[2] - self.box[0]) * (self.box[3] - self.box[1]) // 4:
            return None
        width, flat = mask.shape[1], mask.reshape(-1)
        inside: Box | None = None
        changed: Box | None = None
        flat[pixels] = labels
        for part in self._parts(cells):
            i, j = self._places(part)
            at, found = self._at(i, j, width).reshape(-1), (self._sums(part, i, j) > self.limit).reshape(-1)
            old = flat.take(at)
            flat[at] = found
            flat[pixels] = labels
            changed = union(changed, _bounds(at.take(np.flatnonzero(flat.take(at) != old)), width))
            inside = union(inside, self._bounds(i, j))
        if inside is not None:
            inside = tightened(mask, inside)
        return inside, changed

    def _unsettled(self, before: Painter) -> NDArray[np.intp]:
        """The cells of which not all levels, now and before, lie on one side of the limit."""
        # of eight numbers 0 or 1 the sum has one of the lower three bits unless all are the same
        sums = self._counted(self._above + before._above).view(np.uint64) & _LOW_BITS
        words = np.flatnonzero(sums != 0)  # most have nothing; bools are what NumPy looks through quickly
        found = np.flatnonzero(sums.take(words).view(np.uint8) != 0)
        return words.take(found >> 3) * 8 + (found & 7)

    def fits(self, other: Painter | None) -> bool:
        """Whether both have cells, and the same ones."""
        if other is None or self._dense:
            return False
        return (self.box, self.shape, self.limit) == (other.box, other.shape, other.limit)

    @property
    def outlined(self) -> bool:
        """Whether every side of the mask's box touches the outline: no cell at the border of the map lies within the
        mask."""
        if self._dense:
            return False
        rows = self._above.reshape(-1, self._width)
        ends = ((0, 1), (-1, -2))
        for one, two in (*((rows[k], rows[m]) for k, m in ends), *((rows[:, k], rows[:, m]) for k, m in ends)):
            if one.any():
                along = one & two
                if (along[:-1] & along[1:]).any():
                    return False
        return True

    def _fill(self, out: NDArray[np.bool_]) -> None:
        """True in all cells that lie within the mask."""
        inside = self._sides.reshape(-1, self._width)[:, :-1] == _ALL
        box = mask_bbox(inside)
        if box is None:
            return
        left, right = self._x.edges[box[0]], self._x.edges[box[2]]
        first, last = self._y.edges[box[1]], self._y.edges[box[3]]
        area = (last - first) * (right - left)
        if area > _LARGE:
            ends = np.flatnonzero(np.diff(np.pad(inside, ((0, 0), (1, 1))), axis=1))  # of the runs of each row, in turn
            if ends.size * _RUN < area:
                rows, columns = (k.tolist() for k in np.divmod(ends, inside.shape[1] + 1))
                ys, xs = self._y.edges.tolist(), self._x.edges.tolist()
                for i, start, stop in zip(rows[::2], columns[::2], columns[1::2], strict=True):
                    out[ys[i] : ys[i + 1], xs[start] : xs[stop]] = True
                return
        across = inside[:, self._x.low[left:right]]
        step = max(1, _STRIP // max(1, right - left))
        for y in range(first, last, step):
            rows = slice(y, min(y + step, last))
            out[rows, left:right] = across.take(self._y.low[rows], axis=0)

    def _parts(self, cells: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        """The cells, in parts of few pixels."""
        step = max(1, _AT_ONCE // self._most)
        for start in range(0, len(cells), step):
            yield cells[start : start + step]

    def _places(self, cells: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and column of each cell."""
        i = (cells.astype(np.uint32) // np.uint32(self._width)).astype(np.intp)
        return i, cells - i * self._width

    def _at(self, i: NDArray[np.intp], j: NDArray[np.intp], width: int) -> NDArray[np.intp]:
        """`[rows, columns, cells]`: the pixels of some cells, as indices into a flat mask of this width.  Some come
        twice."""
        x0, y0, _, y1 = self.box
        starts = _starts(y1 - y0, self.shape[0], y0 * width + x0, width)
        return starts.take(i, 1)[:, None] + self._x.pixels.take(j, 1)

    def _sums(self, cells: NDArray[np.intp], i: NDArray[np.intp], j: NDArray[np.intp]) -> NDArray[np.uint32]:
        """`[rows, columns, cells]`: their sums."""
        w = self._width
        above = self._levels.reshape(-1).take(cells + _CORNERS).astype(np.uint32)
        below = self._levels.reshape(-1).take(cells + (_CORNERS + w)).astype(np.uint32)
        # differences below zero wrap around, and what is added to them brings them back
        left, right = above[:, None] * _PARTS + (below - above)[:, None] * self._y.weights.take(i, 1)
        sums: NDArray[np.uint32] = (right - left)[:, None] * self._x.weights.take(j, 1)
        sums += (left * _PARTS)[:, None]
        return sums

    def _bounds(self, i: NDArray[np.intp], j: NDArray[np.intp]) -> Box:
        """The box of the pixels of some cells, which are in the order of their rows."""
        x0, y0 = self.box[:2]
        ys, xs = self._y.edges, self._x.edges
        left, right, top, bottom = xs[j.min()], xs[j.max() + 1], ys[i[0]], ys[i[-1] + 1]
        return x0 + int(left), y0 + int(top), x0 + int(right), y0 + int(bottom)

    def _rows(self, first: int, last: int) -> NDArray[np.uint32]:
        """The sums of all pixels in some rows of the box."""
        levels, shares = self._y.levels[:, first:last], self._y.shares[:, first:last, None]
        start = int(levels.min())
        values = self._levels[start : int(levels.max()) + 1].astype(np.uint32)
        rows = sum(values[k - start] * share for k, share in zip(levels, shares, strict=True))
        return sum(rows[:, k] * share for k, share in zip(self._x.levels, self._x.shares, strict=True))

    def _all(self, out: NDArray[np.bool_]) -> None:
        """Compute every pixel of the box."""
        step = max(1, _STRIP // out.shape[1])
        for top in range(0, out.shape[0], step):
            strip = out[top : top + step]
            np.greater(self._rows(top, top + len(strip)), self.limit, out=strip)


def _bounds(at: NDArray[np.intp], width: int) -> Box | None:
    """The box of some pixels, given as indices into a flat mask, which are used up."""
    if not at.size:
        return None
    first, last = int(at.min()), int(at.max())
    at %= width
    return int(at.min()), first // width, int(at.max()) + 1, last // width + 1


def _within(axis: _Axis, start: int, stop: int) -> slice:
    """The cells that have no pixel before `start` or from `stop` on."""
    first = int(np.searchsorted(axis.edges[:-1], start))
    return slice(first, max(first, int(np.searchsorted(axis.edges[1:], stop, "right"))))
