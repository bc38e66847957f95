"""Depth-wise convolution, GELU, product, residual and norms in one launch.

Each program computes 16 pixels for its share of the hidden channels; the last program of a tile adds up.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import ROWS, finish_rows, gelu, hold, is_last, scratch, store_part, sum_parts
from ..triton_support import KernelCall, pad


@triton.jit(do_not_specialize=["H", "W"])
def conv_ffn_kernel(
    h_ptr,  # fp16 [B, H*W, HID]
    x_ptr,  # fp16 [B, H*W, C]: what is added
    dw_ptr,  # fp16 [9, HID]
    db_ptr,  # fp16 [HID]
    w_ptr,  # fp16 [C, HID]
    b_ptr,  # fp16 [C]
    out_ptr,
    norm_ptr,
    first_w,
    first_b,
    second_w,
    second_b,
    part_ptr,
    counter_ptr,
    H,
    W,
    C: tl.constexpr,
    CP: tl.constexpr,
    HID: tl.constexpr,
    HC: tl.constexpr,  # hidden channels at a time
    CHUNKS: tl.constexpr,
    SPLITS: tl.constexpr,
    BM: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    EPS1: tl.constexpr,
    EPS2: tl.constexpr,
):
    split = tl.program_id(1)
    N = H * W
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rm < N
    row = tl.program_id(2) * N + rm
    y = rm // W
    x = rm % W
    cols = tl.arange(0, CP)
    acc = tl.zeros((BM, CP), tl.float32)
    for i in tl.static_range(CHUNKS):
        hid = (split * CHUNKS + i) * HC + tl.arange(0, HC)
        w = tl.load(w_ptr + cols[None, :] * HID + hid[:, None], mask=(cols < C)[None, :], other=0.0)
        # every row reads the same scales: as vectors they would be moved between threads, at two barriers each
        same = tl.broadcast_to(hid[None, :], (BM, HC))
        h = tl.load(db_ptr + same).to(tl.float32)
        for t in tl.static_range(9):
            dy = t // 3 - 1
            dx = t % 3 - 1
            there = inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
            at = (row + (dy * W + dx))[:, None] * HID + hid[None, :]
            v = tl.load(h_ptr + at, mask=there[:, None], other=0.0).to(tl.float32)
            h += v * tl.load(dw_ptr + t * HID + same).to(tl.float32)
        acc = tl.dot(hold(gelu(h).to(tl.float16)), w, acc)
    if SPLITS == 1:
        finish_rows(
            acc, b_ptr, x_ptr, out_ptr, norm_ptr, first_w, first_b, second_w, second_b, row, inside,
            C, CP, 1, FIRST, SECOND, EPS1, EPS2,
        )  # fmt: skip
    else:
        tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        store_part(acc, part_ptr, tile, split, SPLITS, BM, CP)
        if is_last(counter_ptr + tile, SPLITS):
            acc = sum_parts(part_ptr, tile, SPLITS, BM, CP)
            finish_rows(
                acc, b_ptr, x_ptr, out_ptr, norm_ptr, first_w, first_b, second_w, second_b, row, inside,
                C, CP, 1, FIRST, SECOND, EPS1, EPS2,
            )  # fmt: skip


def kernel_call(
    h: Tensor,
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    next_scale: Tensor | None,
    next_shift: Tensor | None,
    next_eps: float,
    splits: int,
    out: Tensor,
    normed: Tensor,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    b, height, width, c = x.shape
    hidden = h.shape[-1]
    share = hidden // splits
    chunk = 128 if share % 128 == 0 and pad(c) <= 256 else 64
    tiles = triton.cdiv(height * width, ROWS)
    arguments = dict(
        h_ptr=h,
        x_ptr=x,
        dw_ptr=taps,
        db_ptr=taps_bias,
        w_ptr=weight,
        b_ptr=bias,
        out_ptr=out,
        norm_ptr=normed,
        first_w=bias if scale is None else scale,
        first_b=bias if shift is None else shift,
        second_w=bias if next_scale is None else next_scale,
        second_b=bias if next_shift is None else next_shift,
        H=height,
        W=width,
        C=c,
        CP=pad(c),
        HID=hidden,
        HC=chunk,
        CHUNKS=share // chunk,
        SPLITS=splits,
        BM=ROWS,
        FIRST=scale is not None,
        SECOND=1 if next_scale is None else 2,
        EPS1=eps,
        EPS2=next_eps,
        **scratch(tiles * b, splits, c, x),
    )
    return KernelCall(conv_ffn_kernel, (tiles, splits, b), arguments, num_warps=4 if c <= 64 else 8 if c <= 160 else 16)
