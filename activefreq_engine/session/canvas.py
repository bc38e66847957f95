"""What a click leaves behind: small probability maps with their place in the image, painted at full size on demand.

A canvas of a 100 megapixel image is a few hundred kilobytes, so a history can keep one per click.  The same canvas
always paints the same pixels, so undo needs no network and restores the mask bit by bit.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from activefreq_engine.kernels.region_stats import binary_entropy
from activefreq_engine.runtime.levels import ONE, Between, Stretched, probabilities, stretch
from activefreq_engine.session.boxes import bbox_from_sides, mask_bbox, to_pixels, union
from activefreq_engine.session.click_tally import ClickTally
from activefreq_engine.session.packed_mask import PackedMask
from activefreq_engine.session.painter import Painter, limit
from activefreq_engine.session.prompts import Drawn, Mark, enforce, pixel_box
from activefreq_engine.session.zoom import neighbours, resize
from activefreq_engine.types import Box, Click

_MOST_LAYERS = 16  # one for each view that the user looked at; if there are more, the older half becomes one layer
_MERGED_SIDE = 2048  # longest side of that one layer, pixels
_STRIP_VALUES = 4_000_000  # floats painted at once: bounds the temporary memory to a few times 16 MB


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Probabilities on a region of the image, at any resolution."""

    box: Box
    """The region, image pixels."""
    shape: tuple[int, int]
    """(h, w)."""
    data: NDArray[np.uint16] | bytes
    """`values`, or the same deflated."""
    mask: PackedMask | None = None
    """The pixels of the box that it puts into the mask, where its values are too coarse to say so; else None."""
    _packed: "list[Layer]" = field(default_factory=list, repr=False)
    """The same layer packed, once that was asked for: steps share layers."""

    @classmethod
    def of(cls, box: Box, probs: NDArray[Any]) -> "Layer":
        """A layer for the probabilities `[h, w]` of a region: float32, or uint16 as in `values`, which is not copied,
        so nobody may write to it later."""
        values = probs if probs.dtype == np.uint16 else np.rint(probs * float(ONE)).astype(np.uint16)
        return cls(box, (probs.shape[0], probs.shape[1]), values)

    @property
    def values(self) -> NDArray[np.uint16]:
        """`[h, w]`, probability times 65535: half the memory of float32, a step of 1.5e-5."""
        if not isinstance(self.data, bytes):
            return self.data
        high, low = np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(2, *self.shape).astype(np.uint16)
        folded = high * np.uint16(256) + low
        slopes = (folded >> 1) ^ (~(folded & 1) + np.uint16(1))
        return slopes.cumsum(0, np.uint16).cumsum(1, np.uint16)

    def packed(self) -> "Layer":
        """The same layer in a quarter of the memory or less.  Packing takes 2 to 3.5 ms, each later reading 1.5 ms."""
        if isinstance(self.data, bytes):
            return self
        if self._packed:
            return self._packed[0]
        # neighbours are alike, so differences along the row, and the differences of these down the columns, are small
        slopes = np.diff(np.diff(self.data, axis=1, prepend=np.uint16(0)), axis=0, prepend=np.uint16(0))
        folded = (slopes << 1) ^ -(slopes >> 15)  # 0, -1, 1, -2 ... become 0, 1, 2, 3 ...
        planes = np.stack([folded >> 8, folded & 255]).astype(np.uint8)  # high and low bytes deflate better apart
        self._packed[:] = [Layer(self.box, self.shape, zlib.compress(planes.tobytes(), level=1), self.mask)]
        return self._packed[0]

    def shrunk(self, height: int, width: int) -> NDArray[np.float32]:
        """float32 probabilities, averaged down so that they have at most `height` rows and `width` columns."""
        found = resize(probabilities(self.values), min(height, self.shape[0]), min(width, self.shape[1]))
        if found.shape != self.shape:
            np.minimum(found, 1, out=found)  # OpenCV's average of ones may be one and a bit
        return found


