"""Regions of high entropy and their statistics in one table of fixed size, without the host waiting for the device.

This is what `AcSelect.suggest` looks at, as a sequence of operators that a CUDA graph can capture: regions and their
statistics by `region_stats_fixed`, inner points by `inscribed_points_fixed`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .distance import inscribed_points_fixed
from .region_stats import binary_entropy, region_stats_fixed

COLUMNS = (
    "area", "max_entropy", "mean_entropy", "mean_prob", "x0", "y0", "x1", "y1", "peak_x", "peak_y", "x", "y", "radius",
)  # fmt: skip
"""Columns of the table."""


def uncertain_regions(
    probs: Tensor, before: Tensor, valid: Tensor, rules: Tensor, *, capacity: int = 1024, backend: str = "auto"
) -> Tensor:
    """Regions of uncertain pixels, those outside the mask and those inside it.

    A pixel is uncertain if its entropy is above tau, or if its label has changed and its entropy is above tau_flipped;
    see `AcSelect.suggest`.

    Args:
        probs (Tensor): float32 `[H, W]`, each in 0..1.
        before (Tensor): float32 `[H, W]`, the probabilities one step earlier.
        valid (Tensor): bool `[H, W]`; where false nothing is a region.
        rules (Tensor): float64 `[4]`: threshold of the mask, tau, tau_flipped; 1 if there was a step before, else 0.
        capacity (int): most regions of each of the two kinds that have a row. Default: 1024.
        backend (str): of the two operators, see `kernels.dispatch`. Default: "auto".

    Returns:
        Tensor: float64 `[2, 1 + capacity, 13]` on the inputs' device.  The first index is 0 for regions outside the
        mask, which a positive click would add, and 1 for those inside.  Row 0 holds the number of regions, also of
        those that have no row, and in its second column how many probabilities are not in 0..1.  Row k holds region k
        by `COLUMNS`: area in pixels, entropies in bits, the half-open box, the peak of the entropy, centre and radius
        of the largest inscribed circle; (x, y) in pixels.
    """
    threshold, tau, tau_flipped, has_before = rules.unbind()
    mask = probs > threshold.to(probs.dtype)
    entropy = binary_entropy(probs)
    flipped = (mask != (before > threshold.to(probs.dtype))) & (has_before > 0)
    uncertain = ((entropy > tau.to(probs.dtype)) | (flipped & (entropy > tau_flipped.to(probs.dtype)))) & valid
    candidates = torch.stack([uncertain & ~mask, uncertain & mask])
    stats = region_stats_fixed(candidates, probs.expand(candidates.shape), capacity=capacity, backend=backend)
    point, radius = inscribed_points_fixed(stats.labels, capacity=capacity, backend=backend)
    found = (stats.area, stats.max_entropy, stats.mean_entropy, stats.mean_prob)
    table = [*(t.unsqueeze(-1).double() for t in found), *(t.double() for t in (stats.bbox, stats.peak, point))]
    rows = torch.cat([*table, radius.unsqueeze(-1)], dim=-1)
    bad = sum(((p < 0) | (p > 1) | p.isnan()).sum() for p in (probs, before))
    head = rows.new_zeros(2, 1, len(COLUMNS))
    head[:, 0, 0] = stats.counts
    head[:, 0, 1] = bad
    return torch.cat([head, rows], dim=1)
