"""Norm, product, GELU and residual in one launch.

Each program computes 64 columns of 16 rows.  Every column tile reads its rows and normalises them anew.  A row has at
most 512 channels and lies in registers as a whole, so its statistics are exact (two passes over the registers).
"""

import triton
import triton.language as tl
from torch import Tensor

from ..fused import halves
from ..triton_rows import ROWS, gelu, load_rows, load_weight, multiply
from ..triton_support import KernelCall

COLUMNS = 64


@triton.jit(do_not_specialize=["N", "OUT"])
def norm_linear_kernel(
    x_ptr,  # fp16 [N, KA + KB]
    w_ptr,  # fp16 [OUT, KA + KB]
    b_ptr,  # fp16 [OUT]
    r_ptr,  # fp16 [N, OUT]
    y_ptr,  # fp16 [N, OUT]
    N,
    OUT,
    KA: tl.constexpr,
    KB: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    wa, wb = load_weight(w_ptr + cols * (KA + KB), cols < OUT, KA, KB, True)  # on its way while rows are normalised
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < N
    xa, xb = load_rows(x_ptr, row, inside, KA, KB, NORM, EPS)
    acc = multiply(xa, xb, wa, wb, tl.zeros((BM, BN), tl.float32), KB)
    if BIAS:
        acc += tl.load(b_ptr + cols, mask=cols < OUT, other=0.0).to(tl.float32)[None, :]
    if GELU:
        acc = gelu(acc)
    at = row[:, None] * OUT + cols[None, :]
    mask = inside[:, None] & (cols < OUT)[None, :]
    if RESIDUAL:
        acc += tl.load(r_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, acc.to(tl.float16), mask=mask)


def kernel_call(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float | None, gelu: bool, out: Tensor
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    rows, outputs = x.shape[0] * x.shape[1] * x.shape[2], weight.shape[0]
    ka, kb = halves(x.shape[-1])
    arguments = dict(
        x_ptr=x,
        w_ptr=weight,
        b_ptr=weight if bias is None else bias,
        r_ptr=x if residual is None else residual,
        y_ptr=out,
        N=rows,
        OUT=outputs,
        KA=ka,
        KB=kb,
        BM=ROWS,
        BN=COLUMNS,
        NORM=eps is not None,
        EPS=eps or 0.0,
        BIAS=bias is not None,
        GELU=gelu,
        RESIDUAL=residual is not None,
    )
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(outputs, COLUMNS))
    return KernelCall(norm_linear_kernel, grid, arguments, num_warps=4)
