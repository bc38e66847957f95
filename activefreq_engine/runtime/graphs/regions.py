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

CAPACITY = 1024
"""Most regions that the table has room for, outside the mask and inside it, each."""


class RegionContext(Context):
    """Probabilities of two steps -> the table of `kernels.uncertain`, one graph for every size.

    Args:
        replayer (Replayer): how work is run, and where.
        backend (str): of the operators, see `kernels.dispatch`. Default: "auto".
    """

    def __init__(self, replayer: Replayer, backend: str = "auto") -> None:
        super().__init__(replayer)
        grid = (SUGGESTION_SIDE, SUGGESTION_SIDE)  # a smaller one lies in its corner; nothing is found around it
        self._backend = backend
        self._transfer = Transfer(
            replayer.device,
            probs=(grid, torch.float32),
            before=(grid, torch.float32),
            valid=(grid, torch.bool),
            rules=((4,), torch.float64),
        )
        self._table: Transfer | None = None

    def run(self) -> tuple[Tensor]:
        self._transfer.send()
        table = uncertain_regions(**self._transfer.tensors, capacity=CAPACITY, backend=self._backend)
        if self._table is None:  # not in a replay
            self._table = Transfer(self._replayer.device, rows=(tuple(table.shape), torch.float64))
        self._table.tensors["rows"].copy_(table)
        self._table.fetch()
        return (table,)

    def __call__(
        self,
        probs: NDArray[np.float32],
        before: NDArray[np.float32] | None,
        valid: NDArray[np.bool_],
        rules: tuple[float, float, float],
    ) -> NDArray[np.float64]:
        """The table, see `kernels.uncertain.uncertain_regions`.  Waits for the device once.

        Args:
            probs, before: float32 `[h, w]`, h and w up to `SUGGESTION_SIDE`.
            valid: bool `[h, w]`.
            rules: threshold, tau and tau_flipped.
        """
        h, w = probs.shape
        arrays: dict[str, NDArray[Any]] = self._transfer.arrays
        arrays["valid"][...] = False
        arrays["valid"][:h, :w] = valid
        for name, values in (("probs", probs), ("before", before)):
            arrays[name][...] = 0
            if values is not None:
                arrays[name][:h, :w] = values
        arrays["rules"][:] = (*rules, before is not None)
        self.replay()
        self._replayer.wait()
        assert self._table is not None
        return self._table.arrays["rows"].copy()
