"""Simulated prompts beyond clicks: boxes, lassos and scribbles as people draw them, some with care and some without."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..types import Box

PromptKind = Literal["click", "box", "lasso", "scribble"]
OUTWARD, INWARD = 0.2, 0.05
"""Half of the boxes are exact; the sides of the others lie up to OUTWARD of the object's extent outside it, or up to
INWARD inside: people cut off little and leave room."""
SCRIBBLE = 8
"""Most disks that show a scribble to the network."""
KNEES = 3
"""Most pixels drawn by chance that a scribble leads through."""


def loose_box(region: NDArray[np.bool_], rng: np.random.Generator, outward: float = OUTWARD) -> Box | None:
    """The box (x0, y0, x1, y1) around a region, with sides that are off by chance; None for an empty region.

    Args:
        region: bool `[H, W]`.
        rng: source of chance.
        outward (float): how far outside a side may lie, as a part of the region's extent.
    """
    ys, xs = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(ys):
        return None
    height, width = region.shape
    x0, y0, x1, y1 = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    if rng.random() < 0.5:
        return x0, y0, x1, y1
    extent = np.array((x1 - x0, y1 - y0) * 2)
    left, top, right, bottom = np.rint(rng.uniform(-INWARD, outward, 4) * extent).astype(int).tolist()
    x0, y0 = min(max(0, x0 - left), width - 1), min(max(0, y0 - top), height - 1)
    return x0, y0, min(width, max(x0 + 1, x1 + right)), min(height, max(y0 + 1, y1 + bottom))


def lasso(region: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """What a line drawn around a region encloses: the line is pushed in or out by a few per cent of the region's
    extent, and strays by as much again."""
    area = int(region.sum())
    if not area:
        return np.zeros_like(region)
    inward, outward = (
        cv2.distanceTransform(np.pad(r.astype(np.uint8), 1, constant_values=edge), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for r, edge in ((region, 0), (~region, 1))
    )
    extent = min(area**0.5, 8 * float(inward.max()))  # of a thin region its width
    rough = cv2.resize(rng.standard_normal((6, 6)), region.shape[::-1], interpolation=cv2.INTER_LINEAR)
    push = rng.uniform(-0.02, 0.1) + rng.uniform(0, 0.06) * rough
    return np.where(region, -inward, outward) < push * extent


def scribble(region: NDArray[np.bool_], rng: np.random.Generator, spacing: float) -> NDArray[np.int32]:
    """A line through one piece of a region, as at most SCRIBBLE points of it: `[N, 2]` (x, y), at least one unless the
    region is empty.

    The piece is that of the deepest pixel.  The line is bent at up to KNEES pixels well inside it; where it leaves the
    piece it is interrupted.

    Args:
        region: bool `[H, W]`.
        rng: source of chance.
        spacing (float): least distance of its points, in pixels.
    """
    padded = np.pad(region.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    if depth.max() == 0:
        return np.zeros((0, 2), np.int32)
    _, pieces = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    piece = pieces == pieces[y, x]
    inner = np.flatnonzero(piece & (depth > depth.max() * rng.uniform(0.2, 0.6)))
    knees = rng.choice(inner, int(rng.integers(1, KNEES + 1)))
    path = [(int(i) % region.shape[1], int(i) // region.shape[1]) for i in knees]
    if rng.random() < 0.5:
        path.insert(0, (int(x), int(y)))
    line = path[:1]
    for (x0, y0), (x1, y1) in pairwise(path):
        n = max(abs(x1 - x0), abs(y1 - y0), 1)
        line += [(round(x0 + (x1 - x0) * t / n), round(y0 + (y1 - y0) * t / n)) for t in range(1, n + 1)]
    along = np.array([(x, y) for x, y in line if piece[y, x]], np.int32)
    count = int(np.clip(len(along) / max(spacing, 1.0), 1, SCRIBBLE))
    return along[np.linspace(0, len(along) - 1, count).round().astype(int)]
