"""Compile the CUDA sources for real GPUs on any machine, with the compiler that CuPy uses, and check what they need.

    python -m bench.gates.cuda_sources             # the table for sm_80 and sm_90
    python -m bench.gates.cuda_sources --write     # and record it in bench/results/cuda_resources.csv

Needs the package nvidia-cuda-nvrtc-cu12; no GPU, driver or CUDA toolkit.  The exit status is 1 when a limit is broken:
no spilled registers, shared memory within 48 KB.
"""

import argparse
import csv
import ctypes
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from activefreq_engine.kernels import cupy_impl
from activefreq_engine.kernels.distance import cupy_impl as distance
from activefreq_engine.kernels.region_stats import cupy_impl as region_stats

from activefreq_engine.files import beside

TABLE = Path(__file__).parents[1] / "results" / "cuda_resources.csv"
SOURCES = (region_stats.SOURCE, distance.SOURCE)
ARCHITECTURES = (80, 90)
SHARED_LIMIT = 48 * 1024
"""Bytes of shared memory that a block may have without asking."""


@dataclass(frozen=True)
class CudaResources:
    """One row of the table: what a kernel needs, in registers a thread and bytes."""

    kernel: str
    arch: int
    nvrtc: str
    registers: int
    stack: int
    spilled: int
    shared: int

    @property
    def fault(self) -> str:
        """What is over the limit; empty if nothing is."""
        if self.stack or self.spilled:
            return f"{self.stack} bytes of stack, {self.spilled} spilled"
        return f"{self.shared} bytes of shared memory" if self.shared > SHARED_LIMIT else ""


def find_nvrtc() -> Path | None:
    """The compiler's library in the package nvidia-cuda-nvrtc-*, or None."""
    for name in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            found = sorted(Path(folder).glob("lib/libnvrtc.so.*"))
            if found:
                return found[0]
    return None


def compile_source(path: Path, arch: int) -> Iterator[CudaResources]:
    """Compile one ``.cu`` file as CuPy does and read the assembler's report.

    Raises:
        RuntimeError: NVRTC is absent or finds an error; the message has its log.
    """
    library = find_nvrtc()
    if library is None:
        raise RuntimeError("NVRTC is not installed; pip install nvidia-cuda-nvrtc-cu12")
    nvrtc = ctypes.CDLL(str(library))
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    program = ctypes.c_void_p()
    source = cupy_impl.source_text(path).encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, path.name.encode(), 0, None, None)
    options = [o.encode() for o in (*cupy_impl.OPTIONS, f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v")]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode()
    if failed:
        raise RuntimeError(f"NVRTC cannot compile {path.name} for sm_{arch}:\n{text}")
    yield from read_report(text, arch, f"{major.value}.{minor.value}")


def read_report(text: str, arch: int, nvrtc: str) -> Iterator[CudaResources]:
    """The rows that the assembler's verbose output describes, by name."""

    def number(pattern: str, part: str) -> int:
        found = re.search(pattern, part)
        return int(found[1]) if found else 0

    for part in sorted(text.split("Compiling entry function '")[1:]):
        yield CudaResources(
            kernel=part.split("'")[0],
            arch=arch,
            nvrtc=nvrtc,
            registers=number(r"Used (\d+) registers", part),
            stack=number(r"(\d+) bytes stack", part),
            spilled=number(r"(\d+) bytes spill stores", part) + number(r"(\d+) bytes spill loads", part),
            shared=number(r"(\d+) bytes smem", part),
        )


def table() -> list[CudaResources]:
    """Every kernel for every architecture."""
    return [row for arch in ARCHITECTURES for path in SOURCES for row in compile_source(path, arch)]


def write(rows: list[CudaResources]) -> None:
    """Record the table; a change shows up in review."""
    TABLE.parent.mkdir(exist_ok=True)
    with beside(TABLE) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(CudaResources)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"record the table in {TABLE.name}")
    arguments = parser.parse_args()
    try:
        rows = table()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    for row in rows:
        print(
            f"sm_{row.arch} {row.kernel:18s} registers {row.registers:3d}  stack {row.stack:4d}  "
            f"spilled {row.spilled:4d}  shared {row.shared / 1024:5.1f} KB  {row.fault or 'ok'}"
        )
    if arguments.write:
        write(rows)
    sys.exit(any(row.fault for row in rows))


if __name__ == "__main__":
    main()
