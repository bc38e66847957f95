"""The FreqModule in one Triton launch.  README.md has the mathematics.

A *plane* is an M x N matrix inside a quarter, filtered by one program; the quarters differ only in strides:

    pair   rows (M)   columns (N)   planes       filter
    hw     H          W             C'           one per plane
    cw     C'         W             H            shared
    ch     C'         H             W            shared

The depth-wise quarter is cut into tiles of rows.  Every program writes straight into its place of the output.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from .. import operators
from ..triton_support import INTERPRETING, KernelCall, pad

FP16_MAX = 65504.0 * 0.99  # less what the rounding of tables and operands can add

SMALLEST_INPUT_LIMIT = 24.0
"""Layer-normalised maps of C channels stay within sqrt(C), which is 22.6 for the widest stage of MiT."""


# ---- device code

MOST_ROWS = tl.constexpr(32)
# Of a product.  From 64 rows on Triton takes the instructions of a warp group (wgmma, compute capability 9.0) or of
# tensor memory (tcgen05, 10.0), and with the former an fp16 kernel was silently wrong on an H200 (Triton 3.6).  With
# fewer rows every device from 8.0 on runs mma.sync.  `bench.gates.triton_kernels` checks that in the binaries.


@triton.jit
def _to_tf32(v):
    # Round to nearest at 10 mantissa bits, on the bit pattern.  Used in the interpreter only.
    bits = v.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _operand(v, PRECISION: tl.constexpr):
    return v.to(tl.float16) if PRECISION == "fp16" else v.to(tl.float32)


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr, EMULATE: tl.constexpr):
    # acc + a @ b, accumulated in fp32.  The interpreter ignores input_precision: there the operands are rounded the
    # way a tensor core would, and multiplied in fp32.
    if PRECISION == "fp16":
        return tl.dot(a, b, acc)
    elif EMULATE and PRECISION == "tf32":
        return tl.dot(_to_tf32(a), _to_tf32(b), acc, input_precision="ieee")
    elif EMULATE and PRECISION == "tf32x3":
        a_high = _to_tf32(a)
        b_high = _to_tf32(b)
        low = tl.dot(_to_tf32(a - a_high), b_high, input_precision="ieee")
        low = tl.dot(a_high, _to_tf32(b - b_high), low, input_precision="ieee")
        return acc + low + tl.dot(a_high, b_high, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _row_transform(
    x,  # operand [NP, MP]: the plane, columns first
    half_ptr,
    K0: tl.constexpr,  # first of these columns of the half spectrum
    NP: tl.constexpr,
    MP: tl.constexpr,
    KP: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    # Real input, half spectrum, the Nyquist bin in the imaginary slot of column 0: two operands [CHUNK, MP].
    rk = K0 + tl.arange(0, CHUNK)[:, None]
    zero = tl.zeros((CHUNK, MP), dtype=tl.float32)
    forward = half_ptr + tl.arange(0, NP)[None, :] * KP + rk
    yr = _operand(_dot(tl.load(forward), x, zero, PRECISION, EMULATE), PRECISION)
    yi = _operand(_dot(tl.load(forward + NP * KP), x, zero, PRECISION, EMULATE), PRECISION)
    return yr, yi


@triton.jit
def _filtered(
    yr,  # see `_row_transform`
    yi,
    cos,  # operand [MP, MP], symmetric
    sin,
    filter_ptr,
    nyquist_ptr,
    K0: tl.constexpr,
    M: tl.constexpr,
    MP: tl.constexpr,
    KP: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    # CHUNK filtered columns of the spectrum, as the four operands [CHUNK, MP] of the inverse column transform.
    rm = tl.arange(0, MP)[None, :]
    rk = K0 + tl.arange(0, CHUNK)[:, None]
    row = rm < M
    zero = tl.zeros((CHUNK, MP), dtype=tl.float32)
    # Column transform as four real products, those with the same table together: both do not fit into the registers.
    a = _dot(yr, cos, zero, PRECISION, EMULATE)
    p = _dot(yi, cos, zero, PRECISION, EMULATE)
    b = _dot(yr, sin, zero, PRECISION, EMULATE)
    q = _dot(yi, sin, zero, PRECISION, EMULATE)
    # Filter, and lay out the operands of the inverse column transform.  Column 0 holds two real columns.
    at = filter_ptr + rm * KP + rk
    gr = tl.load(at, mask=row, other=0.0)
    gi = tl.load(at + M * KP, mask=row, other=0.0)
    nyquist_re = tl.load(nyquist_ptr + rm, mask=row, other=0.0)
    nyquist_im = tl.load(nyquist_ptr + M + rm, mask=row, other=0.0)
    zr = a + q
    zi = p - b
    vr = gr * zr - gi * zi
    vi = gr * zi + gi * zr
    first = rk == 0
    u0 = _operand(tl.where(first, gr * a + gi * b, vr), PRECISION)
    u1 = _operand(tl.where(first, gr * b - gi * a, -vi), PRECISION)
    u2 = _operand(tl.where(first, nyquist_re * p + nyquist_im * q, vi), PRECISION)
    u3 = _operand(tl.where(first, nyquist_re * q - nyquist_im * p, vr), PRECISION)
    return u0, u1, u2, u3


@triton.jit
def _add_inverse(
    out,  # fp32 [BLOCK, NP]: these rows of the plane, so far
    u0,  # see `_filtered`
    u1,
    u2,
    u3,
    cos_ptr,  # these rows of the table, which is symmetric: [MP, BLOCK] from here
    half_ptr,
    K0: tl.constexpr,
    MP: tl.constexpr,
    NP: tl.constexpr,
    KP: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    # Adds what CHUNK columns of the spectrum give to BLOCK rows.
    rb = tl.arange(0, BLOCK)[:, None]
    rn = tl.arange(0, NP)[None, :]
    rk = K0 + tl.arange(0, CHUNK)[:, None]
    zero = tl.zeros((BLOCK, CHUNK), dtype=tl.float32)
    at = cos_ptr + rb * MP + tl.arange(0, MP)[None, :]
    cos = tl.load(at)
    sin = tl.load(at + MP * MP)
    wr = _dot(cos, tl.trans(u0), zero, PRECISION, EMULATE)
    wi = _dot(cos, tl.trans(u2), zero, PRECISION, EMULATE)
    wr = _dot(sin, tl.trans(u1), wr, PRECISION, EMULATE)
    wi = _dot(sin, tl.trans(u3), wi, PRECISION, EMULATE)
    # Inverse row transform, back to real samples.
    inverse = half_ptr + 2 * NP * KP + rk * NP + rn
    out = _dot(_operand(wr, PRECISION), tl.load(inverse), out, PRECISION, EMULATE)
    return _dot(_operand(wi, PRECISION), tl.load(inverse + KP * NP), out, PRECISION, EMULATE)


@triton.jit
def _filter_plane(
    x_ptr,  # first element of this plane in the input
    y_ptr,  # the same in the output
    r_ptr,  # the same in the residual
    filter_ptr,  # re, im: fp32 [2, M, KP], zero beyond the half spectrum
    nyquist_ptr,  # re, im of its last column: fp32 [2, M], zero for odd N
    full_ptr,  # cos, sin of the row axis: [2, MP, MP]
    half_ptr,  # half spectrum of the column axis: forward [2, NP, KP], then inverse [2, KP, NP]
    x_stride_m,
    x_stride_n,
    y_stride_m,
    y_stride_n,
    r_stride_m,
    r_stride_n,
    M: tl.constexpr,
    N: tl.constexpr,
    MP: tl.constexpr,
    NP: tl.constexpr,
    KP: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    # No product has more than MOST_ROWS rows, see there: the spectrum has its columns as rows, CHUNK of them at a time,
    # and the plane comes back in BLOCKs of rows, which at 128 leave registers for little else.
    CHUNK: tl.constexpr = min(KP, MOST_ROWS)
    BLOCK: tl.constexpr = 16 if MP >= 128 else min(MP, MOST_ROWS)
    rm = tl.arange(0, MP)[None, :]
    rn = tl.arange(0, NP)[:, None]
    # Only the tables are padded with zeros; the signal is masked, so its sides need not be powers of two.
    x = tl.load(x_ptr + rm * x_stride_m + rn * x_stride_n, mask=(rm < M) & (rn < N), other=0.0)
    x = _operand(x, PRECISION)
    yr, yi = _row_transform(x, half_ptr, 0, NP, MP, KP, CHUNK, PRECISION, EMULATE)
    if KP > CHUNK:
        zr, zi = _row_transform(x, half_ptr, CHUNK, NP, MP, KP, CHUNK, PRECISION, EMULATE)
    square = full_ptr + tl.arange(0, MP)[:, None] * MP + rm
    cos = tl.load(square)
    sin = tl.load(square + MP * MP)
    u0, u1, u2, u3 = _filtered(yr, yi, cos, sin, filter_ptr, nyquist_ptr, 0, M, MP, KP, CHUNK, PRECISION, EMULATE)
    if KP > CHUNK:
        v0, v1, v2, v3 = _filtered(
            zr, zi, cos, sin, filter_ptr, nyquist_ptr, CHUNK, M, MP, KP, CHUNK, PRECISION, EMULATE
        )
    rn = tl.arange(0, NP)[None, :]
    for m0 in range(0, MP, BLOCK):
        out = tl.zeros((BLOCK, NP), dtype=tl.float32)
        out = _add_inverse(
            out, u0, u1, u2, u3, full_ptr + m0 * MP, half_ptr, 0, MP, NP, KP, CHUNK, BLOCK, PRECISION, EMULATE
        )
        if KP > CHUNK:
            out = _add_inverse(
                out, v0, v1, v2, v3, full_ptr + m0 * MP, half_ptr, CHUNK, MP, NP, KP, CHUNK, BLOCK, PRECISION, EMULATE
            )
        rows = m0 + tl.arange(0, BLOCK)[:, None]
        inside = (rows < M) & (rn < N)
        if RESIDUAL:
            r = tl.load(r_ptr + rows * r_stride_m + rn * r_stride_n, mask=inside, other=0.0)
            out += r.to(tl.float32)
        tl.store(y_ptr + rows * y_stride_m + rn * y_stride_n, out.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _depthwise_rows(
    x_ptr,  # first element of this channel in the input
    y_ptr,  # the same in the output
    r_ptr,  # the same in the residual
    weight_ptr,  # fp32 [KS, KS] of this channel
    bias_ptr,  # fp32, this channel's
    h0,
    x_stride_h,
    x_stride_w,
    y_stride_h,
    y_stride_w,
    r_stride_h,
    r_stride_w,
    H: tl.constexpr,
    W: tl.constexpr,
    WP: tl.constexpr,
    KS: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    rh = h0 + tl.arange(0, ROWS)
    rw = tl.arange(0, WP)
    acc = tl.zeros((ROWS, WP), dtype=tl.float32) + tl.load(bias_ptr)
    for dy in tl.static_range(KS):
        for dx in tl.static_range(KS):
            h = rh + (dy - KS // 2)
            w = rw + (dx - KS // 2)
            inside = ((h >= 0) & (h < H))[:, None] & ((w >= 0) & (w < W))[None, :]
            v = tl.load(x_ptr + h[:, None] * x_stride_h + w[None, :] * x_stride_w, mask=inside, other=0.0)
            acc += v.to(tl.float32) * tl.load(weight_ptr + dy * KS + dx)
    inside = (rh < H)[:, None] & (rw < W)[None, :]
    if RESIDUAL:
        r = tl.load(r_ptr + rh[:, None] * r_stride_h + rw[None, :] * r_stride_w, mask=inside, other=0.0)
        acc += r.to(tl.float32)
    y = y_ptr + rh[:, None] * y_stride_h + rw[None, :] * y_stride_w
    tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def freq_module_kernel(
    x_ptr,  # input, [B, 4*CQ, H, W], any strides
    y_ptr,  # output, same shape, any strides
    r_ptr,  # what is added to the output, same shape, any strides; never read unless RESIDUAL
    filter_ptr,  # fp32, `pack_filters`
    table_ptr,  # operand type, `tables`
    weight_ptr,  # fp32 [CQ, KS, KS]
    bias_ptr,  # fp32 [CQ]
    x_stride_b,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    y_stride_b,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    r_stride_b,
    r_stride_c,
    r_stride_h,
    r_stride_w,
    CQ: tl.constexpr,  # sizes are compile-time constants: it saves a quarter of the registers at 64 x 64
    H: tl.constexpr,
    W: tl.constexpr,
    KS: tl.constexpr,
    CP: tl.constexpr,  # CQ, H, W and the half spectra of H, W, padded
    HP: tl.constexpr,
    WP: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PLANES: tl.constexpr,  # neighbouring planes of a shared filter handled by one program
    ROWS: tl.constexpr,  # rows of a depth-wise tile
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    HW_PROGRAMS: tl.constexpr = CQ
    CW_PROGRAMS: tl.constexpr = (H + PLANES - 1) // PLANES
    CH_PROGRAMS: tl.constexpr = (W + PLANES - 1) // PLANES
    CW_START: tl.constexpr = HW_PROGRAMS
    CH_START: tl.constexpr = CW_START + CW_PROGRAMS
    DW_START: tl.constexpr = CH_START + CH_PROGRAMS
    ROW_TILES: tl.constexpr = (H + ROWS - 1) // ROWS
    # Parts of the two packed buffers.
    FULL_C: tl.constexpr = 2 * HP * HP
    HALF_W: tl.constexpr = FULL_C + 2 * CP * CP
    HALF_H: tl.constexpr = HALF_W + 4 * WP * KW
    HW_NYQUIST: tl.constexpr = 2 * CQ * H * KW
    CW_FILTER: tl.constexpr = HW_NYQUIST + 2 * CQ * H
    CW_NYQUIST: tl.constexpr = CW_FILTER + 2 * CQ * KW
    CH_FILTER: tl.constexpr = CW_NYQUIST + 2 * CQ
    CH_NYQUIST: tl.constexpr = CH_FILTER + 2 * CQ * KH

    # Images run fastest: the long programs of all images start first.
    image = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    x_ptr += image * x_stride_b
    y_ptr += image * y_stride_b
    r_ptr += image * r_stride_b
    if program < CW_START:
        c = program
        _filter_plane(
            x_ptr + c * x_stride_c,
            y_ptr + c * y_stride_c,
            r_ptr + c * r_stride_c,
            filter_ptr + c * (2 * H * KW),
            filter_ptr + HW_NYQUIST + c * (2 * H),
            table_ptr,
            table_ptr + HALF_W,
            x_stride_h,
            x_stride_w,
            y_stride_h,
            y_stride_w,
            r_stride_h,
            r_stride_w,
            H,
            W,
            HP,
            WP,
            KW,
            RESIDUAL,
            PRECISION,
            EMULATE,
        )
    elif program < CH_START:
        for j in range(PLANES):
            h = (program - CW_START) * PLANES + j
            if h < H:
                _filter_plane(
                    x_ptr + CQ * x_stride_c + h * x_stride_h,
                    y_ptr + CQ * y_stride_c + h * y_stride_h,
                    r_ptr + CQ * r_stride_c + h * r_stride_h,
                    filter_ptr + CW_FILTER,
                    filter_ptr + CW_NYQUIST,
                    table_ptr + FULL_C,
                    table_ptr + HALF_W,
                    x_stride_c,
                    x_stride_w,
                    y_stride_c,
                    y_stride_w,
                    r_stride_c,
                    r_stride_w,
                    CQ,
                    W,
                    CP,
                    WP,
                    KW,
                    RESIDUAL,
                    PRECISION,
                    EMULATE,
                )
    elif program < DW_START:
        for j in range(PLANES):
            w = (program - CH_START) * PLANES + j
            if w < W:
                _filter_plane(
                    x_ptr + 2 * CQ * x_stride_c + w * x_stride_w,
                    y_ptr + 2 * CQ * y_stride_c + w * y_stride_w,
                    r_ptr + 2 * CQ * r_stride_c + w * r_stride_w,
                    filter_ptr + CH_FILTER,
                    filter_ptr + CH_NYQUIST,
                    table_ptr + FULL_C,
                    table_ptr + HALF_H,
                    x_stride_c,
                    x_stride_h,
                    y_stride_c,
                    y_stride_h,
                    r_stride_c,
                    r_stride_h,
                    CQ,
                    H,
                    CP,
                    HP,
                    KH,
                    RESIDUAL,
                    PRECISION,
                    EMULATE,
                )
    else:
        c = (program - DW_START) // ROW_TILES
        _depthwise_rows(
            x_ptr + (3 * CQ + c) * x_stride_c,
            y_ptr + (3 * CQ + c) * y_stride_c,
            r_ptr + (3 * CQ + c) * r_stride_c,
            weight_ptr + c * (KS * KS),
            bias_ptr + c,
            (program - DW_START) % ROW_TILES * ROWS,
            x_stride_h,
            x_stride_w,
            y_stride_h,
            y_stride_w,
            r_stride_h,
            r_stride_w,
            H,
            W,
            WP,
            KS,
            ROWS,
            RESIDUAL,
        )


# ---- tables and filters, made once


def half(n: int) -> int:
    """Columns of the packed half spectrum of n real samples: the n//2+1 bins, less the Nyquist bin of an even n."""
    return (n + 1) // 2


