"""Simulated prompts for training: a random correct first one, then clicks and scribbles on the model's own errors."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..acselect import AcSelect
from ..conventions import OUTLINED, SLOTS, THRESHOLD
from ..kernels.click_maps import click_maps
from ..models import FreqFormer
from ..models.freqformer import GuidedFeatures, ImageFeatures
from .prompts import PromptKind, lasso, loose_box, scribble

Clicker = Literal["ritm", "acselect"]
CLICKERS = {
    "ritm": "in the larger of missed and surplus area, well inside it",
    "acselect": "in the mislabelled region that AcSelect scores highest",
}
"""Where a simulated click on an error falls."""

DEEPEST = 0.6  # share of clicks that fall on the deepest pixel of their region

SCRIBBLED = 0.1
"""Share of corrections that are scribbles, in runs whose first prompts may be."""

Shares = tuple[tuple[PromptKind, float], ...]
CLICKS: Shares = (("click", 1.0),)
PROMPTS: Shares = (("click", 0.7), ("box", 0.12), ("scribble", 0.1), ("lasso", 0.08))
"""Shares of first prompts."""


class ClickBatch:
    """The clicks of a batch: at most SLOTS of each sign per sample; the newest are kept."""

    def __init__(self, batch: int) -> None:
        self.clicks: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = [([], []) for _ in range(batch)]
        self.last: list[tuple[int, int] | None] = [None] * batch
        """Each sample's newest click, or the middle of its box or lasso."""
        self.outlined: dict[int, NDArray[np.bool_]] = {}
        """bool `[H, W]` of the samples that begin with a box or a lasso: its pixels."""

    def add(self, sample: int, x: int, y: int, positive: bool) -> None:
        """One more click on a sample, (x, y) in its pixels."""
        self.clicks[sample][0 if positive else 1].append((x, y))
        self.last[sample] = x, y

    def scribble(
        self, sample: int, region: NDArray[np.bool_], positive: bool, rng: np.random.Generator, spacing: float
    ) -> None:
        """Clicks along a line through a region, see `prompts.scribble`."""
        for x, y in scribble(region, rng, spacing).tolist():
            self.add(sample, x, y, positive)

    def start(self, height: int, width: int) -> Tensor:
        """The previous answer before there is one, `[B, 1, H, W]`: OUTLINED in boxes and lassos, else 0."""
        out = torch.zeros(len(self.clicks), 1, height, width)
        for b, pixels in self.outlined.items():
            out[b, 0][torch.from_numpy(pixels)] = OUTLINED
        return out

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


def first_prompts(
    labels: NDArray[np.int8], rng: np.random.Generator, shares: Shares = CLICKS, radius: float = 0.0
) -> ClickBatch:
    """A prompt for each object, or a negative click where a crop holds none.

    Args:
        labels: `[B, H, W]`: 0, 1, or -1 for pixels that are never clicked.
        rng: source of chance.
        shares: of each kind of prompt.
        radius (float): of the disks of a scribble, which keep twice that distance.
    """
    clicks = ClickBatch(len(labels))
    kinds, share = [k for k, _ in shares], np.array([s for _, s in shares])
    for b, label in enumerate(labels):
        inside = label == 1
        x, y, depth = central_pixel(inside, rng)
        if depth == 0:
            x, y, depth = central_pixel(label == 0, rng)
            if depth > 0:
                clicks.add(b, x, y, False)
            continue
        kind = kinds[int(rng.choice(len(kinds), p=share / share.sum()))] if len(kinds) > 1 else kinds[0]
        if kind == "click":
            clicks.add(b, x, y, True)
        elif kind == "scribble":
            clicks.scribble(b, inside, True, rng, 2 * radius)
        else:
            clicks.outlined[b] = lasso(inside, rng) if kind == "lasso" else _filled(inside, rng)
            clicks.last[b] = x, y
    return clicks


def _filled(region: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """The pixels of a box around a region."""
    out = np.zeros_like(region)
    if box := loose_box(region, rng):
        out[box[1] : box[3], box[0] : box[2]] = True
    return out


def add_error_clicks(
    clicks: ClickBatch,
    probs: NDArray[np.float32],
    labels: NDArray[np.int8],
    rng: np.random.Generator,
    clicker: Clicker = "ritm",
    scribbled: float = 0.0,
    radius: float = 0.0,
) -> None:
    """One more click per sample, on an error of `probs > THRESHOLD`; none where there is no error.

    Args:
        clicks (ClickBatch): what the clicks are added to.
        probs: `[B, H, W]`, the answers to the clicks so far.
        labels: `[B, H, W]`: 0, 1, or -1 for pixels that are never clicked.
        rng: source of chance; "acselect" needs none.
        clicker: one of `CLICKERS`.
        scribbled (float): share of scribbles in place of clicks; "acselect" makes none.
        radius (float): of the disks of a scribble, which keep twice that distance.
    """
    for b, (prob, label) in enumerate(zip(probs, labels, strict=True)):
        prediction = prob > THRESHOLD
        if clicker == "acselect":
            for best in AcSelect().oracle(prob, prediction, label == 1, valid=label >= 0)[:1]:
                clicks.add(b, best.x, best.y, best.positive)
            continue
        missed = central_pixel((label == 1) & ~prediction, rng)
        surplus = central_pixel((label == 0) & prediction, rng)
        positive = missed[2] > surplus[2]
        x, y, depth = missed if positive else surplus
        if depth > 0 and scribbled > 0 and rng.random() < scribbled:
            wrong = (label == 1) & ~prediction if positive else (label == 0) & prediction
            clicks.scribble(b, wrong, positive, rng, 2 * radius)
        elif depth > 0:
            clicks.add(b, x, y, positive)


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
    prompts: Shares = CLICKS,
    features: ImageFeatures | GuidedFeatures | None = None,
) -> tuple[Tensor, ClickBatch]:
    """Play a first prompt and `iterations` clicks with the model's own answers; return the network's click input for
    the next step, and the clicks.

    Args:
        model (FreqFormer): in evaluation mode.
        image (Tensor): `[B, 3, H, W]` normalised.
        labels (Tensor): `[B, 1, H, W]` int8: 0, 1, or -1 for ignored pixels.
        iterations (int): clicks after the first.
        rng: source of chance.
        clicker: one of `CLICKERS`; the first click is always the usual one.
        prompts: shares of the kinds of first prompts; where scribbles are among them, some corrections are scribbles.
        features (ImageFeatures, optional): of the image, where they are known already.

    Returns:
        (Tensor, ClickBatch): `[B, 3, H, W]` float32, and the clicks, in pixels of the image.
    """
    truth, radius = labels[:, 0].cpu().numpy(), model.config.click_radius
    clicks = first_prompts(truth, rng, prompts, radius)
    scribbled = SCRIBBLED if any(kind == "scribble" for kind, _ in prompts) else 0.0
    previous = clicks.start(*truth.shape[1:]).to(labels.device)
    if features is None and iterations:
        features = model.encode_image(image)
    for _ in range(iterations):
        assert features is not None
        logits = model.decode_clicks(features, network_clicks(previous, clicks, radius)).logits
        previous = logits.float().sigmoid()
        add_error_clicks(clicks, previous[:, 0].cpu().numpy(), truth, rng, clicker, scribbled, radius)
    return network_clicks(previous, clicks, radius), clicks
