"""region_stats on 512 x 512 pixels, beside a plain SciPy loop over the regions.  Runs on any machine.

A time is only taken after both have given the same numbers.
"""

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.region_stats import region_stats
from scipy import ndimage

SIZE = 512
DENSITIES = {"thousands-of-regions": 0.2, "percolating": 0.407, "one-giant-region": 0.95}


def naive(mask: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels `[H, W]`, and a row (area, max H, mean H, mean p, x0, y0, x1, y1, peak x, peak y) for each region."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    entropy = -probs * np.log2(probs) - (1 - probs) * np.log2(1 - probs)
    rows = []
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        own = labels[box] == k
        h, p = entropy[box][own], probs[box][own]
        y, x = np.argwhere(own)[h.argmax()] + [box[0].start, box[1].start]
        rows.append((h.size, h.max(), h.mean(), p.mean(), box[1].start, box[0].start, box[1].stop, box[0].stop, x, y))
    return labels, np.array(rows)


@pytest.fixture(params=DENSITIES)
def case(request):
    rng = np.random.default_rng(0)
    return rng.random((SIZE, SIZE)) < DENSITIES[request.param], rng.uniform(0.01, 0.99, (SIZE, SIZE))


@pytest.mark.benchmark(group="region_stats-512x512")
def test_region_stats(benchmark, case):
    mask, probs = case
    candidates, probabilities = torch.from_numpy(mask[None]), torch.from_numpy(probs[None])
    stats = region_stats(candidates, probabilities)
    labels, rows = naive(mask, probs)
    np.testing.assert_array_equal(stats.labels[0], labels)
    columns = (stats.area, stats.max_entropy, stats.mean_entropy, stats.mean_prob, *stats.bbox.T, *stats.peak.T)
    np.testing.assert_allclose(torch.stack([c.double() for c in columns], 1), rows, rtol=0, atol=1e-9)
    benchmark.extra_info["regions"] = len(stats)
    benchmark(region_stats, candidates, probabilities)


@pytest.mark.benchmark(group="region_stats-512x512")
def test_naive_loop(benchmark, case):
    benchmark.pedantic(naive, case, rounds=3)
