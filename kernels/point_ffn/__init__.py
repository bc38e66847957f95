"""The FFN of a Freq block together with the projection that directly follows it."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, cannot, expect
from .reference import point_ffn as _reference

__all__ = ["point_ffn", "weights_of"]

MOST_WEIGHTS = 80 * 1024
"""Most bytes of weights that a program may keep in shared memory."""


def weights_of(channels: int, hidden: int, outputs: int, splits: int) -> int:
    """Bytes of weights that each of a tile's programs reads."""
    return 2 * ((channels + outputs) * hidden + outputs * channels) // splits


def point_ffn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    skip_weight: Tensor,
    out_bias: Tensor,
    *,
    eps: float,
    splits: int = 1,
    backend: str = "auto",
) -> Tensor:
    """`gelu(norm(x) @ weight.T + bias) @ out_weight.T + x @ skip_weight.T + out_bias`.

    That is a projection P of an FFN with its residual, `P @ (x + W2 @ g + b2) + p`, with `out_weight = P @ W2`,
    `skip_weight = P` and `out_bias = P @ b2 + p`.

    Args:
        x (Tensor): `[B, H, W, C]`, floating; the kernel is offered for float16.
        weight (Tensor): `[K, C]`.
        bias (Tensor): `[K]`.
        out_weight (Tensor): `[E, K]`.
        skip_weight (Tensor): `[E, C]`.
        out_bias (Tensor): `[E]`.
        eps (float): of the norm, which has no scale and shift.
        splits (int): programs that share 16 pixels; K / splits, C / splits and E must be powers of two from
            16 on. Default: 1.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        Tensor: `[B, H, W, E]` in the dtype of `x`.

    Raises:
        TypeError: not tensors of floating point.
        ValueError: shapes that do not fit together.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    expect("x", x, None, None, None, None)
    expect("weight", weight, None, x.shape[-1])
    expect("bias", bias, len(weight))
    expect("out_weight", out_weight, None, len(weight))
    expect("skip_weight", skip_weight, len(out_weight), x.shape[-1])
    expect("out_bias", out_bias, len(out_weight))
    check_no_gradient("point_ffn", x=x, weight=weight, out_weight=out_weight, skip_weight=skip_weight)
    return _operator(x, weight, bias, out_weight, skip_weight, out_bias, float(eps), splits, backend)


def _outputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    skip_weight: Tensor,
    out_bias: Tensor,
    eps: float,
    splits: int,
) -> tuple[Tensor]:
    return (x.new_empty((*x.shape[:3], out_weight.shape[0])),)


def _limits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    skip_weight: Tensor,
    out_bias: Tensor,
    eps: float,
    splits: int,
) -> str:
    if x.dtype != torch.float16:
        return f"maps are {x.dtype}; offered is float16"
    e, hidden = out_weight.shape
    for side, share in (("hidden", hidden), ("input", x.shape[-1]), ("output", e * splits)):
        part = share // splits
        if share % splits or part < 16 or part & (part - 1) or part > 512:
            return f"{share} {side} channels in {splits} shares; a share must be a power of two from 16 to 512"
    size = weights_of(x.shape[-1], hidden, e, splits)
    if size > MOST_WEIGHTS:
        return f"a program's weights have {size} bytes; at most {MOST_WEIGHTS} fit"
    return cannot(x.shape[-1])


op = FusedOp("point_ffn", _reference, _outputs, _limits)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    skip_weight: Tensor,
    out_bias: Tensor,
    eps: float,
    splits: int,
    backend: str,
) -> Tensor:
    return op(backend, x, weight, bias, out_weight, skip_weight, out_bias, eps, splits)[0]


_operator = operators.define("point_ffn", _run, lambda *arguments: _outputs(*arguments[:-1])[0])
