"""The mask output in one Triton kernel: each logit map is read once, nothing intermediate is written."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_support import KernelCall
from .reference import MaskOutput

TILE_H, TILE_W = 8, 128


@triton.jit
def _source(i, n_in, n_out):
    # Where output pixel i lies among the input pixels: index before it, index after it, fraction between.  In integers,
    # max((2i+1) n_in - n_out, 0) / 2 n_out, so that no rounding moves a pixel across an index.
    place = tl.maximum((2 * i + 1) * n_in - n_out, 0)
    before = tl.minimum(place // (2 * n_out), n_in - 1)
    fraction = (place - before * (2 * n_out)).to(tl.float32) / (2.0 * n_out)
    return before, tl.minimum(before + 1, n_in - 1), fraction


@triton.jit
def mask_output_kernel(
    logits_ptr,  # [B, 1, h, w], any strides
    previous_ptr,  # uint8 [B, H, W] contiguous, 0 or 1
    probs_ptr,  # fp32 [B, H, W]
    mask_ptr,  # uint8 [B, H, W]
    entropy_ptr,  # fp32 [B, H, W], bits
    changed_ptr,  # int32 [B, 4], (W, H, 0, 0) before the launch
    stride_b,
    stride_h,
    stride_w,
    h,
    w,
    H,
    W,
    threshold,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    ys = tl.program_id(1) * TILE_H + tl.arange(0, TILE_H)
    xs = tl.program_id(0) * TILE_W + tl.arange(0, TILE_W)
    inside = (ys < H)[:, None] & (xs < W)[None, :]
    y0, y1, fy = _source(ys, h, H)
    x0, x1, fx = _source(xs, w, W)
    row0 = logits_ptr + image * stride_b + y0[:, None] * stride_h
    row1 = logits_ptr + image * stride_b + y1[:, None] * stride_h
    left = x0[None, :] * stride_w
    right = x1[None, :] * stride_w
    z00 = tl.load(row0 + left, mask=inside, other=0.0).to(tl.float32)
    z01 = tl.load(row0 + right, mask=inside, other=0.0).to(tl.float32)
    z10 = tl.load(row1 + left, mask=inside, other=0.0).to(tl.float32)
    z11 = tl.load(row1 + right, mask=inside, other=0.0).to(tl.float32)
    top = z00 + (z01 - z00) * fx[None, :]
    bottom = z10 + (z11 - z10) * fx[None, :]
    z = top + (bottom - top) * fy[:, None]

    # e <= 1 whatever the sign, so nothing overflows; of p and 1-p, `larger` is the one >= 1/2.
    size = tl.abs(z)
    e = tl.exp(-size)
    larger = 1.0 / (1.0 + e)
    probs = tl.where(z >= 0, larger, e * larger)
    bits = (tl.log(1.0 + e) + size * e * larger) * 1.4426950408889634
    bits = tl.where(bits > 1.0, 1.0, bits)
    chosen = probs > threshold

    at = image * H * W + ys[:, None] * W + xs[None, :]
    previous = tl.load(previous_ptr + at, mask=inside, other=0)
    tl.store(probs_ptr + at, probs, mask=inside)
    tl.store(entropy_ptr + at, bits, mask=inside)
    tl.store(mask_ptr + at, chosen.to(tl.uint8), mask=inside)

    differs = inside & (chosen != (previous != 0))
    any_row = tl.max(differs.to(tl.int32), axis=1) > 0
    any_column = tl.max(differs.to(tl.int32), axis=0) > 0
    last = tl.max(tl.where(any_row, ys + 1, 0), axis=0)
    if last > 0:
        # Integer minimum and maximum: the result does not depend on the order of the tiles.
        box = changed_ptr + image * 4
        tl.atomic_min(box, tl.min(tl.where(any_column, xs, W), axis=0))
        tl.atomic_min(box + 1, tl.min(tl.where(any_row, ys, H), axis=0))
        tl.atomic_max(box + 2, tl.max(tl.where(any_column, xs + 1, 0), axis=0))
        tl.atomic_max(box + 3, last)


@functools.lru_cache(maxsize=64)
def _nothing(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """Boxes around nothing, kept on the device: copying them needs no transfer from the host."""
    return torch.tensor([width, height, 0, 0] * batch, dtype=torch.int32, device=device).view(batch, 4)


def kernel_call(logits: Tensor, previous: Tensor, out: MaskOutput, threshold: float) -> KernelCall:
    """The launch for these tensors; they may live on the meta device."""
    batch, height, width = previous.shape
    tensors = dict(
        logits_ptr=logits,
        previous_ptr=previous.contiguous().view(torch.uint8),
        probs_ptr=out.probs,
        mask_ptr=out.mask.view(torch.uint8),
        entropy_ptr=out.entropy,
        changed_ptr=out.changed,
    )
    strides = dict(stride_b=logits.stride(0), stride_h=logits.stride(2), stride_w=logits.stride(3))
    sizes = dict(h=logits.shape[2], w=logits.shape[3], H=height, W=width, TILE_H=TILE_H, TILE_W=TILE_W)
    arguments = {**tensors, **strides, **sizes, "threshold": threshold}
    grid = (triton.cdiv(width, TILE_W), triton.cdiv(height, TILE_H), batch)
    return KernelCall(mask_output_kernel, grid, arguments, num_warps=4)


def mask_output(logits: Tensor, previous: Tensor, threshold: float) -> MaskOutput:
    """See `kernels.mask_output`."""
    shape, device = previous.shape, previous.device
    out = MaskOutput(
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.bool, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        _nothing(*shape, device).clone(),
    )
    if shape[0]:
        kernel_call(logits, previous, out, threshold).run()
    return out
