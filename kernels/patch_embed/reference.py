"""The definition: a 3x3 convolution of stride 2, its norm, what is added, and the next layer's norm."""

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    added: Tensor | None,
    eps: float,
    next_eps: float,
    splits: int,
) -> tuple[Tensor, Tensor]:
    """See `kernels.patch_embed`."""
    maps = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, stride=2, padding=1)
    y = torch.layer_norm(maps.permute(0, 2, 3, 1), [len(weight)], scale, shift, eps)
    if added is not None:
        y = y + added
    return y, torch.layer_norm(y, [len(weight)], None, None, next_eps)
