"""One training step as a module: a batch in, the loss out.  So DDP can wrap it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ModelLoadError
from ..kernels.click_maps import click_maps
from ..models import FreqFormer
from ..models.freqformer import Coarse, GuidedFeatures, ImageFeatures
from ..models.freqnet import upsample
from ..models.refiner import Refined, roi_align
from ..models.tinyvit import TinyViT
from ..runtime.plan.guide import FrozenTrunk
from ..session import zoom
from ..session.boxes import clamp, expand
from .losses import coarse_loss, feature_loss, refiner_loss
from .simulate import CLICKS, THRESHOLD, ClickBatch, Clicker, Shares, simulate

EncodedFeatures = ImageFeatures | GuidedFeatures


def trusted_attention() -> AbstractContextManager[None]:
    """Without cuDNN's attention, which torch prefers on Hopper GPUs.

    Its backward pass gave NaN on an H100 in bfloat16 (torch 2.11, cuDNN 9.19): every gradient of MiT-B0 at 256 pixels,
    in all steps, while 192 pixels were right.
    """
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def norms(model: nn.Module) -> list[_BatchNorm]:
    """All BatchNorm layers that are trained."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.weight.requires_grad]


def keep_norms(model: nn.Module, frozen: bool) -> None:
    """Let the norms of a model in training use their running statistics, or those of each batch.

    All samples of a batch have the same number of clicks, and the maps' means and variances depend on it.  BatchNorm
    with the statistics of each batch would learn masks that its running ones, a mean over all numbers of clicks, then
    shift: first masks came out too small (docs/experiments.md, 13).  So at the end of a run they are frozen.
    """
    for norm in norms(model):
        norm.train(not frozen)


class FrozenGuide:
    """What a network's guide sees of images, without gradient; nothing where it has none.

    Not a module: what it holds is stored with the network already.
    """

    def __init__(self, model: FreqFormer) -> None:
        self._guide = model.guide
        self._run = None if model.guide is None else model.guide.look

    def __bool__(self) -> bool:
        return self._run is not None

    def hasten(self, dtype: torch.dtype) -> None:
        """Let the guide's frozen part run in this precision; call it once its weights are there."""
        if self._guide is not None:
            self._run = FrozenTrunk(self._guide.trunk).to(dtype).requires_grad_(False).forward

    def __call__(self, image: Tensor) -> list[Tensor] | None:
        if self._run is None:
            return None
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            return self._run(image)


