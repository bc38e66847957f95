"""How the painter's kernel is verified: equal to the definition in every bit."""

from __future__ import annotations

import torch
from torch import Tensor

from ..verification import Form, Part, poison
from .reference import mask_bits as reference

CASES = (((24, 32), (96, 131)), ((24, 32), (7, 5)), ((1, 3), (40, 2)), ((24, 32), (300, 21)), ((3, 2), (1, 600)))
"""Levels (h, w), and pixels (height, width) of the region."""


def form(levels: Tensor, asked: Tensor, bits: Tensor, found: Tensor) -> Form:
    """One binary for each number of programs, which follows from the room for bits."""
    from .triton_impl import kernel_call

    meta = [torch.empty_like(t, device="meta") for t in (levels, asked, bits, found)]
    programs = kernel_call(*meta).arguments["PROGRAMS"]
    return Form((programs,), f"{programs} programs", "uint16", {"capacity": bits.shape[1]})


def of(capacity: int) -> Form:
    """The form for room for so many words of 32 pixels."""
    kinds = ((1, 8, 8), torch.uint16), ((1, 8), torch.int32), ((1, capacity), torch.int32), ((1, 8), torch.int32)
    return form(*(torch.empty(shape, dtype=kind, device="meta") for shape, kind in kinds))


def samples() -> list[Form]:
    """The forms that `activefreq info --verify` tries."""
    return [of(12 << 15)]  # as an engine has it: 12 megapixels


def drawn(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """uint16 levels, many well above or below one half and some near it."""
    values = torch.rand((2, *shape), generator=generator, dtype=torch.float32)
    return ((values * 3 - 1).clamp(0, 1) * 65535).round().to(torch.uint16)


def check(device: torch.device, capacity: int) -> list[Part]:
    """Paint random levels twice, so that the second mask can differ from a first one, and compare everything."""
    from .triton_impl import kernel_call

    generator, limit = torch.Generator().manual_seed(0), 2104533975
    wrong = 0.0
    room = max(capacity, 2048)  # the largest case takes 960
    for shape, (height, width) in CASES:
        bits, found = (torch.empty((2, n), dtype=torch.int32) for n in (room, 8))
        poison(bits, found)
        ours = bits.to(device), found.to(device)
        for known in (0, 1):
            levels = drawn(shape, generator)
            asked = torch.tensor([[height, width, limit, 0, height, known, 0, 0]] * 2, dtype=torch.int32)
            reference(levels, asked, bits, found)
            kernel_call(levels.to(device), asked.to(device), *ours).run()
            words = height * -(-width // 32)
            wrong += float((ours[0].cpu()[:, :words] != bits[:, :words]).double().mean())
            wrong += float((ours[1].cpu() != found).double().mean())
    return [Part("bits and boxes", wrong, 0.0)]
