"""Training steps without the host: samples, simulated clicks and updates stay on the device.

The host says which step comes and how many clicks it plays; nothing it needs comes back before a loss is asked for.  On
a GPU each part of a step becomes a CUDA graph, so that its hundreds of small kernels cost one launch.  On a CPU the
same code runs as it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conventions import OUTLINED, THRESHOLD
from ..kernels.click_maps import click_maps
from ..kernels.distance import distance_transform
from ..models import normalise
from ..models.freqformer import GuidedFeatures, ImageFeatures
from .config import TrainConfig
from .losses import coarse_loss
from .prompts import INWARD, OUTWARD, SCRIBBLE
from .sampler import CLICK, PROMPT, Sampler, between, chance
from .simulate import DEEPEST, PROMPTS
from .state import Ema
from .steps import CoarseStep, keep_norms, trusted_attention

log = logging.getLogger(__name__)

WARM = 3  # calls of a part before it is captured: they compile kernels and choose plans


def central_pixels(regions: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """A pixel well inside each region; see `simulate.central_pixel`, with exact distances.

    Args:
        regions (Tensor): bool `[N, H, W]`.
        u (Tensor): chance in [0, 1), `[N, 2]`.

    Returns:
        (Tensor, Tensor): (x, y) float32 `[N, 2]`, and the largest distance to the border `[N]`, 0 in an empty region.
    """
    distance = distance_transform(regions).float().flatten(1)
    deepest, middle = distance.max(1)
    inner = (distance > deepest[:, None] / 2).int().cumsum(1, dtype=torch.int32)
    rank = (u[:, 1] * inner[:, -1]).int() + 1
    drawn = torch.searchsorted(inner, rank[:, None].contiguous())[:, 0].clamp(max=distance.shape[1] - 1)
    at = torch.where(u[:, 0] < DEEPEST, middle, drawn)
    width = regions.shape[2]
    return torch.stack([at % width, at.div(width, rounding_mode="floor")], 1).float(), deepest


def loose_boxes(regions: Tensor, u: Tensor) -> Tensor:
    """Pixels of a box around each region, see `prompts.loose_box`: bool `[N, H, W]`.  u: chance, `[N, 5]`."""
    across, down = regions.any(1), regions.any(2)
    sides: list[tuple[Tensor, Tensor, Tensor]] = []
    for k, filled in enumerate((across, down)):
        at = torch.arange(filled.shape[1], device=regions.device)
        first, end = filled.int().argmax(1), filled.shape[1] - filled.flip(1).int().argmax(1)
        off = (u[:, 1 + 2 * k : 3 + 2 * k] * (OUTWARD + INWARD) - INWARD) * (end - first)[:, None]
        off = torch.where(u[:, :1] < 0.5, 0.0, off).round()
        low, high = (v.clamp(0, filled.shape[1] - 1) for v in (first - off[:, 0], end - 1 + off[:, 1]))
        sides.append((at, low[:, None], torch.maximum(low, high)[:, None]))
    (x, x0, x1), (y, y0, y1) = sides
    inside = ((y >= y0) & (y <= y1))[:, :, None] & ((x >= x0) & (x <= x1))[:, None]
    return inside & regions.any(2).any(1)[:, None, None]


def lassos(regions: Tensor, u: Tensor, rough: Tensor) -> Tensor:
    """What a line drawn around each region encloses, see `prompts.lasso`: bool `[N, H, W]`.

    Args:
        regions (Tensor): bool `[N, H, W]`.
        u (Tensor): chance, `[N, 2]`: how far in or out the line is, and how unsteady.
        rough (Tensor): noise `[N, 1, k, k]`; the line strays by it.
    """
    far = regions.shape[1] // 4
    beside = F.pad(~regions, (far,) * 4, value=True)  # beyond the image there is no region either
    inward = distance_transform(regions).float()
    outward = distance_transform(beside)[:, far:-far, far:-far].float()
    extent = torch.minimum(regions.flatten(1).sum(1).float().sqrt(), inward.flatten(1).amax(1) * 8)
    push = (
        between(u[:, 0], -0.02, 0.1)[:, None, None]
        + between(u[:, 1], 0.0, 0.06)[:, None, None]
        * F.interpolate(rough, size=regions.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    )
    drawn = torch.where(regions, -inward, outward) < push * extent[:, None, None]
    return drawn & regions.flatten(1).any(1)[:, None, None]


def scribbles(regions: Tensor, u: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Points along a line through each region, see `prompts.scribble`, over two pixels well inside it.

    Args:
        regions (Tensor): bool `[N, H, W]`.
        u (Tensor): chance, `[N, 4]`.
        spacing (float): least distance of its points, in pixels.

    Returns:
        (Tensor, Tensor): (x, y) float32 `[N, SCRIBBLE, 2]`, and which of them lie in the region, bool `[N, SCRIBBLE]`.
    """
    drawn = torch.ones_like(u[:, :1])  # not the deepest pixel again
    ends = [
        central_pixels(regions, torch.cat([first, u[:, k : k + 1]], 1))[0]
        for k, first in enumerate((u[:, 3:], drawn, drawn))
    ]
    legs = torch.stack([(b - a).abs().amax(1) for a, b in ((ends[0], ends[1]), (ends[1], ends[2]))], 1)
    length = legs.sum(1)
    count = (length / spacing).clamp(1, SCRIBBLE).floor()
    slot = torch.arange(SCRIBBLE, device=regions.device)
    along = slot * (length / (count - 1).clamp(min=1))[:, None]
    turn = legs[:, :1]
    first, second = along / turn.clamp(min=1), (along - turn) / legs[:, 1:].clamp(min=1)
    a, b, c = (e[:, None] for e in ends)
    xy = torch.where(
        (along <= turn)[..., None], torch.lerp(a, b, first[..., None]), torch.lerp(b, c, second[..., None])
    )
    height, width = regions.shape[1:]
    xy = torch.stack([xy[..., 0].round().clamp(0, width - 1), xy[..., 1].round().clamp(0, height - 1)], 2)
    at = (xy[..., 1] * width + xy[..., 0]).long()
    return xy, regions.flatten(1).gather(1, at) & (slot < count[:, None])


