"""The numbers of the protocol.  Source: RITM's evaluation code, re-told in docs/protocol.md.

A *curve* is the IoU of one sample after click 1, 2, ... ``max_clicks``; ``curves`` is float32 ``[N, K]``, one row a
sample.  Values are compared in float32 on both sides, as the published code does.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidArgumentError

IOU_TARGETS = (0.80, 0.85, 0.90, 0.95)
"""Targets of the reported NoC."""

Curves = NDArray[np.float32]


def iou(prediction: NDArray[np.bool_], truth: NDArray[np.integer]) -> float:
    """Intersection over union of a mask with the truth.

    Args:
        prediction: bool ``[H, W]``.
        truth: integer ``[H, W]``: 1 object, 0 background, -1 ignored (such pixels count in neither set).

    Returns:
        A float32 value in 0..1.  If both sets are empty they agree: 1.0.  (The published code divides 0 by 0 there.)
    """
    target = truth == 1
    valid = truth >= 0
    union = int(np.count_nonzero((prediction | target) & valid))
    if union == 0:
        return 1.0
    return float(np.float32(np.count_nonzero(prediction & target) / union))


def noc(curves: Curves, target: float) -> NDArray[np.int64]:
    """Number of clicks of each sample: the first 1-based click with IoU >= target, else ``max_clicks``.

    Args:
        curves: float32 ``[N, K]``, K = max_clicks.
        target: IoU in 0..1.

    Returns:
        int64 ``[N]``.
    """
    hit = curves >= np.float32(target)
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, curves.shape[1]).astype(np.int64)


def nof(curves: Curves, target: float) -> int:
    """Number of failures as published: samples whose NoC equals ``max_clicks``.

    It also counts a sample that succeeds exactly on the last click; `never_reached` does not.
    """
    return int(np.count_nonzero(noc(curves, target) == curves.shape[1]))


def never_reached(curves: Curves, target: float) -> int:
    """Number of samples that do not reach the target within ``max_clicks``."""
    return int(np.count_nonzero(~(curves >= np.float32(target)).any(axis=1)))


def mean_iou(curves: Curves, click: int) -> float:
    """Mean IoU over samples after the given 1-based click."""
    return float(curves[:, click - 1].mean(dtype=np.float64))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of the values, linearly interpolated."""
    p50, p95, p99 = np.percentile(np.asarray(values, np.float64), (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def bootstrap_interval(
    values: NDArray[np.floating] | NDArray[np.integer],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Confidence interval of the mean over samples: bias-corrected and accelerated (BCa) bootstrap.

    Source: Efron, "Better bootstrap confidence intervals", JASA 1987.

    Args:
        values: ``[N]``, one value a sample.
        confidence: two-sided level in (0, 1).
        resamples: bootstrap draws.
        seed: seeds the draws.

    Returns:
        (low, high); both are the mean when all values are equal; None for fewer than two values, where nothing can
        be said.

    Raises:
        InvalidArgumentError: `values` is not one-dimensional, or `confidence` or `resamples` is out of range.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or not 0 < confidence < 1 or resamples < 1:
        raise InvalidArgumentError(
            f"values of shape {data.shape}, confidence {confidence}, resamples {resamples}; allowed are [N], "
            "a level between 0 and 1, and at least one resample"
        )
    n = len(data)
    if n < 2:
        return None
    mean = float(data.mean())
    if np.all(data == data[0]):
        return mean, mean
    means = np.sort(_resampled_means(data, resamples, np.random.default_rng(seed)))
    # Bias: where the estimate stands among the draws, counting ties half.
    below = np.searchsorted(means, mean, "left") + np.searchsorted(means, mean, "right")
    normal = NormalDist()
    bias = normal.inv_cdf(float(np.clip(below / (2 * resamples), 1 / (2 * resamples), 1 - 1 / (2 * resamples))))
    # Acceleration: skewness of the leave-one-out means, which for a mean lie around it in mirror image of the data.
    centred = data - mean
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))

    def level(probability: float) -> float:
        z = bias + normal.inv_cdf(probability)
        return normal.cdf(bias + z / (1 - acceleration * z))

    low, high = np.quantile(means, (level((1 - confidence) / 2), level((1 + confidence) / 2)))
    return float(low), float(high)


def _resampled_means(data: NDArray[np.float64], resamples: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Means of draws with replacement, ``[resamples]``; in blocks, so that memory stays bounded."""
    block = max(1, 2_000_000 // len(data))
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        means[start : start + count] = data[random.integers(len(data), size=(count, len(data)))].mean(axis=1)
    return means
