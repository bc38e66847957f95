"""The sizes that the kernels meet, by the engine's own rules."""

from __future__ import annotations

from collections.abc import Iterable

from activefreq_engine.conventions import network_shapes
from activefreq_engine.runtime.engine import SIZES

Map = tuple[int, int, int]
"""(C', H, W): channels of a quarter of a FreqModule, height and width."""


def level_maps(channels: Iterable[int], shape: tuple[int, int]) -> list[Map]:
    """What the FreqModules of an encoder's levels get for a network input of this shape."""
    return [(c // 4, shape[0] >> i + 2, shape[1] >> i + 2) for i, c in enumerate(channels)]


def every_map(channels: Iterable[int], sizes: Iterable[int] = SIZES) -> list[Map]:
    """The maps of all sizes and shapes, each once, the smallest first."""
    channels = tuple(channels)
    found = {m for size in sizes for shape in network_shapes(size) for m in level_maps(channels, shape)}
    return sorted(found, key=lambda m: (m[1] * m[2], m))
