"""Probabilities in 16 bits, as levels: 0 for 0, `ONE` for 1.  What leaves the device, and what a history keeps."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.runtime.painting import Painted

ONE = 65535


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


def probabilities(values: NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities, float32 of the same shape, from levels; probabilities are returned as they are."""
    if values.dtype != np.uint16:
        return cast("NDArray[np.float32]", values)
    found: NDArray[np.float32] = values.astype(np.float32)
    return np.divide(found, np.float32(ONE), out=found)
