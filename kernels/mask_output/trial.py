"""How the mask output kernel is verified: against the float64 definition."""

from __future__ import annotations

import torch
from torch import Tensor

from activefreq_engine.conventions import THRESHOLD

from ..triton_support import Layout, small, specialised
from ..verification import Form, Part, poison
from .reference import MaskOutput, changed_box
from .reference import mask_output as reference

TOLERANCE = 1e-6
"""Largest allowed absolute error of probabilities and entropies."""


def form(logits: Tensor, previous: Tensor, threshold: float) -> Form:
    """For the arguments of the op; `logits` may live on the meta device."""
    (batch, _, h, w), (height, width) = logits.shape, previous.shape[1:]
    kind, layout = str(logits.dtype).removeprefix("torch."), Layout.of(logits)
    key = (kind, *map(specialised, (h, w, height, width)), layout.key)
    arguments = {
        "shape": [min(2, batch), 1, h, w],
        "size": [small(height), small(width)],
        "dtype": kind,
        "strides": list(layout.strides),
        "offset": layout.offset,
    }
    return Form(key, f"{h}x{w} to {height}x{width}", kind, arguments)


def samples() -> list[Form]:
    """The forms that `activefreq info --verify` tries."""
    cases = [(24, 32, 96, 128), (16, 12, 66, 50), (7, 9, 29, 37)]
    kinds = (torch.float32, torch.float16)
    return [
        form(torch.empty(2, 1, h, w, dtype=kind, device="meta"), torch.empty(2, height, width, device="meta"), 0.5)
        for h, w, height, width in cases
        for kind in kinds
    ]


def check(
    device: torch.device, shape: list[int], size: list[int], dtype: str, strides: list[int], offset: int
) -> list[Part]:
    """Run the kernel on random logits and compare; pixels whose probability is at the threshold may fall either way."""
    from .triton_impl import kernel_call

    generator, threshold = torch.Generator().manual_seed(0), THRESHOLD
    layout, whole = Layout(tuple(strides), offset), tuple(shape)
    values = 4 * torch.randn(layout.extent(whole), generator=generator, dtype=torch.float32)
    logits = layout.place(values.to(getattr(torch, dtype)).to(device), whole)
    maps = (shape[0], *size)
    previous = (torch.rand(maps, generator=generator, dtype=torch.float32) < 0.5).to(device)
    probs, entropy = (torch.empty(maps, dtype=torch.float32, device=device) for _ in range(2))
    mask = torch.empty(maps, dtype=torch.bool, device=device)
    poison(probs, entropy, mask)
    changed = torch.tensor([size[1], size[0], 0, 0] * shape[0], dtype=torch.int32, device=device).view(-1, 4)
    kernel_call(logits, previous, MaskOutput(probs, mask, entropy, changed), threshold).run()
    expected = reference(logits, previous, threshold)
    clear = (expected.probs - threshold).abs() > TOLERANCE
    return [
        Part("probabilities", float((probs - expected.probs).abs().max()), TOLERANCE),
        Part("entropies", float((entropy - expected.entropy).abs().max()), TOLERANCE),
        Part("mask", float((mask != expected.mask)[clear].double().mean()), 0.0),
        Part("box of the change", float((changed != changed_box(mask, previous)).double().mean()), 0.0),
    ]
