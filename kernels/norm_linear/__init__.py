"""A linear layer of a map's pixels, with the norm before it and what comes after it."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, cannot, expect
from .reference import norm_linear as _reference

__all__ = ["norm_linear"]


def norm_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float | None = None,
    gelu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Normalise pixels (optional), multiply by a weight, then apply GELU or add a residual (both optional).

    The norm has no scale and shift: fold them into the weight (`runtime.plan.rewrites.fold_norm_affine`).

    Args:
        x (Tensor): `[B, H, W, C]`, floating; the kernel is offered for float16.
        weight (Tensor): `[O, C]`.
        bias (Tensor, optional): `[O]`.
        residual (Tensor, optional): `[B, H, W, O]`, added at the end.
        eps (float, optional): of the norm; None: `x` is not normalised. Default: None.
        gelu (bool): the exact GELU after the product. Default: False.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        Tensor: `[B, H, W, O]` in the dtype of `x`.

    Raises:
        TypeError: not tensors of floating point.
        ValueError: shapes that do not fit together.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    expect("x", x, None, None, None, None)
    expect("weight", weight, None, x.shape[-1])
    if bias is not None:
        expect("bias", bias, len(weight))
    if residual is not None:
        expect("residual", residual, *x.shape[:3], len(weight))
    check_no_gradient("norm_linear", x=x, weight=weight, bias=bias, residual=residual)
    return _operator(x, weight, bias, residual, eps, gelu, backend)


def _outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float | None, gelu: bool
) -> tuple[Tensor]:
    return (x.new_empty((*x.shape[:3], weight.shape[0])),)


def _limits(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float | None, gelu: bool
) -> str:
    if x.dtype != torch.float16:
        return f"maps are {x.dtype}; offered is float16"
    return cannot(x.shape[-1])


op = FusedOp("norm_linear", _reference, _outputs, _limits)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float | None,
    gelu: bool,
    backend: str,
) -> Tensor:
    return op(backend, x, weight, bias, residual, eps, gelu)[0]


_operator = operators.define("norm_linear", _run, lambda *arguments: _outputs(*arguments[:-1])[0])
