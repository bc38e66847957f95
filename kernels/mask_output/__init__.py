"""Turns the network's logits into everything that a click shows, in one pass."""

import torch
from torch import Tensor

from activefreq_engine.conventions import THRESHOLD

from .. import dispatch, operators, triton_support
from ..arguments import check_no_gradient
from ..verification import Trial
from . import trial
from .reference import MaskOutput
from .reference import mask_output as _reference

__all__ = ["MaskOutput", "mask_output"]


def mask_output(logits: Tensor, previous: Tensor, *, threshold: float = THRESHOLD, backend: str = "auto") -> MaskOutput:
    """Upsample logits (bilinear, pixel centres aligned), and derive everything that is shown after a click.

    Args:
        logits (Tensor): `[B, 1, h, w]`, float16, bfloat16, float32 or float64, any strides, finite.
        previous (Tensor): bool `[B, H, W]`, the mask before this click; it sets the size of the result.
        threshold (float): a pixel is in the mask when its probability is above it; inside 0..1. Default: 0.49.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        MaskOutput: probs float32, mask bool, entropy float32 (bits), each `[B, H, W]`; changed int32 `[B, 4]`, the
        half-open box (x0, y0, x1, y1) of what differs from `previous`, (W, H, 0, 0) where nothing does.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: shapes or devices that do not fit together, or a threshold outside 0..1.
        RuntimeError: a tensor requires a gradient.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    _check(logits, previous, threshold)
    return MaskOutput(*_operator(logits, previous, float(threshold), backend))


def _check(logits: Tensor, previous: Tensor, threshold: float) -> None:
    for name, t in (("logits", logits), ("previous", previous)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is a {type(t).__name__}; pass a torch.Tensor")
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits has dtype {logits.dtype}; pass a floating-point tensor")
    if previous.dtype != torch.bool:
        raise TypeError(f"previous has dtype {previous.dtype}; pass torch.bool, for example `mask > 0`")
    if logits.dim() != 4 or logits.shape[1] != 1 or 0 in logits.shape[2:]:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; pass [B, 1, h, w] with at least one pixel")
    if previous.dim() != 3 or previous.shape[0] != logits.shape[0] or 0 in previous.shape[1:]:
        raise ValueError(
            f"previous has shape {tuple(previous.shape)}; for logits {tuple(logits.shape)} pass "
            f"[{logits.shape[0]}, H, W] with at least one pixel"
        )
    if logits.device != previous.device:
        raise ValueError(f"logits is on {logits.device}, previous on {previous.device}; move them to one device")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}; pass a probability, 0 to 1")
    check_no_gradient("mask_output", logits=logits)


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def _run(logits: Tensor, previous: Tensor, threshold: float, backend: str) -> _Outputs:
    found: MaskOutput = dispatch.call("mask_output", logits.device.type, backend, logits, previous, threshold)
    return found.probs, found.mask, found.entropy, found.changed


def _fake(logits: Tensor, previous: Tensor, threshold: float, backend: str) -> _Outputs:
    probs = previous.new_empty(previous.shape, dtype=torch.float32)
    changed = previous.new_empty((previous.shape[0], 4), dtype=torch.int32)
    return probs, previous.new_empty(previous.shape), torch.empty_like(probs), changed


_operator = operators.define("mask_output", _run, _fake)


def _triton(logits: Tensor, previous: Tensor, threshold: float) -> MaskOutput:
    from .triton_impl import mask_output

    return mask_output(logits, previous, threshold)


def _verify_triton(
    logits: Tensor | None = None, previous: Tensor | None = None, threshold: float = 0.5
) -> dispatch.Verdict:
    ok, reason = triton_support.available()
    if not ok or logits is None or previous is None:
        return ok, reason
    if logits.dtype == torch.float64:
        return False, "logits are float64; offered are float16, bfloat16 and float32"
    (h, w), (height, width) = logits.shape[2:], previous.shape[1:]
    if max(h * height, w * width) >= 2**30:
        return False, f"{h}x{w} logits to {height}x{width}: sides whose product is 2^30 or more overflow 32 bits"
    return True, ""


dispatch.register("mask_output", "reference", _reference, devices=("cpu", "cuda"), priority=0)
dispatch.register(
    "mask_output",
    "triton",
    _triton,
    devices=triton_support.DEVICES,
    priority=10,
    verify=_verify_triton,
    trial=Trial(trial.form, trial.check, trial.samples),
)
