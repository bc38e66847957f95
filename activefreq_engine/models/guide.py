"""A guide: a frozen encoder that was trained on far more pictures and sees only the image, not the clicks.

Its maps are projected and added to the tokens of every encoder stage, so that the stages through which the clicks pass
can use them; a click costs no more than without a guide.  The frozen encoder is MobileSAM's TinyViT (arXiv 2306.14289)
with MobileSAM's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ChannelNorm
from .tinyvit import TINYVIT_SPECS, TinyViT

ENLARGED = 2
"""Factor by which the image is enlarged for the guide.  MobileSAM was trained on pictures of 1024 pixels, with objects
of that scale.  On an image enlarged twice, its maps of strides 8 and 16 have strides 4 and 8 in the original."""


class Guide(nn.Module):
    """A TinyViT, with projections of its maps to the widths and strides of four encoder stages.

    Args:
        name (str): which TinyViT, a key of `TINYVIT_SPECS`.
        channels: widths of the four stages, whose maps have strides 4, 8, 16, 32.

    The projections begin at zero, so that adding a guide to a trained network changes nothing before it is trained.
    """

    def __init__(self, name: str, channels: Sequence[int]) -> None:
        super().__init__()
        if name not in TINYVIT_SPECS:
            raise ValueError(f"guide is {name!r}; allowed: {', '.join(TINYVIT_SPECS)}")
        self.trunk = TinyViT(TINYVIT_SPECS[name]).requires_grad_(False)
        widths = self.trunk.channels[1:]
        self.norms = nn.ModuleList(ChannelNorm(c, eps=1e-6) for c in widths)
        inner = [widths[0], *[widths[1] + widths[2]] * 3]
        self.projections = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(inner, channels, strict=True))
        for projection in self.projections:
            assert isinstance(projection, nn.Conv2d)
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)  # type: ignore[arg-type]  # it has one

    def train(self, mode: bool = True) -> Guide:
        """As `nn.Module.train`, but the frozen trunk stays in evaluation mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def look(self, image: Tensor) -> list[Tensor]:
        """Run the frozen part, without gradients.

        Args:
            image (Tensor): `[B, 3, H, W]`, normalised.

        Returns:
            Three maps: one `[B, C, H/4, W/4]` and two `[B, C, H/8, W/8]`.
        """
        with torch.no_grad():
            return self.trunk(enlarge(image))[1:]

    def forward(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """Project the maps of `look` to the maps that are added to the tokens of the stages.

        Returns:
            For stage i, `[B, channels[i], H/2^(i+2), W/2^(i+2)]`.
        """
        fine, *coarse = (norm(x) for norm, x in zip(self.norms, seen, strict=True))
        maps = [fine, torch.cat(coarse, dim=1)]
        maps += [F.avg_pool2d(maps[1], 2), F.avg_pool2d(maps[1], 4)]
        return [project(x) for project, x in zip(self.projections, maps, strict=True)]


def enlarge(image: Tensor) -> Tensor:
    """Enlarge the image for the guide: `[B, 3, H, W]` -> `[B, 3, ENLARGED * H, ENLARGED * W]`."""
    return F.interpolate(image, scale_factor=ENLARGED, mode="bilinear", align_corners=False)
