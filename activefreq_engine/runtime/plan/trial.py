"""How a plan on a CPU is verified: each layer at the size at which it runs there, in memory full of NaN.

oneDNN compiles its kernels for the present CPU and sizes, so a layer that is right at one size may be wrong at another.
A kernel that reads memory which nobody wrote looks right as long as harmless numbers happen to be there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activefreq_engine.kernels import verification
from activefreq_engine.kernels.verification import Form, Part, Question
from activefreq_engine.runtime.plan.layers import Conv, Linear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative error of a layer in the Euclidean norm; one pixel of garbage among 64 x 64 is 1.5e-2."""

NUMBERS = 99_991
"""How many random numbers are drawn; a prime, so that it divides no size."""

PackedLayer = Linear | Conv | nn.Conv2d
KINDS = (Linear, Conv, nn.Conv2d)
_Case = tuple[Any, ...]


def source() -> str:
    """Fingerprint of the code that is tried."""
    return verification.source(Path(__file__).parent)


def question(
    name: str,
    key: tuple[Any, ...],
    modules: Iterable[nn.Module],
    dtype: torch.dtype,
    run: Callable[[], Any],
) -> Question:
    """Whether the layers of some modules are right when `run` runs them, on a CPU.

    Args:
        name: what is tried, for people.
        key: what the trial depends on: sizes, and `fingerprint` of the modules.
        modules: whose linear layers and convolutions are looked at.
        dtype: of their weights.
        run: calls each layer in every size in which it will be called.
    """
    kind = str(dtype).removeprefix("torch.")
    form = Form((*key, kind), name, kind, {})
    return Question("layers", "onednn", torch.device("cpu"), form, lambda _: _check(_layers(modules), run), source())


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Fingerprint of the kinds and sizes of all layers; the values of their weights do not matter."""
    return hashlib.sha256(repr(list(map(_weights, _layers(modules)))).encode()).hexdigest()[:16]


def _check(layers: list[PackedLayer], run: Callable[[], Any]) -> Iterator[Part]:
    with _recording(layers) as cases:
        run()
    numbers = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    for (_, shape, strides, added), layer in cases.items():
        dtype = layer.weight.dtype
        x = torch.empty_strided(shape, strides, dtype=dtype).copy_(_random(shape, numbers))
        arguments = (x,) if added is None else (x, _random(added, numbers).to(dtype))
        expected = _reference(layer, *arguments)
        layer(*(torch.full_like(t, float("nan")) for t in arguments))  # leaves NaN in what oneDNN keeps for itself
        fill_freed_memory(expected.nbytes, expected.nbytes // 2, x.nbytes)
        got = layer(*arguments).float()
        size = float(expected.norm()) or 1.0  # a layer that begins at zero, as a new guide's projections do
        yield Part(_name(layer, shape), float((got - expected).norm()) / size, TOLERANCE[dtype])


def fill_freed_memory(*sizes: int) -> None:
    """Leave bytes that are NaN in every float type in the free memory that will be handed out next: in many blocks of
    these sizes in bytes and of some others, since a freed block is first given to whoever asks for its size."""
    blocks = {size: max(2, min(64, (1 << 20) // size)) for size in (*sizes, 1 << 12, 1 << 16) if size}
    kept = [torch.full((size,), 255, dtype=torch.uint8) for size, count in blocks.items() for _ in range(count)]
    kept.append(torch.full((max(sizes, default=0) + (1 << 20),), 255, dtype=torch.uint8))
    del kept


def _random(shape: Sequence[int], numbers: Tensor) -> Tensor:
    """The same numbers over and over, with a period that divides no size; drawing new ones would take longer than the
    layers."""
    count = prod(shape)
    return numbers.repeat(-(-count // NUMBERS))[:count].view(tuple(shape))


def _reference(layer: PackedLayer, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The expected result: by torch's own layers in float32, which was right wherever half precision was not."""
    weight = (layer.weight.to_dense() if layer.weight.is_mkldnn else layer.weight).float()
    bias = None if layer.bias is None else layer.bias.float()
    if isinstance(layer, Linear):
        y = F.linear(x.float(), weight, bias)
        if residual is not None:
            return y + residual.float()
    elif isinstance(layer, Conv):
        maps = x.permute(0, 3, 1, 2).float()
        y = F.conv2d(maps, weight, bias, layer.stride, layer.padding, groups=layer.groups).permute(0, 2, 3, 1)
    else:
        return F.conv2d(x.float(), weight, bias, layer.stride, layer.padding, groups=layer.groups)
    return {"none": lambda t: t, "relu": F.relu, "gelu": F.gelu}[layer.then](y)


def _name(layer: PackedLayer, shape: Sequence[int]) -> str:
    if isinstance(layer, Linear):
        kind = "linear layer"
    else:
        height, width = layer.kernel if isinstance(layer, Conv) else layer.kernel_size
        kind = f"convolution {height}x{width}, stride {layer.stride[0]}, groups {layer.groups},"
    return f"the {kind} from {'x'.join(map(str, shape[1:]))} to {layer.weight.shape[0]} channels"


def _layers(modules: Iterable[nn.Module]) -> list[PackedLayer]:
    return list(dict.fromkeys(p for m in modules for p in m.modules() if isinstance(p, KINDS)))


@contextmanager
def _recording(layers: list[PackedLayer]) -> Iterator[dict[_Case, PackedLayer]]:
    """Record which layers are called and how.  Calls that oneDNN cannot tell apart share one entry: those with equal
    `_weights`, shape and strides of the input, and shape of the residual."""
    cases: dict[_Case, PackedLayer] = {}

    def recorded(layer: PackedLayer) -> Callable[..., Tensor]:
        run = layer.forward

        def forward(x: Tensor, *residual: Tensor) -> Tensor:
            added = tuple(residual[0].shape) if residual else None
            cases.setdefault((_weights(layer), tuple(x.shape), x.stride(), added), layer)
            return run(x, *residual)

        return forward

    try:
        for layer in layers:
            layer.__dict__["forward"] = recorded(layer)
        yield cases
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _weights(layer: PackedLayer) -> _Case:
    """What a layer has in common with those that run by the same kernel."""
    how = () if isinstance(layer, Linear) else (layer.stride, layer.padding, layer.groups)
    then = "none" if isinstance(layer, nn.Conv2d) else layer.then
    return (tuple(layer.weight.shape), layer.weight.is_mkldnn, layer.bias is not None, then, *how)
