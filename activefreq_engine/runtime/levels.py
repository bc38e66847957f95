"""Probabilities in 16 bits, as levels: 0 for 0, `ONE` for 1.  What leaves the device, and what a history keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.runtime.painting import Painted

ONE = 65535
_STRIP = 64  # rows interpolated at once


class Found(NamedTuple):
    """The probabilities of one item."""

    levels: NDArray[np.uint16]
    """`[h, w]`."""
    total: float
    """Their sum; NaN if one of them is."""
    painted: Painted | None = None
    """The mask of these probabilities, where it was asked for and the executor paints."""


class Levels(NamedTuple):
    """The probabilities of a batch."""

    levels: Tensor
    """uint16 `[B, h, w]`; meaningless where `total` is NaN."""
    total: Tensor
    """float32 `[B]`: the sum of each item's probabilities, NaN if one of them is."""


Between = tuple[NDArray[np.intp], NDArray[np.float32]]
"""Places between the values of a row, as `session.zoom.neighbours` gives them: the value before each place, and the
weight of the one after it."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretched:
    """Probabilities on a grid that is finer than the levels that they are interpolated from.  `np.asarray` computes
    them on the host; a device computes the same ones, bit by bit, from less."""

    levels: NDArray[np.uint16]
    """`[a, b]`."""
    rows: Between
    """Of the grid's h rows, between the levels' rows."""
    columns: Between
    """Of the grid's w columns."""

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return len(self.rows[0]), len(self.columns[0])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        out = np.empty(self.shape, np.float32)
        stretch(probabilities(self.levels), self.rows, self.columns, out)
        return out.astype(dtype or np.float32, copy=False)


def write(logits: Tensor, out: Levels) -> None:
    """Fill `out` with the levels and sums of logits `[B, 1, h, w]`."""
    probs = logits[:, 0].float().sigmoid()
    torch.sum(probs, (1, 2), out=out.total)
    out.levels.copy_(probs.mul_(ONE).round_())


def from_logits(logits: Tensor) -> list[Found]:
    """The probabilities of logits `[B, 1, h, w]`, on the host, one for each item.  Waits for the device."""
    b, _, h, w = logits.shape
    out = Levels(logits.new_empty((b, h, w), dtype=torch.uint16), logits.new_empty(b, dtype=torch.float32))
    write(logits, out)
    return [Found(found, total) for found, total in zip(out.levels.cpu().numpy(), out.total.tolist(), strict=True)]


def interpolate(values: NDArray[np.float32], low: NDArray[np.intp], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows between the rows of `[h, w]`; see `Between`."""
    out = values.take(np.minimum(low + 1, len(values) - 1), axis=0)
    start = values.take(low, axis=0)
    out -= start
    out *= weight[:, None]
    out += start
    return out


def stretch(values: NDArray[np.float32], rows: Between, columns: Between, out: NDArray[np.float32]) -> None:
    """Write into `out` `[h, w]` what lies between the values `[a, b]`, first between their rows, then between columns.
    A strip at a time, so that what is used for it stays in the processor's cache."""
    low, weight = rows
    for top in range(0, len(low), _STRIP):
        part = slice(top, top + _STRIP)
        strip = interpolate(values, low[part], weight[part])
        out[part] = interpolate(np.ascontiguousarray(strip.T), *columns).T


def probabilities(values: NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities, float32 of the same shape, from levels; probabilities are returned as they are."""
    if values.dtype != np.uint16:
        return cast("NDArray[np.float32]", values)
    found: NDArray[np.float32] = values.astype(np.float32)
    return np.divide(found, np.float32(ONE), out=found)
