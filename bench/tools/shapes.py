"""The sizes that the kernels meet, by the engine's own rules."""

from __future__ import annotations

from collections.abc import Iterable

from activefreq_engine.runtime.engine import SIZES
from activefreq_engine.session.zoom import network_shape

Map = tuple[int, int, int]
"""(C', H, W): channels of a quarter of a FreqModule, height and width."""


def network_shapes(size: int) -> list[tuple[int, int]]:
    """Every (height, width) of the network's input at one size, whatever the region: tall ones, wide ones, a square."""
    boxes = [box for n in range(1, size + 1) for box in ((0, 0, n, size), (0, 0, size, n))]
    return sorted({network_shape(box, size) for box in boxes})


def level_maps(channels: Iterable[int], shape: tuple[int, int]) -> list[Map]:
    """What the FreqModules of an encoder's levels get for a network input of this shape."""
    return [(c // 4, shape[0] >> i + 2, shape[1] >> i + 2) for i, c in enumerate(channels)]


def every_map(channels: Iterable[int], sizes: Iterable[int] = SIZES) -> list[Map]:
    """Of all sizes and shapes, each once, the smallest first."""
    channels = tuple(channels)
    found = {m for size in sizes for shape in network_shapes(size) for m in level_maps(channels, shape)}
    return sorted(found, key=lambda m: (m[1] * m[2], m))
