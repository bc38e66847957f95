"""Bilinear resampling of maps `[B, H, W, C]`, whose channels lie together in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from activefreq_engine.runtime.plan.layers import PlanLayer


class SumEnlarged(PlanLayer):
    """`first + upsample(part) + ...` for parts of fixed sizes, by matrix products.

    Along each axis an enlargement is a matrix.  The parts are enlarged along the width, laid under one another, and
    enlarged along the height by one product that also adds them up: the large map is written once, not once for each
    part.  Ratios of 2, 4 and 8 have weights that bfloat16 holds exactly.

    Args:
        size ((int, int)): (H, W) of the sum.
        parts: (h, w) of each part.
        dtype, device: of the maps.
    """

    rows: Tensor

    def __init__(
        self, size: tuple[int, int], parts: list[tuple[int, int]], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        rows = torch.cat([enlargement(h, size[0]) for h, _ in parts], dim=1)
        self.register_buffer("rows", rows.to(device, dtype))
        for i, (_, w) in enumerate(parts):
            self.register_buffer(f"columns{i}", enlargement(w, size[1]).to(device, dtype))

    def forward(self, first: Tensor, parts: list[Tensor]) -> Tensor:
        """`[B, H, W, C]` and `[B, h, w, C]` of each part -> `[B, H, W, C]`."""
        b, height = first.shape[:2]
        wide = torch.cat([getattr(self, f"columns{i}") @ part for i, part in enumerate(parts)], dim=1).flatten(2)
        flat = first.reshape(b, height, -1)
        if flat.device.type == "cpu":  # item by item: a batched product takes a third longer
            items = [torch.addmm(f, self.rows, w) for f, w in zip(flat.unbind(), wide.unbind(), strict=True)]
            total = torch.stack(items) if b > 1 else items[0]
        else:
            total = torch.baddbmm(flat, self.rows.expand(b, -1, -1), wide)
        return total.view(first.shape)


def enlargement(old: int, new: int) -> Tensor:
    """float64 `[new, old]`: what `freqnet.upsample` does along one axis, as a matrix."""
    unit = torch.eye(old, dtype=torch.float64)[None]
    return F.interpolate(unit, size=new, mode="linear", align_corners=False)[0].T.contiguous()


def crop(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """`refiner.roi_align` with one sample in each bin, one axis at a time, which is possible since boxes are upright.

    Args:
        maps (Tensor): float `[B, H, W, C]`.
        boxes (Tensor): `[B, 4]` of the same dtype, (x0, y0, x1, y1) in pixels of the maps.
        size ((int, int)): (h, w) of the result.

    Returns:
        Tensor: `[B, h, w, C]`.
    """
    x, x_weight = _between(boxes[:, 0], boxes[:, 2], size[1], maps.shape[2])
    y, y_weight = _between(boxes[:, 1], boxes[:, 3], size[0], maps.shape[1])
    out = []
    for k, image in enumerate(maps.unbind()):
        rows = _lerp(image, y[k], y_weight[k, :, None, None], 0)
        out.append(_lerp(rows, x[k], x_weight[k, :, None], 1))
    return torch.stack(out) if len(out) > 1 else out[0][None]


def _between(start: Tensor, stop: Tensor, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """`[B, samples]`: the pixel before each of the samples from `start` to `stop`, and the weight of the next one."""
    at = (torch.arange(samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    at = (start[:, None] + (stop - start)[:, None] * at - 0.5).clamp(0, length - 1)
    low = at.floor().clamp(max=max(0, length - 2))
    # NaN must give a valid pixel too: rows that only fill up a batch are computed, though nobody reads the result
    return low.nan_to_num().long(), at - low


def _lerp(maps: Tensor, low: Tensor, weight: Tensor, dim: int) -> Tensor:
    high = (low + 1).clamp(max=maps.shape[dim] - 1)
    return torch.lerp(maps.index_select(dim, low), maps.index_select(dim, high), weight)
