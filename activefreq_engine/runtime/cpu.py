"""What clicks need on a CPU only: memory, threads, and quick forms of small operations."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine import models

MOST_THREADS = 8  # a click is a few hundred small steps: more threads wait longer for one another than they work
_PROC = Path("/proc")
_log = logging.getLogger(__name__)


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX) and oneDNN may use that, see its variable
    ONEDNN_MAX_CPU_ISA; without it bf16 is slower than float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    allowed = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported() and torch.backends.mkldnn.is_available() and allowed and allowed())


def has_amx() -> bool:
    """Whether oneDNN multiplies bfloat16 by the tiles of AMX here."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported()) and "AMX" in os.environ.get("ONEDNN_MAX_CPU_ISA", "AMX").upper()


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next click instead of handing it back to the system.

    A click allocates some 10 MB in all and frees them.  glibc returns large freed blocks to the system at once, and
    getting their pages anew took 4 of 57 ms.  "Large" means above a threshold, which rises to the size of the largest
    such block ever freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD).  So this allocates a block of 16 MiB and frees
    it; its pages are never touched.
    """
    torch.empty(16 << 20, dtype=torch.uint8)


@contextmanager
def threads() -> Iterator[None]:
    """Let torch use as many threads as cores are free, up to `MOST_THREADS`, and no more than it is set to.

    torch's threads wait for one another busily, a few hundred times a click.  Where another program has one of the
    cores, each of these waits can last until the scheduler takes that program off it: one thread is quicker then.
    This holds for the calling thread only; the rest of the program keeps its threads.
    """
    before = torch.get_num_threads()
    limit = _openmp()
    now = before if limit is None or before == 1 else min(before, MOST_THREADS, free_cores())
    take_note_of_threads()
    if limit is None or now == before:
        yield
        return
    try:
        limit(now)  # within: an interrupt may come right after it
        with mkl_threads(now):
            yield
    finally:
        limit(before)


@contextmanager
def mkl_threads(threads: int) -> Iterator[None]:
    """Let MKL, which computes torch's Fourier transforms and float32 products, use so many threads for the calling
    thread; nothing where torch has no MKL."""
    limit = _mkl()
    if limit is None:
        yield
        return
    before = limit(threads)
    try:
        yield
    finally:
        limit(before)


@functools.cache
def _openmp() -> Callable[[int], object] | None:
    """A function that sets how many threads OpenMP uses for the calling thread alone.

    `torch.set_num_threads` would also change, for good, the number for every thread that uses torch for the first time
    later.  None where torch's library does not offer the call.
    """
    library = _library()
    limit: Callable[[int], object] | None = getattr(library, "omp_set_num_threads", None)  # that torch was linked with
    if library is not None and limit is None:
        _log.info("clicks use all of torch's threads, also while other programs have the cores: no omp_set_num_threads")
    return limit


@functools.cache
def _mkl() -> Callable[[int], int] | None:
    """A function that sets how many threads MKL uses for the calling thread alone, and returns what it had; None where
    torch has no MKL."""
    return getattr(_library(), "MKL_Set_Num_Threads_Local", None)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """torch's library; None, and logged, where it cannot be opened."""
    # ask for the loaded library by its own name: a frozen program may have two files of it, and loading both ends it
    name = "libtorch_cpu.so"
    if sys.platform == "darwin":
        name = str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.dylib")
    try:
        return ctypes.CDLL(name, getattr(os, "RTLD_NOLOAD", 0))
    except OSError as error:
        _log.info("clicks use all of torch's threads, also while other programs have the cores: %s", error)
        return None


class _Caller(threading.local):
    in_company = False
    """Whether this thread may have used several of torch's threads: a click does, and so does loading a model."""


_caller = _Caller()


def take_note_of_threads() -> None:
    """To be called by whoever uses torch in this thread; see `_after_fork`."""
    _caller.in_company |= torch.get_num_threads() > 1


_beside = False
"""Whether there were other threads when the process was forked."""


def _before_fork() -> None:
    global _beside
    _beside = len(sys._current_frames()) > 1  # those of Qt as well, which `threading` does not know


def _after_fork() -> None:
    """In the child of a fork, the threads that worked beside this one are gone: OpenMP would wait for them forever, and
    OpenCV for the lock of its threads, if one of them had it."""
    if _beside:
        cv2.setNumThreads(0)  # 1 would take that lock
    if _caller.in_company:
        limit, mkl = _openmp(), _mkl()
        if limit is None:
            torch.set_num_threads(1)
        else:
            limit(1)
            if mkl is not None:
                mkl(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def free_cores() -> int:
    """Cores that no other program is running on at this moment, at least 1; all of them where there is no /proc."""
    cores = os.cpu_count() or 1
    try:
        running = int((_PROC / "loadavg").read_text().split()[3].partition("/")[0])
        if running > 1:
            running -= sum(_is_running(task) for task in (_PROC / "self" / "task").iterdir())
        else:
            running = 0
    except (OSError, ValueError, IndexError):
        return cores
    return max(1, cores - max(0, running))


def _is_running(task: Path) -> bool:
    """Whether a thread of ours runs or waits for a core: torch's threads do while they wait busily."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # it has ended
        return False


def normalise(crops: Sequence[NDArray[np.uint8]]) -> Tensor:
    """`models.normalise` of crops `[H, W, 3]` of one size -> float32 `[B, 3, H, W]`.  By a table, with the same bits:
    torch takes three to five times as long on three channels that lie together in memory."""
    return torch.from_numpy(np.stack([cv2.LUT(crop, _levels()) for crop in crops])).permute(0, 3, 1, 2)


@functools.cache
def _levels() -> NDArray[np.float32]:
    """Float32 `[1, 256, 3]`: each level of each channel, normalised."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(1, 3, 1, 256)
    return np.ascontiguousarray(models.normalise(levels)[0].permute(1, 2, 0).numpy())


def click_maps(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    """`kernels.click_maps` for few clicks on large maps: only pixels near the clicks are computed.

    Arguments and result are those of the op.
    """
    batch, slots, _ = points.shape
    maps = np.zeros((batch, 2, height, width), np.float32)
    positions: NDArray[np.float32] = points.float().numpy()
    b, slot = np.nonzero((positions >= 0).all(-1))
    x, y = positions[b, slot].T
    columns, rows = _reach(x, radius, width), _reach(y, radius, height)
    across, down = np.square(columns - x[:, None]), np.square(rows - y[:, None])
    near = across[:, None] + down[:, :, None] <= np.float32(radius * radius)
    near &= ((columns >= 0) & (columns < width))[:, None] & ((rows >= 0) & (rows < height))[:, :, None]
    k, i, j = np.nonzero(near)
    maps[b[k], (slot[k] >= slots // 2).astype(np.intp), rows[k, i].astype(np.intp), columns[k, j].astype(np.intp)] = 1
    return torch.from_numpy(maps)


def _reach(centre: NDArray[np.float32], radius: float, size: int) -> NDArray[np.float32]:
    """Float32 `[N, side]`: the pixels that each disk can touch along one axis; some may lie outside of the map."""
    first = np.clip(np.floor(centre - np.float32(radius)) - 1, -size, size)  # a pixel more than exact arithmetic needs
    return first[:, None] + np.arange(int(2 * radius) + 5, dtype=np.float32)
