"""Plans on a CPU, with what is quicker there than the ops made for a device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.runtime import cpu
from activefreq_engine.runtime.modules import Modules
from activefreq_engine.runtime.plan.planned import Planned


class CpuPlans(Modules):
    """Calls plans on a CPU (an `Executor`)."""

    def __init__(self, model: Planned) -> None:
        super().__init__(model, torch.device("cpu"), model.precision)
        cpu.keep_freed_memory()

    def active(self) -> AbstractContextManager[None]:
        return cpu.threads()

    def image(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        return cpu.normalise(crops)

    def maps(self, points: Tensor, height: int, width: int, radius: float) -> Tensor:
        return cpu.click_maps(points, height, width, radius)
