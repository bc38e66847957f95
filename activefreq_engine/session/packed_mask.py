"""A mask at full resolution in little memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PackedMask:
    """A bool `[H, W]` mask at full resolution, stored as the bits of its rows, deflated."""

    height: int
    width: int
    data: bytes

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> PackedMask:
        """Store a mask."""
        return cls(mask.shape[0], mask.shape[1], zlib.compress(np.packbits(mask, axis=1).tobytes(), level=1))

    def unpack(self) -> NDArray[np.bool_]:
        """The mask."""
        return self.bool_rows(self.rows(), 0, self.height)

    def rows(self) -> NDArray[np.uint8]:
        """The bits, uint8 `[H, ceil(W / 8)]`; `bool_rows` turns some of them into pixels, to save memory."""
        return np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(self.height, -1)

    def bool_rows(self, rows: NDArray[np.uint8], y0: int, y1: int) -> NDArray[np.bool_]:
        """Rows y0 to y1 of the mask, bool `[y1 - y0, W]`, from what `rows` gave."""
        return np.unpackbits(rows[y0:y1], axis=1, count=self.width).view(np.bool_)
