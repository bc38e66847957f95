"""Runs plans on a CPU; some small operations have a form here that is quicker on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.runtime import cpu
from activefreq_engine.runtime.levels import Found
from activefreq_engine.runtime.modules import Modules
from activefreq_engine.runtime.painting import PaintRequest
from activefreq_engine.runtime.plan.planned import Planned


class CpuPlans(Modules):
    """Calls plans on a CPU (an `Executor`).  The bits of an answer do not depend on what else is in the batch."""

    compiles = True

    def __init__(self, model: Planned) -> None:
        super().__init__(model, torch.device("cpu"), model.precision)
        cpu.keep_freed_memory()
        self._alone = self.precision == "bf16" and cpu.has_amx()
        """Whether items run one by one: with AMX nobody has tried whether oneDNN's products have the same bits in any
        batch; elsewhere they had."""

    def active(self) -> AbstractContextManager[None]:
        return cpu.threads()

    def prepare(self, crops: Sequence[NDArray[np.uint8]]) -> list[Any]:
        if not self._alone:
            return super().prepare(crops)
        return [features for crop in crops for features in super(CpuPlans, self).prepare([crop])]

    def click(
        self,
        features: Sequence[Any],
        previous: Sequence[NDArray[Any]],
        points: Sequence[NDArray[np.float32]],
        wanted: Sequence[PaintRequest | None] = (),
    ) -> list[tuple[Found, Any]]:
        if not self._alone:
            return super().click(features, previous, points)
        items = zip(features, previous, points, strict=True)
        return [answer for f, b, p in items for answer in super(CpuPlans, self).click([f], [b], [p])]

    def image(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        return cpu.normalise(crops)

    def maps(self, points: Tensor, height: int, width: int, radius: float) -> Tensor:
        return cpu.click_maps(points, height, width, radius)
