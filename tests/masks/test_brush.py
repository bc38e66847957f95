"""Label Studio's run lengths, read again by the format as its own reader reads it."""

import numpy as np
import pytest

from activefreq_engine import InvalidMaskError, masks


def decoded(rle: list[int], height: int, width: int) -> np.ndarray:
    """Bit by bit, as Label Studio's page does."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeated, length = take(1), 1 + take(sizes[take(2)])
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    return np.array(values).reshape(height, width, 4)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (61, 47), (260, 129)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_label_studio_reads_the_same_mask(size: tuple[int, int], share: float, rng: np.random.Generator) -> None:
    mask = rng.random(size) < share
    mask[size[0] // 2 :, : size[1] // 2] |= share == 0.02  # and long runs
    found = decoded(masks.to_label_studio_rle(mask), *size)
    for channel in range(4):
        np.testing.assert_array_equal(found[..., channel], np.where(mask, 255, 0))


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(InvalidMaskError):
        masks.to_label_studio_rle(np.zeros((3, 4, 2)))
