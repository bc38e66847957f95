"""Linear layers and convolutions of oneDNN (torch's library of CPU kernels) with packed weights: stored in the order in
which the kernels read them.

`F.linear` and `F.conv2d` bring the weights into that order at every call, which takes up to half of a small layer's
time.  torch keeps the operators used here for its compiler (`torch.ops.mkldnn`): `available` says whether they work.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "relu", "gelu"]
"""An activation function, applied in the same pass over the result.  "gelu" is the exact GELU."""

KERNELS_KEPT = 256
"""How many compiled kernels oneDNN keeps.  For each network shape and number of threads it compiles some 60, which take
24 MB; so this is room for four."""

_LIMITS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's own store, and that of torch's binding

_log = logging.getLogger("activefreq_engine.runtime.packed")
_ops = torch.ops.mkldnn


@functools.cache
def available(dtype: torch.dtype) -> bool:
    """Whether packed layers of this type work here; if not, the reason is logged once.

    This also limits the memory of compiled kernels.  By default there may be 1,024 in each of the two stores; a region
    of a new shape adds 24 MB, and a change in the number of threads, when another program takes or frees a core, 22
    MB.  Compiling them again takes 10 to 25 ms.  The limits have no effect if the environment sets others, or if oneDNN
    was used before, since they are read only once.
    """
    for name in _LIMITS:
        os.environ.setdefault(name, str(KERNELS_KEPT))
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        with torch.inference_mode():
            _check(dtype)
    except (AttributeError, RuntimeError, TypeError) as error:
        _log.info("weights are not packed: %s", str(error).splitlines()[0])
        return False
    return True


def linear_weight(weight: Tensor) -> Tensor:
    """`[O, I]`, packed."""
    return _ops._reorder_linear_weight(weight.detach())


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, then: Activation = "none"
) -> Tensor:
    """`F.linear(x, weight, bias)`, then an activation, or plus `residual` of the result's shape."""
    if residual is None:
        return _ops._linear_pointwise(x, weight, bias, then, [], "none")
    return _ops._linear_pointwise.binary(x, residual, weight, bias, "add")


def convolution_weight(weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...], groups: int = 1) -> Tensor:
    """`[O, I / groups, kh, kw]`, packed."""
    return _ops._reorder_convolution_weight(weight.detach(), list(padding), list(stride), [1, 1], groups)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int = 1,
    then: Activation = "none",
) -> Tensor:
    """`F.conv2d(x, weight, bias, stride, padding, groups=groups)`, then an activation."""
    return _ops._convolution_pointwise(x, weight, bias, list(padding), list(stride), [1, 1], groups, then, [], "none")


def _check(dtype: torch.dtype) -> None:
    """Raise RuntimeError unless a small layer of each kind gives what torch's own gives."""
    generator = torch.Generator().manual_seed(0)  # the host's own numbers stay as they are

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)

    x, weight, bias = draw(2, 5, 8), draw(8, 8), draw(8)
    maps = draw(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    kernel = draw(8, 8, 3, 3)
    packed_kernel = convolution_weight(kernel, (2, 2), (1, 1))
    thin = draw(8, 1, 3, 3)
    packed_thin = convolution_weight(thin, (1, 1), (1, 1), 8)
    pairs = [
        (linear(x, linear_weight(weight), bias, then="gelu"), F.gelu(F.linear(x, weight, bias))),
        (linear(x, linear_weight(weight), None, x), F.linear(x, weight) + x),
        (
            convolution(maps, packed_kernel, bias, (2, 2), (1, 1), then="relu"),
            F.conv2d(maps, kernel, bias, 2, 1).relu(),
        ),
        (convolution(maps, packed_thin, bias, (1, 1), (1, 1), 8), F.conv2d(maps, thin, bias, 1, 1, groups=8)),
    ]
    for got, expected in pairs:
        if not torch.allclose(got.float(), expected.float(), rtol=0.05, atol=0.1):
            raise RuntimeError(f"oneDNN's packed layers are wrong by {(got - expected).abs().max().item():.2g}")
