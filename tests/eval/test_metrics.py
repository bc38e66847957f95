"""The protocol's numbers on curves small enough to work out by hand."""

import numpy as np
import pytest

from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.eval import metrics

CURVES = np.array(
    [
        [0.50, 0.85, 0.90, 0.91],  # reaches 0.90 exactly, on click 3
        [0.70, 0.80, 0.79, 0.95],  # reaches 0.95 exactly, on the last click
        [0.10, 0.20, 0.30, 0.40],  # never
        [0.99, 0.10, 0.10, 0.10],  # the first hit counts
    ],
    dtype=np.float32,
)


def test_noc_counts_a_failure_as_max_clicks():
    assert metrics.noc(CURVES, 0.80).tolist() == [2, 2, 4, 1]
    assert metrics.noc(CURVES, 0.85).tolist() == [2, 4, 4, 1]
    assert metrics.noc(CURVES, 0.90).tolist() == [3, 4, 4, 1]
    assert metrics.noc(CURVES, 0.95).tolist() == [4, 4, 4, 1]


def test_nof_also_counts_success_on_the_last_click_and_never_reached_does_not():
    assert metrics.nof(CURVES, 0.90) == 2
    assert metrics.never_reached(CURVES, 0.90) == 1


def test_mean_iou_is_after_the_given_click():
    assert metrics.mean_iou(CURVES, 2) == pytest.approx((0.85 + 0.80 + 0.20 + 0.10) / 4, abs=1e-7)
    assert metrics.mean_iou(CURVES, 4) == pytest.approx((0.91 + 0.95 + 0.40 + 0.10) / 4, abs=1e-7)


def test_iou_ignores_pixels_that_are_not_valid():
    truth = np.array([[1, 1, 0, 0, -1], [1, 0, 0, -1, -1]])
    prediction = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]], bool)
    assert metrics.iou(prediction, truth) == np.float32(1 / 4)
    assert metrics.iou(prediction, np.where(truth == -1, 0, truth)) == np.float32(1 / 6)


def test_iou_of_full_empty_and_ignored():
    everything, nothing = np.ones((3, 5), bool), np.zeros((3, 5), bool)
    assert metrics.iou(everything, np.ones((3, 5), int)) == 1.0
    assert metrics.iou(nothing, np.ones((3, 5), int)) == 0.0
    assert metrics.iou(everything, np.zeros((3, 5), int)) == 0.0
    assert metrics.iou(nothing, np.zeros((3, 5), int)) == 1.0  # both empty: they agree
    assert metrics.iou(everything, np.full((3, 5), -1)) == 1.0  # nothing is left to disagree about


def test_iou_is_exactly_on_the_target():
    truth = np.ones((1, 10), int)
    prediction = np.arange(10)[None] < 9
    assert metrics.noc(np.array([[metrics.iou(prediction, truth)]], np.float32), 0.9).tolist() == [1]
    assert metrics.never_reached(np.array([[metrics.iou(prediction, truth)]], np.float32), 0.9) == 0


def test_bootstrap_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(4).exponential(3, size=61)  # skewed: BCa and percentile differ
    got = metrics.bootstrap_interval(values, resamples=20_000, seed=1)
    reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=2).confidence_interval
    plain = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert got == pytest.approx(tuple(reference), abs=0.03)
    assert abs(got[1] - plain.high) > 0.06  # the tolerance above tells the two methods apart


def test_bootstrap_is_seeded_and_survives_corner_cases():
    values = np.random.default_rng(2).random(30)
    assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(values)
    assert metrics.bootstrap_interval(values) != metrics.bootstrap_interval(values, seed=1)
    assert metrics.bootstrap_interval(np.full(5, 20)) == (20.0, 20.0)
    assert metrics.bootstrap_interval(np.array([3.0])) is None
    low, high = metrics.bootstrap_interval(np.array([1, 1, 1, 1, 20]))
    assert 1 <= low < 4.8 < high <= 20
    with pytest.raises(InvalidArgumentError):
        metrics.bootstrap_interval(values, confidence=95)
