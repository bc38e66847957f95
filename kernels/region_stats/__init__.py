"""Region statistics: connected regions of a mask, and what the probabilities inside each of them look like."""

import torch

from .. import dispatch
from . import cupy_impl, fixed
from .fixed import FixedRegionStats, region_stats_fixed
from .reference import RegionStats, binary_entropy, check_inputs
from .reference import region_stats as _reference

__all__ = ["FixedRegionStats", "RegionStats", "binary_entropy", "region_stats", "region_stats_fixed"]

dispatch.register("region_stats", "reference", _reference, devices=("cpu", "cuda"), priority=0)
dispatch.register(
    "region_stats", "cupy", cupy_impl.region_stats, devices=("cuda",), priority=10, verify=cupy_impl.verify
)
dispatch.register("region_stats_fixed", "reference", fixed.reference, devices=("cpu", "cuda"), priority=0)
dispatch.register(
    "region_stats_fixed", "cupy", cupy_impl.region_stats_fixed, devices=("cuda",), priority=10, verify=cupy_impl.verify
)


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

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: wrong shape, different devices, or a probability that is not finite or not in 0..1.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    check_inputs(candidates, probs, connectivity)
    return dispatch.call("region_stats", candidates.device.type, backend, candidates, probs, connectivity=connectivity)
