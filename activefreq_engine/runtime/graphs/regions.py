"""Finds the uncertain regions of a mask on the device, in one piece of work that CUDA can replay."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.conventions import SUGGESTION_SIDE
from activefreq_engine.kernels.uncertain import uncertain_regions
from activefreq_engine.runtime.graphs.contexts import Context, Replayer, Transfer
from activefreq_engine.runtime.levels import ONE, Between, Stretched

CAPACITY = 1024
"""Most regions that the table has room for, outside the mask and inside it, each."""

Grid = NDArray[np.float32] | Stretched


Holding = Callable[[NDArray[np.uint16]], Tensor | None]


class _Stretcher:
    """Levels of two steps on the device, and their interpolation onto the grid.

    After the next click the levels of the present step are those of the step before: they stay in place.
    """

    def __init__(self, device: torch.device, holding: Holding) -> None:
        self._holding = holding
        side = SUGGESTION_SIDE
        self.slots = Transfer(device, levels=((2, side, side), torch.uint16))
        """Room for the levels of two steps."""
        self._held: list[weakref.ref[NDArray[np.uint16]] | None] = [None, None]
        """The levels in each slot."""
        self._sent = Transfer(
            device,
            slot=((2,), torch.int64),
            # along both axes: of each place on the grid
            low=((2, 2, side), torch.int64),
            high=((2, 2, side), torch.int64),
            weight=((2, 2, side), torch.float32),
        )
        """Of each step: its slot, and its places."""
        self._places: list[tuple[Between, Between] | None] = [None, None]
        """The places of each step that are in `_sent`."""
        self._one = torch.full((1,), float(ONE), dtype=torch.float32, device=device)

    def interpolated(self) -> Tensor:
        """float32 `[2, side, side]`: what `np.asarray` makes of the `Stretched` of both steps, in the corner.  Each
        operation rounds as the host's does, so they must not be fused."""
        self._sent.send()
        sent = self._sent.tensors
        # by a number of the host's a device does not divide: it multiplies by the reciprocal, which rounds twice
        values = self.slots.tensors["levels"].to(torch.int32).to(torch.float32) / self._one
        values = values.index_select(0, sent["slot"])
        for axis, alike in ((0, (2, -1, 1)), (1, (2, 1, -1))):
            low, high, weight = (sent[name][:, axis].view(alike) for name in ("low", "high", "weight"))
            start = values.gather(1 + axis, low.expand_as(values))
            values = (values.gather(1 + axis, high.expand_as(values)) - start).mul_(weight).add_(start)
        return values

    def hold(self, steps: Sequence[Stretched]) -> None:
        """Put what `interpolated` reads in place, for the present step and perhaps the one before.  Where there is no
        step before, what is interpolated for it means nothing."""
        known = [None if ref is None else ref() for ref in self._held]
        slots = [next((k for k, levels in enumerate(known) if levels is s.levels), None) for s in steps]
        free = [k for k in range(2) if k not in slots]
        for step, (stretched, slot) in enumerate(zip(steps, slots, strict=True)):
            if slot is None:
                slot = free.pop()
                self._fill(slot, stretched.levels)
            self._sent.arrays["slot"][step] = slot
            self._place(step, stretched.rows, stretched.columns)

    def _fill(self, slot: int, levels: NDArray[np.uint16]) -> None:
        h, w = levels.shape
        self._held[slot] = None  # until they are there
        place, there = self.slots.tensors["levels"][slot, :h], self._holding(levels)
        if there is not None:
            place[:, :w].view(torch.int16).copy_(there.view(torch.int16))  # not all of torch knows uint16
        else:
            rows = self.slots.arrays["levels"][slot, :h]
            rows[:, :w] = levels
            place.copy_(torch.from_numpy(rows), non_blocking=True)
        self._held[slot] = weakref.ref(levels)

    def _place(self, step: int, rows: Between, columns: Between) -> None:
        known = self._places[step]
        if known is not None and known[0] is rows and known[1] is columns:
            return
        self._places[step] = None
        for axis, (low, weight) in enumerate((rows, columns)):
            lows, highs, weights = (
                self._sent.arrays[name][step, axis, : len(low)] for name in ("low", "high", "weight")
            )
            lows[:], weights[:] = low, weight
            np.minimum(low + 1, SUGGESTION_SIDE - 1, out=highs)  # beyond the last level only where the weight is 0
        self._places[step] = rows, columns


class RegionContext(Context):
    """Probabilities of two steps -> the table of `kernels.uncertain`, one graph for every size.

    Args:
        replayer (Replayer): how work is run, and where.
        stretched (bool): whether probabilities go to the device as the levels that they are interpolated from. That is
            an eighth of the bytes after a click, and the interpolation is the device's.
        backend (str): of the operators, see `kernels.dispatch`. Default: "auto".
        holding (callable): gives levels, uint16 `[h, w]`, as a tensor where the device has them, else None. Default:
            it has none.
    """

    def __init__(
        self, replayer: Replayer, stretched: bool, backend: str = "auto", holding: Holding = lambda _: None
    ) -> None:
        super().__init__(replayer)
        grid = (SUGGESTION_SIDE, SUGGESTION_SIDE)  # a smaller one lies in its corner; nothing is found around it
        self._backend = backend
        self.levels = _Stretcher(replayer.device, holding) if stretched else None
        """The levels on the device, where probabilities come as levels."""
        floats = {} if stretched else {"probs": ((2, *grid), torch.float32)}
        self._transfer = Transfer(replayer.device, **floats, valid=(grid, torch.bool), rules=((4,), torch.float64))
        self._table: Transfer | None = None

    def run(self) -> tuple[Tensor]:
        self._transfer.send()
        sent = self._transfer.tensors
        probs, before = sent["probs"] if self.levels is None else self.levels.interpolated()
        table = uncertain_regions(probs, before, sent["valid"], sent["rules"], capacity=CAPACITY, backend=self._backend)
        if self._table is None:  # not in a replay
            self._table = Transfer(self._replayer.device, rows=(tuple(table.shape), torch.float64))
        self._table.tensors["rows"].copy_(table)
        self._table.fetch()
        return (table,)

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
        if self.levels is not None:
            self.levels.hold([s for s in (probs, before) if isinstance(s, Stretched)])
        else:
            arrays["probs"][...] = 0
            for step, values in enumerate((probs, before)):
                if values is not None:
                    arrays["probs"][step, :h, :w] = values
        arrays["valid"][h:] = False
        arrays["valid"][:h, w:] = False
        arrays["valid"][:h, :w] = valid
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
        holding (callable): as for `RegionContext`.
    """

    def __init__(self, replayer: Replayer, holding: Holding = lambda _: None) -> None:
        self._replayer, self._holding = replayer, holding
        self.made: dict[bool, RegionContext] = {}
        """By whether they take `Stretched`."""

    def __call__(
        self, probs: Grid, before: Grid | None, valid: NDArray[np.bool_], rules: tuple[float, float, float]
    ) -> NDArray[np.float64]:
        """As `RegionContext`; each of the two steps is of either kind."""
        stretched = isinstance(probs, Stretched) and (before is None or isinstance(before, Stretched))
        if stretched not in self.made:
            self.made[stretched] = RegionContext(self._replayer, stretched, holding=self._holding)
        return self.made[stretched](probs, before, valid, rules)