def _phase(rows: int, columns: int, n: int) -> NDArray[np.float64]:
    # The integer phase is reduced modulo n before it becomes an angle, or large ones lose digits.
    return np.outer(np.arange(rows), np.arange(columns)).astype(np.float64) % n * (2 * np.pi / n)


def divisor(n: int) -> int:
    """What the tables of n samples are divided by: the power of two next below sqrt(n), or sqrt(n) itself.

    So the entries 1 and -1, by which the mean of a map passes each of four tables, lose nothing when they are rounded
    to half precision; divided by sqrt(48) they would all be wrong by the same 3e-4.  `correction` makes up for it.
    """
    return 1 << (n.bit_length() - 1) // 2


def correction(m: int, n: int) -> float:
    """What filters of M x N planes are multiplied by, so that transforms by `divisor` are orthonormal together."""
    return divisor(m) ** 2 / m * (divisor(n) ** 2 / n)


def _full_table(n: int, padded: int) -> NDArray[np.float64]:
    """cos and sin of the DFT of n samples, over `divisor`: [2, padded, padded]."""
    table = np.zeros((2, padded, padded))
    table[0, :n, :n] = np.cos(_phase(n, n, n))
    table[1, :n, :n] = np.sin(_phase(n, n, n))
    return table.ravel() / divisor(n)


