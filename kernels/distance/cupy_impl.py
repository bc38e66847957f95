"""Distances on a CUDA device: launches of distance.cu, exact integers until the last square root."""

from pathlib import Path

import torch

from ..cupy_impl import cdiv, launching, verify_machine
from ..dispatch import Verdict

SOURCE = Path(__file__).with_name("distance.cu")
MAX_SIDE = 2048
"""Largest height and width."""

# As in distance.cu.
_COLUMNS, _SEGMENTS = 16, 32
_THREADS = 256  # a block of the kernels that leave it open


def verify(images: torch.Tensor | None = None, *_: torch.Tensor, capacity: int | None = None) -> Verdict:
    """Whether this implementation runs on these arguments or, without any, on this machine."""
    ok, reason = verify_machine()
    if ok and images is not None:
        batch, height, width = images.shape
        if max(height, width) > MAX_SIDE or batch > 65535:
            shape = tuple(images.shape)
            return False, f"the input has shape {shape}; at most [65535, {MAX_SIDE}, {MAX_SIDE}] is allowed"
    return ok, reason


def launch(
    labels: torch.Tensor,
    gaps: torch.Tensor,
    distance: torch.Tensor | None,
    best: torch.Tensor | None,
    *outputs: torch.Tensor,
) -> None:
    """Two launches on torch's current stream, three with `outputs`; no allocation, no synchronisation.

    A CUDA graph can capture it after one call outside of the capture, which compiles the kernels.

    Args:
        labels: int32 `[B, H, W]`, contiguous, on a CUDA device, sides up to `MAX_SIDE`; 0 is background.
        gaps: int32 `[B, H, W]`, scratch.
        distance: float64 `[B, H, W]`, gets the distances to the nearest pixel of another label; or None.
        best: int64 `[B, capacity]`, scratch; None if only the distances are asked for.
        outputs: with `best`, points int64 `[B, capacity, 2]`, (x, y), and radius float64 `[B, capacity]`.
    """
    batch, height, width = labels.shape
    capacity = 0 if best is None else best.shape[1]
    columns = cdiv(width, _COLUMNS), batch
    with launching(SOURCE, labels.device) as run:
        run("column_distances", columns, (_COLUMNS, _SEGMENTS), labels, gaps, best, height, width, capacity)
        run("row_distances", (height, batch), (_THREADS,), labels, gaps, distance, best, height, width, capacity)
        if best is not None:
            run("region_points", (cdiv(capacity, _THREADS), batch), (_THREADS,), best, *outputs, width, capacity)


def distance_transform(mask: torch.Tensor) -> torch.Tensor:
    """Arguments and result of the public `distance_transform`; the argument is not checked here."""
    labels = mask.int().contiguous()
    # The kernel takes the square roots: not every torch rounds float64 ones correctly on every CPU.
    distance = torch.empty(labels.shape, dtype=torch.float64, device=labels.device)
    launch(labels, torch.empty_like(labels), distance, None)
    return distance


def inscribed_points_fixed(labels: torch.Tensor, *, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments and result of the public `inscribed_points_fixed`; the arguments are not checked here."""
    labels, batch, device = labels.contiguous(), labels.shape[0], labels.device
    best = torch.empty(batch, capacity, dtype=torch.int64, device=device)
    points = torch.empty(batch, capacity, 2, dtype=torch.int64, device=device)
    radius = torch.empty(batch, capacity, dtype=torch.float64, device=device)
    launch(labels, torch.empty_like(labels), None, best, points, radius)
    return points, radius


def inscribed_points(labels: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments and result of the public `inscribed_points`; not checked here.  Waits for `counts` once."""
    regions = counts.tolist()
    capacity = max(1, *regions)
    points, radius = inscribed_points_fixed(labels, capacity=capacity)
    rows = torch.cat([torch.arange(b * capacity, b * capacity + n) for b, n in enumerate(regions)]).to(labels.device)
    return points.flatten(0, 1)[rows], radius.flatten()[rows]
