"""Losses of the coarse mask and of the refiner."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.refiner import Refined

IGNORE = -1.0  # label of pixels that count in no loss


def _probability_of_truth(logits: Tensor, labels: Tensor) -> Tensor:
    probs = logits.float().sigmoid()
    return 1 - (labels.clamp(min=0) - probs).abs()


def normalised_focal(logits: Tensor, labels: Tensor, weight: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Normalised focal loss (RITM, arXiv 2102.06583): focal weights rescaled per sample to a mean of one.

    Args:
        logits (Tensor): `[B, 1, H, W]`.
        labels (Tensor): `[B, 1, H, W]` float: 0, 1, or -1 for ignored pixels.
        weight (Tensor, optional): `[B, 1, H, W]` extra weights.

    Returns:
        Tensor: scalar, mean over valid pixels and samples.
    """
    valid = (labels != IGNORE).float()
    pt = _probability_of_truth(logits, labels)
    beta = (1 - pt).pow(gamma) * valid
    count = valid.sum(dim=(1, 2, 3))
    scale = (count / beta.sum(dim=(1, 2, 3)).clamp(min=1e-6)).detach().view(-1, 1, 1, 1)
    loss = -(scale * beta) * pt.clamp(min=1e-6).log()
    if weight is not None:
        loss = loss * weight
    return (loss.sum(dim=(1, 2, 3)) / count.clamp(min=1)).mean() * 0.5  # alpha = 0.5


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice, mean over samples; ignored pixels count nowhere."""
    valid = (labels != IGNORE).float()
    probs = logits.float().sigmoid() * valid
    truth = labels.clamp(min=0) * valid
    overlap = (probs * truth).sum(dim=(1, 2, 3))
    total = probs.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def coarse_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Normalised focal loss plus half the soft Dice loss."""
    return normalised_focal(logits, labels) + 0.5 * soft_dice(logits, labels)


def feature_loss(told: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error against a teacher's features, over the cells that lie in the image.

    Args:
        told (Tensor): `[B, T, h, w]`, the student's.
        teacher (Tensor): `[B, T, h, w]`.
        labels (Tensor): int8 `[B, 1, H, W]`, H and W multiples of h and w; -1 beyond the image.
    """
    inside = F.avg_pool2d((labels >= 0).float(), labels.shape[2] // told.shape[2]) > 0.99
    error = (told.float() - teacher.float()).square().mean(dim=1, keepdim=True)
    return (error * inside).sum() / inside.sum().clamp(min=1)


def boundary_band(labels: Tensor, down: int = 8) -> Tensor:
    """Where the gate should open: pixels that a mask loses when scaled down by `down` and up again, grown by 2."""
    truth = labels.clamp(min=0)
    small = F.interpolate(truth, scale_factor=1 / down, mode="bilinear", align_corners=False)
    rough = F.interpolate(small, size=truth.shape[2:], mode="bilinear", align_corners=False) > 0.5
    band = (rough != (truth > 0.5)).float()
    return F.max_pool2d(band, 5, stride=1, padding=2)


def refiner_loss(refined: Refined, labels: Tensor, coarse: Tensor) -> Tensor:
    """The refiner's losses, after FocalClick (arXiv 2204.02574).

    Focal and Dice loss of the blend, focal loss of the detail branch weighted to where the gate should open, binary
    cross-entropy of the gate.  It should open on fine parts of the boundary (`boundary_band`), as in FocalClick, and
    where the coarse mask is wrong.

    Args:
        refined (Refined): the refiner's maps on the boxes.
        labels (Tensor): `[B, 1, S, S]` float: 0, 1, or -1 for ignored.
        coarse (Tensor): `[B, 1, S, S]`, the coarse logits on the boxes.
    """
    valid = (labels != IGNORE).float()
    wrong = ((coarse > 0) != (labels > 0.5)).float() * valid
    band = torch.maximum(boundary_band(labels), F.max_pool2d(wrong, 5, stride=1, padding=2))
    blend = coarse_loss(refined.logits, labels)
    detail = normalised_focal(refined.detail, labels, weight=0.5 + 0.5 * band)
    gate = F.binary_cross_entropy_with_logits(refined.boundary.float(), band, weight=valid)
    return blend + detail + gate
