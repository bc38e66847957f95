"""`region_stats` on a CUDA device: six launches of region_stats.cu, nothing for the host to wait for."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..cupy_impl import cdiv, launching, verify_machine
from ..dispatch import Verdict
from .fixed import FixedRegionStats, unpack
from .reference import RegionStats

SOURCE = Path(__file__).with_name("region_stats.cu")
MAX_SIDE = 4096
"""Largest height and width."""
CAPACITY = 1024
"""Regions an image that `region_stats` makes room for at first."""

# As in region_stats.cu.
_TILE_W, _TILE_H, _CHUNK, _SUMS, _EXTENTS = 32, 16, 1024, 6, 4
_THREADS = 256  # a block of the kernels that leave it open


def verify(
    candidates: torch.Tensor | None = None,
    probs: torch.Tensor | None = None,
    connectivity: int = 8,
    capacity: int | None = None,
) -> Verdict:
    """Whether this implementation runs on these arguments or, without any, on this machine."""
    ok, reason = verify_machine()
    if not ok or candidates is None or probs is None:
        return ok, reason
    batch, height, width = candidates.shape
    if max(height, width) > MAX_SIDE or batch > 65535:
        shape = tuple(candidates.shape)
        return False, f"candidates has shape {shape}; at most [65535, {MAX_SIDE}, {MAX_SIDE}] is allowed"
    if probs.dtype == torch.float64:
        return False, "probs has dtype torch.float64, which float32 cannot order exactly; pass probs.float()"
    return True, ""


@dataclass(frozen=True, slots=True)
class Buffers:
    """Device memory of one call: results and scratch.  None of it needs a value before a launch."""

    result: FixedRegionStats
    parent: torch.Tensor
    """int32 `[B, H, W]`."""
    chunk_roots: torch.Tensor
    """int32 `[B, chunks]`."""
    sums: torch.Tensor
    """uint64, held as int64 `[B, 6, capacity]`."""
    extents: torch.Tensor
    """int32 `[B, 4, capacity]`."""

    @classmethod
    def allocate(cls, batch: int, height: int, width: int, capacity: int, device: torch.device) -> "Buffers":
        """Room for `batch` images of `height` x `width` pixels with at most `capacity` regions each."""

        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(batch, *shape, dtype=dtype, device=device)

        return cls(
            result=FixedRegionStats(
                labels=empty(height, width, dtype=torch.int32),
                counts=empty(dtype=torch.int64),
                overflow=empty(dtype=torch.bool),
                area=empty(capacity, dtype=torch.int64),
                max_entropy=empty(capacity, dtype=torch.float64),
                mean_entropy=empty(capacity, dtype=torch.float64),
                mean_prob=empty(capacity, dtype=torch.float64),
                bbox=empty(capacity, 4, dtype=torch.int64),
                peak=empty(capacity, 2, dtype=torch.int64),
                centroid=empty(capacity, 2, dtype=torch.float64),
            ),
            parent=empty(height, width, dtype=torch.int32),
            chunk_roots=empty(cdiv(height * width, _CHUNK), dtype=torch.int32),
            sums=empty(_SUMS, capacity, dtype=torch.int64),
            extents=empty(_EXTENTS, capacity, dtype=torch.int32),
        )


def launch(candidates: torch.Tensor, probs: torch.Tensor, buffers: Buffers, connectivity: int = 8) -> None:
    """Fill `buffers.result`: six launches on torch's current stream, no allocation, no synchronisation.

    A CUDA graph can capture it after one call outside of the capture, which compiles the kernels.

    Args:
        candidates: bool `[B, H, W]`, contiguous, on a CUDA device.
        probs: float32 `[B, H, W]`, contiguous, on that device; values are not checked.
        buffers: of `Buffers.allocate` for this shape and device.  Not shared with a call that may still be running.
        connectivity: 8 or 4.

    Raises:
        ValueError: a tensor that is not contiguous or lies on another device, or buffers for another shape.
        TypeError: wrong dtype.
    """
    for name, value, dtype in (("candidates", candidates, torch.bool), ("probs", probs, torch.float32)):
        if value.dtype != dtype:
            raise TypeError(f"{name} has dtype {value.dtype}; pass {dtype}")
        if value.shape != buffers.parent.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the buffers are for {tuple(buffers.parent.shape)}; "
                "allocate buffers for this shape"
            )
    batch, height, width = candidates.shape
    pixels, out = height * width, buffers.result
    capacity, chunks, diagonal = out.area.shape[1], buffers.chunk_roots.shape[1], int(connectivity == 8)
    tiles, tile = (cdiv(width, _TILE_W), cdiv(height, _TILE_H), batch), (_TILE_W, _TILE_H)
    seams = (height - 1) // _TILE_H * width + (width - 1) // _TILE_W * height
    with launching(SOURCE, candidates.device) as run:
        run(
            "label_tiles", tiles, tile,
            candidates, buffers.parent, buffers.sums, buffers.extents, height, width, capacity, diagonal,
        )  # fmt: skip
        run("join_tiles", (max(1, cdiv(seams, _THREADS)), batch), (_THREADS,), buffers.parent, height, width, diagonal)
        run("count_roots", (chunks, batch), (_CHUNK,), buffers.parent, buffers.chunk_roots, pixels)
        run(
            "number_roots", (chunks, batch), (_CHUNK,),
            buffers.parent, buffers.chunk_roots, out.labels, out.counts, out.overflow, pixels, capacity,
        )  # fmt: skip
        run(
            "measure_regions", tiles, tile,
            buffers.parent, probs, out.labels, buffers.sums, buffers.extents, height, width, capacity,
        )  # fmt: skip
        run(
            "finish_regions", (cdiv(capacity, _THREADS), batch), (_THREADS,),
            buffers.sums, buffers.extents, out.area, out.max_entropy, out.mean_entropy, out.mean_prob, out.bbox,
            out.peak, out.centroid, height, width, capacity,
        )  # fmt: skip


def region_stats_fixed(
    candidates: torch.Tensor, probs: torch.Tensor, *, connectivity: int = 8, capacity: int
) -> FixedRegionStats:
    """Arguments and result of the public `region_stats_fixed`; the arguments are not checked here."""
    batch, height, width = candidates.shape
    buffers = Buffers.allocate(batch, height, width, capacity, candidates.device)
    launch(candidates.contiguous(), probs.detach().float().contiguous(), buffers, connectivity)
    return buffers.result


def region_stats(candidates: torch.Tensor, probs: torch.Tensor, *, connectivity: int = 8) -> RegionStats:
    """Arguments and result of the public `region_stats`; the arguments are not checked here.

    Waits for the device once, to learn the number of regions; a second time where an image has more than `CAPACITY`.
    """
    fixed = region_stats_fixed(candidates, probs, connectivity=connectivity, capacity=CAPACITY)
    counts = fixed.counts.tolist()
    if max(counts) > CAPACITY:
        fixed = region_stats_fixed(candidates, probs, connectivity=connectivity, capacity=max(counts))
    return unpack(fixed, counts)
