"""The painter in one Triton kernel, whose sizes are read from memory: one captured launch paints regions of any size.

A fixed number of programs share the tiles of all rows that are asked for.  Each collects the box of its tiles; the last
one to finish joins the boxes.  So nothing has to be set before a launch, and the result does not depend on any order.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..triton_rows import counters, is_last
from ..triton_support import INTERPRETING, KernelCall, pad

TILE_H, TILE_W = 8, 128
PROGRAMS = 256
"""Programs for each image: a few for every processor of a large device."""


@triton.jit
def _level(i, k, pixels, values):
    # Of pixel i its k-th level: which one, and its share in 256ths (`conventions.PARTS`); see `session.painter`.
    first = i * values // pixels
    before = tl.minimum(tl.maximum((first + k) * pixels - i * values, 0), values)
    after = tl.minimum(tl.maximum((first + k + 1) * pixels - i * values, 0), values)
    part = (512 * after + values) // (2 * values) - (512 * before + values) // (2 * values)
    place = tl.minimum(tl.maximum((2 * i + 1) * values - pixels, 0), 2 * pixels * (values - 1))
    low = tl.minimum(place // (2 * pixels), tl.maximum(values - 2, 0))
    weight = ((place - low * (2 * pixels)) * 256 + pixels) // (2 * pixels)
    between = tl.where(k == 0, 256 - weight, weight)
    shrinks = values > pixels
    return tl.minimum(tl.where(shrinks, first, low) + k, values - 1), tl.where(shrinks, part, between)


@triton.jit
def _box(mask, y, x, x0, y0, x1, y1, FAR: tl.constexpr):
    # A box, and the pixels of a tile [TILE_H, TILE_W] around it.
    rows = tl.max(mask.to(tl.int32), axis=1) > 0
    columns = tl.max(mask.to(tl.int32), axis=0) > 0
    x0 = tl.minimum(x0, tl.min(tl.where(columns, x, FAR), axis=0))
    y0 = tl.minimum(y0, tl.min(tl.where(rows, y, FAR), axis=0))
    x1 = tl.maximum(x1, tl.max(tl.where(columns, x + 1, 0), axis=0))
    y1 = tl.maximum(y1, tl.max(tl.where(rows, y + 1, 0), axis=0))
    return x0, y0, x1, y1


@triton.jit(do_not_specialize=["h", "w", "capacity"])
def mask_bits_kernel(
    levels_ptr,  # uint16 [B, h, w]
    asked_ptr,  # int32 [B, 8]: height, width, limit (as uint32), first row, rows, whether `bits` has the mask before
    bits_ptr,  # int32 [B, capacity]
    found_ptr,  # int32 [B, 8]
    part_ptr,  # int32 [B, 8, PROGRAMS]
    counter_ptr,  # int32 [B]
    h,
    w,
    capacity,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PADDED: tl.constexpr,
):
    FAR: tl.constexpr = 2147483647
    WORDS: tl.constexpr = TILE_W // 32
    image = tl.program_id(1)
    program = tl.program_id(0)
    asked = asked_ptr + image * 8
    height = tl.maximum(tl.load(asked), 1)
    width = tl.maximum(tl.load(asked + 1), 1)
    limit = tl.load(asked + 2).to(tl.uint32, bitcast=True)
    top = tl.load(asked + 3)
    rows = tl.load(asked + 4)
    known = tl.load(asked + 5) != 0
    words = (width + 31) // 32
    across = (width + TILE_W - 1) // TILE_W
    tiles = (rows + TILE_H - 1) // TILE_H * across
    down_levels = tl.where(h > height, 2 + (h - 1) // height, 2)
    across_levels = tl.where(w > width, 2 + (w - 1) // width, 2)
    lane = tl.arange(0, 32)
    x0 = FAR
    y0 = FAR
    x1 = 0
    y1 = 0
    cx0 = FAR
    cy0 = FAR
    cx1 = 0
    cy1 = 0
    for tile in range(program, tiles, PROGRAMS):
        y = tile // across * TILE_H + tl.arange(0, TILE_H)
        word = tile % across * WORDS + tl.arange(0, WORDS)
        x = tile % across * TILE_W + tl.arange(0, TILE_W)
        row = tl.minimum(top + y, height - 1)
        column = tl.minimum(x, width - 1)
        sums = tl.zeros((TILE_H, TILE_W), tl.uint32)
        for k in range(down_levels):
            v, down = _level(row, k, height, h)
            at = levels_ptr + (image * h + v) * w
            for m in range(across_levels):
                u, right = _level(column, m, width, w)
                share = (down[:, None] * right[None, :]).to(tl.uint32)
                sums += tl.load(at[:, None] + u[None, :]).to(tl.uint32) * share
        mask = (sums > limit) & (y < rows)[:, None] & (x < width)[None, :]
        pixels = tl.reshape(mask.to(tl.int32), (TILE_H, WORDS, 32))
        new = tl.sum(pixels << lane[None, None, :], axis=2)
        inside = (y < rows)[:, None] & (word < words)[None, :]
        kept = bits_ptr + image.to(tl.int64) * capacity + y[:, None] * words + word[None, :]
        old = tl.where(known, tl.load(kept, mask=inside, other=0), 0)
        tl.store(kept, new, mask=inside)
        changed = ((old ^ new)[:, :, None] >> lane[None, None, :]) & 1
        differs = tl.reshape(changed, (TILE_H, TILE_W)) != 0
        x0, y0, x1, y1 = _box(mask, top + y, x, x0, y0, x1, y1, FAR)
        cx0, cy0, cx1, cy1 = _box(differs, top + y, x, cx0, cy0, cx1, cy1, FAR)
    part = part_ptr + image * (8 * PROGRAMS) + program
    tl.store(part, x0)
    tl.store(part + PROGRAMS, y0)
    tl.store(part + 2 * PROGRAMS, x1)
    tl.store(part + 3 * PROGRAMS, y1)
    tl.store(part + 4 * PROGRAMS, cx0)
    tl.store(part + 5 * PROGRAMS, cy0)
    tl.store(part + 6 * PROGRAMS, cx1)
    tl.store(part + 7 * PROGRAMS, cy1)
    if is_last(counter_ptr + image, PROGRAMS) and rows > 0:
        found = found_ptr + image * 8
        parts = part_ptr + image * (8 * PROGRAMS) + tl.arange(0, PADDED)
        there = tl.arange(0, PADDED) < PROGRAMS
        for box in tl.static_range(2):
            for axis in tl.static_range(2):
                side = box * 4 + axis
                start = tl.load(parts + side * PROGRAMS, mask=there, other=FAR, cache_modifier=".cg")
                end = tl.load(parts + (side + 2) * PROGRAMS, mask=there, other=0, cache_modifier=".cg")
                tl.store(found + side, tl.minimum(tl.min(start, axis=0), tl.where(axis == 0, width, height)))
                tl.store(found + side + 2, tl.max(end, axis=0))


def kernel_call(levels: Tensor, asked: Tensor, bits: Tensor, found: Tensor) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    b, h, w = levels.shape
    capacity = bits.shape[1]
    most = 3 if INTERPRETING else PROGRAMS  # the interpreter runs one after another
    programs = max(1, min(most, 32 * capacity // (TILE_H * TILE_W)))
    arguments = dict(
        levels_ptr=levels,
        asked_ptr=asked,
        bits_ptr=bits,
        found_ptr=found,
        part_ptr=bits.new_empty(b * 8 * programs),
        counter_ptr=counters(b, bits.device),
        h=h,
        w=w,
        capacity=capacity,
        TILE_H=TILE_H,
        TILE_W=TILE_W,
        PROGRAMS=programs,
        PADDED=pad(programs),
    )
    return KernelCall(mask_bits_kernel, (programs, b), arguments, num_warps=4)
