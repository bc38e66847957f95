"""Modules that encoders and decoder share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Encoder(nn.Module):
    """A chain of stages: from an image `[B, 3, H, W]` to the list of maps, one for each stage.

    Args:
        stages: each takes the map of the one before, the first one the image.
        channels: of each stage's map.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(channels)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample while training (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * mask / keep


def drop_path_rates(depths: Sequence[int], last: float) -> list[float]:
    """The rate of stochastic depth for each block of an encoder; rates rise evenly from 0 to `last`."""
    blocks = sum(depths)
    return [last * i / (blocks - 1) for i in range(blocks)]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def init_weights(module: nn.Module) -> None:
    """SegFormer's initialisation: truncated normal 0.02 for linear layers, fan-out normal for convolutions.

    A 1x1 convolution counts as a linear layer: with fan-out, a head of one channel would begin with logits of +-10.
    """
    if any(p.is_meta for p in module.parameters(recurse=False)):
        return  # there are no values, and torch would import its compiler to draw none
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
