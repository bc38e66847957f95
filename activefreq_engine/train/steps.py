"""One training step as a module: a batch in, the loss out.  So DDP can wrap it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models import FreqFormer
from ..models.freqformer import Coarse
from ..models.freqnet import upsample
from ..models.refiner import Refined, roi_align
from .losses import coarse_loss, feature_loss, refiner_loss
from .simulate import Clicker, simulate


def norms(model: nn.Module) -> list[_BatchNorm]:
    """All BatchNorm layers."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def keep_norms(model: nn.Module, frozen: bool) -> None:
    """Let the norms of a model in training use their running statistics, or those of each batch.

    All samples of a batch have the same number of clicks, and the maps' means and variances depend on it.  BatchNorm
    with the statistics of each batch would learn masks that its running ones, a mean over all numbers of clicks, then
    shift: first masks came out too small (docs/experiments.md, 13).  So at the end of a run they are frozen.
    """
    for norm in norms(model):
        norm.train(not frozen)


class CoarseStep(nn.Module):
    """Clicks in, loss out, for the network without its refiner.

    With a teacher (`teacher_channels` above 0) a linear layer on stages 3 and 4, which is no part of the model, also
    learns to tell the teacher's features of the crop, whatever the clicks and the colours.
    """

    def __init__(self, model: FreqFormer, clicker: Clicker = "ritm", teacher_channels: int = 0) -> None:
        super().__init__()
        self.model = model
        self.clicker = clicker
        self.frozen = False  # BatchNorm's statistics, see `keep_norms`
        channels = model.encoder.spec.channels
        self.teacher_head = nn.Conv2d(channels[2] + channels[3], teacher_channels, 1) if teacher_channels else None
        if model.refiner is not None:
            model.refiner.requires_grad_(False)

    def forward(
        self,
        image: Tensor,
        labels: Tensor,
        iterations: int,
        rng: np.random.Generator,
        teacher: Tensor | None = None,
        teacher_weight: float = 0.0,
    ) -> Tensor:
        """Scalar loss.

        Args:
            image (Tensor): `[B, 3, S, S]` normalised.
            labels (Tensor): int8 `[B, 1, S, S]`: 0, 1, or -1 for ignored.
            iterations (int): simulated clicks after the first.
            rng: source of chance.
            teacher (Tensor, optional): `[B, T, S/16, S/16]`, the teacher's standardised features of the crops.
            teacher_weight (float): of the squared error against them.
        """
        self.model.eval()
        clicks = simulate(self.model, image, labels, iterations, rng, self.clicker)
        torch.clear_autocast_cache()  # casts made without gradient must not serve the pass that is learnt from
        self.model.train()
        keep_norms(self.model, self.frozen)
        features = self.model.encode_image(image)
        maps = self.model.encode_clicks(features, clicks)
        loss = coarse_loss(self.model.decode_maps(features, maps).logits, labels.float())
        if teacher is None or self.teacher_head is None:
            return loss
        told = self.teacher_head(torch.cat([maps[1], upsample(maps[2], maps[1].shape[2:])], dim=1))
        return loss + teacher_weight * feature_loss(told, teacher, labels)


class RefinerStep(nn.Module):
    """Clicks in, refiner loss out; the network itself stays as it is.  Its input is the crop at two thirds size."""

    def __init__(self, model: FreqFormer, clicker: Clicker = "ritm") -> None:
        super().__init__()
        if model.refiner is None:
            raise ValueError("this model has no refiner to train (config.refiner_width is 0)")
        self.model = model
        self.clicker = clicker
        self.frozen = False  # BatchNorm's statistics, see `keep_norms`
        model.requires_grad_(False)
        model.refiner.requires_grad_(True)

    def forward(self, image: Tensor, labels: Tensor, iterations: int, rng: np.random.Generator) -> Tensor:
        """Image `[B, 3, S, S]` normalised, labels int8 `[B, 1, S, S]`: 0, 1, or -1 for ignored -> scalar loss."""
        model = self.model.eval()
        assert model.refiner is not None
        size = max(32, round(image.shape[3] * 2 / 3 / 32) * 32)
        small = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        small_labels = F.interpolate(labels.float(), size=(size, size), mode="nearest-exact").to(torch.int8)
        with torch.no_grad():
            clicks = simulate(model, small, small_labels, iterations, rng, self.clicker)
            coarse = model.decode_clicks(model.encode_image(small), clicks)
            coarse = Coarse(coarse.logits.float(), coarse.embedding.float())
        boxes = focus_boxes(small_labels[:, 0].cpu().numpy(), rng).to(image.device)
        side = model.config.refine_size
        scale = image.shape[3] / size
        crop = roi_align(image, boxes, side, scale, samples=1)
        truth = labels.float().clamp(min=0)
        valid = roi_align((labels >= 0).float(), boxes, side, scale) > 0.999
        target = (roi_align(truth, boxes, side, scale) > 0.5).float().masked_fill(~valid, -1.0)
        # the disks of the coarse input, as they lie in the box
        disks = (roi_align(clicks[:, 1:], boxes, side) > 0.5).float()
        model.refiner.train()
        keep_norms(model.refiner, self.frozen)
        refined: Refined = model.refine_maps(coarse, boxes, crop, disks)
        return refiner_loss(refined, target)


def focus_boxes(labels: NDArray[np.int8], rng: np.random.Generator) -> Tensor:
    """A box per sample, `[B, 4]`: the object's x1.1 to 1.6 with jitter, or (40 %) a smaller one on its border."""
    boxes = []
    for label in labels:
        size = label.shape[0]
        ys, xs = np.nonzero(label == 1)
        if len(xs) == 0:
            side = size * rng.uniform(0.3, 1.0)
            cx, cy = rng.uniform(side / 2, size - side / 2, 2)
            w = h = side
        else:
            w, h = float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)
            if rng.random() < 0.4 and len(xs) >= 400:
                i = rng.integers(len(xs))
                cx, cy = xs[i] + 0.5, ys[i] + 0.5
                w = h = max(w, h) / rng.uniform(1.3, 4)
            else:
                grow = rng.uniform(1.1, 1.6)
                cx, cy = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
                cx, cy = cx + w * rng.uniform(-0.15, 0.15), cy + h * rng.uniform(-0.15, 0.15)
                w, h = w * grow, h * grow
        w, h = max(w, 16.0), max(h, 16.0)
        boxes.append([max(0.0, cx - w / 2), max(0.0, cy - h / 2), min(size, cx + w / 2), min(size, cy + h / 2)])
    return torch.tensor(boxes, dtype=torch.float32)
