"""Converts masks to COCO's run-length encoding and back, exactly."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidMaskError
from activefreq_engine.images import MAX_PIXELS
from activefreq_engine.masks.png import as_mask
from activefreq_engine.memory import typed
from activefreq_engine.values import truth


@typed
def to_coco_rle(mask: Any, *, compressed: bool = True) -> dict[str, Any]:
    """COCO's run-length encoding of a mask: ``{"size": [height, width], "counts": ...}``, as pycocotools reads it.

    Runs go down the columns, one column after the other, and the first is a run of background.  `counts` is an ASCII
    string when compressed, else a list of integers; JSON can hold both.

    Raises:
        InvalidMaskError: the argument is not a mask, see `as_mask`.
    """
    mask = as_mask(mask)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    runs = ([0] if flat[0] else []) + counts.tolist()
    return {
        "size": [int(s) for s in mask.shape],
        "counts": _compress(runs) if truth("compressed", compressed) else runs,
    }


@typed
def from_coco_rle(rle: Any) -> NDArray[np.bool_]:
    """The mask, bool `[H, W]`, of either form of `to_coco_rle`; compressed counts may be str or bytes.

    Raises:
        InvalidMaskError: the encoding is damaged, or its mask larger than `MAX_PIXELS`.
    """
    try:
        height, width = rle["size"]
        counts = rle["counts"]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise InvalidMaskError("RLE is not a dictionary with size [height, width] and counts") from error
    if not all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s > 0 for s in (height, width)):
        raise InvalidMaskError(f"RLE size is {rle['size']!r}; expected two positive integers [height, width]")
    height, width = int(height), int(width)  # NumPy's integers would overflow
    if height * width > MAX_PIXELS:
        raise InvalidMaskError(f"RLE size {height}x{width} has {height * width} pixels; allowed are {MAX_PIXELS}")
    runs = _decompress(counts) if isinstance(counts, (str, bytes)) else counts
    if not isinstance(runs, (list, tuple)) or not all(
        isinstance(r, (int, np.integer)) and not isinstance(r, bool) and 0 <= r <= height * width for r in runs
    ):
        raise InvalidMaskError("RLE counts hold something other than run lengths that fit the size")
    if sum(runs) != height * width:
        raise InvalidMaskError(f"RLE counts add up to {sum(runs)} pixels; size {height}x{width} has {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, np.asarray(runs, np.int64)).reshape((height, width), order="F"))


def _compress(runs: list[int]) -> str:
    """COCO's text form of run lengths.

    The first three runs are stored as they are, each later one as its difference from the run two before it.  Numbers
    are in base 32, lowest digit first; bit 5 says that another digit follows; '0' is the character for digit 0."""
    out = []
    for i, run in enumerate(runs):
        x = run - runs[i - 2] if i > 2 else run
        while True:
            digit, x = x & 31, x >> 5
            more = x != (-1 if digit & 16 else 0)
            out.append(chr(48 + digit + (32 if more else 0)))
            if not more:
                break
    return "".join(out)


def _decompress(text: str | bytes) -> list[int]:
    data = text.encode("ascii", errors="replace") if isinstance(text, str) else text
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 40:
            raise InvalidMaskError(f"RLE counts hold {chr(byte)!r} where no compressed run length can have it")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise InvalidMaskError("RLE counts end in the middle of a run length; the text is cut off")
    return runs
