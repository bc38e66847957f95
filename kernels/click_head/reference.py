"""The definition: enlargements, sum, ReLU, head, enlargement by four, sigmoid, levels and their sum."""

import torch
import torch.nn.functional as F
from torch import Tensor


def click_head(
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    weight: Tensor,
    bias: Tensor,
    levels: Tensor,
    total: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """See `kernels.click_head`."""
    h, w = p1.shape[1:3]
    fused = p1.permute(0, 3, 1, 2)
    for part in (p2, p3, p4):
        fused = fused + _enlarged(part.permute(0, 3, 1, 2), h, w)
    fused = fused.relu().permute(0, 2, 3, 1)
    exact = torch.promote_types(p1.dtype, torch.float32)
    low = fused.to(exact) @ weight.to(exact) + bias.to(exact)
    logits = _enlarged(low[:, None], 4 * h, 4 * w)
    probs = logits[:, 0].sigmoid()
    total.copy_(probs.sum((1, 2)))
    levels.copy_((probs * 65535).round())
    return (fused, logits.to(total.dtype)) if keep else (fused[:0], logits[:0].to(total.dtype))


def _enlarged(maps: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
