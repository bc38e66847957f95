"""region_stats on 512 x 512 pixels, beside a plain SciPy loop over the regions."""

from typing import Any

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.region_stats import region_stats
from scipy import ndimage

from bench.tools.verify import measure

SIZE = 512
DENSITIES = {"thousands of regions": 0.2, "percolating": 0.407, "one giant region": 0.95}


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


@pytest.mark.parametrize("implementation", ["public op", "scipy"])
@pytest.mark.parametrize("regions", DENSITIES)
def test_region_stats(benchmark: Any, device: torch.device, regions: str, implementation: str) -> None:
    if device.type == "cuda" and implementation == "scipy":
        pytest.skip("SciPy runs on the host; it is measured there")
    rng = np.random.default_rng(0)
    mask, probs = rng.random((SIZE, SIZE)) < DENSITIES[regions], rng.uniform(0.01, 0.99, (SIZE, SIZE))
    candidates = torch.from_numpy(mask[None]).to(device)
    probabilities = torch.from_numpy(probs[None]).to(device)

    def check() -> float:
        stats = region_stats(candidates, probabilities)
        labels, rows = naive(mask, probs)
        np.testing.assert_array_equal(stats.labels[0].cpu(), labels)
        columns = (stats.area, stats.max_entropy, stats.mean_entropy, stats.mean_prob, *stats.bbox.T, *stats.peak.T)
        table = torch.stack([c.double() for c in columns], 1).cpu().numpy()
        np.testing.assert_allclose(table, rows, rtol=0, atol=1e-9)
        return float(np.abs(table - rows).max())

    slow = implementation == "scipy"
    measure(
        benchmark, group=f"region_stats {SIZE}x{SIZE}, {regions}", implementation=implementation, reference=slow,
        run=(lambda: naive(mask, probs)) if slow else (lambda: region_stats(candidates, probabilities)), check=check,
        device=device, setup=(lambda: None) if slow else None, rounds=3,
    )  # fmt: skip
