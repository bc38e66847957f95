"""The losses against their formulas written out in float64, one pixel at a time."""

import math

import numpy as np
import pytest
import torch

from activefreq_engine.models.refiner import Refined
from activefreq_engine.train.losses import boundary_band, coarse_loss, normalised_focal, refiner_loss, soft_dice

from .conftest import disk


def slow_focal(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None, gamma: float = 2) -> float:
    """-alpha * k * (1 - pt)^gamma * log pt, k = valid pixels / sum of (1 - pt)^gamma; mean over pixels, samples."""
    losses = []
    for b in range(len(logits)):
        pixels = []
        for i in np.ndindex(logits.shape[1:]):
            if labels[b][i] == -1:
                continue
            p = 1 / (1 + math.exp(-logits[b][i]))
            pt = p if labels[b][i] == 1 else 1 - p
            pixels.append(((1 - pt) ** gamma, math.log(pt), 1 if weight is None else weight[b][i]))
        k = len(pixels) / sum(beta for beta, _, _ in pixels)
        losses.append(sum(-0.5 * k * beta * log * w for beta, log, w in pixels) / len(pixels))
    return sum(losses) / len(losses)


def random_case(ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    logits = 2 * torch.randn(3, 1, 7, 11)
    labels = (torch.rand(3, 1, 7, 11) > 0.6).float()
    labels[torch.rand(labels.shape) < ignored] = -1
    return logits, labels


@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_equals_the_formula(ignored: float, weighted: bool) -> None:
    logits, labels = random_case(ignored)
    weight = torch.rand(labels.shape) if weighted else None
    wanted = slow_focal(logits.double().numpy(), labels.numpy(), None if weight is None else weight.double().numpy())
    assert float(normalised_focal(logits, labels, weight)) == pytest.approx(wanted, rel=1e-4)


def test_the_scale_is_each_samples_own_and_carries_no_gradient() -> None:
    """Samples, easy or hard, count the same; and a pixel's gradient is that of its focal term alone, scaled."""
    logits, labels = random_case()
    logits[1] *= 5
    single = [float(normalised_focal(logits[b : b + 1], labels[b : b + 1])) for b in range(3)]
    assert float(normalised_focal(logits, labels)) == pytest.approx(sum(single) / 3, rel=1e-5)

    x = logits[:1].double().requires_grad_(True)
    y = labels[:1].double()
    (got,) = torch.autograd.grad(normalised_focal(x, y), x)
    pt = torch.where(y == 1, x.sigmoid(), 1 - x.sigmoid())
    beta = (1 - pt) ** 2 * (y >= 0)
    count = (y >= 0).sum()
    fixed = float((count / beta.sum()).detach())
    (wanted,) = torch.autograd.grad((-0.5 * fixed * beta * pt.log() / count).sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", [normalised_focal, soft_dice, coarse_loss])
def test_ignored_pixels_count_nowhere(loss) -> None:
    logits, labels = random_case()
    changed = torch.where(labels == -1, 30 * torch.randn_like(logits), logits)
    assert float(loss(changed, labels)) == pytest.approx(float(loss(logits, labels)), rel=1e-6)
    x = logits.clone().requires_grad_(True)
    loss(x, labels).backward()
    assert x.grad is not None
    assert not x.grad[labels == -1].any()
    assert x.grad[labels != -1].abs().min() > 0


@pytest.mark.parametrize("loss", [normalised_focal, soft_dice, coarse_loss])
def test_right_is_zero_and_wrong_is_not(loss) -> None:
    _, labels = random_case()
    sure = 20 * (2 * labels.clamp(min=0) - 1)
    assert float(loss(sure, labels)) == pytest.approx(0, abs=1e-3)
    assert float(loss(-sure, labels)) > 0.5


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_logits_stay_finite(logit: float) -> None:
    for value in (0.0, 1.0, -1.0):
        x = torch.full((2, 1, 5, 5), logit, requires_grad=True)
        loss = coarse_loss(x, torch.full((2, 1, 5, 5), value))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()


def test_half_precision_logits_are_summed_in_single() -> None:
    logits, labels = random_case()
    half = logits.to(torch.bfloat16)
    assert float(coarse_loss(half, labels)) == pytest.approx(float(coarse_loss(half.float(), labels)), rel=1e-6)


def test_dice_equals_the_formula() -> None:
    logits, labels = random_case()
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    wanted = []
    for b in range(3):
        valid = labels[b].numpy() != -1
        truth = labels[b].numpy()[valid]
        wanted.append(1 - (2 * (p[b][valid] * truth).sum() + 1) / (p[b][valid].sum() + truth.sum() + 1))
    assert float(soft_dice(logits, labels)) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_band_covers_fine_structure_and_not_the_inside() -> None:
    labels = torch.zeros(2, 1, 64, 96)
    labels[0, 0] = torch.from_numpy(disk(64, 96, 60, 30, 20)).float()
    labels[0, 0, 30, :40] = 1  # a hair, lost when scaled down by 8
    band = boundary_band(labels)[0, 0]
    assert set(band.unique().tolist()) == {0.0, 1.0}
    assert band[30, 2:38].all()  # the hair
    assert band[28, 2:38].all()  # grown by two
    assert not band[27, 2:30].any()  # and no more
    assert not band[20:40, 55:65].any()  # inside of the disk
    assert not boundary_band(labels)[1].any()


def test_refiner_loss_is_the_sum_of_its_parts() -> None:
    truth = torch.from_numpy(disk(32, 48, 20, 15, 9)).float()[None, None]
    truth[..., 40:] = -1
    blend, detail, boundary, coarse = torch.randn(4, 1, 1, 32, 48)
    coarse = torch.where(truth > 0, coarse.abs(), -coarse.abs())
    coarse[..., 5:9, 8:20] *= -1  # wrong here,
    coarse[..., 30:, 45:] *= -1  # and where nobody knows
    band = boundary_band(truth)
    band[..., 3:11, 6:22] = 1
    p = boundary.double().sigmoid()
    gate = -(band * p.log() + (1 - band) * (1 - p).log())[truth != -1].sum() / truth.numel()
    wanted = float(coarse_loss(blend, truth)) + float(gate)
    wanted += slow_focal(detail.double().numpy(), truth.numpy(), (0.5 + 0.5 * band).double().numpy())
    assert float(refiner_loss(Refined(blend, detail, boundary), truth, coarse)) == pytest.approx(wanted, rel=1e-4)
