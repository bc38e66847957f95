"""Memory of this process, in megabytes (10^6 bytes).  Linux keeps the books; elsewhere the answer is NaN."""

import ctypes
import gc
import math
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> float:
    """What is held now: garbage is collected, and the allocator gives back what it keeps for later."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)
    return _status("VmRSS")


def reset_peak(device: torch.device) -> None:
    """Begin a new peak, of the host and of the device."""
    if CLEAR.exists():
        CLEAR.write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak() -> float:
    """The most that was in memory since `reset_peak`."""
    return _status("VmHWM")


def device_peak(device: torch.device) -> float:
    """The most that tensors took up on a CUDA device since `reset_peak`; NaN on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else math.nan


def _status(name: str) -> float:
    if not STATUS.exists():
        return math.nan
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e6
