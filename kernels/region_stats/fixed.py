"""Region statistics in tensors of fixed size, for CUDA graphs, `torch.compile` and export."""

from dataclasses import dataclass, fields

import torch

from .. import dispatch, operators
from .reference import RegionStats, check_tensors
from .reference import region_stats as _reference


@dataclass(frozen=True, slots=True)
class FixedRegionStats:
    """Regions of a batch of images, with room for `capacity` regions each.

    Row k of image b holds region k + 1; rows from counts[b] on are zeros.
    """

    labels: torch.Tensor
    """int32 `[B, H, W]`: 0 is background, the regions of each image are 1..counts[b], right whatever the capacity."""
    counts: torch.Tensor
    """int64 `[B]`: regions in each image, also those that have no row."""
    overflow: torch.Tensor
    """bool `[B]`: the image has more than `capacity` regions; those from capacity + 1 on have no row."""
    area: torch.Tensor
    """int64 `[B, capacity]`; this and what follows as in `RegionStats`."""
    max_entropy: torch.Tensor
    """float64 `[B, capacity]`, bits."""
    mean_entropy: torch.Tensor
    """float64 `[B, capacity]`, bits."""
    mean_prob: torch.Tensor
    """float64 `[B, capacity]`."""
    bbox: torch.Tensor
    """int64 `[B, capacity, 4]`: (x0, y0, x1, y1), half-open."""
    peak: torch.Tensor
    """int64 `[B, capacity, 2]`: (x, y)."""
    centroid: torch.Tensor
    """float64 `[B, capacity, 2]`: (x, y)."""


ROWS = tuple(field.name for field in fields(FixedRegionStats))[3:]
"""Fields that have a row for each region."""


def region_stats_fixed(
    candidates: torch.Tensor, probs: torch.Tensor, *, connectivity: int = 8, capacity: int = 1024, backend: str = "auto"
) -> FixedRegionStats:
    """`region_stats` with outputs whose sizes do not depend on the data.

    On the cupy backend the host never waits for the device, so a CUDA graph can capture the call (after one call
    outside of the capture, which compiles the kernels).  Everywhere it is one operator to `torch.compile` and
    `torch.export`.

    Args:
        candidates: bool `[B, H, W]`.
        probs: floating `[B, H, W]`, each in 0..1, on the same device.  Values are not checked, since that would wait
            for the device.
        connectivity: 8 or 4.
        capacity: rows for each image, at least 1.
        backend: "auto", "reference" or "cupy"; see `kernels.dispatch`.

    Returns:
        `FixedRegionStats` on the inputs' device.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: wrong shape, different devices, or a capacity below 1.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    check_tensors(candidates, probs, connectivity)
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; pass how many regions of an image to make room for, at least 1")
    return FixedRegionStats(*_operator(candidates, probs, connectivity, capacity, backend))


Outputs = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]


def _run(candidates: torch.Tensor, probs: torch.Tensor, connectivity: int, capacity: int, backend: str) -> Outputs:
    stats: FixedRegionStats = dispatch.call(
        "region_stats_fixed",
        candidates.device.type,
        backend,
        candidates,
        probs,
        connectivity=connectivity,
        capacity=capacity,
    )
    return tuple(getattr(stats, field.name) for field in fields(stats))  # type: ignore[return-value]


def _fake(candidates: torch.Tensor, probs: torch.Tensor, connectivity: int, capacity: int, backend: str) -> Outputs:
    batch = candidates.shape[0]

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return candidates.new_empty(batch, *shape, dtype=dtype)

    return (
        candidates.new_empty(candidates.shape, dtype=torch.int32),
        empty(dtype=torch.int64),
        empty(dtype=torch.bool),
        empty(capacity, dtype=torch.int64),
        empty(capacity, dtype=torch.float64),
        empty(capacity, dtype=torch.float64),
        empty(capacity, dtype=torch.float64),
        empty(capacity, 4, dtype=torch.int64),
        empty(capacity, 2, dtype=torch.int64),
        empty(capacity, 2, dtype=torch.float64),
    )


_operator = operators.define("region_stats_fixed", _run, _fake)


def reference(
    candidates: torch.Tensor, probs: torch.Tensor, *, connectivity: int = 8, capacity: int
) -> FixedRegionStats:
    """The definition: rows of the exact form, copied to their places."""
    stats = _reference(candidates, probs, connectivity=connectivity)
    batch = candidates.shape[0]
    fits = stats.label <= capacity
    place = stats.image[fits], stats.label[fits].long() - 1
    rows = {}
    for name in ROWS:
        values = getattr(stats, name)
        rows[name] = values.new_zeros(batch, capacity, *values.shape[1:])
        rows[name][place] = values[fits]
    return FixedRegionStats(labels=stats.labels, counts=stats.counts, overflow=stats.counts > capacity, **rows)


def unpack(fixed: FixedRegionStats, counts: list[int]) -> RegionStats:
    """The exact form; `counts` is `fixed.counts` on the host, each within the capacity."""
    capacity = fixed.area.shape[1]
    rows = torch.cat([torch.arange(b * capacity, b * capacity + n) for b, n in enumerate(counts)])
    rows = rows.to(fixed.area.device)
    return RegionStats(
        labels=fixed.labels,
        counts=fixed.counts,
        image=rows // capacity,
        label=(rows % capacity + 1).int(),
        **{name: getattr(fixed, name).flatten(0, 1)[rows] for name in ROWS},
    )
