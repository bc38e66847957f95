"""Device code that the fused kernels of a click share: rows of channels, their norms, and rows split among programs.

Maps are fp16 `[B, H, W, C]` in memory, so a pixel is a row of C channels.  Each program computes 16 rows.  So `tl.dot`
becomes the matrix instruction of a single warp (HMMA) with any number of warps, since that of a warp group needs 64
rows.  A row of K channels that is multiplied is read as two tiles of KA + KB channels, powers of two (160 = 128 + 32),
so that nothing is spent on padding; a row of C results is one tile of CP >= C.

Splitting.  Where a map has fewer tiles of rows than the device has processors, S programs share a tile.  Each writes
its part to memory and raises a counter.  The one that finishes last adds the parts up, always in the same order, so the
result does not depend on which program was last.  It then does what needs whole rows (residual, norms) and sets the
counter to 0 again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_support import pad

ROWS = 16
"""Rows (pixels) of a tile."""


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def hold(x):
    # x itself [BM, BN], as a sum over an axis of one.  Triton moves the layout of a dot's operand up through
    # elementwise operations to the loads they begin with, and every warp then computes the whole operand anew.  It does
    # not move it past a sum.
    return tl.sum(tl.reshape(x, (x.shape[0], 1, x.shape[1])), axis=1)


@triton.jit
def normalised(v, COLUMNS: tl.constexpr, C: tl.constexpr, EPS: tl.constexpr):
    # LayerNorm without scale and shift of fp32 rows [BM, COLUMNS], of which the first C columns count, the rest are 0.
    mean = tl.sum(v, axis=1) / C
    d = v - mean[:, None]
    if COLUMNS > C:
        d = tl.where((tl.arange(0, COLUMNS) < C)[None, :], d, 0.0)
    var = tl.sum(d * d, axis=1) / C
    return d * tl.rsqrt(var + EPS)[:, None]


@triton.jit
def load_rows(ptr, row, inside, KA: tl.constexpr, KB: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr):
    # Rows of C = KA + KB channels as two fp16 tiles (the second is the first where KB is 0), normalised if NORM.
    C: tl.constexpr = KA + KB
    at = ptr + row[:, None] * C
    a = tl.load(at + tl.arange(0, KA)[None, :], mask=inside[:, None], other=0.0)
    if KB > 0:
        b = tl.load(at + KA + tl.arange(0, KB)[None, :], mask=inside[:, None], other=0.0)
        if NORM:
            fa = a.to(tl.float32)
            fb = b.to(tl.float32)
            mean = (tl.sum(fa, axis=1) + tl.sum(fb, axis=1)) / C
            fa -= mean[:, None]
            fb -= mean[:, None]
            scale = tl.rsqrt((tl.sum(fa * fa, axis=1) + tl.sum(fb * fb, axis=1)) / C + EPS)
            a = (fa * scale[:, None]).to(tl.float16)
            b = (fb * scale[:, None]).to(tl.float16)
        return a, b
    else:
        if NORM:
            a = normalised(a.to(tl.float32), KA, C, EPS).to(tl.float16)
        return a, a


@triton.jit
def load_weight(at, inside, KA: tl.constexpr, KB: tl.constexpr, MASKED: tl.constexpr):
    # Two tiles [KA, BN] and [KB, BN] of a weight whose rows start at `at` [BN]; rows out of `inside` read as 0.
    ka = at[None, :] + tl.arange(0, KA)[:, None]
    if MASKED:  # noqa: SIM108 - the compiler takes one branch
        a = tl.load(ka, mask=inside[None, :], other=0.0)
    else:
        a = tl.load(ka)
    if KB > 0:
        kb = at[None, :] + KA + tl.arange(0, KB)[:, None]
        if MASKED:  # noqa: SIM108
            b = tl.load(kb, mask=inside[None, :], other=0.0)
        else:
            b = tl.load(kb)
        return a, b
    else:
        return a, a


@triton.jit
def multiply(xa, xb, wa, wb, acc, KB: tl.constexpr):
    acc = tl.dot(xa, wa, acc)
    if KB > 0:
        acc = tl.dot(xb, wb, acc)
    return acc


@triton.jit
def is_last(counter_ptr, SPLITS):
    # Whether all other programs of this tile have stored their parts, which are then visible to this one.
    tl.debug_barrier()  # all threads have stored before one of them counts the program in
    before = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    last = before == SPLITS - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def finish_rows(
    v,  # fp32 [BM, CP], without bias
    bias_ptr,  # fp16 [C]
    residual_ptr,  # fp16 rows, or anything where there is none
    out_ptr,  # fp16 rows
    norm_ptr,  # fp16 rows: the second norm of what goes to `out`
    first_w,  # fp16 [C], or anything where there is no such norm
    first_b,
    second_w,
    second_b,
    row,
    inside,
    C: tl.constexpr,
    CP: tl.constexpr,
    RESIDUAL: tl.constexpr,  # 0: none, 1: before the first norm, 2: after it
    FIRST: tl.constexpr,  # whether rows are normalised (with scale and shift) before they are stored
    SECOND: tl.constexpr,  # 0: no second output, 1: a bare norm, 2: with scale and shift
    EPS1: tl.constexpr,
    EPS2: tl.constexpr,
):
    cols = tl.arange(0, CP)
    valid = cols < C
    mask = inside[:, None] & valid[None, :]
    at = row[:, None] * C + cols[None, :]
    v += tl.load(bias_ptr + cols, mask=valid, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL == 1:
        v += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if FIRST:
        v = normalised(v, CP, C, EPS1)
        v = v * tl.load(first_w + cols, mask=valid, other=0.0).to(tl.float32)[None, :]
        v += tl.load(first_b + cols, mask=valid, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL == 2:
        v += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    stored = v.to(tl.float16)
    tl.store(out_ptr + at, stored, mask=mask)
    if SECOND > 0:
        n = normalised(stored.to(tl.float32), CP, C, EPS2)
        if SECOND == 2:
            n = n * tl.load(second_w + cols, mask=valid, other=0.0).to(tl.float32)[None, :]
            n += tl.load(second_b + cols, mask=valid, other=0.0).to(tl.float32)[None, :]
        tl.store(norm_ptr + at, n.to(tl.float16), mask=mask)


@triton.jit
def store_part(v, part_ptr, tile, split, SPLITS: tl.constexpr, BM: tl.constexpr, CP: tl.constexpr):
    at = (tile * SPLITS + split) * (BM * CP) + tl.arange(0, BM)[:, None] * CP + tl.arange(0, CP)[None, :]
    tl.store(part_ptr + at, v)


@triton.jit
def sum_parts(part_ptr, tile, SPLITS: tl.constexpr, BM: tl.constexpr, CP: tl.constexpr):
    # .cg: from L2, where the other programs' stores are
    at = part_ptr + tile * (SPLITS * BM * CP) + tl.arange(0, BM)[:, None] * CP + tl.arange(0, CP)[None, :]
    v = tl.load(at, cache_modifier=".cg")
    for s in tl.static_range(1, SPLITS):
        v += tl.load(at + s * (BM * CP), cache_modifier=".cg")
    return v


@triton.jit
def store_columns(v, part_ptr, tile, split, BN: tl.constexpr, BM: tl.constexpr, CP: tl.constexpr):
    at = tile * (BM * CP) + tl.arange(0, BM)[:, None] * CP + (split * BN + tl.arange(0, BN))[None, :]
    tl.store(part_ptr + at, v)


@triton.jit
def load_columns(part_ptr, tile, BM: tl.constexpr, CP: tl.constexpr, C: tl.constexpr):
    cols = tl.arange(0, CP)
    at = part_ptr + tile * (BM * CP) + tl.arange(0, BM)[:, None] * CP + cols[None, :]
    return tl.load(at, mask=(cols < C)[None, :], other=0.0, cache_modifier=".cg")


# ---- host


def scratch(tiles: int, splits: int, columns: int, like: Tensor) -> dict[str, Tensor]:
    """Memory for the parts of a split launch, and its counters.

    Args:
        tiles: number of row tiles of all images together.
        splits: programs that share a tile.
        columns: columns of a part.
        like: a tensor on the device to use.
    """
    size = tiles * splits * ROWS * pad(columns) if splits > 1 else 1
    return {"part_ptr": like.new_empty(size, dtype=torch.float32), "counter_ptr": counters(tiles, like.device)}


_counters: dict[tuple[torch.device, int], Tensor] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """At least `count` int32 zeros, as counters.

    A launch leaves zeros behind, so all launches of a stream, which run one after another, share the same memory.  It
    is never freed, since a captured graph may use it.
    """
    if device.type == "meta":
        return torch.empty(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    known = _counters.get((device, stream))
    if known is None or len(known) < count:
        known = torch.zeros(max(4096, pad(count)), dtype=torch.int32, device=device)
        _kept.append(known)
        _counters[device, stream] = known
    return known


_kept: list[Tensor] = []
