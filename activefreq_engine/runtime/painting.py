"""Masks painted on the device that computed the answer: what a session asks for, and what comes back."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.kernels.mask_bits import mask_bits
from activefreq_engine.types import Box

WORDS = 12 * (1 << 20) // 32
"""Words of 32 pixels for which a device has room: a region of 12 megapixels.  A larger region is painted in turns."""

_LARGEST = 1 << 28  # most pixels of a side times levels along it, since the kernel counts in 32 bits


class PaintRequest(NamedTuple):
    """A mask that the session wants painted."""

    region: Box
    """The part of the image to paint."""
    limit: int
    """See `session.painter.limit`."""
    before: Painted | None
    """The present mask; None if it was not painted by the engine."""

    @property
    def words(self) -> int:
        """Words of 32 pixels in a row."""
        return -(-(self.region[2] - self.region[0]) // 32)


class Painted:
    """A painted mask: which pixels of a region are in it.

    Args:
        request (PaintRequest): what was asked for.
        rows (uint8 `[height, bytes]`): pixel x of the region is bit x % 8 of byte x // 8.
        inside (Box, optional): box of the mask, image pixels; None when it is empty.
        changed (Box, optional): box of the pixels that differ from `request.before`.
        alike (bool): whether `changed` is known.
    """

    __slots__ = ("__weakref__", "alike", "changed", "inside", "limit", "region", "rows")

    def __init__(
        self, request: PaintRequest, rows: NDArray[np.uint8], inside: Box | None, changed: Box | None, alike: bool
    ) -> None:
        self.region, self.limit, self.rows = request.region, request.limit, rows
        self.inside, self.changed, self.alike = inside, changed, alike

    def write(self, mask: NDArray[np.bool_], box: Box) -> None:
        """Write the part in `box`, which lies within the region, into the image's mask, bool `[H, W]`."""
        x0, y0, x1, y1 = box
        left, top = self.region[:2]
        first = (x0 - left) // 8
        rows = self.rows[y0 - top : y1 - top, first : -(-(x1 - left) // 8)]
        skip = x0 - left - 8 * first
        pixels = np.unpackbits(rows, axis=1, bitorder="little")[:, skip : skip + x1 - x0]
        mask[y0:y1, x0:x1] = pixels.view(np.bool_)


class Easel:
    """Memory on a device in which masks are painted.  All network shapes use it, one after another.

    Args:
        batch (int): most masks at a time.
        device (torch.device): where.
        words (int): words of 32 pixels that are painted at once.
    """

    def __init__(self, batch: int, device: torch.device, words: int = WORDS) -> None:
        self.words = words
        self._bits = torch.zeros(batch, words, dtype=torch.int32, device=device)
        self._host = torch.zeros(batch, words, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._arrived: NDArray[np.int32] = self._host.numpy()
        self._last: list[weakref.ref[Painted] | None] = [None] * batch
        """The mask whose bits each row holds."""

    def ask(self, row: int, request: PaintRequest | None, shape: tuple[int, ...], asked: NDArray[np.int32]) -> bool:
        """Write into `asked`, which holds zeros, what `paint` is to do for a row with levels of this shape.  Returns
        whether the row will be painted."""
        if request is None:
            return False
        last, self._last[row] = self._last[row], None  # nothing is known of the row until the new bits are there
        x0, y0, x1, y1 = request.region
        height, width = y1 - y0, x1 - x0
        if max(height * shape[0], width * shape[1]) >= _LARGEST or request.words > self.words:
            return False
        rows = min(height, self.words // request.words)
        before = None if last is None else last()
        alike = (
            before is not None
            and before is request.before
            and rows == height
            and (before.region, before.limit) == (request.region, request.limit)
        )
        limit = request.limit - (1 << 32) if request.limit >= 1 << 31 else request.limit
        asked[:] = height, width, limit, 0, rows, alike, 0, 0
        return True

    def paint(self, levels: Tensor, asked: Tensor, found: Tensor) -> None:
        """Paint the first rows, as many as `levels` has items."""
        mask_bits(levels, asked, self._bits[: len(levels)], found)

    def fetch(self, row: int, request: PaintRequest, rows: int) -> None:
        """Start the copy of so many rows of a mask to the host."""
        count = rows * request.words
        self._host[row, :count].copy_(self._bits[row, :count], non_blocking=True)

    def read(self, row: int, request: PaintRequest, asked: NDArray[np.int32], found: NDArray[np.int32]) -> Painted:
        """The painted mask, once its copy to the host has arrived."""
        x0, y0 = request.region[:2]
        rows, alike = int(asked[4]), bool(asked[5])
        inside, changed = (_placed(b, x0, y0) for b in (found[:4].tolist(), found[4:].tolist()))
        bits = self._arrived[row, : rows * request.words].copy().view(np.uint8).reshape(rows, 4 * request.words)
        return Painted(request, bits, inside, changed, alike)

    def know(self, row: int, painted: Painted) -> None:
        """Note that a row holds all bits of this mask."""
        self._last[row] = weakref.ref(painted)


def joined(request: PaintRequest, parts: list[Painted]) -> Painted:
    """One mask from parts that were painted in turns, from the top down."""
    rows = np.concatenate([part.rows for part in parts])
    sides = [part.inside for part in parts if part.inside is not None]
    x0, y0, x1, y1 = zip(*sides, strict=True) if sides else [()] * 4
    inside = (min(x0), min(y0), max(x1), max(y1)) if sides else None
    return Painted(request, rows, inside, inside, alike=False)


def _placed(box: list[int], x: int, y: int) -> Box | None:
    """A box of a region whose corner is at (x, y), in image pixels; None for an empty box."""
    return None if box[2] <= box[0] else (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