class CoarseStep(nn.Module):
    """Clicks in, loss out, for the network without its refiner.

    With a teacher (`teacher_channels` above 0) a linear layer on stages 3 and 4, which is no part of the model, also
    learns to tell the teacher's features of the crop, whatever the clicks and the colours.
    """

    def __init__(
        self, model: FreqFormer, clicker: Clicker = "ritm", teacher_channels: int = 0, prompts: Shares = CLICKS
    ) -> None:
        super().__init__()
        self.model = model
        self.clicker, self.prompts = clicker, prompts
        self.frozen = False  # BatchNorm's statistics, see `keep_norms`
        channels = model.encoder.channels
        self.teacher_head = nn.Conv2d(channels[2] + channels[3], teacher_channels, 1) if teacher_channels else None
        if model.refiner is not None:
            model.refiner.requires_grad_(False)
        self.look = FrozenGuide(model)

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
            labels (Tensor): int8 `[B, P, S, S]`: 0, 1, or -1 for ignored; P objects of each crop.
            iterations (int): simulated clicks after the first.
            rng: source of chance.
            teacher (Tensor, optional): `[B, T, S/16, S/16]`, the teacher's standardised features of the crops.
            teacher_weight (float): of the squared error against them.
        """
        model, per_crop = self.model.eval(), labels.shape[1]
        labels = labels.flatten(0, 1)[:, None]
        with torch.no_grad():
            seen = self.look(image)
            known = _repeated(model.encode_image(image, seen), per_crop) if iterations else None
            clicks, _ = simulate(model, image, labels, iterations, rng, self.clicker, self.prompts, known)
        torch.clear_autocast_cache()  # casts made without gradient must not serve the pass that is learnt from
        model.train()
        keep_norms(model, self.frozen)
        features = _repeated(model.encode_image(image, seen), per_crop)
        maps = self.model.encode_clicks(features, clicks)
        loss = coarse_loss(self.model.decode_maps(features, maps).logits, labels.float())
        if teacher is None or self.teacher_head is None:
            return loss
        told = self.teacher_head(torch.cat([maps[1], upsample(maps[2], maps[1].shape[2:])], dim=1))
        return loss + teacher_weight * feature_loss(told, teacher, labels)


def _repeated(features: EncodedFeatures, times: int) -> EncodedFeatures:
    """Features `[B, ...]` as those of `B * times` samples; one after the other belong to one crop."""
    if times == 1:
        return features
    return type(features)(*(f.repeat_interleave(times, 0) for f in features))


def with_guide(model: FreqFormer, trunk: TinyViT | None) -> FreqFormer:
    """The same network with a guide that adds nothing yet; `trunk`: its weights, random ones without.

    Raises:
        ModelLoadError: the network has a guide already, or is of a kind that can have none.
    """
    if model.guide is not None:
        raise ModelLoadError("this network has a guide already; go on from it without naming MobileSAM's weights")
    try:
        guided = FreqFormer(replace(model.config, guide="tinyvit_5m"))
    except ValueError as e:
        raise ModelLoadError(str(e)) from None
    assert guided.guide is not None
    guided.load_state_dict(model.state_dict(), strict=False)
    if trunk is not None:
        guided.guide.trunk.load_state_dict(trunk.state_dict())
    return guided.eval()


class RefinerStep(nn.Module):
    """Clicks in, refiner loss out; the network itself stays as it is, and sees the crop at a part of its size."""

    SHOWN = (1 / 3, 1 / 2, 2 / 3)
    """How much smaller the network may see the crop: the refiner runs where a network pixel covers more than 1.5."""

    def __init__(self, model: FreqFormer, clicker: Clicker = "ritm", prompts: Shares = CLICKS) -> None:
        super().__init__()
        if model.refiner is None:
            raise ValueError("this model has no refiner to train (config.refiner_width is 0)")
        self.model = model
        self.clicker, self.prompts = clicker, prompts
        self.frozen = False  # BatchNorm's statistics, see `keep_norms`
        self.look = FrozenGuide(model)
        model.requires_grad_(False)
        model.refiner.requires_grad_(True)

    def forward(self, image: Tensor, labels: Tensor, iterations: int, rng: np.random.Generator) -> Tensor:
        """Image `[B, 3, S, S]` normalised, labels int8 `[B, 1, S, S]`: 0, 1, or -1 for ignored -> scalar loss."""
        model = self.model.eval()
        assert model.refiner is not None
        size = max(32, round(image.shape[3] * rng.choice(self.SHOWN) / 32) * 32)
        small = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        small_labels = F.interpolate(labels.float(), size=(size, size), mode="nearest-exact").to(torch.int8)
        with torch.no_grad():
            known = model.encode_image(small, self.look(small))
            given, clicks = simulate(model, small, small_labels, iterations, rng, self.clicker, self.prompts, known)
            coarse = model.decode_clicks(known, given)
            coarse = Coarse(coarse.logits.float(), coarse.embedding.float())
        before = given[:, 0] if iterations else torch.zeros_like(given[:, 0])  # a box or a lasso is no answer
        boxes = focus_boxes(before, coarse.logits[:, 0].sigmoid(), clicks, rng).to(image.device)
        side = model.config.refine_size
        scale = image.shape[3] / size
        crop = roi_align(image, boxes, side, scale, samples=1)
        truth = labels.float().clamp(min=0)
        valid = roi_align((labels >= 0).float(), boxes, side, scale) > 0.999
        target = (roi_align(truth, boxes, side, scale) > 0.5).float().masked_fill(~valid, -1.0)
        points = placed(clicks.points().to(boxes), boxes, side)
        disks = click_maps(points, side, side, model.config.click_radius)
        model.refiner.train()
        keep_norms(model.refiner, self.frozen)
        refined: Refined = model.refine_maps(coarse, boxes, crop, disks)
        return refiner_loss(refined, target, roi_align(coarse.logits, boxes, side))


def focus_boxes(previous: Tensor, probs: Tensor, clicks: ClickBatch, rng: np.random.Generator) -> Tensor:
    """A box per sample, `[B, 4]`: what a session would redraw after its last click, larger or smaller by up to a third.

    previous, probs: `[B, h, w]`, probabilities before and after it.
    """
    boxes = []
    height, width = probs.shape[1:]
    for before, after, last in zip(previous.cpu().numpy(), probs.cpu().numpy(), clicks.last, strict=True):
        x, y = last or (width // 2, height // 2)  # a crop of ignored pixels alone has no click
        box = zoom.focus_box(before, after, (x, y), THRESHOLD)
        if box is None:
            box = expand((x, y, x + 1, y + 1), 1.0, min(height, width) * rng.uniform(0.3, 1.0))
        ratio = 0.75 * (4 / 3 / 0.75) ** rng.random()
        boxes.append(clamp(expand(box, ratio, zoom.MIN_FOCUS), (0, 0, width, height)))
    return torch.tensor(boxes, dtype=torch.float32)


def placed(points: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Clicks of the network's grid `[B, N, 2]`, empty slots -1, as they lie in a crop of each box, `side` x `side`;
    those beside the box leave their slots empty."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    centres = points + 0.5
    inside = ((centres >= low) & (centres < high) & (points >= 0)).all(-1, keepdim=True)
    return torch.where(inside, ((centres - low) * (side / (high - low)) - 0.5).clamp(min=0), -1.0)
