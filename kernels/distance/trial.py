"""How the CUDA sources of distances are verified: against the reference on the host."""

from __future__ import annotations

from typing import Any

import torch

from ..verification import Form, Part, poison
from . import cupy_impl, fixed
from .reference import distance_transform

_FORM = Form((), "2 x 83x131", "int32", {})  # sizes are arguments of the kernels: all run the same code


def form(*_: Any, **__: Any) -> Form:
    """The same for all arguments."""
    return _FORM


def samples() -> list[Form]:
    """The forms that `activefreq info --verify` tries."""
    return [_FORM]


def check(device: torch.device) -> list[Part]:
    """Compare distances, and the innermost point of each label, on blobs, lines and noise; one label has no row."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((2, 1, 9, 14), generator=generator, dtype=torch.float32)
    smooth = torch.nn.functional.interpolate(coarse, size=(83, 131), mode="bilinear", align_corners=False)[:, 0]
    noise = torch.rand(smooth.shape, generator=generator, dtype=torch.float32) < 0.98
    labels = (((smooth * 6).int() % 5) * noise).int()
    capacity = 3
    own = labels.to(device)
    gaps, distance = torch.empty_like(own), torch.empty(own.shape, dtype=torch.float64, device=device)
    best = torch.empty((2, capacity), dtype=torch.int64, device=device)
    points = torch.empty((2, capacity, 2), dtype=torch.int64, device=device)
    radius = torch.empty((2, capacity), dtype=torch.float64, device=device)
    poison(gaps, distance, best, points, radius)
    cupy_impl.launch((own > 0).int(), gaps, distance, None)
    wrong = float((distance.cpu() != distance_transform(labels > 0)).double().mean())
    poison(gaps)
    cupy_impl.launch(own, gaps, None, best, points, radius)
    expected_points, expected_radius = fixed.reference(labels, capacity=capacity)
    return [
        Part("distances", wrong, 0.0),
        Part("points", float((points.cpu() != expected_points).double().mean()), 0.0),
        Part("radii", float((radius.cpu() != expected_radius).double().mean()), 0.0),
    ]
