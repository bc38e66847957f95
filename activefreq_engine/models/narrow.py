"""Works around a fault of half-precision convolutions on CPUs whose output is one pixel wide or high.

On CPUs with AMX, oneDNN's bfloat16 convolution with stride 2 reads memory that nobody wrote where its output is one
pixel wide, and returns random numbers or NaN; `F.conv2d` uses it.  So such a map is padded with zeros until the output
has a second column (or row), which is cut off again.  The padding of the convolution stands for the same zeros, so the
result does not change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


def convolve(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    """Return ``run(x)``, a convolution of maps `[B, C, H, W]`, without the fault.

    `kernel`, `stride` and zero `padding` are those of the convolution, each (rows, columns).  In half precision on a
    CPU, `run` is only called with maps that give an output of at least two columns and two rows.
    """
    if x.device.type != "cpu" or not (x.dtype in HALF or torch.is_autocast_enabled("cpu")):
        return run(x)
    sides = zip(x.shape[2:], kernel, stride, padding, strict=True)
    down, right = (s if n + 2 * p - k < s else 0 for n, k, s, p in sides)
    if not (down or right):
        return run(x)
    y = run(F.pad(x, (0, right, 0, down)))
    return y[:, :, : 1 if down else None, : 1 if right else None].contiguous(memory_format=torch.channels_last)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with zero padding that is right where its output is one pixel wide or high."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)
        return convolve(super().forward, x, self.kernel_size, self.stride, self.padding)
