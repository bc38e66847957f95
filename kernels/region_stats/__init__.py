"""Region statistics: connected regions of a mask, and what the probabilities inside each of them look like."""

from dataclasses import fields

import torch

from .. import dispatch, operators
from ..verification import Trial
from . import cupy_impl, fixed, trial
from .fixed import FixedRegionStats, region_stats_fixed
from .reference import RegionStats, binary_entropy, check_tensors, check_values
from .reference import region_stats as _reference

__all__ = ["FixedRegionStats", "RegionStats", "binary_entropy", "region_stats", "region_stats_fixed"]

_trial = Trial(trial.form, trial.check, trial.samples)
for _op, _plain, _cupy in (
    ("region_stats", _reference, cupy_impl.region_stats),
    ("region_stats_fixed", fixed.reference, cupy_impl.region_stats_fixed),
):
    dispatch.register(_op, "reference", _plain, devices=("cpu", "cuda"), priority=0)
    dispatch.register(_op, "cupy", _cupy, devices=("cuda",), priority=10, verify=cupy_impl.verify, trial=_trial)


def region_stats(
    candidates: torch.Tensor, probs: torch.Tensor, *, connectivity: int = 8, backend: str = "auto"
) -> RegionStats:
    """Label the connected regions of `candidates` and measure the probabilities in each.

    Args:
        candidates: bool `[B, H, W]`; a region is a connected component of true pixels within one image.
        probs: floating `[B, H, W]`, each in 0..1, on the same device.  Values outside the candidates are not used,
            but must be valid too.
        connectivity: 8 (pixels touch by edge or corner) or 4 (by edge).
        backend: "auto", "reference", or the name of a faster implementation; see `kernels.dispatch`.

    Returns:
        `RegionStats` on the inputs' device.  Regions of an image are numbered 1..n in row-major order of their first
        pixel.

    Example:
        >>> candidates = torch.zeros(1, 4, 6, dtype=torch.bool)
        >>> candidates[0, 1, 1:3] = candidates[0, 3, 5] = True
        >>> stats = region_stats(candidates, torch.full((1, 4, 6), 0.5))
        >>> stats.counts.tolist(), stats.area.tolist()
        ([2], [2, 1])

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: wrong shape, different devices, or a probability that is not finite or not in 0..1.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    check_tensors(candidates, probs, connectivity)
    return RegionStats(*_operator(candidates, probs.detach(), connectivity, backend))


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
    torch.Tensor,
]


def _run(candidates: torch.Tensor, probs: torch.Tensor, connectivity: int, backend: str) -> Outputs:
    check_values(probs)
    stats: RegionStats = dispatch.call(
        "region_stats", candidates.device.type, backend, candidates, probs, connectivity=connectivity
    )
    return tuple(getattr(stats, field.name) for field in fields(stats))  # type: ignore[return-value]


def _fake(candidates: torch.Tensor, probs: torch.Tensor, connectivity: int, backend: str) -> Outputs:
    regions = torch.library.get_ctx().new_dynamic_size()

    def rows(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return candidates.new_empty(regions, *shape, dtype=dtype)

    return (
        candidates.new_empty(candidates.shape, dtype=torch.int32),
        candidates.new_empty(candidates.shape[0], dtype=torch.int64),
        rows(dtype=torch.int64),
        rows(dtype=torch.int32),
        rows(dtype=torch.int64),
        rows(),
        rows(),
        rows(),
        rows(4, dtype=torch.int64),
        rows(2, dtype=torch.int64),
        rows(2),
    )


_operator = operators.define("region_stats", _run, _fake)