def _half_table(n: int, padded: int, half_padded: int) -> NDArray[np.float64]:
    """DFT of n real samples to and from the packed half spectrum, over `divisor`: forward, then inverse."""
    k = half(n)
    phase = _phase(n, k, n)
    nyquist = np.where(np.arange(n) % 2, -1.0, 1.0) * (n % 2 == 0)
    forward = np.zeros((2, padded, half_padded))
    forward[0, :n, :k] = np.cos(phase)
    forward[1, :n, :k] = -np.sin(phase)
    forward[1, :n, 0] = nyquist
    inverse = np.zeros((2, half_padded, padded))
    inverse[:, :k, :n] = 2 * forward[:, :n, :k].transpose(0, 2, 1)  # bins and their mirror images
    inverse[:, 0, :n] /= 2  # DC and Nyquist have none
    return np.concatenate([forward.ravel(), inverse.ravel()]) / divisor(n)


@functools.lru_cache(maxsize=32)
def tables(channels: int, height: int, width: int) -> NDArray[np.float64]:
    """All tables of one size, in the order in which `freq_module_kernel` finds them."""
    return np.concatenate(
        [
            _full_table(height, pad(height)),
            _full_table(channels, pad(channels)),
            _half_table(width, pad(width), pad(half(width))),
            _half_table(height, pad(height), pad(half(height))),
        ]
    )


