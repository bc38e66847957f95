"""The definition: depth-wise convolution, GELU, product, residual, and the norms after it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_ffn(
    h: Tensor,
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    next_scale: Tensor | None,
    next_shift: Tensor | None,
    next_eps: float,
    splits: int,
) -> tuple[Tensor, Tensor]:
    """See `kernels.conv_ffn`."""
    c = x.shape[-1]
    kernel = taps.unflatten(0, (3, 3)).permute(2, 0, 1)[:, None]
    maps = F.conv2d(h.permute(0, 3, 1, 2), kernel, taps_bias, padding=1, groups=h.shape[-1])
    y = F.linear(F.gelu(maps).permute(0, 2, 3, 1), weight, bias) + x
    if scale is not None:
        y = torch.layer_norm(y, [c], scale, shift, eps)
    return y, torch.layer_norm(y, [c], next_scale, next_shift, next_eps)
