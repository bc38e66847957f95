"""Simulated clicks for training: random correct first clicks, then clicks on the model's own errors."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..acselect import AcSelect
from ..conventions import SLOTS, THRESHOLD
from ..kernels.click_maps import click_maps
from ..models import FreqFormer

Clicker = Literal["ritm", "acselect"]
CLICKERS = {
    "ritm": "in the larger of missed and surplus area, well inside it",
    "acselect": "in the mislabelled region that AcSelect scores highest",
}
"""Where a simulated click on an error falls."""

DEEPEST = 0.6  # share of clicks that fall on the deepest pixel of their region


class ClickBatch:
    """The clicks of a batch: at most SLOTS of each sign per sample; the newest are kept."""

    def __init__(self, batch: int) -> None:
        self.clicks: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = [([], []) for _ in range(batch)]
        self.last: list[tuple[int, int] | None] = [None] * batch
        """Each sample's newest click."""

    def add(self, sample: int, x: int, y: int, positive: bool) -> None:
        self.clicks[sample][0 if positive else 1].append((x, y))
        self.last[sample] = x, y

    def points(self) -> Tensor:
        """`[B, 2N, 2]` float (x, y), empty slots -1; N is the most clicks of one sign in the batch, at most SLOTS."""
        n = min(SLOTS, max(len(clicks) for signs in self.clicks for clicks in signs))
        out = torch.full((len(self.clicks), 2 * n, 2), -1.0)
        for b, signs in enumerate(self.clicks):
            for sign, clicks in enumerate(signs):
                for slot, xy in enumerate(clicks[-n:] if n else []):
                    out[b, sign * n + slot] = torch.tensor(xy, dtype=torch.float32)
        return out


def central_pixel(
    region: NDArray[np.bool_], rng: np.random.Generator, exact: float = DEEPEST
) -> tuple[int, int, float]:
    """A pixel (x, y) well inside a region and the region's largest distance to its border.

    Uniform among pixels whose distance exceeds half the largest (the training rule of RITM); with probability `exact`
    the deepest pixel itself, which is where robot clickers and careful people click.
    """
    padded = np.pad(region.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    deepest = float(distance.max())
    if deepest == 0:
        return -1, -1, 0.0
    inner = np.flatnonzero(distance > deepest / 2)
    i = int(distance.argmax()) if rng.random() < exact else int(rng.choice(inner))
    return i % region.shape[1], i // region.shape[1], deepest


def first_clicks(labels: NDArray[np.int8], rng: np.random.Generator) -> ClickBatch:
    """One positive click in each object, or a negative one where a crop holds none.  labels: `[B, H, W]`."""
    clicks = ClickBatch(len(labels))
    for b, label in enumerate(labels):
        x, y, depth = central_pixel(label == 1, rng)
        if depth > 0:
            clicks.add(b, x, y, True)
            continue
        x, y, depth = central_pixel(label == 0, rng)
        if depth > 0:
            clicks.add(b, x, y, False)
    return clicks


def add_error_clicks(
    clicks: ClickBatch,
    probs: NDArray[np.float32],
    labels: NDArray[np.int8],
    rng: np.random.Generator,
    clicker: Clicker = "ritm",
) -> None:
    """One more click per sample, on an error of `probs > THRESHOLD`; none where there is no error.

    Args:
        clicks (ClickBatch): what the clicks are added to.
        probs: `[B, H, W]`, the answers to the clicks so far.
        labels: `[B, H, W]`: 0, 1, or -1 for pixels that are never clicked.
        rng: source of chance; "acselect" needs none.
        clicker: one of `CLICKERS`.
    """
    for b, (prob, label) in enumerate(zip(probs, labels, strict=True)):
        prediction = prob > THRESHOLD
        if clicker == "acselect":
            for best in AcSelect().oracle(prob, prediction, label == 1, valid=label >= 0)[:1]:
                clicks.add(b, best.x, best.y, best.positive)
            continue
        missed = central_pixel((label == 1) & ~prediction, rng)
        surplus = central_pixel((label == 0) & prediction, rng)
        x, y, depth = missed if missed[2] > surplus[2] else surplus
        if depth > 0:
            clicks.add(b, x, y, missed[2] > surplus[2])


def network_clicks(previous: Tensor, clicks: ClickBatch, radius: float) -> Tensor:
    """`[B, 3, H, W]`: previous soft mask `[B, 1, H, W]`, positive disks, negative disks."""
    disks = click_maps(clicks.points().to(previous.device), previous.shape[2], previous.shape[3], radius)
    return torch.cat([previous, disks], dim=1)


@torch.no_grad()
def simulate(
    model: FreqFormer,
    image: Tensor,
    labels: Tensor,
    iterations: int,
    rng: np.random.Generator,
    clicker: Clicker = "ritm",
) -> tuple[Tensor, ClickBatch]:
    """Play `iterations` clicks with the model's own answers; return the network's click input for the next step, and
    the clicks.

    Args:
        model (FreqFormer): in evaluation mode.
        image (Tensor): `[B, 3, H, W]` normalised.
        labels (Tensor): `[B, 1, H, W]` int8: 0, 1, or -1 for ignored pixels.
        iterations (int): clicks after the first.
        rng: source of chance.
        clicker: one of `CLICKERS`; the first click is always the usual one.

    Returns:
        (Tensor, ClickBatch): `[B, 3, H, W]` float32, and the clicks, in pixels of the image.
    """
    truth = labels[:, 0].cpu().numpy()
    clicks = first_clicks(truth, rng)
    previous = torch.zeros(labels.shape, device=labels.device)
    features = model.encode_image(image) if iterations else None
    for _ in range(iterations):
        assert features is not None
        logits = model.decode_clicks(features, network_clicks(previous, clicks, model.config.click_radius)).logits
        previous = logits.float().sigmoid()
        add_error_clicks(clicks, previous[:, 0].cpu().numpy(), truth, rng, clicker)
    return network_clicks(previous, clicks, model.config.click_radius), clicks