def pack_filters(filters: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Complex filters as `torch.fft.rfft2` has them -> one fp32 vector: per filter [planes, 2, M, KP], then the
    Nyquist columns [planes, 2, M].  They make up for the tables' `divisor`."""
    parts = []
    for f, n in zip(filters, (size[1], size[1], size[0]), strict=True):
        scaled = f.to(torch.complex128) * correction(f.shape[-2], n)
        planes = torch.view_as_real(scaled if f.dim() == 3 else scaled[None]).float().movedim(-1, 1)
        # [planes, 2, M, n//2+1]
        k = half(n)
        body = planes.new_zeros(*planes.shape[:3], pad(k))
        body[..., :k] = planes[..., :k]
        nyquist = planes[..., k] if n % 2 == 0 else planes.new_zeros(planes.shape[:3])
        parts += [body.flatten(), nyquist.flatten()]
    return torch.cat(parts)


# ---- launch


@dataclass(frozen=True, slots=True)
class Launch:
    """What may be tuned without changing the result."""

    num_warps: int
    planes: int = 1


def default_launch(channels: int, height: int, width: int) -> Launch:
    """The compile gate checks these: no spills in fp16 at any size, up to WAIVED bytes a thread in tf32x3."""
    # At 128 the operands of a product do not fit into the registers of 4 warps.
    return Launch(8 if max(pad(channels), pad(height), pad(width)) >= 128 else 4)


REGISTERS = 255
"""All that a thread may have: left alone, the assembler of Triton 3.6 spills a few bytes for the sake of occupancy."""


def strides(t: Tensor) -> tuple[int, ...]:
    """Of a tensor [B, 4C', H, W]; 0 for an axis of one element, along which nothing moves.

    torch gives such an axis any stride.  In a map one sample wide both sides may have a stride of 1, which Triton makes
    a constant and takes for two contiguous axes.
    """
    return tuple(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True))


