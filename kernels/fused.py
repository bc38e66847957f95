"""What the fused ops of a click share: how they are checked, registered, and tried beside their references.

Each kernel is offered for fp16 maps `[B, H, W, C]`; sums and norms are in float32.  The ``kernel_call`` in its
``triton_impl`` takes the arguments of the op, then its outputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import dispatch, triton_support
from .triton_support import KernelCall
from .verification import Form, Part, Trial, poison

TOLERANCE = 1.5e-3
"""Largest allowed relative error of a map in the Euclidean norm, against float64 on the same fp16 inputs."""

LEVEL_TOLERANCE = 2
"""Largest allowed difference of levels, which are 65535 times a probability."""

Outputs = tuple[Tensor, ...]


def halves(channels: int) -> tuple[int, int]:
    """Channels as a sum of two powers of two, the second of which may be 0; (0, 0) if they are not such a sum."""
    if channels < 16:
        return 0, 0
    first = 1 << (channels.bit_length() - 1)
    second = channels - first
    return (0, 0) if second and (second < 16 or second & (second - 1)) else (first, second)


def cannot(channels: int) -> str:
    """Why rows of so many channels cannot be multiplied; empty if they can."""
    if halves(channels)[0] and channels <= 512:
        return ""
    return f"{channels} channels; offered are sums of two powers of two from 16 on, at most 512"


def expect(name: str, tensor: Tensor, *sides: int | None) -> None:
    """Raise unless a tensor has these sides; None stands for any.

    Raises:
        TypeError: not a tensor of floating point.
        ValueError: another shape.
    """
    if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} is a {found}; pass a floating-point tensor")
    if tensor.dim() != len(sides) or any(s not in (None, n) for s, n in zip(sides, tensor.shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in sides)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected [{wanted}]")


class FusedOp:
    """A fused op with its two implementations, registered under its name.

    Args:
        name: name of the op and of its folder.
        reference: takes the op's arguments; computes in the precision of the maps; returns the outputs as a tuple.
        outputs: takes the op's arguments; returns empty tensors for what the op returns.
        limits: takes the op's arguments; returns why the kernel is not offered for them, or "".
        written: names of arguments that the op fills in place, after what it returns.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Outputs],
        outputs: Callable[..., Outputs],
        limits: Callable[..., str],
        written: Sequence[str] = (),
    ) -> None:
        self.name, self.reference, self.outputs = name, reference, outputs
        self.limits, self._written = limits, tuple(written)
        self.names = list(inspect.signature(reference).parameters)
        dispatch.register(name, "reference", self._run_reference, devices=("cpu", "cuda"), priority=0)
        trial = Trial(self.form, self.check)
        dispatch.register(
            name,
            "triton",
            self._run_triton,
            devices=triton_support.DEVICES,
            priority=10,
            verify=self.verify,
            trial=trial,
            folder=Path(__file__).with_name(name),
        )

    def __call__(self, backend: str, *args: Any) -> Outputs:
        """Run the op by the implementation that `kernels.dispatch` chooses."""
        found: Outputs = dispatch.call(self.name, args[0].device.type, backend, *args)
        return found

    def kernel_call(self, *args: Any, out: Outputs | None = None) -> KernelCall:
        """The launch for these arguments, which may live on the meta device."""
        module = import_module(f".{self.name}.triton_impl", __package__)
        call: KernelCall = module.kernel_call(*args, *(self.outputs(*args) if out is None else out))
        return call

    def form(self, *args: Any) -> Form:
        """What the compiled code depends on: the kernel's constants.  Other sizes are run-time arguments."""
        shown = [_described(a) for a in args]
        call = self.kernel_call(*(_on_meta(a) for a in args))
        constants = tuple(sorted((k, v) for k, v in call.arguments.items() if not isinstance(v, Tensor)))
        parameters = inspect.signature(call.kernel.fn).parameters.values()
        fixed = {p.name for p in parameters if p.annotation is not inspect.Parameter.empty}  # tl.constexpr
        types = tuple(str(v.dtype).removeprefix("torch.") for v in call.arguments.values() if isinstance(v, Tensor))
        key = (*((k, v) for k, v in constants if k in fixed), *types, call.num_warps, call.num_stages)
        size = " -> ".join("x".join(map(str, t.shape[1:])) for t in (args[0], *self.outputs(*args)[:1]))
        missing = ", ".join(name for name, a in zip(self.names, args, strict=True) if a is None)
        size += f" without {missing}" if missing else ""
        return Form(key, size, _kind(args[0]), {"arguments": shown})

    def check(self, device: torch.device, arguments: list[Any]) -> Iterable[Part]:
        """Run the kernel on random numbers, in poisoned memory, and compare it with the reference in float64."""
        args = self.drawn(arguments, torch.Generator().manual_seed(0))
        return self.compare([a.to(device) if isinstance(a, Tensor) else a for a in args])

    def drawn(self, arguments: Sequence[Any], generator: torch.Generator) -> list[Any]:
        """Random arguments of the sizes that `form` describes."""
        return [_drawn(n, a, generator) for n, a in zip(self.names, arguments, strict=True)]

    def compare(self, args: Sequence[Any]) -> list[Part]:
        """Run the kernel and compare it with the reference in float64: one part for each output."""
        filled = [args[self.names.index(n)] for n in self._written]
        exact = [a.cpu().double() if isinstance(a, Tensor) and a.dtype.is_floating_point else a for a in args]
        exact = [a.cpu().clone() if isinstance(a, Tensor) else a for a in exact]
        expected = [*self.reference(*exact), *(exact[self.names.index(n)] for n in self._written)]
        out = self.outputs(*args)
        poison(*out, *filled)
        self.kernel_call(*args, out=out).run()
        pairs = zip((*out, *filled), expected, strict=True)
        return [_part(f"output {k}", got.cpu(), e) for k, (got, e) in enumerate(pairs)]

    def _run_reference(self, *args: Any) -> Outputs:
        return self.reference(*args)

    def _run_triton(self, *args: Any) -> Outputs:
        out = self.outputs(*args)
        if args[0].shape[0]:
            self.kernel_call(*args, out=out).run()
        return out

    def verify(self, *args: Any) -> dispatch.Verdict:
        """Whether the kernel is offered for these arguments, or, without any, whether it can run here."""
        ok, reason = triton_support.available()
        if not ok or not args:
            return ok, reason
        for name, a in zip(self.names, args, strict=True):
            if isinstance(a, Tensor) and not a.is_contiguous():
                return False, f"{name} has strides {a.stride()}; only contiguous tensors are offered"
        reason = self.limits(*args)
        return not reason, reason


