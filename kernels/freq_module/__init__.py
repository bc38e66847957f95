"""FreqModule: depth-wise convolution of one channel quarter, learned spectral filters on the other three."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import dispatch, operators, triton_support
from ..arguments import check_no_gradient
from ..verification import Trial
from . import reference, trial
from .plan import (
    FreqModulePlan,
    check_input,
    check_like,
    check_parameters,
    input_dtypes,
)
from .recent import Parameters, RecentPlans

__all__ = ["FreqModulePlan", "freq_module"]

LARGEST = 128
"""Largest H, W and C' of the Triton kernel; beyond that a fast Fourier transform wins over matrix products."""

LARGEST_TF32 = 64
"""The same for operands of tf32x3 and tf32: above it they do not fit into registers and shared memory."""

LARGEST_BOTH = 64
"""C' and a side of the map may not both be above this: too few registers would be left.  No encoder has such maps."""


def freq_module(
    x: Tensor,
    filter_hw: Tensor,
    filter_cw: Tensor,
    filter_ch: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    *,
    precision: str = "fp16",
    backend: str = "auto",
    out: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The FreqModule of ActiveFreq (arXiv 2603.11498, Figure 4), for inference.

    The channels are four quarters of C'.  The first three go through a real 2-D DFT (norm "ortho"), a filter and the
    inverse DFT, over (H, W), (C', W) and (C', H); the half spectrum is on the last axis of the pair, as
    ``torch.fft.rfft2(x, dim=pair)`` has it.  The fourth goes through a depth-wise convolution with zero padding.

    On the Triton backend the first call with these tensors packs them into a `FreqModulePlan`; further calls find it
    and cost one launch.  If a tensor is written to in between, this is noticed and it is packed again, except for
    writes that autograd does not notice either: through ``.data`` or memory shared with NumPy.  Tensors made under
    `torch.inference_mode` do not count writes, so they are packed at every call.  With a `FreqModulePlan` of your own
    none of this matters.

    Args:
        x (Tensor): `[B, 4C', H, W]`, float16, bfloat16 or float32 (float64 for complex128 filters), any strides.
        filter_hw (Tensor): complex64 `[C', H, W//2+1]`.
        filter_cw (Tensor): complex64 `[C', W//2+1]`, shared by all rows.
        filter_ch (Tensor): complex64 `[C', H//2+1]`, shared by all columns.
        dw_weight (Tensor): `[C', 1, k, k]`, floating, k one of 3, 5, 7.
        dw_bias (Tensor, optional): `[C']`, floating.
        precision (str): of the matrix operands on the Triton backend: "fp16", "tf32x3" (close to float32) or "tf32";
            sums are in float32.  README.md has the errors. Default: "fp16".
        backend (str): see `kernels.dispatch`. Default: "auto".
        out (Tensor, optional): where to write; like `x` in shape, dtype and device, overlapping neither it nor
            `residual`.
        residual (Tensor, optional): added to the result in the same launch; like `x` in shape, dtype and device.

    Returns:
        Tensor: `[B, 4C', H, W]` in the dtype and layout of `x`, or `out`.

    Raises:
        TypeError, ValueError, BackendUnavailableError: see `FreqModulePlan` and its call.
        RuntimeError: a tensor requires a gradient.
    """
    parameters = (filter_hw, filter_cw, filter_ch, dw_weight, dw_bias)
    _check(x, parameters, precision)
    check_like(x, out, residual)
    if out is None:
        return _operator(x, *parameters, precision, backend, residual)
    _out_operator(x, *parameters, precision, backend, residual, out)
    return out


def _check(x: Tensor, parameters: Parameters, precision: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; pass a torch.Tensor")
    if x.dim() != 4 or x.shape[1] % 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; pass [B, C, H, W] with C a multiple of 4")
    check_parameters(*parameters, size=(x.shape[2], x.shape[3]), precision=precision)
    shape = (4 * parameters[0].shape[0], x.shape[2], x.shape[3])
    check_input(x, shape, input_dtypes(parameters[0]), parameters[0].device)
    names = ("filter_hw", "filter_cw", "filter_ch", "dw_weight", "dw_bias")
    check_no_gradient("freq_module", **dict(zip(names, parameters, strict=True)))


# ---- what torch.compile and torch.export see

_recent = RecentPlans(16)


def _plan(x: Tensor, parameters: Parameters, precision: str, backend: str) -> FreqModulePlan:
    device, size = x.device.type, (x.shape[2], x.shape[3])
    chosen = dispatch.select("freq_module", device, backend, *parameters, size=size, precision=precision).name
    if chosen == "reference":  # packs nothing: nothing is worth keeping
        return FreqModulePlan(*parameters, size=size, precision=precision, backend=chosen)
    # a plan that was given a name would count as asked for by name, and run without a trial
    named = dispatch.is_named("freq_module", device, backend, *parameters, size=size, precision=precision)
    return _recent.get(parameters, size, precision, chosen if named else "auto")


def _run(
    x: Tensor,
    filter_hw: Tensor,
    filter_cw: Tensor,
    filter_ch: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    precision: str,
    backend: str,
    residual: Tensor | None,
) -> Tensor:
    return _plan(x, (filter_hw, filter_cw, filter_ch, dw_weight, dw_bias), precision, backend)(x, None, residual)


def _run_out(
    x: Tensor,
    filter_hw: Tensor,
    filter_cw: Tensor,
    filter_ch: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    precision: str,
    backend: str,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    _plan(x, (filter_hw, filter_cw, filter_ch, dw_weight, dw_bias), precision, backend)(x, out, residual)


_operator = operators.define("freq_module", _run, lambda x, *_: torch.empty_like(x))
_out_operator = operators.define("freq_module_out", _run_out, lambda *_: None, writes=("out",))


# ---- implementations: made from the parameters, then called with (x, out, residual)


class _Reference:
    input_limit = math.inf

    def __init__(
        self, hw: Tensor, cw: Tensor, ch: Tensor, weight: Tensor, bias: Tensor | None, *, size: object, precision: str
    ) -> None:
        self.parameters = (hw.clone(), cw.clone(), ch.clone(), weight.clone(), None if bias is None else bias.clone())

    def __call__(self, x: Tensor, out: Tensor | None, residual: Tensor | None) -> Tensor:
        return reference.freq_module(x, *self.parameters, out, residual)


def _triton(*parameters: Any, size: tuple[int, int], precision: str) -> Any:
    from .triton_impl import Runner

    return Runner(*parameters, size=size, precision=precision)


def _verify_triton(*parameters: Any, size: tuple[int, int] = (1, 1), precision: str = "fp16") -> dispatch.Verdict:
    ok, reason = triton_support.available()
    if not ok or not parameters:
        return ok, reason
    filter_hw, (h, w) = parameters[0], size
    if filter_hw.dtype != torch.complex64:
        return False, f"the filters are {filter_hw.dtype}; only complex64 is offered"
    largest = LARGEST if precision == "fp16" else LARGEST_TF32
    channels = filter_hw.shape[0]
    if max(channels, h, w) > largest:
        return False, f"C' = {channels} on {h}x{w} maps; in {precision} each is offered up to {largest}"
    if min(channels, max(h, w)) > LARGEST_BOTH:
        return False, f"C' = {channels} on {h}x{w} maps; C' or the sides must be {LARGEST_BOTH} or less"
    return True, ""


dispatch.register("freq_module", "reference", _Reference, devices=("cpu", "cuda"), priority=0)
dispatch.register(
    "freq_module",
    "triton",
    _triton,
    devices=triton_support.DEVICES,
    priority=10,
    verify=_verify_triton,
    trial=Trial(lambda *_, **__: None, trial.check),  # the form is that of the input: a plan asks when it sees it
)
