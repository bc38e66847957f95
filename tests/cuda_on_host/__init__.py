"""The CUDA sources on the host: compiled with g++ over shim.h and launched through a stand-in for CuPy.

`installed` makes the host code of the cupy implementations run as it is, on CPU tensors.  No GPU, no CUDA toolkit.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from activefreq_engine.kernels import cupy_impl

SHIM = Path(__file__).with_name("shim.h")
CACHE = Path(__file__).parents[2] / "build" / "cuda_on_host"
GPP = shutil.which("g++")
FLAGS = ("-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function")
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-D_GLIBCXX_ASSERTIONS")

_KERNEL = re.compile(r'extern "C" __global__ void (\w+)\((.*?)\)\s*\{', re.S)
_TYPES = {"int": ctypes.c_int}


class LaunchError(RuntimeError):
    """A launch would hang or be undefined on a GPU."""


@dataclass
class Schedule:
    """How fibers are interleaved: sequential for `switch` 0."""

    seed: int = 0
    switch: float = 0.0
    """Probability of a switch at each race point."""
    live: int = 4
    """Blocks alive at once."""


@dataclass
class Host:
    """What a test can set and see."""

    schedule: Schedule = field(default_factory=Schedule)
    launches: list[str] = field(default_factory=list)
    """Names of the kernels launched, in order."""
    switches: int = 0
    mutate: tuple[str, str] = ("", "")
    """Text that occurs once in one of the sources, and its replacement."""
    mutated: bool = False
    """It was found."""
    sanitize: bool = False


def parameters(source: str) -> dict[str, list[str]]:
    """The types of each kernel's parameters: "*" for a pointer, else as written."""
    kernels = {}
    for name, text in _KERNEL.findall(source):
        declarations = re.sub(r"//[^\n]*", "", text).split(",")
        kernels[name] = ["*" if "*" in d else d.split()[0] for d in declarations]
    return kernels


def build(source: str, *, sanitize: bool = False, more: tuple[str, ...] = ()) -> ctypes.CDLL:
    """A library of the kernels of `source`; kept in build/ under a name that says what it was made from."""
    if GPP is None:
        raise RuntimeError("g++ is not installed; the CUDA sources cannot run on the host")
    parts = [f'#include "{SHIM}"', source, '#line 1 "glue"']
    for name, types_ in parameters(source).items():
        declared = "".join(f", {'void*' if t == '*' else t} a{i}" for i, t in enumerate(types_))
        passed = ", ".join(f"host::Any{{a{i}}}" if t == "*" else f"a{i}" for i, t in enumerate(types_))
        parts.append(f'extern "C" const char* host_{name}(host::Shape s{declared}) {{')
        parts.append(f"    return host::launch(s, [=] {{ {name}({passed}); }});\n}}")
    text = "\n".join(parts)
    flags = [*FLAGS, *(SANITIZE if sanitize else ()), *more, "-O1"]
    key = hashlib.sha256("\0".join([text, SHIM.read_text(), *flags]).encode()).hexdigest()[:16]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unit = CACHE / f"{key}.{os.getpid()}.cpp"  # another process may be making the same
        unit.write_text(text)
        done = subprocess.run([GPP, *flags, "-o", unit.with_suffix(".part"), unit], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"g++ cannot compile {unit}:\n{done.stderr}")
        unit.replace(CACHE / f"{key}.cpp")
        unit.with_suffix(".part").replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.switches.restype = ctypes.c_ulong
    return loaded


class _Shape(ctypes.Structure):
    """`host::Shape` of shim.h."""

    _fields_ = (("numbers", ctypes.c_uint * 8), ("switch", ctypes.c_double))


class _RawModule:
    def __init__(self, host: Host, code: str, options: tuple[str, ...]) -> None:
        assert options == cupy_impl.OPTIONS
        old, new = host.mutate
        if old and old in code:
            assert code.count(old) == 1, f"{old!r} occurs more than once"
            code, host.mutated = code.replace(old, new), True
        flags = [option for option in options if option.startswith("-D")]
        if host.mutated:
            flags.append("-Wno-error")  # a planted bug may leave something unused
        self.library = build(code, sanitize=host.sanitize, more=tuple(flags))
        self.host, self.parameters = host, parameters(code)

    def get_function(self, name: str):
        return functools.partial(self.run, name)

    def run(self, name: str, grid: tuple, block: tuple, arguments: tuple) -> None:
        types_ = self.parameters[name]
        assert len(arguments) == len(types_), f"{name} takes {len(types_)} arguments, got {len(arguments)}"
        values = []
        for value, kind in zip(arguments, types_, strict=True):
            wanted = int if kind == "*" else {"int": np.int32}[kind]
            assert type(value) is wanted, f"{name}: {value!r} for a parameter of type {kind}"
            values.append(ctypes.c_void_p(value) if kind == "*" else _TYPES[kind](int(value)))
        sizes = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
        assert min(sizes) > 0
        assert max(sizes[1:3]) <= 65535
        assert np.prod(sizes[3:]) <= 1024
        schedule = self.host.schedule
        function = getattr(self.library, f"host_{name}")
        function.restype = ctypes.c_char_p
        self.host.launches.append(name)
        seed = schedule.seed + len(self.host.launches)
        failure = function(_Shape((*sizes, seed, schedule.live), schedule.switch), *values)
        self.host.switches += self.library.switches()
        if failure:
            raise LaunchError(f"{name}: {failure.decode()}")


class _FakeStream:
    """torch's current stream."""

    cuda_stream = 0x5EED


def _from_external(stream: object):
    assert stream.__cuda_stream__() == (0, _FakeStream.cuda_stream)
    return nullcontext()


@contextmanager
def installed(host: Host | None = None) -> Iterator[Host]:
    """Within it, `import cupy` is the stand-in, and launches run on the host."""
    host = host or Host()
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.0.0"
    cupy.RawModule = functools.partial(_RawModule, host)
    cupy.cuda = types.SimpleNamespace(
        Device=lambda index: nullcontext(),
        Stream=types.SimpleNamespace(from_external=_from_external),
        is_available=lambda: True,
    )
    cupy_impl._module.cache_clear()
    with (
        mock.patch.dict(sys.modules, cupy=cupy),
        mock.patch.object(torch.cuda, "current_stream", return_value=_FakeStream()),
    ):
        yield host
    cupy_impl._module.cache_clear()


def sanitizers() -> list[str]:
    """The libraries that a process must load first to run sanitized builds; empty if any is absent."""
    if GPP is None:
        return []
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [subprocess.check_output([GPP, f"-print-file-name={name}"], text=True).strip() for name in names]
    return found if all(Path(path).is_absolute() for path in found) else []


def preload() -> dict[str, str]:
    """Environment of a Python process that loads sanitized builds."""
    options = "detect_leaks=0:detect_stack_use_after_return=0"  # Python leaks; fibers have stacks of their own
    return {"LD_PRELOAD": ":".join(sanitizers()), "ASAN_OPTIONS": options}


def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`allocate`, but what it returns holds NaN, or integers that no result holds."""

    def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else tensor.dtype == torch.bool or -0x5A5A)

    return allocate_poisoned
