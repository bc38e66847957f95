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
"""The oldest Triton with which the tests and the compile gate have passed."""

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter stands in for a GPU.  Triton decides this when it is imported, so it is read only
once."""

DEVICES = ("cuda", "cpu") if INTERPRETING else ("cuda",)
"""Types of devices on which a Triton kernel can run in this process."""


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
    """One launch of a Triton kernel, complete but not started: it can be run, or compiled for another machine."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Every argument of the kernel by name, compile-time constants included."""
    num_warps: int
    fp_fusion: bool = True
    """Whether a multiplication and an addition may be fused, with one rounding.  Always given, as Triton's default
    changes.
    """
    registers: int | None = None
    """Most registers of a thread; None leaves it to the assembler, which may spill so that more programs run at
    once."""
    num_stages: int = 1
    """How many steps of a loop have their loads under way at once; 1 where loops are short and unrolled."""

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
    """Where a tensor's elements lie in memory, as far as the compiled kernel depends on it."""

    strides: tuple[int, ...]
    offset: int
    """Distance of the first element from an address that is aligned to 16 bytes, in elements."""

    @classmethod
    def of(cls, t: torch.Tensor) -> Layout:
        """The layout of a tensor on any device; on the meta device it counts as aligned."""
        return cls(tuple(t.stride()), 0 if t.is_meta else t.data_ptr() % 16 // t.element_size())

    @property
    def key(self) -> tuple[int, ...]:
        """What the compiled code depends on: the class of each stride, and whether the start is aligned."""
        return (*map(specialised, self.strides), int(self.offset > 0))

    def place(self, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of this layout that holds `values`, of which there are `extent`, with NaN all around it."""
        start = MARGIN + self.offset
        memory = values.new_full((len(values) + start + MARGIN,), float("nan"))
        memory[start : start + len(values)] = values
        return memory.as_strided(shape, self.strides, start)

    def extent(self, shape: tuple[int, ...]) -> int:
        """How many elements lie from the first to the last one of a tensor of this layout."""
        return sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True)) + 1


MARGIN = 1024


def specialised(n: int) -> int:
    """The class of an integer argument for which Triton compiles its own code: 1, divisible by 16, any other."""
    return 1 if n == 1 else 16 if n % 16 == 0 else 0


def small(n: int) -> int:
    """A number of at most 1,039 for which Triton compiles the same code: a size for which references are quick."""
    return n if n < 1024 else 1024 + n % 16


def pad(n: int, least: int = 16) -> int:
    """The next power of two, at least `least`: sides of blocks are powers of two, and matrix instructions need 16."""
    return max(least, 1 << (n - 1).bit_length())
