"""What only a CPU needs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX); without it bf16 is slower than float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported() and torch.backends.mkldnn.is_available())


def click_maps(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    """`kernels.click_maps` for few clicks on large maps: only the pixels of disks are computed.

    Arguments and result are those of the op.
    """
    batch, slots, _ = points.shape
    maps = np.zeros((batch, 2, height, width), np.float32)
    xs, ys = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    limit = np.float32(radius * radius)
    positions: NDArray[np.float32] = points.float().numpy()
    for b, slot in zip(*np.nonzero((positions >= 0).all(-1)), strict=True):
        x, y = positions[b, slot]
        left, right = _reach(x, radius, width)
        top, bottom = _reach(y, radius, height)
        near = np.square(xs[left:right] - x) + np.square(ys[top:bottom, None] - y) <= limit
        maps[b, int(slot >= slots // 2), top:bottom, left:right][near] = 1
    return torch.from_numpy(maps)


def _reach(centre: np.float32, radius: float, size: int) -> tuple[int, int]:
    """The pixels that a disk can touch along one axis, half-open and within the map."""
    low, high = float(centre) - radius - 1, float(centre) + radius + 2  # a pixel more than exact arithmetic needs
    return int(min(max(low, 0), size)), int(min(max(high, 0), size))
