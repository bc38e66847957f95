"""Keys and values of a reduced map, as the encoder's efficient attention has them."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, cannot, expect
from .reference import reduce_kv as _reference

__all__ = ["reduce_kv"]


def reduce_kv(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    kv_weight: Tensor,
    *,
    eps: float,
    splits: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Reduce a map by a convolution whose stride is its kernel, normalise, and multiply to keys and values.

    Args:
        x (Tensor): `[B, H, W, C]`, normalised pixels, floating; the kernel is offered for float16.
        reduce_weight (Tensor): `[C, R, R, C]`, output channels first; rows and columns beyond the last whole R are
            dropped.
        reduce_bias (Tensor): `[C]`.
        kv_weight (Tensor): `[2C, C]`, keys first.
        eps (float): of the norm, which has no scale and shift.
        splits (int): programs that share 16 reduced pixels; C / splits must be a power of two from 16 on. Default: 1.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        Tensor: `[B, (H // R) * (W // R), 2C]` in the dtype of `x`.

    Raises:
        TypeError: not tensors of floating point.
        ValueError: shapes that do not fit together.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    expect("x", x, None, None, None, None)
    c = x.shape[-1]
    expect("reduce_weight", reduce_weight, c, reduce_weight.shape[1], reduce_weight.shape[1], c)
    expect("reduce_bias", reduce_bias, c)
    expect("kv_weight", kv_weight, 2 * c, c)
    check_no_gradient("reduce_kv", x=x, reduce_weight=reduce_weight, reduce_bias=reduce_bias, kv_weight=kv_weight)
    return _operator(x, reduce_weight, reduce_bias, kv_weight, float(eps), splits, backend)


def _outputs(
    x: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, kv_weight: Tensor, eps: float, splits: int
) -> tuple[Tensor]:
    b, h, w, c = x.shape
    ratio = reduce_weight.shape[1]
    return (x.new_empty((b, (h // ratio) * (w // ratio), 2 * c)),)


def _limits(x: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, kv_weight: Tensor, eps: float, splits: int) -> str:
    if x.dtype != torch.float16:
        return f"maps are {x.dtype}; offered is float16"
    c = x.shape[-1]
    share = c // splits
    if c % splits or (splits > 1 and (share < 16 or share & (share - 1))):
        return f"{c} channels in {splits} shares; a share must be a power of two from 16 on"
    return cannot(c)


op = FusedOp("reduce_kv", _reference, _outputs, _limits)


def _run(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    kv_weight: Tensor,
    eps: float,
    splits: int,
    backend: str,
) -> Tensor:
    return op(backend, x, reduce_weight, reduce_bias, kv_weight, eps, splits)[0]


_operator = operators.define("reduce_kv", _run, lambda *arguments: _outputs(*arguments[:-1])[0])
