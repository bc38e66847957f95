"""Queries, attention, projection, residual and norm in one launch.

Each program computes 16 queries for some heads.  All keys lie in one tile, so the softmax is exact and needs one pass.
The heads' shares of the projection add up in the accumulator; where heads are split among programs, the last of these
adds their parts up.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from ..fused import halves
from ..triton_rows import (
    ROWS,
    finish_rows,
    is_last,
    load_rows,
    load_weight,
    multiply,
    scratch,
    store_part,
    sum_parts,
)
from ..triton_support import KernelCall, pad


@triton.jit(do_not_specialize=["N", "NK"])
def attention_kernel(
    xn_ptr,  # fp16 [B, N, QS]: normalised rows if PROJECT_Q (QS is C), else queries, keys and values
    x_ptr,  # fp16 [B, N, C]: what is added
    qw_ptr,  # fp16 [C, C]
    qb_ptr,  # fp16 [C]
    kv_ptr,  # fp16 [B, NK, KVS]: keys from channel K0 on, then values
    pw_ptr,  # fp16 [C, C]
    pb_ptr,  # fp16 [C]
    out_ptr,
    norm_ptr,
    part_ptr,
    counter_ptr,
    N,
    NK,
    KVS: tl.constexpr,
    K0: tl.constexpr,
    QS: tl.constexpr,
    CP: tl.constexpr,
    KA: tl.constexpr,
    KB: tl.constexpr,
    NKP: tl.constexpr,
    D: tl.constexpr,  # channels of a head
    SCALE: tl.constexpr,  # of scores to base 2
    GROUP: tl.constexpr,  # heads that a program has
    SPLITS: tl.constexpr,
    BM: tl.constexpr,
    PROJECT_Q: tl.constexpr,
    EPS: tl.constexpr,
):
    C: tl.constexpr = KA + KB
    split = tl.program_id(1)
    image = tl.program_id(2)
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rm < N
    row = image * N + rm
    keys = tl.arange(0, NKP)
    valid = keys < NK
    key_row = (image * NK + keys) * KVS + K0
    d = tl.arange(0, D)
    cols = tl.arange(0, CP)
    if PROJECT_Q:
        xa, xb = load_rows(xn_ptr, row, inside, KA, KB, False, 0.0)
    acc = tl.zeros((BM, CP), tl.float32)
    for i in tl.static_range(GROUP):
        h = (split * GROUP + i) * D
        k = tl.load(kv_ptr + key_row[None, :] + (h + d)[:, None], mask=valid[None, :], other=0.0)  # [D, NKP]
        if PROJECT_Q:
            wa, wb = load_weight(qw_ptr + (h + d) * C, d < D, KA, KB, False)
            q = multiply(xa, xb, wa, wb, tl.zeros((BM, D), tl.float32), KB)
            q = (q + tl.load(qb_ptr + h + d).to(tl.float32)[None, :]).to(tl.float16)
        else:
            q = tl.load(xn_ptr + row[:, None] * QS + (h + d)[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(kv_ptr + C + key_row[:, None] + (h + d)[None, :], mask=valid[:, None], other=0.0)  # [NKP, D]
        s = tl.dot(q, k) * SCALE
        s = tl.where(valid[None, :], s, -float("inf"))
        p = tl.exp2(s - tl.max(s, axis=1)[:, None])
        o = tl.dot(p.to(tl.float16), v) / tl.sum(p, axis=1)[:, None]
        pw = tl.load(pw_ptr + cols[None, :] * C + (h + d)[:, None], mask=(cols < C)[None, :], other=0.0)  # [D, CP]
        acc = tl.dot(o.to(tl.float16), pw, acc)
    if SPLITS == 1:
        finish_rows(
            acc, pb_ptr, x_ptr, out_ptr, norm_ptr, pb_ptr, pb_ptr, pb_ptr, pb_ptr, row, inside,
            C, CP, 1, False, 1, 0.0, EPS,
        )  # fmt: skip
    else:
        tile = image * tl.num_programs(0) + tl.program_id(0)
        store_part(acc, part_ptr, tile, split, SPLITS, BM, CP)
        if is_last(counter_ptr + tile, SPLITS):
            acc = sum_parts(part_ptr, tile, SPLITS, BM, CP)
            finish_rows(
                acc, pb_ptr, x_ptr, out_ptr, norm_ptr, pb_ptr, pb_ptr, pb_ptr, pb_ptr, row, inside,
                C, CP, 1, False, 1, 0.0, EPS,
            )  # fmt: skip


def kernel_call(
    xn: Tensor,
    x: Tensor,
    kv: Tensor | None,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    eps: float,
    splits: int,
    out: Tensor,
    normed: Tensor,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    b, h, w, c = x.shape
    n = h * w
    nk = n if kv is None else kv.shape[1]
    ka, kb = halves(c)
    tiles, head = triton.cdiv(n, ROWS), c // heads
    arguments = dict(
        xn_ptr=xn,
        x_ptr=x,
        qw_ptr=proj_weight if q_weight is None else q_weight,
        qb_ptr=proj_bias if q_bias is None else q_bias,
        kv_ptr=xn if kv is None else kv,
        pw_ptr=proj_weight,
        pb_ptr=proj_bias,
        out_ptr=out,
        norm_ptr=normed,
        N=n,
        NK=nk,
        KVS=3 * c if kv is None else 2 * c,
        K0=c if kv is None else 0,
        QS=xn.shape[-1],
        CP=pad(c),
        KA=ka,
        KB=kb,
        NKP=pad(nk),
        D=head,
        SCALE=math.log2(math.e) / math.sqrt(head),
        GROUP=heads // splits,
        SPLITS=splits,
        BM=ROWS,
        PROJECT_Q=kv is not None,
        EPS=eps,
        **scratch(tiles * b, splits, c, x),
    )
    # heads of 64 channels do not fit into the registers of 4 warps
    return KernelCall(attention_kernel, (tiles, splits, b), arguments, num_warps=8 if head > 32 else 4)
