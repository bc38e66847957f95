"""How the CUDA sources of region statistics are verified: against the reference on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..verification import Form, Part, poison
from . import cupy_impl, fixed

MEAN = 2e-6  # entropies and probabilities are summed in units of 2^-20
CLOSE = {"max_entropy": 1e-12, "mean_entropy": MEAN, "mean_prob": MEAN, "centroid": 1e-9}
EXACT = ("labels", "counts", "overflow", "area", "bbox", "peak")

_FORM = Form((), "2 x 83x131", "float32", {})  # sizes are arguments of the kernels: all run the same code


def form(*_: Any, **__: Any) -> Form:
    """The same for all arguments."""
    return _FORM


def samples() -> list[Form]:
    """The forms that `activefreq info --verify` tries."""
    return [_FORM]


def check(device: torch.device) -> list[Part]:
    """Noise at the percolation threshold, where regions wind through many tiles, with and without room for all."""
    generator = torch.Generator().manual_seed(0)
    errors: dict[str, list[Tensor]] = {name: [] for name in (*EXACT, *CLOSE)}
    for density, connectivity, capacity in ((0.407, 8, 2048), (0.593, 4, 2048), (0.5, 4, 7)):
        masks = torch.rand((2, 83, 131), generator=generator, dtype=torch.float32) < density
        probs = torch.rand((2, 83, 131), generator=generator, dtype=torch.float32)
        buffers = cupy_impl.Buffers.allocate(2, 83, 131, capacity, device)
        results = {name: getattr(buffers.result, name) for name in errors}
        poison(*results.values(), buffers.parent, buffers.chunk_roots, buffers.sums, buffers.extents)
        cupy_impl.launch(masks.to(device), probs.to(device), buffers, connectivity)
        expected = fixed.reference(masks, probs, connectivity=connectivity, capacity=capacity)
        for name, got in results.items():
            e = getattr(expected, name)
            errors[name].append((got.cpu() != e).double().mean() if name in EXACT else (got.cpu() - e).abs().max())
    return [Part(name, float(torch.stack(e).max()), CLOSE.get(name, 0.0)) for name, e in errors.items()]
