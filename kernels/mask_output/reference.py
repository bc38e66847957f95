"""The definition of the mask output: everything that a click shows, from the logits of the network."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..region_stats.reference import binary_entropy


class MaskOutput(NamedTuple):
    """What `mask_output` returns."""

    probs: Tensor
    """float32 `[B, H, W]`."""
    mask: Tensor
    """bool `[B, H, W]`: probability above the threshold."""
    entropy: Tensor
    """float32 `[B, H, W]`, bits: binary entropy of the probabilities."""
    changed: Tensor
    """int32 `[B, 4]`, (x0, y0, x1, y1), half-open: smallest box around the pixels where the mask differs from the
    previous one; (W, H, 0, 0) where nothing differs."""


def mask_output(logits: Tensor, previous: Tensor, threshold: float) -> MaskOutput:
    """See `kernels.mask_output`; shapes as there.  Computes in float64."""
    size = previous.shape[1:]
    z = F.interpolate(logits.double(), size=size, mode="bilinear", align_corners=False)[:, 0]
    exact = z.sigmoid()
    probs = exact.float()
    mask = probs > threshold
    return MaskOutput(probs, mask, binary_entropy(exact).float(), changed_box(mask, previous))


def changed_box(mask: Tensor, previous: Tensor) -> Tensor:
    """`MaskOutput.changed` of two bool `[B, H, W]` masks."""
    height, width = mask.shape[1:]
    differs = mask ^ previous
    xs, ys = (torch.arange(n, device=mask.device, dtype=torch.int32) for n in (width, height))
    columns, rows = differs.any(dim=1), differs.any(dim=2)
    return torch.stack(
        [
            torch.where(columns, xs, width).amin(dim=1),
            torch.where(rows, ys, height).amin(dim=1),
            torch.where(columns, xs + 1, 0).amax(dim=1),
            torch.where(rows, ys + 1, 0).amax(dim=1),
        ],
        dim=1,
    )
