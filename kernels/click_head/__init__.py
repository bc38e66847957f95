"""The end of a click: from the four stages' shares of the fused map to levels of 16 bits, in one pass."""

import torch
from torch import Tensor

from .. import operators
from ..arguments import check_no_gradient
from ..fused import FusedOp, expect
from .reference import click_head as _reference

__all__ = ["click_head"]


def click_head(
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    weight: Tensor,
    bias: Tensor,
    levels: Tensor,
    total: Tensor,
    *,
    keep: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Enlarge three maps to the first and add up, ReLU, head, enlarge by four, sigmoid; levels and their sum.

    Enlargements are bilinear with pixel centres aligned.

    Args:
        p1 (Tensor): `[B, h, w, E]`, floating, h and w multiples of 8; the kernel is offered for float16.
        p2, p3, p4 (Tensor): the same with sides divided by 2, 4 and 8.
        weight (Tensor): float32 `[E]`, of the head.
        bias (Tensor): float32 `[1]`.
        levels (Tensor): uint16 `[B, 4h, 4w]`, filled: 65535 times the probability, rounded; meaningless where `total`
            is NaN.
        total (Tensor): float32 `[B]`, filled: the sum of each item's probabilities, NaN if one of them is.
        keep (bool): whether the fused map and the logits are returned. Default: True.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        tuple: the fused map `[B, h, w, E]` in the dtype of `p1`, and logits float32 `[B, 1, 4h, 4w]`; without `keep`
        both have no items.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: shapes that do not fit together.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    expect("p1", p1, None, None, None, None)
    b, h, w, e = p1.shape
    if h % 8 or w % 8:
        raise ValueError(f"p1 has shape {tuple(p1.shape)}; its sides must be multiples of 8")
    for k, part in enumerate((p2, p3, p4), 1):
        expect(f"p{k + 1}", part, b, h >> k, w >> k, e)
    expect("weight", weight, e)
    expect("bias", bias, 1)
    expect("total", total, b)
    if levels.dtype != torch.uint16 or levels.shape != (b, 4 * h, 4 * w):
        raise ValueError(f"levels is {levels.dtype} {tuple(levels.shape)}; expected uint16 {(b, 4 * h, 4 * w)}")
    check_no_gradient("click_head", p1=p1, p2=p2, p3=p3, p4=p4, weight=weight)
    return _operator(p1, p2, p3, p4, weight, bias, levels, total, keep, backend)


def _outputs(
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    weight: Tensor,
    bias: Tensor,
    levels: Tensor,
    total: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    b, h, w, e = p1.shape
    items = b if keep else 0
    return p1.new_empty((items, h, w, e)), total.new_empty((items, 1, 4 * h, 4 * w))


def _limits(
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    weight: Tensor,
    bias: Tensor,
    levels: Tensor,
    total: Tensor,
    keep: bool,
) -> str:
    if p1.dtype != torch.float16 or weight.dtype != torch.float32 or total.dtype != torch.float32:
        return f"maps are {p1.dtype}, the head's weight {weight.dtype}; offered are float16 and float32"
    e = p1.shape[-1]
    return f"{e} channels; offered are multiples of 32" if e % 32 else ""


op = FusedOp("click_head", _reference, _outputs, _limits, written=("levels", "total"))


def _run(
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    weight: Tensor,
    bias: Tensor,
    levels: Tensor,
    total: Tensor,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    fused, logits = op(backend, p1, p2, p3, p4, weight, bias, levels, total, keep)
    torch.autograd.graph.increment_version([t for t in (levels, total) if not t.is_inference()])
    return fused, logits


_operator = operators.define(
    "click_head", _run, lambda *arguments: _outputs(*arguments[:-1]), writes=("levels", "total")
)