def _part(name: str, got: Tensor, expected: Tensor) -> Part:
    if not got.dtype.is_floating_point:
        error = float((got.to(torch.int64) - expected.to(torch.int64)).abs().max())
        return Part(name, error, LEVEL_TOLERANCE)
    norm = float(expected.double().norm())
    return Part(name, float((got.double() - expected.double()).norm()) / (norm or 1.0), TOLERANCE)


def _kind(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _on_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def _described(value: Any) -> Any:
    """An argument in JSON-able form; a tensor becomes its shape and dtype."""
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": _kind(value)}
    return value


def _drawn(name: str, value: Any, generator: torch.Generator) -> Any:
    """Random numbers of the size and range that an argument of this name has."""
    if not isinstance(value, dict):
        return value
    shape, dtype = value["shape"], getattr(torch, value["dtype"])
    if dtype not in (torch.float16, torch.float32):
        return torch.randint(0, 65536, shape, generator=generator).to(dtype)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float32)
    if name == "previous":
        numbers = torch.rand(shape, generator=generator, dtype=torch.float32)
    elif name == "points":  # some slots are empty, some lie outside
        numbers = torch.where(numbers[..., :1] > 0, 60 * numbers.abs(), -1.0)
    elif name.endswith("scale"):
        numbers = 1 + 0.1 * numbers
    elif name.endswith(("bias", "shift")):
        numbers *= 0.3
    elif name.endswith("taps"):
        numbers /= math.sqrt(math.prod(shape[:-1]))
    elif name.endswith("weight"):
        numbers /= math.sqrt(math.prod(shape[1:]) or 1)
    return numbers.to(dtype)