def kernel_call(
    x: Tensor,
    out: Tensor,
    table: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor,
    precision: str,
    residual: Tensor | None = None,
    launch: Launch | None = None,
) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    added = x if residual is None else residual
    batch, channels, h, w = x.shape
    cq = channels // 4
    launch = launch or default_launch(cq, h, w)
    kh, kw, rows = pad(half(h)), pad(half(w)), min(16, pad(h))
    programs = cq + -(-h // launch.planes) + -(-w // launch.planes) + cq * -(-h // rows)
    tensors = dict(x_ptr=x, y_ptr=out, r_ptr=added, filter_ptr=filters, table_ptr=table)
    tensors |= dict(weight_ptr=weight, bias_ptr=bias)
    steps = {
        f"{name}_stride_{axis}": step
        for name, t in (("x", x), ("y", out), ("r", added))
        for axis, step in zip("bchw", strides(t), strict=True)
    }
    sizes = dict(CQ=cq, H=h, W=w, KS=weight.shape[-1], CP=pad(cq), HP=pad(h), WP=pad(w), KH=kh, KW=kw)
    parts = dict(PLANES=launch.planes, ROWS=rows)
    arguments = {**tensors, **steps, **sizes, **parts, "PRECISION": precision, "EMULATE": INTERPRETING}
    arguments["RESIDUAL"] = residual is not None
    return KernelCall(freq_module_kernel, (batch, programs), arguments, launch.num_warps, registers=REGISTERS)


class Runner:
    """Packed filters and tables of one map size, ready to launch."""

    def __init__(
        self,
        filter_hw: Tensor,
        filter_cw: Tensor,
        filter_ch: Tensor,
        dw_weight: Tensor,
        dw_bias: Tensor | None,
        *,
        size: tuple[int, int],
        precision: str,
    ) -> None:
        channels, device, largest = filter_hw.shape[0], filter_hw.device, largest_gain(filter_hw, filter_cw, filter_ch)
        self.precision = precision
        self.input_limit = float("inf")
        if precision == "fp16":
            self.input_limit = input_limit(largest, channels, size)
        operand = torch.float16 if precision == "fp16" else torch.float32
        self.tables = torch.from_numpy(tables(channels, *size)).to(operand).to(device)
        self.filters = pack_filters((filter_hw, filter_cw, filter_ch), size)
        self.weight = dw_weight.detach().float().clone(memory_format=torch.contiguous_format)
        bias = torch.zeros(channels, device=device) if dw_bias is None else dw_bias
        self.bias = bias.detach().float().clone(memory_format=torch.contiguous_format)

    def __call__(self, x: Tensor, out: Tensor | None, residual: Tensor | None) -> Tensor:
        """Launch; see `FreqModulePlan.__call__`.  The arguments are not checked here."""
        packed = (self.tables, self.filters, self.weight, self.bias, self.precision, residual)
        if out is None:
            return _operator(x, *packed)
        _out_operator(x, *packed, out)
        return out


def largest_gain(*filters: Tensor) -> float:
    """The largest |G| of all filters.  Waits for the device."""
    gain = float(torch.stack([f.abs().max() for f in filters]).max())
    if not math.isfinite(gain):
        raise ValueError(f"a filter reaches |G| = {gain}; pass finite filters")
    return gain


def input_limit(gain: float, channels: int, size: tuple[int, int]) -> float:
    """The largest |x| for which no fp16 operand can overflow.

    For M x N planes these are the row transform, at most max|x| times the sum of a table's row, N / `divisor`; and the
    filtered spectrum and its column inverse.  With orthonormal transforms these two are at most
    sqrt(M N) max|x| max|G|, the inverse because it is unitary; the tables and `correction` leave the spectrum smaller
    by both ratios of `divisor` to the root, the inverse by that of N.
    """
    h, w = size
    most = 0.0
    for m, n in ((h, w), (channels, w), (channels, h)):
        most = max(most, n / divisor(n), gain * (m * n) ** 0.5 * divisor(n) / n**0.5)
    limit = FP16_MAX / most
    if limit < SMALLEST_INPUT_LIMIT:
        raise ValueError(
            f"the filters reach |G| = {gain:g} on {h}x{w} maps: fp16 operands could overflow for inputs beyond "
            f"{limit:.3g}, and at least {SMALLEST_INPUT_LIMIT:g} is asked for; use precision='tf32x3', or clamp the "
            "filters"
        )
    return limit


def _run(
    x: Tensor,
    tables: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor,
    precision: str,
    residual: Tensor | None,
) -> Tensor:
    out = torch.empty_like(x)
    kernel_call(x, out, tables, filters, weight, bias, precision, residual).run()
    return out


def _run_out(
    x: Tensor,
    tables: Tensor,
    filters: Tensor,
    weight: Tensor,
    bias: Tensor,
    precision: str,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    kernel_call(x, out, tables, filters, weight, bias, precision, residual).run()
    torch.autograd.graph.increment_version(out)


_operator = operators.define("freq_module_packed", _run, lambda x, *_: torch.empty_like(x))
_out_operator = operators.define("freq_module_packed_out", _run_out, lambda *_: None, writes=("out",))
