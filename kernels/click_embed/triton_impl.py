"""Click maps, convolution, norm and sum in one launch.

Each of the three maps is one product of 64 taps, 7x7 as 8x8 with weights that are zero.  Disks are tested tap by tap,
as in `click_maps`, for the slots near enough to reach the tile.  A tile that no slot reaches, which is nearly every
one, skips the disks.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import finish_rows
from ..triton_support import KernelCall, pad

ROWS = 32  # of a tile: more would not stay in registers


@triton.jit(do_not_specialize=["H", "W", "N", "WO", "radius"])
def click_embed_kernel(
    previous_ptr,  # [B, H, W], uint16 levels or fp32 probabilities
    points_ptr,  # fp32 [B, 2*SLOTS, 2], (x, y)
    w_ptr,  # fp16 [3, 64, C]: by map and tap
    b_ptr,  # fp16 [C]
    c1_ptr,  # fp16 [B, N, C]
    out_ptr,  # fp16 [B, N, C]
    scale_ptr,
    shift_ptr,
    H,
    W,
    N,
    WO,
    radius,
    C: tl.constexpr,
    SLOTS: tl.constexpr,
    SP: tl.constexpr,
    BM: tl.constexpr,
    EPS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    image = tl.program_id(1)
    first = tl.program_id(0) * BM
    rm = first + tl.arange(0, BM)
    inside = rm < N
    tap = tl.arange(0, 64)
    y = (rm // WO * 4)[:, None] + (tap // 8 - 3)[None, :]
    x = (rm % WO * 4)[:, None] + (tap % 8 - 3)[None, :]
    there = inside[:, None] & (y >= 0) & (y < H) & (x >= 0) & (x < W) & ((tap % 8 < 7) & (tap < 56))[None, :]
    cols = tl.arange(0, C)
    w_at = w_ptr + tap[:, None] * C + cols[None, :]
    before = tl.load(previous_ptr + (image * H + y) * W + x, mask=there, other=0).to(tl.float32)
    if LEVELS:
        before = before * (1.0 / 65535.0)
    acc = tl.dot(before.to(tl.float16), tl.load(w_at))
    # which slots reach the tile: its rows of pixels, and its columns if it lies in one row of the map
    top = first // WO * 4 - 3
    bottom = (first + BM - 1) // WO * 4 + 3
    one_row = first // WO == (first + BM - 1) // WO
    left = tl.where(one_row, first % WO * 4 - 3, -3)
    right = tl.where(one_row, (first + BM - 1) % WO * 4 + 3, W + 3)
    slot = tl.arange(0, SP)
    fx = x.to(tl.float32)
    fy = y.to(tl.float32)
    for m in tl.static_range(2):
        at = points_ptr + (image * 2 + m) * (SLOTS * 2)
        px = tl.load(at + slot * 2, mask=slot < SLOTS, other=-1.0)
        py = tl.load(at + slot * 2 + 1, mask=slot < SLOTS, other=-1.0)
        near = (px >= 0) & (py >= 0) & (px >= left - radius) & (px <= right + radius)
        near = near & (py >= top - radius) & (py <= bottom + radius)
        if tl.sum(near.to(tl.int32), axis=0) > 0:
            covered = tl.zeros((BM, 64), tl.float32)
            for s in range(SLOTS):
                sx = tl.load(at + s * 2)
                sy = tl.load(at + s * 2 + 1)
                limit = tl.where((sx >= 0) & (sy >= 0), radius * radius, -1.0)
                dx = fx - sx
                dy = fy - sy
                covered = tl.where(dx * dx + dy * dy <= limit, 1.0, covered)
            covered = tl.where(there, covered, 0.0).to(tl.float16)
            acc = tl.dot(covered, tl.load(w_at + (m + 1) * 64 * C), acc)
    row = image * N + rm
    finish_rows(
        acc, b_ptr, c1_ptr, out_ptr, out_ptr, scale_ptr, shift_ptr, b_ptr, b_ptr, row, inside,
        C, C, 2, True, 0, EPS, 0.0,
    )  # fmt: skip


def kernel_call(
    previous: Tensor,
    points: Tensor,
    taps: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    c1: Tensor,
    eps: float,
    radius: float,
    out: Tensor,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    b, height, width = previous.shape
    _, h, w, c = c1.shape
    slots = points.shape[1] // 2
    arguments = dict(
        previous_ptr=previous,
        points_ptr=points,
        w_ptr=taps,
        b_ptr=bias,
        c1_ptr=c1,
        out_ptr=out,
        scale_ptr=scale,
        shift_ptr=shift,
        H=height,
        W=width,
        N=h * w,
        WO=w,
        radius=radius,
        C=c,
        SLOTS=slots,
        SP=pad(slots),
        BM=ROWS,
        EPS=eps,
        LEVELS=not previous.dtype.is_floating_point,
    )
    # without fusion a pixel on a circle is in or out exactly as in `click_maps`
    warps = 8 if c <= 32 else 4  # with 8 and 64 channels a register is spilled
    return KernelCall(click_embed_kernel, (triton.cdiv(h * w, ROWS), b), arguments, num_warps=warps, fp_fusion=False)
