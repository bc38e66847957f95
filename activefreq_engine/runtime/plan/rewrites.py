"""Exact rewrites of the network's weights: with the values that a function returns, a cheaper module computes the same
as a dearer one.  The inputs are not changed.  Sums run in float64 and are rounded once, to the dtype of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Affine(NamedTuple):
    """A linear map: `y = weight @ x + bias`."""

    weight: Tensor
    """`[O, I]`, or a convolution's `[O, I / groups, kh, kw]`."""
    bias: Tensor
    """`[O]`."""


def affine(module: nn.Linear | nn.Conv2d) -> Affine:
    """The weights of a linear layer or a convolution; zeros where it has no bias."""
    weight = module.weight.detach()
    bias = weight.new_zeros(weight.shape[0]) if module.bias is None else module.bias.detach()
    return Affine(weight, bias)


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Affine:
    """`norm(conv(x))` as one convolution, with the running statistics that evaluation uses.

    Raises:
        ValueError: the norm keeps no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("this BatchNorm keeps no running statistics (track_running_stats=False): it cannot be folded")
    weight, bias = affine(conv)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    scaled = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return _rounded(scaled, bias.double() * scale + shift, weight)


def fold_norm_affine(norm: nn.LayerNorm, after: Affine) -> Affine:
    """The scale and shift of a LayerNorm, moved into the linear map or convolution that reads it.

    Exact for a convolution only if it does not pad: at the border it would see zeros in place of the shift.
    """
    weight, bias = after
    scale, shift = norm.weight.double(), norm.bias.double()
    rest = [1] * (weight.dim() - 2)
    moved = (weight.double() * shift.view(1, -1, *rest)).flatten(1).sum(1)
    return _rounded(weight.double() * scale.view(1, -1, *rest), bias.double() + moved, weight)


def fold_through(first: Affine, then: Tensor) -> Affine:
    """`then @ first(x)` as one map; `then` is `[P, O]`.  Commutes with any resampling whose weights sum to one."""
    weight, bias = first
    return _rounded(then.double() @ weight.flatten(1).double(), then.double() @ bias.double(), weight)


def drop_key_value_bias(key_value: Affine, out: Affine) -> tuple[Tensor, Affine]:
    """Attention's key and value biases, taken out of the layer that computes both.

    A key's bias adds the same number to every score of a query, which softmax ignores.  A value's bias passes through
    the average unchanged, since the attention weights sum to one: it moves into the output layer.

    Args:
        key_value: `[2C, I]`, keys first.
        out: `[P, C]`.

    Returns:
        The weight that now stands without bias, and the new output layer.
    """
    value_bias = key_value.bias.double().chunk(2)[1]
    return key_value.weight, _rounded(out.weight.double(), out.bias.double() + out.weight.double() @ value_bias, out[0])


def fuse_slices(fuse: nn.Conv2d, norm: nn.BatchNorm2d, mlps: list[nn.Conv2d]) -> list[Affine]:
    """The decoder's `norm(fuse(cat(upsample(mlp(x)))))` as a sum of linear maps, one for each stage, upsampled
    afterwards.

    The concatenation has the last stage first.  All biases are in the first stage's map.

    Args:
        fuse: 1x1 convolution of the concatenation.
        norm: the BatchNorm after it.
        mlps: one 1x1 convolution for each stage, the first stage's first.
    """
    weight, bias = fold_batch_norm(fuse, norm)
    parts = weight.flatten(1).chunk(len(mlps), dim=1)[::-1]
    maps = [fold_through(affine(mlp), part) for mlp, part in zip(mlps, parts, strict=True)]
    total = bias.double() + torch.stack([m.bias.double() for m in maps]).sum(0)
    zero = torch.zeros_like(bias)
    return [Affine(m.weight, zero if i else total.to(bias.dtype)) for i, m in enumerate(maps)]


def _rounded(weight: Tensor, bias: Tensor, like: Tensor) -> Affine:
    return Affine(weight.to(like.dtype), bias.to(like.dtype))
