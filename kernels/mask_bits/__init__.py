"""Paints the mask as packed bits, in whole numbers, on the device that holds the network's answer."""

import torch
from torch import Tensor

from .. import dispatch, operators, triton_support
from ..verification import Trial
from . import trial
from .reference import mask_bits as _reference

__all__ = ["mask_bits"]


def mask_bits(levels: Tensor, asked: Tensor, bits: Tensor, found: Tensor, *, backend: str = "auto") -> None:
    """Paint regions of any size by the rule of `session.painter`.

    Args:
        levels (Tensor): uint16 `[B, h, w]`, 65535 times the probability, contiguous.
        asked (Tensor): int32 `[B, 8]`: height and width of the region in pixels; the limit, a uint32 with these bits;
            the first row to paint, and how many (0 for none); 1 if `bits` holds the previous mask of the same rows,
            else 0; two unused numbers.
        bits (Tensor): int32 `[B, capacity]`, written: row after row, each of ``ceil(width / 32)`` words, pixel x being
            bit ``x % 32`` of word ``x // 32``.
        found (Tensor): int32 `[B, 8]`, written where rows were asked for: the box (x0, y0, x1, y1) of the mask in these
            rows, half-open, in pixels of the region, (width, height, 0, 0) if it is empty; then the box of the pixels
            that differ from the previous mask, or of the mask again if that was not known.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit together.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    for name, t, kind, sides in (
        ("levels", levels, torch.uint16, 3),
        ("asked", asked, torch.int32, 2),
        ("bits", bits, torch.int32, 2),
        ("found", found, torch.int32, 2),
    ):
        if t.dtype != kind:
            raise TypeError(f"{name} is {t.dtype}; expected {kind}")
        if t.dim() != sides or len(t) != len(levels) or not t.is_contiguous():
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}; expected {sides} sides, {len(levels)} items, contiguous"
            )
    if asked.shape[1] != 8 or found.shape[1] != 8:
        raise ValueError(f"asked and found have shapes {tuple(asked.shape)} and {tuple(found.shape)}; expected [B, 8]")
    _operator(levels, asked, bits, found, backend)


def _run(levels: Tensor, asked: Tensor, bits: Tensor, found: Tensor, backend: str) -> None:
    dispatch.call("mask_bits", levels.device.type, backend, levels, asked, bits, found)
    torch.autograd.graph.increment_version([t for t in (bits, found) if not t.is_inference()])


_operator = operators.define("mask_bits", _run, lambda *_: None, writes=("bits", "found"))


def _triton(levels: Tensor, asked: Tensor, bits: Tensor, found: Tensor) -> None:
    from .triton_impl import kernel_call

    if len(levels):
        kernel_call(levels, asked, bits, found).run()


def _verify_triton(*arguments: Tensor) -> dispatch.Verdict:
    return triton_support.available()


dispatch.register("mask_bits", "reference", _reference, devices=("cpu", "cuda"), priority=0)
dispatch.register(
    "mask_bits",
    "triton",
    _triton,
    devices=triton_support.DEVICES,
    priority=10,
    verify=_verify_triton,
    trial=Trial(trial.form, trial.check, trial.samples),
)


def paints(device: torch.device, capacity: int) -> bool:
    """Whether the kernel may paint on a device, with room for so many words.  The reference is never used for it: it
    would wait for the device."""
    if device.type not in triton_support.DEVICES or not triton_support.available()[0]:
        return False
    if dispatch.requested("mask_bits", device.type) != "auto":
        return dispatch.requested("mask_bits", device.type) == "triton"
    return dispatch.proven("mask_bits", "triton", device, trial.of(capacity))[0]
