"""A mask that is painted where the answer is: what a session asks for, and what comes back."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.kernels.mask_bits import mask_bits
from activefreq_engine.types import Box

WORDS = 12 * (1 << 20) // 32
"""Of 32 pixels, for which there is room on a device: a region of 12 megapixels; a larger one is painted in turns."""

_LARGEST = 1 << 28  # a side times the levels along it: the kernel counts in 32 bits


class PaintRequest(NamedTuple):
    """A mask that is wanted."""

    region: Box
    """Where in the image."""
    limit: int
    """See `session.painter.limit`."""
    before: Painted | None
    """The mask that is at hand; None if it was not painted here."""

    @property
    def words(self) -> int:
        """Of a row."""
        return -(-(self.region[2] - self.region[0]) // 32)


class Painted:
    """Which pixels of a region are in the mask.

    Args:
        request (PaintRequest): what was asked for.
        rows (uint8 `[n, bytes]`): pixel x is bit x % 8 of byte x // 8; rows of the region from `top` on.
        top (int): the first one.
        inside (Box, optional): of the mask, image pixels.
        changed (Box, optional): of what differs from `request.before`; `rows` has at least these.
        alike (bool): whether `changed` is known.  If not, `rows` has all of the mask.
    """

    __slots__ = ("__weakref__", "_rows", "_top", "alike", "changed", "inside", "limit", "region")

    def __init__(
        self,
        request: PaintRequest,
        rows: NDArray[np.uint8],
        top: int,
        inside: Box | None,
        changed: Box | None,
        alike: bool,
    ) -> None:
        self.region, self.limit = request.region, request.limit
        self.inside, self.changed, self.alike = inside, changed, alike
        self._rows, self._top = rows, top

    @property
    def fresh(self) -> Box | None:
        """What has to be written, image pixels: into the mask before, or into nothing but False."""
        return self.changed if self.alike else self.inside

    def write(self, mask: NDArray[np.bool_]) -> None:
        """Write it into the image's mask, bool `[H, W]`."""
        if self.fresh is None:
            return
        x0, y0, x1, y1 = self.fresh
        left, top = self.region[0], self.region[1] + self._top
        first, last = (x0 - left) // 8, -(-(x1 - left) // 8)
        rows = np.unpackbits(self._rows[y0 - top : y1 - top, first:last], axis=1, bitorder="little")
        skip = x0 - left - 8 * first
        mask[y0:y1, x0:x1] = rows[:, skip : skip + x1 - x0].view(np.bool_)


class Easel:
    """Memory on a device in which masks are painted, for all network shapes: they take turns.

    Args:
        batch (int): most masks at a time.
        device (torch.device): where.
        words (int): of 32 pixels, that a mask may have at once.
    """

    def __init__(self, batch: int, device: torch.device, words: int = WORDS) -> None:
        self.words = words
        self._bits = torch.zeros(batch, words, dtype=torch.int32, device=device)
        self._host = torch.zeros(batch, words, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._last: list[weakref.ref[Painted] | None] = [None] * batch
        """Of which mask each row has the bits."""

    def ask(self, row: int, request: PaintRequest | None, shape: tuple[int, ...], asked: NDArray[np.int32]) -> bool:
        """Write down what `paint` is to do for a row, for levels of this shape, in zeros.  Whether it will do
        something."""
        if request is None:
            return False
        last, self._last[row] = self._last[row], None  # until it is there
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
        """Paint the first rows."""
        mask_bits(levels, asked, self._bits[: len(levels)], found)

    def fetch(self, row: int, request: PaintRequest, rows: int) -> None:
        """Start the copy of so many rows of a mask to the host."""
        count = rows * request.words
        self._host[row, :count].copy_(self._bits[row, :count], non_blocking=True)

    def read(self, row: int, request: PaintRequest, asked: NDArray[np.int32], found: NDArray[np.int32]) -> Painted:
        """What has arrived."""
        x0, y0 = request.region[:2]
        top, rows, alike = int(asked[3]), int(asked[4]), bool(asked[5])
        inside, changed = (_placed(b, x0, y0) for b in (found[:4].tolist(), found[4:].tolist()))
        bits = self._host[row, : rows * request.words].numpy().view(np.uint8).reshape(rows, 4 * request.words)
        wanted = changed if alike else inside
        first, last = (0, 0) if wanted is None else (wanted[1] - y0 - top, wanted[3] - y0 - top)
        return Painted(request, bits[first:last].copy(), top + first, inside, changed, alike)

    def know(self, row: int, painted: Painted) -> None:
        """A row has all of this mask."""
        self._last[row] = weakref.ref(painted)


def joined(request: PaintRequest, parts: list[Painted]) -> Painted:
    """A mask that was painted in turns, from the top down."""
    parts = [p for p in parts if p.inside is not None]
    if not parts:
        return Painted(request, np.empty((0, 0), np.uint8), 0, None, None, alike=False)
    first = parts[0]._top
    rows = np.zeros((parts[-1]._top + len(parts[-1]._rows) - first, 4 * request.words), np.uint8)
    boxes: list[Any] = []
    for part in parts:
        rows[part._top - first : part._top - first + len(part._rows)] = part._rows
        boxes.append(part.inside)
    sides = np.array(boxes)
    inside = (*sides[:, :2].min(0).tolist(), *sides[:, 2:].max(0).tolist())
    return Painted(request, rows, first, inside, inside, alike=False)


def _placed(box: list[int], x: int, y: int) -> Box | None:
    """A box of a region at this place of the image."""
    return None if box[2] <= box[0] else (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