class Batch:
    """What a step reads and writes, always in the same place: a captured graph knows addresses only."""

    def __init__(self, batch: int, size: int, slots: int, device: torch.device) -> None:
        self.index = torch.zeros(batch, dtype=torch.int64, device=device)  # of its crops
        self.draw = torch.zeros((), dtype=torch.int64, device=device)  # which samples of these crops it holds
        self.crops = -1  # number of its crops, known to the host
        self.turn = torch.zeros((), dtype=torch.int64, device=device)  # clicks made
        self.image = torch.zeros(batch, 3, size, size, device=device)
        self.label = torch.zeros(batch, 1, size, size, dtype=torch.int8, device=device)
        self.previous = torch.zeros(batch, 1, size, size, device=device)
        self.points = torch.full((batch, 2 * slots, 2), -1.0, device=device)  # as `kernels.click_maps` takes them
        self.seen: list[Tensor] = []  # by a guide
        self.features: list[Tensor] = []
        self.loss = torch.zeros((), device=device)
        self.slots = slots

    @property
    def key(self) -> Tensor:
        """What chance depends on: one number for each sample, that of its crop for the first one of it."""
        return self.index + (self.draw << 52)

    def add(self, xy: Tensor, positive: Tensor, valid: Tensor) -> None:
        """One more click for each sample where `valid`: places `[B, 2]`, signs `[B]`."""
        at = self.turn + torch.where(positive, 0, self.slots)
        rows = at.view(-1, 1, 1).expand(-1, 1, 2)
        self.points.scatter_(1, rows, torch.where(valid[:, None], xy, -1.0)[:, None])
        self.turn += 1


