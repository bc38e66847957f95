"""Click maps in one Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_support import KernelCall

BLOCK = 1024


@triton.jit
def click_maps_kernel(
    points_ptr,  # fp32 [B, 2*SLOTS, 2] contiguous, (x, y)
    out_ptr,  # fp32 [B, 2, H, W]
    H,
    W,
    radius_squared,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One of the 2 B maps: its slots follow those of the map before it.
    map_index = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = (pixel % W).to(tl.float32)
    y = (pixel // W).to(tl.float32)
    covered = tl.zeros((BLOCK,), dtype=tl.float32)
    for slot in range(SLOTS):
        at = points_ptr + (map_index * SLOTS + slot) * 2
        px = tl.load(at)
        py = tl.load(at + 1)
        dx = x - px
        dy = y - py
        limit = tl.where(px < 0, -1.0, tl.where(py < 0, -1.0, radius_squared))
        covered = tl.where(dx * dx + dy * dy <= limit, 1.0, covered)
    tl.store(out_ptr + map_index * H * W + pixel, covered, mask=pixel < H * W)


def kernel_call(points: Tensor, out: Tensor, radius: float) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    batch, _, height, width = out.shape
    arguments = {"points_ptr": points, "out_ptr": out, "H": height, "W": width}
    arguments |= {"radius_squared": float(radius * radius), "SLOTS": points.shape[1] // 2, "BLOCK": BLOCK}
    # Without fusion a pixel on the circle is in or out exactly as in the reference.
    grid = (triton.cdiv(height * width, BLOCK), 2 * batch)
    return KernelCall(click_maps_kernel, grid, arguments, num_warps=4, fp_fusion=False)


def click_maps(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    """See `kernels.click_maps`."""
    out = torch.empty(points.shape[0], 2, height, width, dtype=torch.float32, device=points.device)
    if out.numel():
        kernel_call(points.float().contiguous(), out, radius).run()
    return out
