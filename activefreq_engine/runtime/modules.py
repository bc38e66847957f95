"""Runs a model by calling its modules, one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.kernels.click_maps import click_maps
from activefreq_engine.models import normalise
from activefreq_engine.runtime import levels
from activefreq_engine.runtime.levels import Found
from activefreq_engine.runtime.painting import PaintRequest


class ClickModel(Protocol):
    """A model that answers clicks in two halves, image and clicks: a `FreqFormer`, or the plans made from one.

    Features and coarse answers are named tuples of tensors `[B, ...]`; a coarse answer has `logits` `[B, 1, H, W]`.
    """

    config: Any
    """`refine_size` and `click_radius` as in `FreqFormerConfig`."""
    refiner: Any
    """The refiner; None when the model has none."""

    def encode_image(self, image: Tensor) -> Any:
        """Normalised image `[B, 3, H, W]` -> features."""

    def decode_clicks(self, features: Any, clicks: Tensor) -> Any:
        """Features and click maps `[B, 3, H, W]` -> coarse answer."""

    def refine(self, coarse: Any, boxes: Tensor, image_crop: Tensor, disks: Tensor) -> Tensor:
        """As `FreqFormer.refine`."""


class Modules:
    """Calls a model (an `Executor`).

    Args:
        model (ClickModel): in evaluation mode, on `device`.
        device (torch.device): where it runs.
        precision (str): the precision that the model runs in, for `Executor.precision`.
    """

    paints, compiles, unclear = False, False, True
    replayer = None

    def __init__(self, model: ClickModel, device: torch.device, precision: str = "fp32") -> None:
        self.model, self.device, self.precision = model, device, precision

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def prepare(self, crops: Sequence[NDArray[np.uint8]]) -> list[Any]:
        features = self.model.encode_image(self.image(crops))
        return [_take(features, k) for k in range(len(crops))]

    def click(
        self,
        features: Sequence[Any],
        previous: Sequence[NDArray[Any]],
        points: Sequence[NDArray[np.float32]],
        wanted: Sequence[PaintRequest | None] = (),
    ) -> list[tuple[Found, Any]]:
        before = torch.from_numpy(np.stack([levels.probabilities(p) for p in previous])).to(self.device)
        clicks = torch.cat([before[:, None], self._disks(points, *before.shape[1:])], dim=1)
        coarse = self.model.decode_clicks(_stack(features), clicks)
        return [(found, _take(coarse, k)) for k, found in enumerate(levels.from_logits(coarse.logits))]

    def refine(
        self,
        coarse: Sequence[Any],
        boxes: Sequence[tuple[float, float, float, float]],
        crops: Sequence[NDArray[np.uint8]],
        points: Sequence[NDArray[np.float32]],
    ) -> list[Found]:
        placed = torch.tensor(boxes, dtype=torch.float32, device=self.device)
        disks = self._disks(points, *crops[0].shape[:2])
        return levels.from_logits(self.model.refine(_stack(coarse), placed, self.image(crops), disks))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def verify(self, height: int, width: int) -> None:
        pass  # layers of a plan are tried when it is made

    def holding(self, values: NDArray[np.uint16]) -> None:
        return None

    def image(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Crops `[H, W, 3]` of one size, normalised: float32 `[B, 3, H, W]`."""
        return normalise(torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2))

    def maps(self, points: Tensor, height: int, width: int, radius: float) -> Tensor:
        """`kernels.click_maps`."""
        return click_maps(points, height, width, radius=radius)

    def _disks(self, points: Sequence[NDArray[np.float32]], height: int, width: int) -> Tensor:
        slots = torch.from_numpy(np.stack(points)).to(self.device).unflatten(1, (2, -1))
        # slots are filled from the first on; leave out those that no request of the batch uses
        used = max(1, int((slots >= 0).all(-1).sum(2).max()))
        return self.maps(slots[:, :, :used].flatten(1, 2), height, width, self.model.config.click_radius)


def _stack(items: Sequence[Any]) -> Any:
    """Join named tuples of tensors with a batch axis of 1.  A single one comes back as it is, without a copy."""
    if len(items) == 1:
        return items[0]
    return type(items[0])(*(torch.cat(tensors) for tensors in zip(*items, strict=True)))


def _take(batch: Any, index: int) -> Any:
    """One item of a named tuple of batched tensors; cloned, so that it does not keep the whole batch alive."""
    return type(batch)(*(t[index : index + 1].clone() if t.shape[0] > 1 else t for t in batch))
