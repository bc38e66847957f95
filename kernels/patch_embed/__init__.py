"""An overlapping patch embedding with its norm: how a stage of a Mix Transformer begins."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, cannot, expect
from .reference import patch_embed as _reference

__all__ = ["patch_embed"]


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    added: Tensor | None = None,
    eps: float,
    next_eps: float,
    splits: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A 3x3 convolution of stride 2 with zero padding, its norm, what a guide adds to it, and the next layer's norm.

    Args:
        x (Tensor): `[B, H, W, I]`, floating; the kernel is offered for float16.
        weight (Tensor): `[C, 3, 3, I]`, output channels first.
        bias (Tensor): `[C]`.
        scale, shift (Tensor): `[C]`, of the embedding's norm.
        added (Tensor, optional): `[B, (H + 1) // 2, (W + 1) // 2, C]`, added after the embedding's norm.
        eps, next_eps (float): of the two norms; the second has no scale and shift.
        splits (int): programs that share 16 pixels; C / splits must be a power of two from 16 on. Default: 1.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        tuple: `y` `[B, (H + 1) // 2, (W + 1) // 2, C]` and its norm, in the dtype of `x`.

    Raises:
        TypeError: not tensors of floating point.
        ValueError: shapes that do not fit together.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    expect("x", x, None, None, None, None)
    expect("weight", weight, None, 3, 3, x.shape[-1])
    for name, t in (("bias", bias), ("scale", scale), ("shift", shift)):
        expect(name, t, len(weight))
    if added is not None:
        expect("added", added, *_shape(x, weight))
    check_no_gradient("patch_embed", x=x, weight=weight, bias=bias, scale=scale, shift=shift, added=added)
    return _operator(x, weight, bias, scale, shift, added, float(eps), float(next_eps), splits, backend)


def _shape(x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    b, h, w, _ = x.shape
    return b, (h + 1) // 2, (w + 1) // 2, len(weight)


def _outputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    added: Tensor | None,
    eps: float,
    next_eps: float,
    splits: int,
) -> tuple[Tensor, Tensor]:
    shape = _shape(x, weight)
    return x.new_empty(shape), x.new_empty(shape)


def _limits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    added: Tensor | None,
    eps: float,
    next_eps: float,
    splits: int,
) -> str:
    if x.dtype != torch.float16:
        return f"maps are {x.dtype}; offered is float16"
    c = len(weight)
    share = c // splits
    if c % splits or (splits > 1 and (share < 16 or share & (share - 1))):
        return f"{c} channels in {splits} shares; a share must be a power of two from 16 on"
    return cannot(x.shape[-1]) or cannot(c)


op = FusedOp("patch_embed", _reference, _outputs, _limits)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    added: Tensor | None,
    eps: float,
    next_eps: float,
    splits: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y, normed = op(backend, x, weight, bias, scale, shift, added, eps, next_eps, splits)
    return y, normed


_operator = operators.define("patch_embed", _run, lambda *arguments: _outputs(*arguments[:-1]))
