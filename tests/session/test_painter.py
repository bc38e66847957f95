"""Enlarged maps: bilinear, the same by rows and as a mask, whatever the size."""

import cv2
import numpy as np
import pytest

from activefreq_engine.session.painter import Painter

CASES = [((24, 32), (150, 400)), ((64, 96), (64, 96)), ((96, 64), (700, 65)), ((1, 7), (5, 90)), ((9, 1), (300, 1))]
CASES += [((33, 50), (901, 800))]  # larger than what is enlarged as a whole


def smooth(rng, shape):
    """float32 probabilities with large regions on either side of one half."""
    values = cv2.GaussianBlur(rng.random(shape, np.float32), (0, 0), 5)
    return np.clip((values - values.mean()) * 12 + 0.5, 0, 1).astype(np.float32)


@pytest.mark.parametrize(("small", "large"), CASES)
def test_bilinear(rng, small, large):
    values = rng.random(small, np.float32)
    height, width = large
    strip = np.zeros((height + 3, width + 5), np.float32)
    Painter((4, 2, 4 + width, 2 + height), values).paint(strip, 0, height + 3)
    expected = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(strip[2 : 2 + height, 4 : 4 + width] - expected).max() <= 1e-5
    strip[2 : 2 + height, 4 : 4 + width] = 0
    assert not strip.any()


@pytest.mark.parametrize(("small", "large"), CASES)
@pytest.mark.parametrize("threshold", [0.49, 0.5, 0.02])
def test_mask_and_rows_agree_bit_by_bit(rng, small, large, threshold):
    values = smooth(rng, small)
    values[rng.random(small) < 0.1] = threshold
    height, width = large
    painter = Painter((3, 1, 3 + width, 1 + height), values)
    whole = np.full((height + 2, width + 4), -1, np.float32)
    painter.paint(whole, 0, height + 2)
    mask = np.zeros(whole.shape, bool)
    painter.threshold(mask, threshold, blank=True)
    assert np.array_equal(mask, whole > threshold)
    dirty = rng.random(whole.shape) < 0.5
    expected = np.where(whole < 0, dirty, whole > threshold)
    painter.threshold(dirty, threshold)
    assert np.array_equal(dirty, expected)
    for y0 in range(0, height + 2, 37):
        y1 = min(y0 + 37, height + 2)
        part = np.full((y1 - y0, width + 4), -1, np.float32)
        painter.paint(part, y0, y1)
        assert np.array_equal(part, whole[y0:y1])


def test_a_mask_costs_its_outline(rng, monkeypatch):
    """Tiles that lie on one side are not enlarged."""
    values = np.zeros((256, 256), np.float32)
    cv2.circle(values, (128, 128), 60, 1.0, -1)
    enlarged = []
    enlarge = Painter._enlarge
    monkeypatch.setattr(
        Painter, "_enlarge", lambda self, rows, *rest: enlarged.append(rows) or enlarge(self, rows, *rest)
    )
    mask = np.zeros((2560, 2560), bool)
    Painter((0, 0, 2560, 2560), values).threshold(mask, 0.5, blank=True)
    assert abs(mask.mean() - (values > 0.5).mean()) < 0.001
    assert 0 < len(enlarged) < 70  # of 256


def test_a_map_is_painted_over_another(rng):
    """The second one's False counts."""
    mask = np.zeros((300, 300), bool)
    Painter((0, 0, 300, 300), np.ones((30, 30), np.float32)).threshold(mask, 0.5, blank=True)
    Painter((50, 60, 250, 220), np.zeros((16, 20), np.float32)).threshold(mask, 0.5)
    expected = np.ones((300, 300), bool)
    expected[60:220, 50:250] = False
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("hidden", [(60, 40, 500, 400), (0, 0, 600, 600), (-5, 100, 300, 900), (0, 0, 1, 1)])
def test_what_will_be_painted_over_may_be_left_out(rng, hidden):
    painter = Painter((20, 30, 920, 730), smooth(rng, (48, 64)))
    whole, part = (np.zeros((760, 940), bool) for _ in range(2))
    painter.threshold(whole, 0.5, blank=True)
    painter.threshold(part, 0.5, blank=True, hidden=hidden)
    outside = np.ones(whole.shape, bool)
    outside[max(0, hidden[1]) : hidden[3], max(0, hidden[0]) : hidden[2]] = False
    assert np.array_equal(whole[outside], part[outside])
