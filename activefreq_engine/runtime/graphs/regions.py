"""Finds the uncertain regions of a mask on the device, in one piece of work that CUDA can replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.conventions import SUGGESTION_SIDE
from activefreq_engine.kernels.uncertain import uncertain_regions
from activefreq_engine.runtime.graphs.contexts import Context, Replayer, Transfer
from activefreq_engine.runtime.levels import ONE, Stretched

CAPACITY = 1024
"""Most regions that the table has room for, outside the mask and inside it, each."""

Grid = NDArray[np.float32] | Stretched


class RegionContext(Context):
    """Probabilities of two steps -> the table of `kernels.uncertain`, one graph for every size.

    Args:
        replayer (Replayer): how work is run, and where.
        stretched (bool): whether probabilities go to the device as the levels that they are interpolated from. That is
            a fifth of the bytes or less, and the interpolation is the device's.
        backend (str): of the operators, see `kernels.dispatch`. Default: "auto".
    """

    def __init__(self, replayer: Replayer, stretched: bool, backend: str = "auto") -> None:
        super().__init__(replayer)
        side = SUGGESTION_SIDE  # a smaller grid lies in the corner; nothing is found around it
        self._stretched, self._backend = stretched, backend
        self._one = torch.full((1,), float(ONE), device=replayer.device)
        # of both steps; places along both axes
        as_levels = {
            "levels": ((2, side, side), torch.uint16),
            "low": ((2, 2, side), torch.int64),
            "high": ((2, 2, side), torch.int64),
            "weight": ((2, 2, side), torch.float32),
        }
        self._transfer = Transfer(
            replayer.device,
            **(as_levels if stretched else {"probs": ((2, side, side), torch.float32)}),
            valid=((side, side), torch.bool),
            rules=((4,), torch.float64),
        )
        self._table: Transfer | None = None

    def run(self) -> tuple[Tensor]:
        self._transfer.send()
        sent = self._transfer.tensors
        probs, before = self._interpolated() if self._stretched else sent["probs"]
        table = uncertain_regions(probs, before, sent["valid"], sent["rules"], capacity=CAPACITY, backend=self._backend)
        if self._table is None:  # not in a replay
            self._table = Transfer(self._replayer.device, rows=(tuple(table.shape), torch.float64))
        self._table.tensors["rows"].copy_(table)
        self._table.fetch()
        return (table,)

    def _interpolated(self) -> Tensor:
        """float32 `[2, side, side]`: what `Stretched` stands for, of both steps.  Each operation rounds as the host's
        does, so they must not be fused."""
        sent = self._transfer.tensors
        # a divisor on the host would be multiplied by as its reciprocal
        values = sent["levels"].float() / self._one
        for axis, alike in ((0, (2, -1, 1)), (1, (2, 1, -1))):
            low, high, weight = (sent[name][:, axis].view(alike) for name in ("low", "high", "weight"))
            start = values.gather(1 + axis, low.expand_as(values))
            values = (values.gather(1 + axis, high.expand_as(values)) - start).mul_(weight).add_(start)
        return values

    def __call__(
        self, probs: Grid, before: Grid | None, valid: NDArray[np.bool_], rules: tuple[float, float, float]
    ) -> NDArray[np.float64]:
        """The table, see `kernels.uncertain.uncertain_regions`, without rows that hold no region.  Waits for the device
        once.

        Args:
            probs, before: `[h, w]`, h and w up to `SUGGESTION_SIDE`: `Stretched` where the context is for these, else
                either kind.
            valid: bool `[h, w]`.
            rules: threshold, tau and tau_flipped.
        """
        h, w = probs.shape
        arrays: dict[str, NDArray[Any]] = self._transfer.arrays
        arrays["valid"][h:] = False
        arrays["valid"][:h, w:] = False
        arrays["valid"][:h, :w] = valid
        for step, values in enumerate((probs, before)):
            if not self._stretched:
                arrays["probs"][step] = 0
                if values is not None:
                    arrays["probs"][step, :h, :w] = values
            elif isinstance(values, Stretched):  # else there was no step before, and what is held for it is not used
                a, b = values.levels.shape
                arrays["levels"][step, :a, :b] = values.levels
                for axis, (low, weight) in enumerate((values.rows, values.columns)):
                    arrays["low"][step, axis, : len(low)] = low
                    np.minimum(low + 1, (a, b)[axis] - 1, out=arrays["high"][step, axis, : len(low)])
                    arrays["weight"][step, axis, : len(low)] = weight
        arrays["rules"][:] = (*rules, before is not None)
        self.replay()
        self._replayer.wait()
        assert self._table is not None
        rows = self._table.arrays["rows"]
        return rows[:, : 1 + min(int(rows[:, 0, 0].max()), CAPACITY)].copy()


class Regions:
    """The contexts for probabilities as levels and for others.

    Args:
        replayer (Replayer): how work is run, and where.
    """

    def __init__(self, replayer: Replayer) -> None:
        self._replayer = replayer
        self.made: dict[bool, RegionContext] = {}
        """By whether they take `Stretched`."""

    def __call__(
        self, probs: Grid, before: Grid | None, valid: NDArray[np.bool_], rules: tuple[float, float, float]
    ) -> NDArray[np.float64]:
        """As `RegionContext`; each of the two steps is of either kind."""
        stretched = isinstance(probs, Stretched) and (before is None or isinstance(before, Stretched))
        if stretched not in self.made:
            self.made[stretched] = RegionContext(self._replayer, stretched)
        return self.made[stretched](probs, before, valid, rules)
