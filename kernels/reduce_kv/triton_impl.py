"""Reduction, norm and the product to keys and values in one launch.

Several programs share a tile of 16 reduced pixels.  Each computes its share of the reduction's columns; the last one to
finish normalises the rows and multiplies them.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..fused import halves
from ..triton_rows import (
    ROWS,
    is_last,
    load_columns,
    load_rows,
    load_weight,
    multiply,
    normalised,
    scratch,
    store_columns,
)
from ..triton_support import KernelCall, pad

COLUMNS = 64
"""Columns of keys and values at a time; fewer where there are fewer, or where their weights would not fit."""
MOST_WEIGHTS = 1 << 14
"""Most weights of these columns.  Three steps of a loop have theirs in shared memory at once."""


@triton.jit
def _key_value(
    v, rb_ptr, kvw_ptr, kv_ptr, row, inside, C: tl.constexpr, CP: tl.constexpr, BN: tl.constexpr, EPS: tl.constexpr
):
    cols = tl.arange(0, CP)
    v += tl.load(rb_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    r = normalised(v, CP, C, EPS).to(tl.float16)
    for j in range(2 * C // BN):
        n = j * BN + tl.arange(0, BN)
        w = tl.load(kvw_ptr + n[None, :] * C + cols[:, None], mask=(cols < C)[:, None], other=0.0)  # [CP, BN]
        y = tl.dot(r, w)
        tl.store(kv_ptr + row[:, None] * (2 * C) + n[None, :], y.to(tl.float16), mask=inside[:, None])


@triton.jit(do_not_specialize=["N", "W", "NK", "WR"])
def reduce_kv_kernel(
    x_ptr,  # fp16 [B, N, C], normalised
    rw_ptr,  # fp16 [C, R*R*C]
    rb_ptr,  # fp16 [C]
    kvw_ptr,  # fp16 [2C, C]
    kv_ptr,  # fp16 [B, NK, 2C]
    part_ptr,
    counter_ptr,
    N,
    W,
    NK,
    WR,  # columns of the reduced map
    CP: tl.constexpr,
    KA: tl.constexpr,
    KB: tl.constexpr,
    R: tl.constexpr,
    BN: tl.constexpr,  # columns of the reduction that a program has
    KVN: tl.constexpr,  # columns of keys and values at a time
    SPLITS: tl.constexpr,
    BM: tl.constexpr,
    EPS: tl.constexpr,
):
    C: tl.constexpr = KA + KB
    split = tl.program_id(1)
    image = tl.program_id(2)
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rm < NK
    corner = image * N + (rm // WR) * R * W + (rm % WR) * R
    cols = split * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for p in range(R * R):
        xa, xb = load_rows(x_ptr, corner + (p // R) * W + p % R, inside, KA, KB, False, 0.0)
        wa, wb = load_weight(rw_ptr + cols * (R * R * C) + p * C, cols < C, KA, KB, BN * SPLITS != C)
        acc = multiply(xa, xb, wa, wb, acc, KB)
    row = image * NK + rm
    if SPLITS == 1:
        _key_value(acc, rb_ptr, kvw_ptr, kv_ptr, row, inside, C, CP, KVN, EPS)
    else:
        tile = image * tl.num_programs(0) + tl.program_id(0)
        store_columns(acc, part_ptr, tile, split, BN, BM, CP)
        if is_last(counter_ptr + tile, SPLITS):
            whole = load_columns(part_ptr, tile, BM, CP, C)
            _key_value(whole, rb_ptr, kvw_ptr, kv_ptr, row, inside, C, CP, KVN, EPS)


def kernel_call(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    kv_weight: Tensor,
    eps: float,
    splits: int,
    out: Tensor,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    b, h, w, c = x.shape
    ratio, nk = reduce_weight.shape[1], out.shape[1]
    ka, kb = halves(c)
    tiles = triton.cdiv(nk, ROWS)
    arguments = dict(
        x_ptr=x,
        rw_ptr=reduce_weight,
        rb_ptr=reduce_bias,
        kvw_ptr=kv_weight,
        kv_ptr=out,
        N=h * w,
        W=w,
        NK=nk,
        WR=w // ratio,
        CP=pad(c),
        KA=ka,
        KB=kb,
        R=ratio,
        BN=pad(c) if splits == 1 else c // splits,
        KVN=min(COLUMNS, MOST_WEIGHTS // pad(c), (2 * c) & -(2 * c)),
        SPLITS=splits,
        BM=ROWS,
        EPS=eps,
        **scratch(tiles * b, splits, c, x),
    )
    return KernelCall(reduce_kv_kernel, (tiles, splits, b), arguments, num_warps=4, num_stages=3)
