"""The definition of the click maps (disks as in RITM: SamsungLabs/ritm_interactive_segmentation)."""

from __future__ import annotations

import torch
from torch import Tensor


def click_maps(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    """See `kernels.click_maps`; shapes as there."""
    b, slots, _ = points.shape
    if slots == 0:
        return torch.zeros(b, 2, height, width, dtype=torch.float32, device=points.device)
    points = points.float()
    xs = torch.arange(width, device=points.device)
    ys = torch.arange(height, device=points.device)
    dx = xs - points[..., 0, None]  # [B, 2N, W]
    dy = ys - points[..., 1, None]  # [B, 2N, H]
    near = dx.square()[:, :, None, :] + dy.square()[:, :, :, None] <= radius * radius
    near &= (points >= 0).all(-1)[:, :, None, None]
    return near.view(b, 2, slots // 2, height, width).any(dim=2).float()


def check_points(points: Tensor) -> None:
    """Raise ValueError unless `points` is `[B, 2N, 2]`."""
    if points.dim() != 3 or points.shape[1] % 2 or points.shape[2] != 2:
        raise ValueError(
            f"points have shape {tuple(points.shape)}; expected [B, 2N, 2]: N positive (x, y) slots, then N negative"
        )
