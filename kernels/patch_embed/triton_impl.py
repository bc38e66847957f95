"""Patch embedding and norms in one launch: nine products, one for each tap.

Each program computes its share of the columns for 16 pixels; the last program of a tile has whole rows for the norms.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..fused import halves
from ..triton_rows import (
    ROWS,
    finish_rows,
    is_last,
    load_columns,
    load_rows,
    load_weight,
    multiply,
    scratch,
    store_columns,
)
from ..triton_support import KernelCall, pad


@triton.jit(do_not_specialize=["HI", "WI", "N", "WO"])
def patch_embed_kernel(
    x_ptr,  # fp16 [B, HI*WI, CI]
    w_ptr,  # fp16 [C, 9*CI]
    b_ptr,  # fp16 [C]
    out_ptr,  # fp16 [B, N, C]
    norm_ptr,
    scale_ptr,
    shift_ptr,
    added_ptr,  # fp16 [B, N, C], or anything where nothing is added
    part_ptr,
    counter_ptr,
    HI,
    WI,
    N,  # HO * WO
    WO,
    KA: tl.constexpr,
    KB: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    BN: tl.constexpr,
    SPLITS: tl.constexpr,
    BM: tl.constexpr,
    RESIDUAL: tl.constexpr,  # as for `finish_rows`
    EPS1: tl.constexpr,
    EPS2: tl.constexpr,
):
    CI: tl.constexpr = KA + KB
    split = tl.program_id(1)
    image = tl.program_id(2)
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rm < N
    y = rm // WO * 2
    x = rm % WO * 2
    cols = split * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for t in range(9):
        sy = y + t // 3 - 1
        sx = x + t % 3 - 1
        there = inside & (sy >= 0) & (sy < HI) & (sx >= 0) & (sx < WI)
        xa, xb = load_rows(x_ptr, (image * HI + sy) * WI + sx, there, KA, KB, False, 0.0)
        wa, wb = load_weight(w_ptr + cols * (9 * CI) + t * CI, cols < C, KA, KB, BN * SPLITS != C)
        acc = multiply(xa, xb, wa, wb, acc, KB)
    row = image * N + rm
    if SPLITS == 1:
        finish_rows(
            acc, b_ptr, added_ptr, out_ptr, norm_ptr, scale_ptr, shift_ptr, b_ptr, b_ptr, row, inside,
            C, CP, RESIDUAL, True, 1, EPS1, EPS2,
        )  # fmt: skip
    else:
        tile = image * tl.num_programs(0) + tl.program_id(0)
        store_columns(acc, part_ptr, tile, split, BN, BM, CP)
        if is_last(counter_ptr + tile, SPLITS):
            whole = load_columns(part_ptr, tile, BM, CP, C)
            finish_rows(
                whole, b_ptr, added_ptr, out_ptr, norm_ptr, scale_ptr, shift_ptr, b_ptr, b_ptr, row, inside,
                C, CP, RESIDUAL, True, 1, EPS1, EPS2,
            )  # fmt: skip


def kernel_call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    added: Tensor | None,
    eps: float,
    next_eps: float,
    splits: int,
    out: Tensor,
    normed: Tensor,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    b, height, width, _ = x.shape
    _, h, w, c = out.shape
    ka, kb = halves(x.shape[-1])
    tiles = triton.cdiv(h * w, ROWS)
    arguments = dict(
        x_ptr=x,
        w_ptr=weight,
        b_ptr=bias,
        out_ptr=out,
        norm_ptr=normed,
        scale_ptr=scale,
        shift_ptr=shift,
        added_ptr=bias if added is None else added,
        HI=height,
        WI=width,
        N=h * w,
        WO=w,
        KA=ka,
        KB=kb,
        C=c,
        CP=pad(c),
        BN=pad(c) if splits == 1 else c // splits,
        SPLITS=splits,
        BM=ROWS,
        RESIDUAL=0 if added is None else 2,
        EPS1=eps,
        EPS2=next_eps,
        **scratch(tiles * b, splits, c, x),
    )
    return KernelCall(patch_embed_kernel, (tiles, splits, b), arguments, num_warps=4, num_stages=3)
