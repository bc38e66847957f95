"""Distances to the border of a mask, and the point of each region that lies farthest from its border."""

import torch

from .. import dispatch, operators
from ..verification import Trial
from . import cupy_impl, fixed, trial
from .fixed import inscribed_points_fixed
from .reference import check_label_values, check_labels, check_mask
from .reference import distance_transform as _distance_transform
from .reference import inscribed_points as _inscribed_points

__all__ = ["distance_transform", "inscribed_points", "inscribed_points_fixed"]

_trial = Trial(trial.form, trial.check, trial.samples)
for _op, _reference, _cupy in (
    ("distance_transform", _distance_transform, cupy_impl.distance_transform),
    ("inscribed_points", _inscribed_points, cupy_impl.inscribed_points),
    ("inscribed_points_fixed", fixed.reference, cupy_impl.inscribed_points_fixed),
):
    dispatch.register(_op, "reference", _reference, devices=("cpu", "cuda"), priority=0)
    dispatch.register(_op, "cupy", _cupy, devices=("cuda",), priority=10, verify=cupy_impl.verify, trial=_trial)


def distance_transform(mask: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Exact Euclidean distance from each true pixel to the nearest false one.

    Everything outside the image counts as false, so a pixel at the image border has distance 1.

    Args:
        mask: bool `[B, H, W]`.
        backend: see `kernels.dispatch`.

    Returns:
        float64 `[B, H, W]` in pixels, 0 where the mask is false, on the mask's device.

    Example:
        >>> mask = torch.tensor([[[True, True, True, False]]])
        >>> distance_transform(mask).tolist()  # outside of the image counts as background
        [[[1.0, 1.0, 1.0, 0.0]]]

    Raises:
        TypeError: not a tensor, or not of dtype bool.
        ValueError: wrong shape.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    check_mask(mask)
    return _distance_operator(mask, backend)


def _run(mask: torch.Tensor, backend: str) -> torch.Tensor:
    return dispatch.call("distance_transform", mask.device.type, backend, mask)


def _fake(mask: torch.Tensor, backend: str) -> torch.Tensor:
    return mask.new_empty(mask.shape, dtype=torch.float64)


_distance_operator = operators.define("distance_transform", _run, _fake)


def inscribed_points(
    labels: torch.Tensor, counts: torch.Tensor, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and radius of the largest circle inside each region.

    The centre is the pixel with the largest exact Euclidean distance to the nearest pixel that is not in its region:
    background, another region, or outside of the image.  Of several such pixels it is the first in row-major order.

    Args:
        labels: int32 `[B, H, W]`, 0 is background; the regions of image b are 1..counts[b], each with at least one
            pixel, connected or not.  As in `RegionStats.labels`.
        counts: int64 `[B]`, regions in each image.  As in `RegionStats.counts`.
        backend: see `kernels.dispatch`.

    Returns:
        points: int64 `[R, 2]`, (x, y), in pixels, ordered by image, then label; R is the sum of `counts`.
        radius: float64 `[R]`, the distance at that point; 1 for a single pixel.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: wrong shape, different devices, a label outside 0..counts[b], or a region without pixels.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    check_labels(labels, counts)
    return _points_operator(labels, counts, backend)


def _run_points(labels: torch.Tensor, counts: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    check_label_values(labels, counts)
    return dispatch.call("inscribed_points", labels.device.type, backend, labels, counts)


def _fake_points(labels: torch.Tensor, counts: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    regions = torch.library.get_ctx().new_dynamic_size()
    return labels.new_empty(regions, 2, dtype=torch.int64), labels.new_empty(regions, dtype=torch.float64)


_points_operator = operators.define("inscribed_points", _run_points, _fake_points)
