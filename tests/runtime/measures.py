"""How far two masks are apart."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def disagreement(mask: NDArray[np.bool_], expected: NDArray[np.bool_], band: int = 2) -> float:
    """Share of the pixels of `mask` `[H, W]` that differ, those within `band` pixels of the expected outline aside."""
    assert mask.shape == expected.shape
    square = np.ones((2 * band + 1, 2 * band + 1), np.bool_)
    near = ndimage.binary_dilation(expected, square) & ~ndimage.binary_erosion(expected, square, border_value=1)
    return float(((mask != expected) & ~near).mean())
