"""The second half of a Mix Transformer's FFN, with what comes after it."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, cannot, expect
from .reference import conv_ffn as _reference

__all__ = ["conv_ffn"]


def conv_ffn(
    h: Tensor,
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    next_scale: Tensor | None = None,
    next_shift: Tensor | None = None,
    *,
    eps: float = 0.0,
    next_eps: float,
    splits: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Depth-wise 3x3 convolution with zero padding, GELU, product, residual, and norms.

    Args:
        h (Tensor): `[B, H, W, K]`, floating; the kernel is offered for float16.
        x (Tensor): `[B, H, W, C]`, the residual.
        taps (Tensor): `[9, K]`, the convolution's, row by row.
        taps_bias (Tensor): `[K]`.
        weight (Tensor): `[C, K]`.
        bias (Tensor): `[C]`.
        scale, shift (Tensor, optional): `[C]`, of a norm of the sum, which then is `y`; None: the sum is not
            normalised.
        next_scale, next_shift (Tensor, optional): `[C]`, of the norm of `y`; None: that norm has no scale and shift.
        eps, next_eps (float): of the two norms.
        splits (int): programs that share 16 pixels; K / splits must be a multiple of 64. Default: 1.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        tuple: `y` `[B, H, W, C]` and its norm, in the dtype of `x`.

    Raises:
        TypeError: not tensors of floating point.
        ValueError: shapes that do not fit together.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    expect("x", x, None, None, None, None)
    c, k = x.shape[-1], h.shape[-1]
    expect("h", h, *x.shape[:3], None)
    expect("taps", taps, 9, k)
    expect("taps_bias", taps_bias, k)
    expect("weight", weight, c, k)
    expect("bias", bias, c)
    for name, first, second in (("scale", scale, shift), ("next_scale", next_scale, next_shift)):
        if (first is None) != (second is None):
            raise ValueError(f"{name} is given without its shift, or the other way round; give both or none")
        if first is not None and second is not None:
            expect(name, first, c)
            expect(name.replace("scale", "shift"), second, c)
    check_no_gradient("conv_ffn", h=h, x=x, taps=taps, weight=weight)
    norms = (scale, shift, float(eps), next_scale, next_shift, float(next_eps))
    return _operator(h, x, taps, taps_bias, weight, bias, *norms, splits, backend)


def _outputs(
    h: Tensor,
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    next_scale: Tensor | None,
    next_shift: Tensor | None,
    next_eps: float,
    splits: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _limits(h: Tensor, x: Tensor, *rest: object) -> str:
    if x.dtype != torch.float16:
        return f"maps are {x.dtype}; offered is float16"
    splits = rest[-1]
    assert isinstance(splits, int)
    if h.shape[-1] % (64 * splits):
        return f"{h.shape[-1]} hidden channels in {splits} shares; a share must be a multiple of 64"
    return cannot(x.shape[-1])


op = FusedOp("conv_ffn", _reference, _outputs, _limits)


def _run(
    h: Tensor,
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    next_scale: Tensor | None,
    next_shift: Tensor | None,
    next_eps: float,
    splits: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    norms = (scale, shift, eps, next_scale, next_shift, next_eps)
    y, normed = op(backend, h, x, taps, taps_bias, weight, bias, *norms, splits)
    return y, normed


_operator = operators.define("conv_ffn", _run, lambda *arguments: _outputs(*arguments[:-1]))
