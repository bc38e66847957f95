"""What an engine asks of whatever runs its model: the model's own modules, plans, or plans replayed as graphs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from activefreq_engine.models import FreqFormer
from activefreq_engine.runtime.graphs.contexts import Contexts, Replayer
from activefreq_engine.runtime.graphs.cuda import Graphs
from activefreq_engine.runtime.levels import Found
from activefreq_engine.runtime.modules import ClickModel, Modules
from activefreq_engine.runtime.painting import PaintRequest
from activefreq_engine.runtime.plan.on_cpu import CpuPlans
from activefreq_engine.runtime.plan.planned import Planned

_log = logging.getLogger("activefreq_engine.runtime.engine")  # it logs the engine's choice


class Executor(Protocol):
    """Runs a model on one device: `Modules`, `CpuPlans` or `Contexts`.

    Only one thread calls it at a time, under `torch.inference_mode` and within `active`.  All items of a call have one
    network shape.  Features and coarse answers are handles: only the executor that made them looks inside.
    """

    precision: str
    """"fp32", "bf16" or "fp16"."""

    @property
    def model(self) -> ClickModel:
        """What runs: the model, or the plans that stand for it."""

    def active(self) -> AbstractContextManager[None]:
        """A context manager; everything else is called within it."""

    def prepare(self, crops: Sequence[NDArray[np.uint8]]) -> list[Any]:
        """Features of each crop, uint8 RGB `[h, w, 3]`.  The device may still be computing them when this returns."""

    paints: bool
    """Whether `click` paints masks; even then it may leave out some."""

    compiles: bool
    """Whether the first call at a network shape takes longer than the others."""

    unclear: bool
    """Whether an error may come of a shortage of memory and not say so, as oneDNN's."""

    @property
    def replayer(self) -> Replayer | None:
        """Runs other work than the model's in one piece; None where that would gain nothing."""

    def click(
        self,
        features: Sequence[Any],
        previous: Sequence[NDArray[Any]],
        points: Sequence[NDArray[np.float32]],
        wanted: Sequence[PaintRequest | None] = (),
    ) -> list[tuple[Found, Any]]:
        """Probabilities `[h, w]` of each click, and its coarse answer.

        Args:
            features: what `prepare` returned.
            previous: `[h, w]`, before the click: probabilities in float32, or levels in uint16.
            points: float32 `[2 * SLOTS, 2]`, click slots as `click_maps` takes them.
            wanted: the mask to paint for each click, or None; ignored by executors that do not paint.
        """

    def refine(
        self,
        coarse: Sequence[Any],
        boxes: Sequence[tuple[float, float, float, float]],
        crops: Sequence[NDArray[np.uint8]],
        points: Sequence[NDArray[np.float32]],
    ) -> list[Found]:
        """Probabilities `[S, S]` on focus boxes; arguments as in `RefineRequest`."""

    def wait(self) -> None:
        """Wait until everything that was started is done."""

    def verify(self, height: int, width: int) -> None:
        """Try what must be tried before it may run at a network shape, if that takes long.  Unlike everything else,
        this may run beside other calls, and outside of `active`."""

    def holding(self, values: NDArray[np.uint16]) -> torch.Tensor | None:
        """Levels of an answer, uint16 `[h, w]` on the device, if they are still there; until the next click."""


def executor_for(
    model: torch.nn.Module, name: str, device: torch.device, precision: str, *, plan: bool, graph: bool
) -> Executor:
    """The executor of a model that is on `device`, in evaluation mode; see `Engine` for the arguments."""
    if not plan or not isinstance(model, FreqFormer):
        if plan:
            _log.info("%s is not a FreqFormer: its own modules run, without a plan", name)
        return Modules(cast(ClickModel, model), device)
    planned = Planned(model, device, precision)
    if device.type == "cpu":
        return CpuPlans(planned)
    in_full = planned.precision == "fp32"
    return Contexts(planned, Graphs(device, in_full)) if graph else Modules(planned, device, planned.precision)
