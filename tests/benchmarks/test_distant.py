"""Made pictures of small objects: the object is where the truth says, and nothing else is."""

import numpy as np
import pytest

from activefreq_engine.eval.datasets import Dataset, Sample
from bench.quality import distant


@pytest.mark.parametrize("backdrop", distant.BACKDROPS)
@pytest.mark.parametrize("side", distant.SIDES)
def test_the_truth_lies_on_the_object(backdrop: str, side: int) -> None:
    image = np.full((96, 96, 3), 200, np.uint8)
    truth = np.zeros((96, 96), np.int8)
    image[30:70, 25:60], truth[30:70, 25:60] = 40, 1
    truth[:2] = -1
    picture, moved = distant.place(image, truth, side, backdrop, seed=4)
    assert picture.shape == (*distant.SHAPE, 3)
    assert picture.dtype == np.uint8
    assert moved.shape == distant.SHAPE
    scale = (side / 96) ** 2
    assert (moved == 1).sum() == pytest.approx(40 * 35 * scale, rel=0.05)
    assert (moved == -1).sum() == pytest.approx(2 * 96 * scale, rel=0.25)
    assert np.median(picture[moved == 1]) == 40
    assert np.median(picture[moved == 0]) > 120


def test_each_sample_is_the_same_whenever_it_is_read() -> None:
    rng = np.random.default_rng(1)
    image, truth = rng.integers(0, 256, (64, 64, 3), np.uint8), np.eye(64, dtype=np.int8)
    samples = tuple(Sample(str(i), 1, str(i), lambda: image, lambda: truth) for i in range(2))
    made = distant.distant(Dataset("made", "masks", samples), 160, "even").samples
    first, again, other = made[0].load_image(), made[0].load_image(), made[1].load_image()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (made[0].load_mask() != made[1].load_mask()).any()
