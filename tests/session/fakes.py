"""Two models with the engine's interface and answers that a test can foresee.  Both count the items they work on."""

from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Features(NamedTuple):
    image: Tensor


class Coarse(NamedTuple):
    logits: Tensor
    embedding: Tensor


class FakeModel(nn.Module):
    """Base: counts, and keeps what it was given last."""

    def __init__(self, refine_size: int | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(refine_size=refine_size or 64, click_radius=5.0)
        self.refiner = None if refine_size is None else nn.Identity()
        self.count: Counter[str] = Counter()
        self.seen: dict[str, Tensor] = {}

    def encode_image(self, image: Tensor) -> Features:
        self.count["encode"] += len(image)
        self.count["encode batches"] += 1
        self.seen["image"] = image
        return Features(image)

    def decode_clicks(self, features: Features, clicks: Tensor) -> Coarse:
        assert features.image.shape == clicks.shape
        self.count["decode"] += len(clicks)
        self.count["decode batches"] += 1
        self.seen["clicks"] = clicks
        logits = self.answer(features.image, clicks)
        return Coarse(logits, logits)

    def refine(self, coarse: Coarse, boxes: Tensor, image_crop: Tensor, disks: Tensor) -> Tensor:
        assert len(coarse.logits) == len(boxes) == len(image_crop) == len(disks)
        self.count["refine"] += len(boxes)
        self.seen.update(boxes=boxes, image_crop=image_crop, disks=disks)
        return self.answer(image_crop, torch.cat([disks[:, :1] * 0, disks], dim=1))


class SquareModel(FakeModel):
    """A square around each positive click, minus a smaller one around each negative; image and previous mask shift
    the probabilities a little, never the mask."""

    def answer(self, image: Tensor, clicks: Tensor) -> Tensor:
        grow, cut = widen(clicks[:, 1:2], 25), widen(clicks[:, 2:3], 10)
        return 4 * grow - 9 * cut - 2 + 0.1 * image.mean(1, keepdim=True).tanh() + 0.5 * clicks[:, :1]


def widen(maps: Tensor, reach: int) -> Tensor:
    """Maximum over a square window, one axis at a time: 50 times quicker than in one go."""
    side = 2 * reach + 1
    return F.max_pool2d(F.max_pool2d(maps, (1, side), 1, (0, reach)), (side, 1), 1, (reach, 0))


class BrightModel(FakeModel):
    """Whatever is brighter than mid-grey: an object whose true outline the test knows.  Clicks are ignored."""

    def answer(self, image: Tensor, clicks: Tensor) -> Tensor:
        return 8 * (image.mean(1, keepdim=True) + 0.06)  # mid-grey is -0.06 after normalisation, black -2, white 2.4


def random_image(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """uint8 noise, `[H, W, C]` or `[H, W]`."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return rng.integers(0, 256, shape, dtype=np.uint8)
