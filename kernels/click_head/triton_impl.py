"""Everything after the last projection in one launch.

Each program computes 6 x 14 pixels of the low map (24 x 56 of the network's).  It computes the head on these and on one
pixel more at each side, 8 x 16 = 128 in all: 1.5 times the arithmetic, but one launch less.  The enlargement by four is
two small float32 products, whose weights the program computes itself.  Each program writes its sum of probabilities;
the last one to finish adds them up, in the order of the tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import counters, is_last
from ..triton_support import KernelCall

TY, TX = 6, 14
CHANNELS = 32  # at a time


@triton.jit
def _between(i, RATIO: tl.constexpr, n_in):
    # Bilinear, pixel centres aligned: the pixel before pixel i of the enlarged axis, the one after, and its weight.
    place = tl.maximum((i.to(tl.float32) + 0.5) * (1.0 / RATIO) - 0.5, 0.0)
    low = tl.minimum(place.to(tl.int32), n_in - 1)
    return low, tl.minimum(low + 1, n_in - 1), place - low.to(tl.float32)


@triton.jit
def _enlarged(part_ptr, image, y, x, c, RATIO: tl.constexpr, h, w, E: tl.constexpr):
    # fp32 [P, CC]: channels c of a part [B, h, w, E] at pixels (y, x) of the map that is RATIO times as large
    y0, y1, fy = _between(y, RATIO, h)
    x0, x1, fx = _between(x, RATIO, w)
    top = part_ptr + ((image * h + y0) * w)[:, None] * E + c[None, :]
    bottom = part_ptr + ((image * h + y1) * w)[:, None] * E + c[None, :]
    left = (x0 * E)[:, None]
    right = (x1 * E)[:, None]
    v00 = tl.load(top + left).to(tl.float32)
    v01 = tl.load(top + right).to(tl.float32)
    v10 = tl.load(bottom + left).to(tl.float32)
    v11 = tl.load(bottom + right).to(tl.float32)
    v0 = v00 + (v01 - v00) * fx[:, None]
    v1 = v10 + (v11 - v10) * fx[:, None]
    return v0 + (v1 - v0) * fy[:, None]


@triton.jit(do_not_specialize=["H8", "W8"])
def click_head_kernel(
    p1_ptr,  # fp16 [B, h, w, E]
    p2_ptr,  # fp16 [B, h/2, w/2, E]
    p3_ptr,  # fp16 [B, h/4, w/4, E]
    p4_ptr,  # fp16 [B, h/8, w/8, E]
    hw_ptr,  # fp32 [E]
    hb_ptr,  # fp32 [1]
    fused_ptr,  # fp16 [B, h, w, E], if KEEP
    logits_ptr,  # fp32 [B, 4h, 4w], if KEEP
    levels_ptr,  # uint16 [B, 4h, 4w]
    total_ptr,  # fp32 [B]
    part_ptr,  # fp32 [B, tiles]
    counter_ptr,  # int32 [B]
    H8,  # h / 8
    W8,
    E: tl.constexpr,
    CC: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    KEEP: tl.constexpr,
):
    h = H8 * 8
    w = W8 * 8
    image = tl.program_id(2)
    tiles = tl.num_programs(0) * tl.num_programs(1)
    y0 = tl.program_id(1) * TY
    x0 = tl.program_id(0) * TX
    p = tl.arange(0, 128)
    y = y0 - 1 + p // 16
    x = x0 - 1 + p % 16
    own = (p // 16 >= 1) & (p // 16 <= TY) & (p % 16 >= 1) & (p % 16 <= TX) & (y < h) & (x < w)
    # beyond the edge the last pixel again: what a clamped enlargement sees
    y = tl.minimum(tl.maximum(y, 0), h - 1)
    x = tl.minimum(tl.maximum(x, 0), w - 1)
    z = tl.zeros((128,), tl.float32) + tl.load(hb_ptr)
    for i in range(E // CC):
        c = i * CC + tl.arange(0, CC)
        at = ((image * h + y) * w + x)[:, None] * E + c[None, :]
        v = tl.load(p1_ptr + at).to(tl.float32)
        v += _enlarged(p2_ptr, image, y, x, c, 2, h // 2, w // 2, E)
        v += _enlarged(p3_ptr, image, y, x, c, 4, h // 4, w // 4, E)
        v += _enlarged(p4_ptr, image, y, x, c, 8, h // 8, w // 8, E)
        v = tl.where(v < 0.0, 0.0, v)  # NaN stays
        if KEEP:
            tl.store(fused_ptr + at, v.to(tl.float16), mask=own[:, None])
        z += tl.sum(v * tl.load(hw_ptr + c)[None, :], axis=1)
    low = tl.reshape(z, (8, 16))
    # the enlargement by four as products: weights 1 - |distance| of the two nearest pixels
    oy = tl.arange(0, 32)
    ox = tl.arange(0, 64)
    sy = (oy.to(tl.float32) + 0.5) * 0.25 + 0.5  # of the tile's 8 rows, the first of which is pixel y0 - 1
    sx = (ox.to(tl.float32) + 0.5) * 0.25 + 0.5
    # in three dimensions from the start: of a sum of a[:, :, None] * b[None, :, :] Triton 3.6 makes a product in TF32
    my = tl.maximum(1.0 - tl.abs(sy[:, None, None] - tl.arange(0, 8).to(tl.float32)[None, :, None]), 0.0)
    mx = tl.maximum(1.0 - tl.abs(sx[None, :] - tl.arange(0, 16).to(tl.float32)[:, None]), 0.0)
    tall = tl.sum(my * low[None, :, :], axis=1)  # [32, 16]
    full = tl.dot(tall, mx, input_precision="ieee")  # [32, 64]
    valid = ((oy < 4 * TY) & (4 * y0 + oy < 4 * h))[:, None] & ((ox < 4 * TX) & (4 * x0 + ox < 4 * w))[None, :]
    at = (image * 4 * h + 4 * y0 + oy)[:, None] * (4 * w) + (4 * x0 + ox)[None, :]
    if KEEP:
        tl.store(logits_ptr + at, full, mask=valid)
    e = tl.exp(-tl.abs(full))
    larger = 1.0 / (1.0 + e)
    probs = tl.where(full >= 0, larger, e * larger)
    level = (probs * 65535.0 + 12582912.0) - 12582912.0  # rounds half to even
    tl.store(levels_ptr + at, level.to(tl.int32).to(tl.uint16), mask=valid)
    total = tl.sum(tl.sum(tl.where(valid, probs, 0.0), axis=1), axis=0)
    tl.store(part_ptr + image * tiles + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), total)
    if is_last(counter_ptr + image, tiles):
        lanes = tl.arange(0, 128)
        parts = tl.zeros((128,), tl.float32)
        for begin in range(0, tiles, 128):
            mine = begin + lanes
            parts += tl.load(part_ptr + image * tiles + mine, mask=mine < tiles, other=0.0, cache_modifier=".cg")
        tl.store(total_ptr + image, tl.sum(parts, axis=0))


def kernel_call(
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    weight: Tensor,
    bias: Tensor,
    levels: Tensor,
    total: Tensor,
    keep: bool,
    fused: Tensor,
    logits: Tensor,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    b, h, w, e = p1.shape
    grid = (triton.cdiv(w, TX), triton.cdiv(h, TY), b)
    arguments = dict(
        p1_ptr=p1,
        p2_ptr=p2,
        p3_ptr=p3,
        p4_ptr=p4,
        hw_ptr=weight,
        hb_ptr=bias,
        fused_ptr=fused,
        logits_ptr=logits,
        levels_ptr=levels,
        total_ptr=total,
        part_ptr=p1.new_empty(grid[0] * grid[1] * b, dtype=torch.float32),
        counter_ptr=counters(b, p1.device),
        H8=h // 8,
        W8=w // 8,
        E=e,
        CC=CHANNELS,
        TY=TY,
        TX=TX,
        KEEP=keep,
    )
    return KernelCall(click_head_kernel, grid, arguments, num_warps=8 if e <= 256 else 16)