class DeviceSteps:
    """The steps of a run.

    Args:
        step_module (CoarseStep): the model in its step.
        optimizer: fused, `capturable` on a GPU.
        ema (Ema): the averaged weights.
        sampler (Sampler): the data.
        config (TrainConfig): the run.
        autocast_type: bf16, or None for float32.
    """

    def __init__(
        self,
        step_module: CoarseStep,
        optimizer: torch.optim.Optimizer,
        ema: Ema,
        sampler: Sampler,
        config: TrainConfig,
        autocast_type: torch.dtype | None,
    ) -> None:
        self.module, self.model, self.optimizer, self.sampler = step_module, step_module.model, optimizer, sampler
        self.config, self.ema, self.device, self.autocast_type = config, ema, sampler.device, autocast_type
        # a scribble comes first, and is no longer than that
        self.slots = SCRIBBLE + max(n for n, _ in config.iterations)
        shares = {kind: 0.0 for kind, _ in PROMPTS} | dict(config.prompts)
        total = sum(shares.values())
        self.shares = {kind: share / total for kind, share in shares.items()}
        self.batches: dict[int, Batch] = {}
        state = self.model.state_dict()
        self.averages = [(ema.state[k], v) for k, v in state.items() if v.is_floating_point()]
        self.counters = [(ema.state[k], v) for k, v in state.items() if not v.is_floating_point()]
        self.lr, self.share, self.first, self.skipped = (
            torch.zeros((), dtype=dtype, device=self.device)
            for dtype in (torch.float32, torch.float32, torch.int64, torch.float32)
        )
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        # what `normalise` makes of 0 and of 255; it takes its constants from the host each time, which a graph cannot
        self.black, self.white = (normalise(torch.full((1, 3, 1, 1), v, device=self.device)) for v in (0.0, 255.0))
        cuda = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if cuda else None
        self.pool = torch.cuda.graph_pool_handle() if cuda else None
        self.eager = not cuda
        self.calls: dict[tuple[Any, ...], int] = {}
        self.graphs: dict[tuple[Any, ...], torch.cuda.CUDAGraph] = {}

    def __call__(self, step: int, size: int, iterations: int, lr: float, frozen: bool, share: float) -> Tensor:
        """One step; returns its loss without waiting for it.

        Args:
            step (int): its number.
            size (int): side of the crops.
            iterations (int): simulated clicks after the first.
            lr (float): learning rate.
            frozen (bool): whether BatchNorm's statistics stay.
            share (float): of the new weights in the averaged ones.
        """
        with trusted_attention():
            return self._on_stream(step, size, iterations, lr, frozen, share)

    def _on_stream(self, *step: Any) -> Tensor:
        if self.stream is None:
            return self._step(*step)
        around = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            loss = self._step(*step)
        around.wait_stream(self.stream)  # who reads the loss or the weights there finds them written
        return loss

    def _step(self, step: int, size: int, iterations: int, lr: float, frozen: bool, share: float) -> Tensor:
        if size not in self.batches:
            self.batches[size] = Batch(self.config.batch, size, self.slots, self.device)
        batch = self.batches[size]
        crops, draw = divmod(step, self.config.per_crop)
        values = (self.lr, lr), (self.share, share), (self.first, crops * self.config.batch), (batch.draw, draw)
        for value, number in values:
            value.fill_(number)
        if batch.crops != crops:
            self._run(("sample", size), lambda: self._sample(batch, size))
            if self.module.look:
                self._run(("look", size), lambda: self._look(batch))
            batch.crops = crops
        self._run(("begin", size), lambda: self._begin(batch))
        if iterations:
            self._run(("encode", size), lambda: self._encode(batch))
        for _ in range(iterations):
            self._run(("click", size), lambda: self._click(batch))
        self._run(("learn", size, frozen), lambda: self._learn(batch, frozen))
        return batch.loss.clone()

    def settle(self) -> int:
        """Wait until all steps are done; the number of updates that were left out for a gradient that is not finite."""
        if self.stream:
            self.stream.synchronize()
        skipped = int(self.skipped)
        self.skipped.zero_()
        return skipped

    def _run(self, key: tuple[Any, ...], part: Callable[[], None]) -> None:
        self.calls[key] = self.calls.get(key, 0) + 1
        if not self.eager and key not in self.graphs and self.calls[key] > WARM:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    part()
                self.graphs[key] = graph
            except RuntimeError as e:
                self.eager = True
                log.warning("%s cannot be captured (%s); steps run launch by launch, which is slower", key[0], e)
        if key in self.graphs:
            self.graphs[key].replay()
        else:
            part()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.autocast_type, enabled=self.autocast_type is not None)

    def _sample(self, batch: Batch, size: int) -> None:
        """New crops."""
        batch.index.copy_(self.first + torch.arange(len(batch.index), device=self.device))
        image, label = self.sampler(batch.index, size)
        batch.image.copy_(torch.lerp(self.black, self.white, image.float() / 255))
        batch.label.copy_(label)

    def _begin(self, batch: Batch) -> None:
        """The first prompt of each sample: of its object, or a click beside it where a crop holds none."""
        inside, outside = batch.label[:, 0] == 1, batch.label[:, 0] == 0
        batch.previous.zero_()
        batch.points.fill_(-1)
        batch.turn.zero_()
        self._add(batch, inside, outside, lambda inner, outer: inner > 0)
        if self.shares["click"] < 1:
            self._prompt(batch, inside)
        batch.turn.fill_(SCRIBBLE)

    def _prompt(self, batch: Batch, inside: Tensor) -> None:
        """A box, a lasso or a scribble in place of the first click, where chance wants one and there is an object."""
        u = chance(self.config.seed, PROMPT, batch.key, 12)
        there, below, kinds = inside.flatten(1).any(1), 0.0, {}
        for kind in ("box", "lasso", "scribble"):
            upto = below + self.shares[kind]
            kinds[kind] = there & (u[:, 0] >= below) & (u[:, 0] < upto)
            below = upto
        rough = self.sampler.noise(batch.key, 1, 6)
        box, lasso = loose_boxes(inside, u[:, 1:6]), lassos(inside, u[:, 6:8], rough)
        outlined = (box & kinds["box"][:, None, None]) | (lasso & kinds["lasso"][:, None, None])
        batch.previous.copy_(torch.where(outlined, OUTLINED, 0.0)[:, None])
        xy, valid = scribbles(inside, u[:, 8:], 2 * self.model.config.click_radius)
        positive = batch.points[:, : batch.slots]
        line = torch.where(valid[..., None], xy, -1.0)
        line = torch.where(kinds["scribble"][:, None, None], line, positive[:, :SCRIBBLE])
        gone = (kinds["box"] | kinds["lasso"])[:, None, None]
        positive[:, :SCRIBBLE] = torch.where(gone, -1.0, line)

    def _add(self, batch: Batch, wanted: Tensor, unwanted: Tensor, prefer: Callable[[Tensor, Tensor], Tensor]) -> None:
        """A positive click in `wanted` or a negative one in `unwanted`, as `prefer(depth, depth)` says."""
        u = chance(self.config.seed, CLICK, batch.key + (batch.turn << 40), 4)
        (inner, inner_depth), (outer, outer_depth) = (
            central_pixels(region, u[:, 2 * k : 2 * k + 2]) for k, region in enumerate((wanted, unwanted))
        )
        positive = prefer(inner_depth, outer_depth)
        depth = torch.where(positive, inner_depth, outer_depth)
        batch.add(torch.where(positive[:, None], inner, outer), positive, depth > 0)

    def _inputs(self, batch: Batch) -> Tensor:
        size = batch.image.shape[3]
        disks = click_maps(batch.points, size, size, self.model.config.click_radius)
        return torch.cat([batch.previous, disks], 1)

    @torch.no_grad()
    def _look(self, batch: Batch) -> None:
        """What a guide sees: the same for every answer to the crops."""
        seen = self.module.look(batch.image)
        assert seen is not None
        batch.seen = _kept(batch.seen, seen)

    @torch.no_grad()
    def _encode(self, batch: Batch) -> None:
        self.model.eval()
        with self._autocast():
            batch.features = _kept(batch.features, self.model.encode_image(batch.image, batch.seen))

    @torch.no_grad()
    def _click(self, batch: Batch) -> None:
        """The answer to the clicks so far, and a click on what is wrong with it."""
        self.model.eval()
        with self._autocast():
            features = ImageFeatures if self.model.guide is None else GuidedFeatures
            logits = self.model.decode_clicks(features(*batch.features), self._inputs(batch)).logits
        batch.previous.copy_(logits.float().sigmoid())
        prediction = batch.previous[:, 0] > THRESHOLD
        label = batch.label[:, 0]
        self._add(batch, (label == 1) & ~prediction, (label == 0) & prediction, torch.gt)

    def _learn(self, batch: Batch, frozen: bool) -> None:
        """Learn from the answer to the clicks: `CoarseStep`, then the update and the averaged weights."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        keep_norms(self.model, frozen)
        with self._autocast():
            features = self.model.encode_image(batch.image, batch.seen)
            logits = self.model.decode_clicks(features, self._inputs(batch)).logits
            loss = coarse_loss(logits, batch.label.float())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        spoilt = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = spoilt  # type: ignore[attr-defined]  # fused optimizers then do nothing
        self.optimizer.step()
        self.skipped += spoilt
        with torch.no_grad():
            kept, new = [a for a, _ in self.averages], [b for _, b in self.averages]
            change = torch._foreach_sub(new, kept)
            torch._foreach_mul_(change, self.share)
            torch._foreach_add_(kept, change)
            for counter, value in self.counters:
                counter.copy_(value)
        batch.loss.copy_(loss.detach())


def _kept(buffers: list[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """Copies of new maps, in the memory of those of the step before."""
    buffers = buffers or [torch.empty_like(t) for t in new]
    for buffer, tensor in zip(buffers, new, strict=True):
        buffer.copy_(tensor)
    return buffers
