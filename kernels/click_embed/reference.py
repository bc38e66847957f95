"""The definition: click maps, a 7x7 convolution of stride 4, its norm, and the image's map that is added."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..click_maps.reference import click_maps


def click_embed(
    previous: Tensor,
    points: Tensor,
    taps: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    c1: Tensor,
    eps: float,
    radius: float,
) -> tuple[Tensor]:
    """See `kernels.click_embed`."""
    height, width = previous.shape[1:]
    if previous.dtype == torch.uint16:
        previous = previous.to(torch.int32).to(torch.float64) / 65535
    disks = click_maps(points.float(), height, width, radius)
    maps = torch.cat([previous[:, None].to(c1.dtype), disks.to(c1.dtype)], dim=1)
    weight = taps.unflatten(1, (8, 8))[:, :7, :7].permute(3, 0, 1, 2)
    y = F.conv2d(maps, weight, bias, stride=4, padding=3).permute(0, 2, 3, 1)
    return (torch.layer_norm(y, [len(bias)], scale, shift, eps) + c1,)
