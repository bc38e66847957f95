"""What the Triton implementations share: whether Triton can run here, and a launch described as data.

Importing this module does not import Triton.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .dispatch import Verdict

OLDEST = (3, 6)
"""The oldest Triton that the tests and the compile gate have passed on."""

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton itself decides at import whether its interpreter stands in for a GPU, so this is read once as well."""

DEVICES = ("cuda", "cpu") if INTERPRETING else ("cuda",)
"""Where a Triton kernel can run in this process."""


@functools.cache
def installed() -> Verdict:
    """Whether there is a Triton that is new enough to compile or interpret the kernels."""
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed; install the extra cuda12 or cuda13 (Linux only)"
    version = importlib.metadata.version("triton")
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
        return False, f"triton is {version}; install {'.'.join(map(str, OLDEST))} or newer"
    return True, ""


@functools.cache
def available() -> Verdict:
    """Whether Triton kernels can run in this process."""
    ok, reason = installed()
    if not ok or INTERPRETING:
        return ok, reason
    if torch.version.hip:
        return False, "this torch is built for ROCm; the kernels are written for CUDA devices"
    if not torch.cuda.is_available():
        return False, f"torch {torch.__version__} sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return False, f"the device has compute capability {capability[0]}.{capability[1]}; 8.0 or newer is needed"
    return True, ""


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One launch of a Triton kernel, complete but not started: it can be run, or compiled for a machine elsewhere."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Every argument of the kernel by name, compile-time constants included."""
    num_warps: int
    fp_fusion: bool = True
    """Whether a multiplication and an addition may become one rounding.  Always given: Triton's default changes."""
    registers: int | None = None
    """Most that a thread may have; None leaves it to the assembler, which may spill for the sake of occupancy."""
    num_stages: int = 1
    """Steps of a loop whose loads are under way at a time; 1 where loops are short and unrolled."""

    @property
    def options(self) -> dict[str, Any]:
        """Launch options."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.fp_fusion}
        return options if self.registers is None else options | {"maxnreg": self.registers}

    def run(self) -> None:
        """Launch on the current stream of the device that the tensors live on."""
        device = next(a.device for a in self.arguments.values() if isinstance(a, torch.Tensor))
        launch: Callable[..., Any] = self.kernel[self.grid]
        if device.type == "cuda":
            with torch.cuda.device(device):
                launch(**self.arguments, **self.options)
        else:
            launch(**self.arguments, **self.options)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a tensor's elements lie, as far as a kernel is compiled for it."""

    strides: tuple[int, ...]
    offset: int
    """Elements from a place that is aligned to 16 bytes."""

    @classmethod
    def of(cls, t: torch.Tensor) -> Layout:
        """Of a tensor of any device; on the meta device it counts as aligned."""
        return cls(tuple(t.stride()), 0 if t.is_meta else t.data_ptr() % 16 // t.element_size())

    @property
    def key(self) -> tuple[int, ...]:
        return (*map(specialised, self.strides), int(self.offset > 0))

    def place(self, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Values in this layout, as many as lie between its first and its last element, with NaN all around them."""
        start = MARGIN + self.offset
        memory = values.new_full((len(values) + start + MARGIN,), float("nan"))
        memory[start : start + len(values)] = values
        return memory.as_strided(shape, self.strides, start)

    def extent(self, shape: tuple[int, ...]) -> int:
        """How many elements `place` takes."""
        return sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True)) + 1


MARGIN = 1024


def specialised(n: int) -> int:
    """What Triton compiles anew for: a number that is 1, one that 16 divides, any other."""
    return 1 if n == 1 else 16 if n % 16 == 0 else 0


def small(n: int) -> int:
    """A number of at most 1,039 that Triton compiles the same code for: a size that a reference answers soon."""
    return n if n < 1024 else 1024 + n % 16


def pad(n: int, least: int = 16) -> int:
    """The next power of two, at least `least`: block sides are powers of two, matrix instructions want 16."""
    return max(least, 1 << (n - 1).bit_length())
