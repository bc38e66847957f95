"""A decoded picture as its file stores it, before windows, profiles and transparency."""

import functools
import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidImageError

_log = logging.getLogger(__name__)

CHUNK = 4_000_000
"""How many values are converted at once, so that temporary float64 arrays stay below 32 MB."""


@dataclass(slots=True)
class Raster:
    """One picture.  `pixels` has the type of the file; `to_uint8` and `load_labels` convert it."""

    pixels: NDArray[Any]
    """`[H, W]` for kinds grey and index, else `[H, W, C]`: colour channels only, without alpha."""
    kind: Literal["grey", "rgb", "cmyk", "lab", "index"] = "grey"
    """What the channels mean.  lab: bytes that hold L * 2.55 and signed a and b, white is D50.  cmyk: 0 is no ink."""
    bits: int = 0
    """Significant bits of unsigned integers; 0 means all bits of the type."""
    white: int = 0
    """The value of white in bytes where it is below 255 and `bits` does not say it, as in PNM; else 0."""
    palette: NDArray[np.uint8] | None = None
    """`[N, 3]` or, with alpha, `[N, 4]`; for kind index."""
    alpha: NDArray[Any] | None = None
    """`[H, W]`: 0 is transparent."""
    premultiplied: bool = False
    """The colours have been multiplied by alpha."""
    inverted: bool = False
    """The lowest value is white."""
    invalid: NDArray[np.bool_] | None = None
    """`[H, W]`: True where there is no data; shown black and left out of the window."""
    profile: bytes | None = None
    """ICC profile of the colours."""
    orientation: int = 1
    """EXIF orientation that is still to be undone, 1 to 8."""


def strips(rows: int, values_per_row: int) -> list[tuple[int, int]]:
    """(first row, end row) of strips of about `CHUNK` values."""
    step = max(1, CHUNK // max(1, values_per_row))
    return [(y, min(y + step, rows)) for y in range(0, rows, step)]


def upright(pixels: NDArray[Any], orientation: Any) -> NDArray[Any]:
    """Undo the camera's rotation, EXIF tag 0x0112; 1 and unknown values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def check_size(height: int, width: int, max_pixels: int, name: str) -> None:
    """Refuse an empty picture, and one of more than `max_pixels`."""
    if height < 1 or width < 1:
        raise InvalidImageError(f"{name} is empty: height {height}, width {width}; both must be at least 1")
    if height * width > max_pixels:
        raise InvalidImageError(
            f"{name} has {height * width} pixels (height {height}, width {width}); allowed are {max_pixels}. "
            "Shrink or tile it, or raise max_pixels"
        )


@functools.lru_cache(maxsize=256)
def say_once(message: str) -> None:
    """Write a warning to the log; the same text is written once in a process."""
    _log.warning(message)
