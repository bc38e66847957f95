"""The refiner: a light local head that redraws the mask inside a focus box (ActiveFreq, Figure 2(c); inferred).

It follows FocalClick's local refinement (arXiv 2204.02574): coarse logits and decoder features are aligned to the box
and combined with a finer crop of the image; a boundary gate decides where the detail replaces the coarse mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def roi_align(maps: Tensor, boxes: Tensor, size: int | tuple[int, int], scale: float = 1.0, samples: int = 1) -> Tensor:
    """RoIAlign with one box per image (aligned variant: pixel i covers [i, i+1), its centre is i + 0.5).

    Args:
        maps (Tensor): `[B, C, H, W]`.
        boxes (Tensor): `[B, 4]` float, (x0, y0, x1, y1), half-open, in pixels of the network input.
        size (int | (int, int)): output height and width.
        scale (float): map pixels per network pixel (1/4 for decoder features).
        samples (int): sampling points along each side of an output bin; their mean is the bin's value.

    Returns:
        Tensor: `[B, C, h, w]`.  Points outside the map take the border's value.
    """
    h, w = (size, size) if isinstance(size, int) else size
    height, width = maps.shape[2:]
    boxes = boxes.to(maps.dtype) * scale
    x0, y0, x1, y1 = boxes.unbind(1)
    u = (torch.arange(w * samples, device=maps.device, dtype=maps.dtype) + 0.5) / (w * samples)
    v = (torch.arange(h * samples, device=maps.device, dtype=maps.dtype) + 0.5) / (h * samples)
    # grid_sample without align_corners: -1 is the left edge of the first pixel, +1 the right edge of the last
    gx = (x0[:, None] + (x1 - x0)[:, None] * u) * (2.0 / width) - 1.0
    gy = (y0[:, None] + (y1 - y0)[:, None] * v) * (2.0 / height) - 1.0
    grid = torch.stack(torch.broadcast_tensors(gx[:, None, :], gy[:, :, None]), dim=-1)
    out = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(out, samples) if samples > 1 else out


class SeparableBlock(nn.Module):
    """Depth-wise 3x3 and point-wise convolution, each with BN and ReLU, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(x + self.norm2(self.pointwise(y)))


class Refined(NamedTuple):
    """The refiner's maps on the focus box, each `[B, 1, S, S]`."""

    logits: Tensor  # the blend of coarse and detail, which is the result
    detail: Tensor  # logits of the detail branch
    boundary: Tensor  # logits of the boundary gate


class Refiner(nn.Module):
    """Local head on a focus box.  Works at half the crop's resolution with `width` channels."""

    def __init__(self, embed_dim: int, width: int = 32) -> None:
        super().__init__()
        # image (3), coarse probability (1), positive and negative disks (2)
        self.stem = nn.Conv2d(6, width, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.local = nn.Sequential(SeparableBlock(width), SeparableBlock(width))
        self.context = nn.Conv2d(embed_dim, width, 1)
        self.merge = nn.Sequential(SeparableBlock(width), SeparableBlock(width))
        self.detail = nn.Conv2d(width, 1, 3, padding=1)
        self.boundary = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor, disks: Tensor, embedding: Tensor, coarse: Tensor, boxes: Tensor) -> Refined:
        """Refine one box per image.

        Args:
            image (Tensor): `[B, 3, S, S]` normalised crop of the box, as sharp as the source allows; S even.
            disks (Tensor): `[B, 2, S, S]` positive and negative click disks in crop pixels.
            embedding (Tensor): `[B, E, H/4, W/4]` fused decoder map.
            coarse (Tensor): `[B, 1, H, W]` coarse logits.
            boxes (Tensor): `[B, 4]` the box, (x0, y0, x1, y1) in network pixels.
        """
        size = (image.shape[2], image.shape[3])
        inner = (size[0] // 2, size[1] // 2)
        scale = embedding.shape[3] / coarse.shape[3]
        coarse = roi_align(coarse, boxes, size)
        x = F.relu(self.stem_norm(self.stem(torch.cat([image, coarse.sigmoid(), disks], dim=1))))
        x = self.local(x) + self.context(roi_align(embedding, boxes, inner, scale))
        x = self.merge(x)
        detail = F.interpolate(self.detail(x), size=size, mode="bilinear", align_corners=False)
        boundary = F.interpolate(self.boundary(x), size=size, mode="bilinear", align_corners=False)
        gate = boundary.sigmoid()
        return Refined(gate * detail + (1 - gate) * coarse, detail, boundary)
