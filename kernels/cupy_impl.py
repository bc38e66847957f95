"""What the CuPy implementations share: whether CuPy can run, the CUDA sources, and launches on torch's stream."""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .dispatch import Verdict

PRELUDE = Path(__file__).with_name("prelude.cu")
OPTIONS = ("--std=c++17",)
"""Compiler options for every source."""

LaunchFunction = Callable[..., None]
"""``launch(kernel, grid, block, *arguments)``: an argument is a contiguous tensor of the device, None for a null
pointer, or an int that fits 32 bits."""


def source_text(path: Path) -> str:
    """The translation unit of one ``.cu`` file: the prelude and the file.  Compiler messages name the file's lines."""
    parts = [f'#line 1 "{part.name}"\n{part.read_text("utf-8")}' for part in (PRELUDE, path)]
    return "".join(parts)


def verify_machine() -> Verdict:
    """Whether torch sees a CUDA device and CuPy can be imported.  Imports CuPy only if it does."""
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    return _verify_cupy()


@functools.cache
def _verify_cupy() -> Verdict:
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return False, f"cupy cannot be imported ({error}); pip install cupy-cuda12x or cupy-cuda13x"
    if int(cupy.__version__.split(".")[0]) < 14:
        return False, f"cupy is {cupy.__version__}; 14 or newer is needed"
    if not cupy.cuda.is_available():
        return False, "cupy sees no CUDA device; its CUDA version must suit the driver (nvidia-smi says which it has)"
    return True, ""


class _Stream:
    """A torch stream under the protocol by which CuPy takes streams of others."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream.cuda_stream


@functools.cache
def _module(path: Path, device: int, options: tuple[str, ...]) -> Any:
    """The compiled source; there is one for each device, because a loaded module belongs to one device."""
    return importlib.import_module("cupy").RawModule(code=source_text(path), options=options)


@contextmanager
def launching(path: Path, device: torch.device) -> Iterator[LaunchFunction]:
    """Gives a function that launches kernels of the source `path` on torch's current stream of `device`.  It waits for
    none.

    The stream is asked for every time: a graph that is being captured has its own.  The first use on a device compiles
    the source, which a capture does not allow; so run the op once before capturing it.
    """
    cupy = importlib.import_module("cupy")
    index = device.index or 0
    with cupy.cuda.Device(index):
        module = _module(path, index, OPTIONS)
        with cupy.cuda.Stream.from_external(_Stream(torch.cuda.current_stream(device))):

            def launch(kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
                module.get_function(kernel)(grid, block, tuple(_argument(a, device) for a in arguments))

            yield launch


def _argument(value: torch.Tensor | int | None, device: torch.device) -> int | np.int32:
    """An argument in the form that CuPy takes: pointers as Python ints, which it passes in 64 bits; numbers as NumPy
    scalars of their size."""
    if value is None:
        return 0
    if isinstance(value, int):
        return np.int32(value)
    if value.device != device or not value.is_contiguous():
        raise ValueError(
            f"a kernel on {device} was given a tensor on {value.device} with strides {value.stride()}; "
            "pass contiguous tensors of that device"
        )
    return value.data_ptr()


def cdiv(a: int, b: int) -> int:
    """How many blocks of size b cover a."""
    return -(-a // b)
