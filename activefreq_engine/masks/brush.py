"""Writes masks in the run-length format of Label Studio's brush."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.masks.png import as_mask
from activefreq_engine.memory import typed

_SIZES = (3, 4, 8, 16)
"""Bits of a run's length, by its class."""
_WORD = 8
"""Bits of a value."""


@typed
def to_label_studio_rle(mask: Any) -> list[int]:
    """The bytes of ``value["rle"]`` in a brush region of Label Studio, as a list of integers.

    They are one stream of bits.  It stores the mask as RGBA values of 255 and 0, row by row.  First comes the number of
    values (32 bits), then the bits of a value less one (5 bits), then for each of four classes of lengths how many bits
    they take, less one (4 bits each).  Each run follows as a 1, its class (2 bits), its length less one, its value.

    Args:
        mask: see `as_mask`.

    Raises:
        InvalidMaskError: the argument is not a mask, see `as_mask`.
    """
    flat = as_mask(mask).ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = 4 * np.diff(np.concatenate([starts, [flat.size]]))
    values = flat[starts].astype(np.uint64) * np.uint64(255)
    longest = 1 << _SIZES[-1]
    parts = -(-lengths // longest)
    runs = np.full(parts.sum(), longest, np.int64)
    runs[np.cumsum(parts) - 1] = lengths - (parts - 1) * longest
    values = np.repeat(values, parts)
    kind = np.searchsorted(1 << np.array(_SIZES), runs)
    bits = np.array(_SIZES)[kind]
    head = (1 << 2 | kind).astype(np.uint64)
    body = ((head << bits.astype(np.uint64) | (runs - 1).astype(np.uint64)) << np.uint64(_WORD)) | values
    widths = 3 + bits + _WORD
    first = [(4 * flat.size, 32), (_WORD - 1, 5), *((size - 1, 4) for size in _SIZES)]
    codes = np.concatenate([np.array([c for c, _ in first], np.uint64), body])
    widths = np.concatenate([[w for _, w in first], widths])
    return np.packbits(_bits(codes, widths)).tolist()


def _bits(codes: NDArray[np.uint64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest `widths` bits (at most 32) of each code, highest bit first, one code after the other."""
    all_bits = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    return all_bits[np.arange(32) >= 32 - widths[:, None]]
