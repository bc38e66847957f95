"""The definition of the click maps (disks as in RITM: SamsungLabs/ritm_interactive_segmentation)."""

from __future__ import annotations

import torch
from torch import Tensor


def click_maps(points: Tensor, height: int, width: int, radius: float = 5.0) -> Tensor:
    """Binary disks around clicks.

    Args:
        points (Tensor): `[B, 2N, 2]` float, (x, y) in pixels of the maps; the first N slots are positive clicks, the
            last N negative ones.  A slot with a negative coordinate is empty.
        height, width (int): size of the maps.
        radius (float): disk radius in pixels; a pixel belongs to a disk when its centre's distance is <= radius.

    Returns:
        Tensor: `[B, 2, H, W]` float32, zeros and ones: positive disks, negative disks.

    Raises:
        ValueError: if `points` is not `[B, 2N, 2]`.
    """
    if points.dim() != 3 or points.shape[1] % 2 or points.shape[2] != 2:
        raise ValueError(
            f"points have shape {tuple(points.shape)}; expected [B, 2N, 2]: N positive (x, y) slots, then N negative"
        )
    b, slots, _ = points.shape
    if slots == 0:
        return torch.zeros(b, 2, height, width, device=points.device)
    points = points.float()
    xs = torch.arange(width, device=points.device)
    ys = torch.arange(height, device=points.device)
    dx = xs - points[..., 0, None]  # [B, 2N, W]
    dy = ys - points[..., 1, None]  # [B, 2N, H]
    near = dx.square()[:, :, None, :] + dy.square()[:, :, :, None] <= radius * radius
    near &= (points >= 0).all(-1)[:, :, None, None]
    return near.view(b, 2, slots // 2, height, width).any(dim=2).float()
