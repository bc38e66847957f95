"""How the click map kernel is verified: equal to the reference, to the last pixel on a circle."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_support import small, specialised
from ..verification import Form, Part, poison
from .reference import click_maps as reference


def form(points: Tensor, height: int, width: int, radius: float) -> Form:
    """For the arguments of the op."""
    return of(points.shape[1] // 2, height, width)


def of(slots: int, height: int, width: int) -> Form:
    """For this many slots of each sign and maps of this size."""
    arguments = {"slots": slots, "height": small(height), "width": small(width)}
    key = (slots, specialised(height), specialised(width))
    return Form(key, f"{slots} slots {height}x{width}", "float32", arguments)


def samples() -> list[Form]:
    """The forms that `activefreq info --verify` tries."""
    return [of(3, 33, 47), of(1, 1, 64)]


def check(device: torch.device, slots: int, height: int, width: int) -> list[Part]:
    """Run the kernel on random points, some of them empty, some on pixel centres, and compare."""
    from .triton_impl import kernel_call

    generator = torch.Generator().manual_seed(0)
    points = torch.rand((2, 2 * slots, 2), generator=generator, dtype=torch.float32) * max(height, width)
    points[:, ::3] = points[:, ::3].round()  # circles that pass through pixel centres
    points[1, 1::4] = -1
    points = points.to(device)
    wrong = 0.0
    for radius in (5.0, 2.7):
        out = torch.empty((2, 2, height, width), dtype=torch.float32, device=device)
        poison(out)
        kernel_call(points, out, radius).run()
        wrong = max(wrong, float((out != reference(points, height, width, radius)).double().mean()))
    return [Part("pixels", wrong, 0.0)]
