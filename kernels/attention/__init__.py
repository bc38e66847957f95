"""Attention of a map's pixels to few keys, with what comes before and after it."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, cannot, expect
from .reference import attention as _reference

__all__ = ["attention"]

MOST_KEYS = 256
"""All keys lie in one tile of the kernel."""

HEADS = (32, 64)
"""Channels that a head may have in the kernel."""


def attention(
    xn: Tensor,
    x: Tensor,
    kv: Tensor | None,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    heads: int,
    eps: float,
    splits: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Queries from normalised pixels, attention to keys, projection, residual, and the next layer's norm.

    Args:
        xn (Tensor): `[B, H, W, C]`, normalised pixels; without `q_weight` `[B, H, W, 3C]`: queries, keys and values.
        x (Tensor): `[B, H, W, C]`, the residual; floating.  The kernel is offered for float16.
        kv (Tensor, optional): `[B, NK, 2C]`, keys first; None exactly if `q_weight` is.
        q_weight (Tensor, optional): `[C, C]`.
        q_bias (Tensor, optional): `[C]`; given exactly if `q_weight` is.
        proj_weight (Tensor): `[C, C]`.
        proj_bias (Tensor): `[C]`.
        heads (int): each has C / heads neighbouring channels.
        eps (float): of the norm of the result, which has no scale and shift.
        splits (int): programs that share 16 pixels; divides `heads`. Default: 1.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        tuple: `y` `[B, H, W, C]` and its norm, in the dtype of `x`.

    Raises:
        TypeError: not tensors of floating point.
        ValueError: shapes that do not fit together, or only one of `kv`, `q_weight` and `q_bias` is given.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    expect("x", x, None, None, None, None)
    b, h, w, c = x.shape
    if kv is None and q_weight is None and q_bias is None:
        expect("xn", xn, b, h, w, 3 * c)
    elif kv is None or q_weight is None or q_bias is None:
        raise ValueError("kv, q_weight and q_bias belong together; give all of them, or none and all three in xn")
    else:
        expect("xn", xn, b, h, w, c)
        expect("kv", kv, b, None, 2 * c)
        expect("q_weight", q_weight, c, c)
        expect("q_bias", q_bias, c)
    expect("proj_weight", proj_weight, c, c)
    expect("proj_bias", proj_bias, c)
    if heads < 1 or c % heads or heads % splits:
        raise ValueError(f"{c} channels, {heads} heads, {splits} splits: each must be a multiple of the next")
    check_no_gradient("attention", xn=xn, x=x, kv=kv, q_weight=q_weight, proj_weight=proj_weight)
    return _operator(xn, x, kv, q_weight, q_bias, proj_weight, proj_bias, heads, float(eps), splits, backend)


def _outputs(
    xn: Tensor,
    x: Tensor,
    kv: Tensor | None,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    eps: float,
    splits: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _limits(
    xn: Tensor,
    x: Tensor,
    kv: Tensor | None,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    eps: float,
    splits: int,
) -> str:
    if x.dtype != torch.float16:
        return f"maps are {x.dtype}; offered is float16"
    keys = x.shape[1] * x.shape[2] if kv is None else kv.shape[1]
    if keys > MOST_KEYS:
        return f"{keys} keys; offered are up to {MOST_KEYS}"
    if x.shape[-1] // heads not in HEADS:
        return f"heads of {x.shape[-1] // heads} channels; offered are {HEADS}"
    if heads % splits:
        return f"{heads} heads in {splits} shares"
    return cannot(x.shape[-1])


op = FusedOp("attention", _reference, _outputs, _limits)


def _run(
    xn: Tensor,
    x: Tensor,
    kv: Tensor | None,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    eps: float,
    splits: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y, normed = op(backend, xn, x, kv, q_weight, q_bias, proj_weight, proj_bias, heads, eps, splits)
    return y, normed


_operator = operators.define("attention", _run, lambda *arguments: _outputs(*arguments[:-1]))
