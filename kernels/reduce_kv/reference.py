"""The definition: a convolution whose stride is its kernel, a norm, and the product that makes keys and values."""

import torch.nn.functional as F
from torch import Tensor


def reduce_kv(
    x: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, kv_weight: Tensor, eps: float, splits: int
) -> tuple[Tensor]:
    """See `kernels.reduce_kv`."""
    ratio = reduce_weight.shape[1]
    maps = F.conv2d(x.permute(0, 3, 1, 2), reduce_weight.permute(0, 3, 1, 2), reduce_bias, stride=ratio)
    pixels = maps.permute(0, 2, 3, 1).flatten(1, 2)
    return (F.linear(F.layer_norm(pixels, [pixels.shape[-1]], eps=eps), kv_weight),)
