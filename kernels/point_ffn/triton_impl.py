"""FFN and projection in one launch; programs of a tile share the hidden channels, and those of the projection."""

import triton
import triton.language as tl
from torch import Tensor

from ..fused import halves
from ..triton_rows import ROWS, gelu, is_last, load_rows, load_weight, multiply, scratch, store_part, sum_parts
from ..triton_support import KernelCall


@triton.jit(do_not_specialize=["N"])
def point_ffn_kernel(
    x_ptr,  # fp16 [N, C]
    w_ptr,  # fp16 [HID, C]
    b_ptr,  # fp16 [HID]
    ow_ptr,  # fp16 [E, HID]
    sw_ptr,  # fp16 [E, C]
    ob_ptr,  # fp16 [E]
    out_ptr,  # fp16 [N, E]
    part_ptr,
    counter_ptr,
    N,
    KA: tl.constexpr,
    KB: tl.constexpr,
    HID: tl.constexpr,
    HC: tl.constexpr,  # hidden channels a program has
    XC: tl.constexpr,  # channels of x that it multiplies by the projection
    E: tl.constexpr,
    SPLITS: tl.constexpr,
    BM: tl.constexpr,
    EPS: tl.constexpr,
):
    C: tl.constexpr = KA + KB
    split = tl.program_id(1)
    tile = tl.program_id(0)
    row = tile * BM + tl.arange(0, BM)
    inside = row < N
    hid = split * HC + tl.arange(0, HC)
    some = split * XC + tl.arange(0, XC)
    cols = tl.arange(0, E)
    wa, wb = load_weight(w_ptr + hid * C, hid < HID, KA, KB, False)
    ow = tl.load(ow_ptr + cols[None, :] * HID + hid[:, None])
    sw = tl.load(sw_ptr + cols[None, :] * C + some[:, None])
    raw = tl.load(x_ptr + row[:, None] * C + some[None, :], mask=inside[:, None], other=0.0)
    xa, xb = load_rows(x_ptr, row, inside, KA, KB, True, EPS)
    acc = tl.dot(raw, sw)
    h = multiply(xa, xb, wa, wb, tl.zeros((BM, HC), tl.float32), KB)
    h += tl.load(b_ptr + hid).to(tl.float32)[None, :]
    acc = tl.dot(gelu(h).to(tl.float16), ow, acc)
    at = row[:, None] * E + cols[None, :]
    bias = tl.load(ob_ptr + cols).to(tl.float32)[None, :]
    if SPLITS == 1:
        tl.store(out_ptr + at, (acc + bias).to(tl.float16), mask=inside[:, None])
    else:
        store_part(acc, part_ptr, tile, split, SPLITS, BM, E)
        if is_last(counter_ptr + tile, SPLITS):
            acc = sum_parts(part_ptr, tile, SPLITS, BM, E)
            tl.store(out_ptr + at, (acc + bias).to(tl.float16), mask=inside[:, None])


def kernel_call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    skip_weight: Tensor,
    out_bias: Tensor,
    eps: float,
    splits: int,
    out: Tensor,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    rows, c, hidden, e = x.shape[0] * x.shape[1] * x.shape[2], x.shape[-1], weight.shape[0], out_weight.shape[0]
    ka, kb = halves(c)
    tiles = triton.cdiv(rows, ROWS)
    arguments = dict(
        x_ptr=x,
        w_ptr=weight,
        b_ptr=bias,
        ow_ptr=out_weight,
        sw_ptr=skip_weight,
        ob_ptr=out_bias,
        out_ptr=out,
        N=rows,
        KA=ka,
        KB=kb,
        HID=hidden,
        HC=hidden // splits,
        XC=c // splits,
        E=e,
        SPLITS=splits,
        BM=ROWS,
        EPS=eps,
        **scratch(tiles, splits, e, x),
    )
    return KernelCall(point_ffn_kernel, (tiles, splits), arguments, num_warps=4 if c <= 64 and e <= 128 else 8)
