"""A model that runs by plans, with the interface of the model itself."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor

from activefreq_engine.models import Coarse, FreqFormer
from activefreq_engine.runtime.plan.plan import Folded, Plan, PlanFeatures

GRAIN = 16
"""The part that a refiner reads has sides of so many pixels of the embedding, or a multiple."""
PLANS_KEPT = 8  # network shapes whose plans stay in memory; one costs about 10 ms to make


class Planned:
    """A `FreqFormer` behind plans, one for each network shape in use.

    `encode_image`, `decode_clicks` and `refine` take and return what the model's own methods do; features and coarse
    answers are the plan's.  When the model's weights have changed, the next image is answered with the new ones.

    Args:
        model (FreqFormer): in evaluation mode, on `device`.
        device (torch.device): where plans run.
        precision (str): one of `plan.PRECISIONS`.
    """

    def __init__(self, model: FreqFormer, device: torch.device, precision: str) -> None:
        self._model, self._device, self._asked = model, device, precision
        self.config = model.config
        self.refiner = model.refiner
        self._fold()

    def encode_image(self, image: Tensor) -> PlanFeatures:
        """Normalised image `[B, 3, H, W]` -> `ProjectedFeatures`."""
        self.folded()
        return self.plan(image.shape[2], image.shape[3]).prepare(image)

    def decode_clicks(self, features: PlanFeatures, clicks: Tensor) -> Coarse:
        """Features and click maps `[B, 3, H, W]` -> `Coarse`."""
        return self.plan(clicks.shape[2], clicks.shape[3]).click(*features, clicks)

    def refine(self, coarse: Coarse, boxes: Tensor, image_crop: Tensor, disks: Tensor) -> Tensor:
        """As `FreqFormer.refine`."""
        if self._folded.refine is None:
            raise ValueError("this model has no refiner (config.refiner_width is 0)")
        if self._device.type == "cpu":
            if len(boxes) > 1:  # each box reads another part of its answer
                items = zip(*(t.split(1) for t in (*coarse, boxes, image_crop, disks)), strict=True)
                return torch.cat([self.refine(Coarse(a, b), *rest) for a, b, *rest in items])
            coarse, boxes = near(coarse, boxes)
        return self._folded.refine(coarse.embedding, coarse.logits, boxes, image_crop, disks)

    def plan(self, height: int, width: int) -> Plan:
        """The plan for a network shape, made on first use.  Where too many are kept, the one unused for longest
        goes."""
        plan = self._plans.pop((height, width), None) or self._folded.plan(height, width)
        self._plans[height, width] = plan
        if len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return plan

    def folded(self) -> Folded:
        """The model with its weights as they are now; another object when they have changed."""
        if _stamp(self._tensors) != self._weights:
            self._fold()
        return self._folded

    def _fold(self) -> None:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        weights = _stamp(tensors)
        self._folded = Folded(self._model, self._device, self._asked, pack=True)
        self.precision = self._folded.precision
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # plans are made and run on another stream
        self._tensors, self._weights = tensors, weights  # last: what an interrupt or a shortage stops is done again


def near(coarse: Coarse, boxes: Tensor) -> tuple[Coarse, Tensor]:
    """The part of a coarse answer that RoIAlign reads for a box, and the box in it; one image.

    The refiner's first product then covers that part alone.  Its sides are multiples of `GRAIN`, since oneDNN compiles
    a kernel for every number of pixels, which takes longer than the product.  The box is read on the host, so not for
    CUDA.

    Args:
        coarse (Coarse): embedding `[1, E, h, w]` and logits `[1, 1, H, W]`, H and W multiples of h and w.
        boxes (Tensor): float32 `[1, 4]`, (x0, y0, x1, y1) in pixels of the logits.
    """
    step = coarse.logits.shape[3] // coarse.embedding.shape[3]
    height, width = coarse.embedding.shape[2:]
    x0, y0, x1, y1 = boxes[0].tolist()
    left, right = _around(x0 / step, x1 / step, width)
    top, bottom = _around(y0 / step, y1 / step, height)
    part = Coarse(
        coarse.logits[:, :, top * step : bottom * step, left * step : right * step],
        coarse.embedding[:, :, top:bottom, left:right],
    )
    return part, boxes - boxes.new_tensor([left, top, left, top]) * step


def _around(start: float, stop: float, length: int) -> tuple[int, int]:
    """The pixels of an axis that lie within a pixel of this range, and enough others."""
    low, high = max(0, math.floor(start) - 1), min(length, math.ceil(stop) + 1)
    size = min(length, -(-(high - low) // GRAIN) * GRAIN)
    low = min(low, length - size)
    return low, low + size


def _stamp(tensors: list[Tensor]) -> int:
    """Changes when a weight does: torch counts the in-place changes of every tensor, unless it was made for inference
    only."""
    return hash(tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors))
