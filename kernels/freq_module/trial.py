"""How the FreqModule kernel is verified: each quarter by itself, against float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..triton_support import INTERPRETING, Layout
from ..verification import Form, Part
from . import reference

TOLERANCE = {"fp16": 1e-3, "tf32x3": 4e-6, "tf32": 5e-3}
"""Relative error of a spectral quarter in the Euclidean norm, by precision; of the depth-wise one `DEPTHWISE`."""

DEPTHWISE = 1e-6

ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""The error that rounding the output may add."""

RUNS = 1 if INTERPRETING else 3  # a race may not show in the first run


def form(x: Tensor, out: Tensor | None, residual: Tensor | None, side: int, precision: str) -> Form:
    """The form for these tensors, which may live on the meta device, and a depth-wise kernel of `side` x `side`."""
    channels, height, width = x.shape[1:]
    layouts = [Layout.of(x), Layout.of(torch.empty_like(x, device="meta") if out is None else out)]
    if residual is not None:
        layouts.append(Layout.of(residual))
    kind = str(x.dtype).removeprefix("torch.")
    last = ", channels last" if x.stride(1) == 1 and channels > 1 else ""
    plus = "" if residual is None else ", plus residual"
    key = (channels // 4, height, width, side, precision, kind, *(layout.key for layout in layouts))
    arguments: dict[str, Any] = {"shape": [min(2, x.shape[0]), channels, height, width], "side": side}
    arguments |= {"precision": precision, "dtype": kind, "layouts": [[*la.strides, la.offset] for la in layouts]}
    return Form(key, f"C'={channels // 4} {height}x{width} ({precision}{last}{plus})", kind, arguments)


def check(
    device: torch.device, shape: list[int], side: int, precision: str, dtype: str, layouts: list[list[int]]
) -> list[Part]:
    """Run the kernel on random maps and filters around 1, and compare with the CPU: the FFT of a device is a library of
    its own, which may be wrong where the kernel is right."""
    from .triton_impl import Runner

    generator = torch.Generator().manual_seed(0)
    kind, size, quarter = getattr(torch, dtype), tuple(shape), shape[1] // 4
    height, width = shape[2:]

    def normal(*size: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
        return (mean + scale * torch.randn(size, generator=generator, dtype=torch.float32)).to(device)

    def spectrum(*size: int) -> Tensor:
        return torch.complex(normal(*size, mean=1.0, scale=0.3), normal(*size, scale=0.3))

    def maps(layout: list[int], mean: float) -> Tensor:
        where = Layout(tuple(layout[:-1]), layout[-1])
        return where.place(normal(where.extent(size), mean=mean).to(kind), size)

    filters = (
        spectrum(quarter, height, width // 2 + 1),
        spectrum(quarter, width // 2 + 1),
        spectrum(quarter, height // 2 + 1),
    )
    weight, bias = normal(quarter, 1, side, side, scale=1 / side), normal(quarter)
    x, residual = maps(layouts[0], 0.5), maps(layouts[2], 0.0) if len(layouts) > 2 else None
    hw, cw, ch = (f.cpu().to(torch.complex128) for f in filters)
    added = None if residual is None else residual.cpu().double()
    exact = reference.freq_module(x.cpu().double(), hw, cw, ch, weight.cpu(), bias.cpu(), None, added)
    expected = exact.chunk(4, 1)
    runner, errors = Runner(*filters, weight, bias, size=(height, width), precision=precision), []
    for _ in range(RUNS):
        out = maps(layouts[1], float("nan"))
        runner(x, out, residual)
        quarters = zip(out.cpu().double().chunk(4, 1), expected, strict=True)
        errors.append(torch.stack([(y - e).norm() / e.norm() for y, e in quarters]))
    worst = torch.stack(errors).amax(0).tolist()  # NaN stays
    allowed = [TOLERANCE[precision]] * 3 + [DEPTHWISE]
    names = ("quarter hw", "quarter cw", "quarter ch", "depth-wise quarter")
    return [Part(n, e, a + ROUNDING[kind]) for n, e, a in zip(names, worst, allowed, strict=True)]