class _JoinedPainter(Painter):
    """Paints a layer that has a mask."""

    def __init__(self, layer: Layer, mask: PackedMask, threshold: float) -> None:
        super().__init__(layer.box, layer.values, limit(threshold))
        self._mask, self._bits, self._threshold = mask, mask.rows(), threshold

    def paint(self, strip: NDArray[np.float32], y0: int, y1: int) -> None:
        super().paint(strip, y0, y1)
        left, top, right, bottom = self.box
        first, last = max(y0, top), min(y1, bottom)
        if first < last:
            part = strip[first - y0 : last - y0, left:right]
            part[...] = _overruled(part, self._mask.bool_rows(self._bits, first - top, last - top), self._threshold)

    def threshold(self, mask: NDArray[np.bool_], *, blank: bool = False, hidden: Box | None = None) -> None:
        x0, y0, x1, y1 = self.box
        mask[y0:y1, x0:x1] = self._mask.bool_rows(self._bits, 0, y1 - y0)


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """The state of one object after one step.

    Painted in this order: zeros; each layer replaces what is under it; where the thresholded result differs from
    `fixed`, the pixel takes 0 or 1 from `fixed`; pixels that marks decide take 1 or 0, the newest mark last.
    """

    height: int
    width: int
    threshold: float
    layers: tuple[Layer, ...] = ()
    marks: tuple[Mark, ...] = ()
    fixed: PackedMask | None = None

    @property
    def extent(self) -> Box | None:
        """A box outside of which all probabilities are 0; None when they are 0 everywhere."""
        extent: Box | None = (0, 0, self.width, self.height) if self.fixed else None
        for layer in self.layers:
            extent = union(extent, layer.box)
        for mark in self.marks:
            if isinstance(mark, Click) or (isinstance(mark, Drawn) and mark.decides):
                extent = union(extent, pixel_box(mark))
        return extent

    @property
    def clicks(self) -> tuple[Click, ...]:
        """The clicks among the marks, oldest first."""
        return tuple(m for m in self.marks if isinstance(m, Click))

    @property
    def count(self) -> int:
        """How many of the marks are clicks."""
        return list(map(type, self.marks)).count(Click)

    def beside(self, box: Box) -> tuple[Layer, ...]:
        """The layers of which a part stays visible when a box is painted over; of too many, the older half as one with
        the same mask."""
        left = tuple(
            layer
            for layer in self.layers
            if not (
                box[0] <= layer.box[0] and box[1] <= layer.box[1] and layer.box[2] <= box[2] and layer.box[3] <= box[3]
            )
        )
        if len(left) <= _MOST_LAYERS:
            return left
        old = Canvas(self.height, self.width, self.threshold, left[: -_MOST_LAYERS // 2])
        extent = old.extent
        assert extent is not None
        x0, y0, x1, y1 = extent
        shrink = min(1.0, _MERGED_SIDE / max(x1 - x0, y1 - y0))
        h, w = max(1, round((y1 - y0) * shrink)), max(1, round((x1 - x0) * shrink))
        joined = Layer.of(extent, old.sample(extent, h, w))
        joined = replace(joined, mask=PackedMask.of(old.mask()[y0:y1, x0:x1]))
        return (joined, *left[-_MOST_LAYERS // 2 :])

    @property
    def is_packed(self) -> bool:
        """Whether all its layers are packed."""
        return all(isinstance(layer.data, bytes) for layer in self.layers)

    def packed(self) -> "Canvas":
        """The same canvas with its layers packed."""
        return replace(self, layers=tuple(layer.packed() for layer in self.layers))

    def probs(self) -> NDArray[np.float32]:
        """float32 `[H, W]`."""
        out = np.zeros((self.height, self.width), np.float32)
        for y0, y1, strip in self._strips():
            out[y0:y1] = strip
        return out

    def mask(self, clicked: ClickTally | None = None) -> NDArray[np.bool_]:
        """bool `[H, W]`: probability above the threshold; `clicked` as for `paint`."""
        if self.fixed is not None:  # it overrules the layers wherever they differ from it
            out = self.fixed.unpack()
            enforce(self.marks, out)
        else:
            out = np.zeros((self.height, self.width), np.bool_)
            self.paint(out, clicked)
        return out

    def laid_over(self, last: "Canvas") -> int:
        """How many of its first layers are all that is to be seen of another canvas beside the next layer; 0 where the
        two differ in more than what that layer and those after it cover."""
        kept = 0
        for layer in last.layers:
            if kept < len(self.layers) and layer is self.layers[kept]:
                kept += 1
        if not 0 < kept < len(self.layers) or self.fixed is not None or last.fixed is not None:
            return 0
        box = self.layers[kept].box
        gone = [layer for layer in last.layers if not any(layer is other for other in self.layers[:kept])]
        return kept if all(union(box, layer.box) == box for layer in gone) else 0

    def paint(self, out: NDArray[np.bool_], clicked: ClickTally | None = None, first: int = 0) -> Painter | None:
        """Paint into bool `[H, W]`, all False so far.  Not for a canvas with `fixed`.  With the tally of its marks this
        is quicker where there are many.  With `first` so many layers are painted there already, and perhaps more under
        the next one.

        Returns:
            What painted it, if the canvas has one layer.
        """
        painters = self._painters(first)
        for i, painter in enumerate(painters):
            hidden = painters[i + 1].box if i + 1 < len(painters) else None
            painter.threshold(out, blank=i == first == 0, hidden=hidden)
        if clicked is None:
            enforce(self.marks, out)
        else:
            clicked.label(out)
        return painters[0] if len(self.layers) == 1 else None

    def painter(self) -> Painter | None:
        """What paints the canvas, apart from its marks; None if it has no layer, several layers, or `fixed`."""
        return self._painters()[0] if len(self.layers) == 1 and self.fixed is None else None

    def reach(self, clicked: ClickTally | None = None) -> Box | None:
        """A box outside of which the mask is empty, larger than the mask's by two pixels of a layer at most, or by a
        layer that has a mask; None when the mask is empty.  Not for a canvas with `fixed`.  With the tally of its marks
        this is quicker where there are many."""
        box: Box | None = None
        for layer in self.layers:
            if layer.mask is not None:
                box = union(box, layer.box)
                continue
            found = mask_bbox(layer.values > limit(self.threshold) >> 16)
            if found is None:
                continue
            x0, y0, x1, y1 = layer.box
            sx, sy = (x1 - x0) / layer.shape[1], (y1 - y0) / layer.shape[0]
            # interpolation carries a value half a pixel of the layer beyond its own
            wide = (found[0] - 1) * sx, (found[1] - 1) * sy, (found[2] + 1) * sx, (found[3] + 1) * sy
            box = union(box, to_pixels((x0 + wide[0], y0 + wide[1], x0 + wide[2], y0 + wide[3]), layer.box))
        if clicked is not None:
            return union(box, clicked.inside)
        for mark in self.marks:
            if isinstance(mark, Click) or (isinstance(mark, Drawn) and mark.decides):
                box = union(box, pixel_box(mark) if mark.positive else None)
        return box

    def uncertainty(self) -> NDArray[np.float32]:
        """float32 `[H, W]`: entropy of each pixel's probability in bits, 0..1."""
        out = np.zeros((self.height, self.width), np.float32)
        for y0, y1, strip in self._strips():
            out[y0:y1] = binary_entropy(torch.from_numpy(strip)).numpy()
        return out

    def kept(self, box: Box, height: int, width: int) -> NDArray[np.uint16] | None:
        """The levels of the last layer, if it fills `box` with a grid of just this size: then `sample` gives the same
        as probabilities.  None where `sample` has more to do."""
        if self.fixed is not None or not self.layers:
            return None
        last = self.layers[-1]
        return last.values if last.box == box and last.shape == (height, width) else None

    def grid(self, box: Box, height: int, width: int) -> Stretched | NDArray[np.float32]:
        """What `sample` gives, in the form of its levels if they are those of one layer that fills `box` and is nowhere
        finer than the grid."""
        last = self.layers[-1] if self.layers else None
        if self.fixed is not None or last is None or last.box != box:
            return self.sample(box, height, width)
        (h, w), (x0, y0, x1, y1) = last.shape, box
        if h > height or w > width:
            return self.sample(box, height, width)
        rows, columns = _along(y0, y1, height, y0, y1, h)[1], _along(x0, x1, width, x0, x1, w)[1]
        if last.shape == (height, width):  # `sample` takes them as they are
            rows, columns = ((np.arange(n), np.zeros(n, np.float32)) for n in last.shape)
        return Stretched(last.values, rows, columns)

    def sample(self, box: Box, height: int, width: int) -> NDArray[np.float32]:
        """Probabilities on a grid over `box`, float32 `[height, width]`.  The pixels that marks decide are not
        enforced.

        A layer that fills the same box with the same grid comes back as it is.
        """
        out = np.zeros((height, width), np.float32)
        for layer in self.layers:
            if layer.box == box and layer.shape == out.shape:
                out = layer.shrunk(height, width)
                continue
            x0, y0, x1, y1 = layer.box
            h = min(layer.shape[0], max(1, round((y1 - y0) * height / (box[3] - box[1]))))
            w = min(layer.shape[1], max(1, round((x1 - x0) * width / (box[2] - box[0]))))
            rows, vertically = _along(box[1], box[3], height, y0, y1, h)
            columns, horizontally = _along(box[0], box[2], width, x0, x1, w)
            part = out[rows, columns]
            if part.size:
                stretch(layer.shrunk(h, w), vertically, horizontally, part)
        if self.fixed is not None:
            crop = self.fixed.bool_rows(self.fixed.rows(), box[1], box[3])[:, box[0] : box[2]]
            given = resize(crop.astype(np.uint8) * np.uint8(255), height, width).astype(np.float32) / np.float32(255)
            out = np.where((out > self.threshold) == (given > 0.5), out, given) if self.layers else given
        return out

    def _painters(self, first: int = 0) -> list[Painter]:
        highest = limit(self.threshold)
        return [
            Painter(layer.box, layer.values, highest)
            if layer.mask is None
            else _JoinedPainter(layer, layer.mask, self.threshold)
            for layer in self.layers[first:]
        ]

    def _strips(self) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """(y0, y1, float32 `[y1 - y0, W]`) over the rows of the extent."""
        extent = self.extent
        if extent is None:
            return
        rows = max(1, _STRIP_VALUES // self.width)
        painters = self._painters()
        bits = self.fixed.rows() if self.fixed is not None else None
        for y0 in range(extent[1], extent[3], rows):
            y1 = min(y0 + rows, extent[3])
            strip = np.zeros((y1 - y0, self.width), np.float32)
            for painter in painters:
                painter.paint(strip, y0, y1)
            if self.fixed is not None and bits is not None:
                given = self.fixed.bool_rows(bits, y0, y1)
                strip = _overruled(strip, given, self.threshold)
            enforce(self.marks, strip, y0)
            yield y0, y1, strip


def _overruled(probs: NDArray[np.float32], given: NDArray[np.bool_], threshold: float) -> NDArray[np.float32]:
    """Probabilities, but 0 or 1 where a given mask says otherwise."""
    return np.where((probs > threshold) == given, probs, given.astype(np.float32))


@lru_cache(maxsize=64)
def _along(start: int, end: int, count: int, first: int, last: int, values: int) -> tuple[slice, Between]:
    """Along one axis: which of `count` places that divide `start` to `end` lie in a layer from `first` to `last`, and
    where they lie between its values.  A region stays the same for many clicks."""
    at = start + (np.arange(count) + 0.5) * ((end - start) / count)
    inside = np.flatnonzero((first <= at) & (at < last))
    places = slice(inside[0], inside[-1] + 1) if inside.size else slice(0, 0)
    return places, neighbours((at[places] - first) * (values / (last - first)) - 0.5, values)


def changed_bbox(before: NDArray[np.bool_], after: NDArray[np.bool_], within: Box | None) -> Box | None:
    """Smallest box around the pixels of `within` that differ between two masks, or None."""

    def differs(box: Box) -> NDArray[np.bool_]:
        x0, y0, x1, y1 = box
        return before[y0:y1, x0:x1] ^ after[y0:y1, x0:x1]

    return bbox_from_sides(differs, within)


def merge(before: NDArray[np.bool_], after: NDArray[np.bool_], mark: Click | Drawn, within: Box) -> NDArray[np.bool_]:
    """Correct a given mask without redrawing it (FocalClick's progressive merge, with a guard).

    Args:
        before (bool `[H, W]`): the mask before the newest prompt.
        after (bool `[H, W]`): the network's mask, with what the prompt decides.
        mark (Click | Drawn): the newest prompt.
        within (Box): what the network saw; nothing changes outside, but for the prompt's own pixels.

    Returns:
        A new mask.  It is `before`, but the components of the difference (8-connected) that contain a pixel which the
        prompt corrects are taken from `after`.  If the prompt agrees with `before` already there is no such component,
        and the result equals `before`; FocalClick takes the largest difference then, which is a flaw.
    """
    merged = before.copy()
    box = pixel_box(mark)
    x0, y0, x1, y1 = union(within, box) or within
    part = merged[y0:y1, x0:x1]
    change = (part ^ after[y0:y1, x0:x1]).view(np.uint8)
    own = slice(box[1] - y0, box[3] - y0), slice(box[0] - x0, box[2] - x0)
    if isinstance(mark, Click):
        if bool(part[own]) != mark.positive and change[own]:  # a newer click of the same pass may deny this one
            cv2.floodFill(change, None, (box[0] - x0, box[1] - y0), 2, flags=8)
            part ^= change == 2
        return merged
    _, pieces = cv2.connectedComponents(change, connectivity=8)
    hit = np.unique(pieces[own][mark.inside() & (part[own] != mark.positive)])
    part ^= np.isin(pieces, hit[hit > 0])
    return merged
