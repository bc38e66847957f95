"""GrabCut by clicks: what a click must do whatever the picture."""

import numpy as np
import pytest

from bench.peers.grabcut import GrabCutPredictor

H, W = 90, 121


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright box on dark noise, and where it is."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (H, W, 3)).astype(np.uint8)
    truth = np.zeros((H, W), bool)
    truth[30:60, 40:90] = True
    image[truth] += 120
    return image, truth


@pytest.mark.parametrize("seed", range(3))
def test_one_click_finds_what_differs_in_colour(seed: int) -> None:
    image, truth = picture(seed)
    predictor = GrabCutPredictor()
    predictor.set_image(image)
    mask = predictor.click(62, 44).mask
    assert mask.dtype == np.bool_
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95


def test_clicks_hold_and_reset_forgets() -> None:
    image, _ = picture(0)
    predictor = GrabCutPredictor()
    predictor.set_image(image)
    first = predictor.click(62, 44).mask
    predictor.click(70, 50, positive=False)
    mask = predictor.click(4, 84).mask
    assert not mask[50, 70]
    assert mask[84, 4]
    predictor.reset()
    assert np.array_equal(predictor.click(62, 44).mask, first)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (40, 50), (1, 7)])
def test_no_picture_is_too_plain_or_small(height: int, width: int) -> None:
    predictor = GrabCutPredictor()
    predictor.set_image(np.zeros((height, width, 3), np.uint8))
    for positive in (True, False, True):
        assert predictor.click(width - 1, 0, positive=positive).mask.shape == (height, width)
