"""The embedding of the clicks and of the answer before them, drawn and multiplied in one pass."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, expect
from .reference import click_embed as _reference

__all__ = ["click_embed", "taps_of"]


def click_embed(
    previous: Tensor,
    points: Tensor,
    taps: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    c1: Tensor,
    *,
    eps: float,
    radius: float,
    backend: str = "auto",
) -> Tensor:
    """A 7x7 convolution of stride 4 over (previous answer, positive disks, negative disks), its norm, plus `c1`.

    Args:
        previous (Tensor): `[B, H, W]`: float32 probabilities, or uint16 levels, which are 65535 times a probability.
        points (Tensor): float32 `[B, 2 * SLOTS, 2]`, (x, y) in network pixels; see `kernels.click_maps`.
        taps (Tensor): `[3, 64, C]`, see `taps_of`.
        bias (Tensor): `[C]`.
        scale, shift (Tensor): `[C]`, of the norm.
        c1 (Tensor): `[B, ceil(H / 4), ceil(W / 4), C]`, floating; the kernel is offered for float16.
        eps (float): of the norm.
        radius (float): of the disks, pixels.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        Tensor: like `c1`.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: shapes that do not fit together.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    if not isinstance(previous, Tensor) or previous.dtype not in (torch.uint16, torch.float32, torch.float64):
        found = previous.dtype if isinstance(previous, Tensor) else type(previous).__name__
        raise TypeError(f"previous is a {found}; pass uint16 levels or floating-point probabilities")
    if previous.dim() != 3:
        raise ValueError(f"previous has shape {tuple(previous.shape)}; expected [B, H, W]")
    b, h, w = previous.shape
    c = taps.shape[-1]
    expect("c1", c1, b, -(-h // 4), -(-w // 4), c)
    expect("points", points, b, None, 2)
    expect("taps", taps, 3, 64, None)
    for name, t in (("bias", bias), ("scale", scale), ("shift", shift)):
        expect(name, t, c)
    check_no_gradient("click_embed", previous=previous, points=points, taps=taps, c1=c1)
    return _operator(previous, points, taps, bias, scale, shift, c1, float(eps), float(radius), backend)


def taps_of(weight: Tensor) -> Tensor:
    """A convolution's weight `[C, 3, 7, 7]` as `[3, 64, C]`: 8 rows of 8 taps, those beyond the seventh zero."""
    taps = weight.new_zeros(3, 8, 8, len(weight))
    taps[:, :7, :7] = weight.permute(1, 2, 3, 0)
    return taps.flatten(1, 2)


def _outputs(
    previous: Tensor,
    points: Tensor,
    taps: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    c1: Tensor,
    eps: float,
    radius: float,
) -> tuple[Tensor]:
    return (c1.new_empty(c1.shape),)


def _limits(
    previous: Tensor,
    points: Tensor,
    taps: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    c1: Tensor,
    eps: float,
    radius: float,
) -> str:
    if c1.dtype != torch.float16 or points.dtype != torch.float32 or previous.dtype == torch.float64:
        kinds = f"{previous.dtype}, {points.dtype} and {c1.dtype}"
        return f"previous, points and c1 are {kinds}; offered are uint16 or float32, float32, and float16"
    c = taps.shape[-1]
    return f"{c} channels; offered are powers of two, 16 to 128" if c < 16 or c > 128 or c & (c - 1) else ""


op = FusedOp("click_embed", _reference, _outputs, _limits)


def _run(
    previous: Tensor,
    points: Tensor,
    taps: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    c1: Tensor,
    eps: float,
    radius: float,
    backend: str,
) -> Tensor:
    return op(backend, previous, points, taps, bias, scale, shift, c1, eps, radius)[0]


_operator = operators.define("click_embed", _run, lambda *arguments: _outputs(*arguments[:-1])[0])
