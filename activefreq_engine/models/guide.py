"""A guide: a frozen encoder that was trained on far more pictures and sees the image alone.

What it sees is added to the tokens of every encoder stage, so that the stages which the clicks pass through work with
it: a click costs no more than without.  The encoder is MobileSAM's TinyViT (arXiv 2306.14289) with its own weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ChannelNorm
from .tinyvit import TINYVIT_SPECS, TinyViT

ENLARGED = 2
"""How much larger than the network the guide sees the image.  MobileSAM was trained at 1024 pixels, on objects that are
as large; enlarged twice, its maps at strides 8 and 16 have strides 4 and 8."""


class Guide(nn.Module):
    """A TinyViT and what brings its maps to the widths and strides of four encoder stages.

    Args:
        name (str): which TinyViT, of `TINYVIT_SPECS`.
        channels: of the stages.  Their maps have strides 4, 8, 16, 32.

    The projections begin at zero: a network that is given a guide goes on as it was until it is trained.
    """

    def __init__(self, name: str, channels: Sequence[int]) -> None:
        super().__init__()
        if name not in TINYVIT_SPECS:
            raise ValueError(f"guide is {name!r}; allowed: {', '.join(TINYVIT_SPECS)}")
        self.trunk = TinyViT(TINYVIT_SPECS[name]).requires_grad_(False)
        widths = self.trunk.spec.channels[1:]
        self.norms = nn.ModuleList(ChannelNorm(c, eps=1e-6) for c in widths)
        inner = [widths[0], *[widths[1] + widths[2]] * 3]
        self.projections = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(inner, channels, strict=True))
        for projection in self.projections:
            assert isinstance(projection, nn.Conv2d)
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)  # type: ignore[arg-type]  # it has one

    def train(self, mode: bool = True) -> Guide:
        """As any module, but the trunk, which is frozen, stays in evaluation mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def look(self, image: Tensor) -> list[Tensor]:
        """The frozen part: normalised image `[B, 3, H, W]` -> the trunk's maps `[B, C, H/4, W/4]`, and two of
        `[B, C, H/8, W/8]`.  Without gradient."""
        with torch.no_grad():
            return self.trunk(enlarge(image))[1:]

    def forward(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """What is added to the tokens of each stage, `[B, channels[i], H/2^(i+2), W/2^(i+2)]`, from `look`'s maps."""
        fine, *coarse = (norm(x) for norm, x in zip(self.norms, seen, strict=True))
        maps = [fine, torch.cat(coarse, dim=1)]
        maps += [F.avg_pool2d(maps[1], 2), F.avg_pool2d(maps[1], 4)]
        return [project(x) for project, x in zip(self.projections, maps, strict=True)]


def enlarge(image: Tensor) -> Tensor:
    """The image as the guide sees it: `[B, 3, H, W]` -> `[B, 3, ENLARGED * H, ENLARGED * W]`."""
    return F.interpolate(image, scale_factor=ENLARGED, mode="bilinear", align_corners=False)
