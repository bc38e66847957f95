"""Inscribed points in tensors of fixed size, for CUDA graphs, `torch.compile` and export."""

import torch

from .. import dispatch, operators
from .reference import check_images, check_tensor
from .reference import inscribed_points as _reference


def inscribed_points_fixed(
    labels: torch.Tensor, *, capacity: int = 1024, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`inscribed_points` with outputs whose sizes do not depend on the data.

    On the cupy backend the host never waits for the device, so a CUDA graph can capture the call (after one call
    outside of the capture, which compiles the kernels).  Everywhere it is one operator to `torch.compile` and
    `torch.export`.

    Args:
        labels: int32 `[B, H, W]`, 0 is background.  As in `FixedRegionStats.labels`.  Values are not checked, since
            that would wait for the device; labels above `capacity` and below 0 get no row.
        capacity: rows for each image, at least 1.
        backend: "auto", "reference" or "cupy"; see `kernels.dispatch`.

    Returns:
        points: int64 `[B, capacity, 2]`, (x, y): row k belongs to label k + 1.
        radius: float64 `[B, capacity]`, in pixels.  Point and radius are 0 for a label without pixels.

    Raises:
        TypeError: not a tensor, or not of dtype int32.
        ValueError: wrong shape, or a capacity below 1.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    check_tensor("labels", labels, torch.int32)
    check_images("labels", labels)
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; pass how many regions of an image to make room for, at least 1")
    return _operator(labels, capacity, backend)


def _run(labels: torch.Tensor, capacity: int, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    return dispatch.call("inscribed_points_fixed", labels.device.type, backend, labels, capacity=capacity)


def _fake(labels: torch.Tensor, capacity: int, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch = labels.shape[0]
    points = labels.new_empty(batch, capacity, 2, dtype=torch.int64)
    return points, labels.new_empty(batch, capacity, dtype=torch.float64)


_operator = operators.define("inscribed_points_fixed", _run, _fake)


def reference(labels: torch.Tensor, *, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: the exact form of the labels that occur, copied to their rows."""
    batch = labels.shape[0]
    points = torch.zeros(batch, capacity, 2, dtype=torch.int64, device=labels.device)
    radius = torch.zeros(batch, capacity, dtype=torch.float64, device=labels.device)
    for b, image in enumerate(labels):
        # Labels without pixels are closed up for the exact form; regions that have no row still bound the others.
        present, numbers = image.clamp(min=0).unique(return_inverse=True)
        first = int(present[0] > 0)
        own = present[present > 0].long() - 1
        found, depth = _reference((numbers.int() + first)[None], torch.tensor([len(own)]))
        fits = own < capacity
        points[b, own[fits]], radius[b, own[fits]] = found[fits], depth[fits]
    return points, radius
