"""A click by fused kernels: the same functions as `plan.ClickModule`'s layers in fp16, in a quarter of the launches.

A map is carried as a pair: `x`, to which residuals are added, and `xn`, its norm.  The program that finishes whole rows
of `x` writes `xn` too, so no launch reads a map only for its statistics.  Each fused op is tried on its device
(`kernels.verification`); if it is wrong there its reference runs instead, and the other ops stay fused.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from activefreq_engine.conventions import SLOTS
from activefreq_engine.kernels import (
    attention,
    click_embed,
    click_head,
    conv_ffn,
    dispatch,
    norm_linear,
    patch_embed,
    point_ffn,
    reduce_kv,
    triton_support,
)
from activefreq_engine.kernels.verification import Question
from activefreq_engine.models import Coarse
from activefreq_engine.runtime.levels import Levels
from activefreq_engine.runtime.plan import layers

OPS = {
    m.op.name: m.op
    for m in (attention, click_embed, click_head, conv_ffn, norm_linear, patch_embed, point_ffn, reduce_kv)
}
"""The fused ops by the names of their torch operators, without "activefreq::"."""

ENOUGH = 128
"""Programs that a launch should have at 384 px: about as many as a GPU has processors."""

_log = logging.getLogger(__name__)
_said: set[str] = set()


def shares(channels: int, tiles: float, least: int) -> int:
    """Into how many shares the work of a tile is divided: the fewest that make `ENOUGH` programs, or else the most
    allowed.

    It depends on the network's channels and not on the network shape or the batch, so one binary serves all of them,
    and an item has the same bits in every batch.

    Args:
        channels: number of channels to divide; each share is a power of two.
        tiles: number of tiles of 16 pixels in one item at 384 x 384 px.
        least: fewest channels of a share.
    """
    ways = [s for s in range(1, channels // least + 1) if channels % s == 0]
    allowed = [s for s in ways if s == 1 or (channels // s) & (channels // s - 1) == 0]
    return next((s for s in allowed if tiles * s >= ENOUGH), allowed[-1])


def _tiles(stride: int) -> float:
    """Tiles of 16 pixels in one item at 384 x 384 px."""
    return (384 / stride) ** 2 / 16


def _ohwi(conv: layers.Conv) -> Tensor:
    """`[O, kh, kw, I]`; channels-last weights lie like that already."""
    return conv.weight.permute(0, 2, 3, 1).contiguous()


Weights = tuple[Any, ...]
"""Tensors in the order in which an op takes them; some may be None."""


class _FusedBlock:
    """`layers.Block`.  `scale` and `shift` are those of the norms after it, where they have them."""

    def __init__(self, block: layers.Block, tiles: float) -> None:
        a, f = block.attention, block.ffn
        c = a.proj.weight.shape[0]
        self.heads, self.norm_eps = a.heads, a.norm.eps
        self.proj: Weights = (a.proj.weight, a.proj.bias)
        self.reduce: Weights | None = None
        self.q: Weights = (None, None)
        if a.reduce is None:
            assert a.q.bias is not None
            bias = torch.cat([a.q.bias, torch.zeros_like(a.kv.weight[:, 0])])
            self.qkv: Weights = (torch.cat([a.q.weight, a.kv.weight]), bias)
        else:
            self.reduce = _ohwi(a.reduce), a.reduce.bias, a.kv.weight
            self.reduce_eps = a.reduced_norm.eps
            self.q = (a.q.weight, a.q.bias)
            self.reduce_shares = shares(c, tiles / self.reduce[0].shape[1] ** 2, 16)
        ways = [s for s in range(1, a.heads + 1) if a.heads % s == 0]
        self.head_shares = next((s for s in ways if tiles * s >= ENOUGH), a.heads)
        self.ffn_eps = f.norm.eps
        self.fc1: Weights = (f.fc1.weight, f.fc1.bias)
        taps = f.dwconv.weight.flatten(1).T.contiguous()
        self.fc2: Weights = (taps, f.dwconv.bias, f.fc2.weight, f.fc2.bias)
        hidden = len(f.fc1.weight)
        # of all splits this is the fastest at each stage of B0 (bench/results/gpu/h200_3/tune.csv)
        self.ffn_shares = hidden // 128 if hidden % 128 == 0 else 1

    def __call__(self, x: Tensor, xn: Tensor, ends: Weights, eps: float, next_eps: float) -> Any:
        if self.reduce is None:
            kv, asked = None, norm_linear.norm_linear(xn, *self.qkv)
        else:
            kv = reduce_kv.reduce_kv(xn, *self.reduce, eps=self.reduce_eps, splits=self.reduce_shares)
            asked = xn
        x, xn = attention.attention(
            asked, x, kv, *self.q, *self.proj, heads=self.heads, eps=self.ffn_eps, splits=self.head_shares
        )
        hidden = norm_linear.norm_linear(xn, *self.fc1)
        return conv_ffn.conv_ffn(hidden, x, *self.fc2, *ends, eps=eps, next_eps=next_eps, splits=self.ffn_shares)


class _FusedStage:
    """`layers.Stage`, and the norm of the Freq block that reads its output."""

    def __init__(self, stage: layers.Stage, freq_norm: layers.Norm, stride: int) -> None:
        self.stride, tiles = stride, _tiles(stride)
        proj, norm = stage.embed.proj, stage.embed.norm
        self.embed: Weights = (_ohwi(proj), proj.bias, norm.weight, norm.bias)
        self.embed_eps = norm.eps
        self.embed_shares = shares(len(proj.weight), tiles, 32)
        blocks: Any = stage.blocks
        self.blocks = [_FusedBlock(b, tiles) for b in blocks]
        ends = [(None, None, None, None, 0.0, b.norm_eps) for b in self.blocks[1:]]
        affine = stage.norm.weight, stage.norm.bias, freq_norm.weight, freq_norm.bias
        self.ends: list[tuple[Any, ...]] = [*ends, (*affine, stage.norm.eps, freq_norm.eps)]

    def __call__(self, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        x, xn = patch_embed.patch_embed(
            x,
            *self.embed,
            added=added,
            eps=self.embed_eps,
            next_eps=self.blocks[0].norm_eps,
            splits=self.embed_shares,
        )
        for block, (*affine, eps, next_eps) in zip(self.blocks, self.ends, strict=True):
            x, xn = block(x, xn, tuple(affine), eps, next_eps)
        return x, xn


class _FusedPart:
    """`layers.PointwiseFFN` of a stage's last Freq block and the projection after it."""

    def __init__(self, ffn: layers.PointwiseFFN, project: layers.Linear, tiles: float) -> None:
        fc1, fc2 = ffn.fc1, ffn.fc2
        assert project.bias is not None
        assert fc2.bias is not None
        weight, bias = project.weight.double(), project.bias.double()
        kind = project.weight.dtype
        out, skip = (weight @ fc2.weight.double()).to(kind), project.weight
        out_bias = (weight @ fc2.bias.double() + bias).to(kind)
        self.weights: Weights = (fc1.weight, fc1.bias, out, skip, out_bias)
        self.eps = ffn.norm.eps
        (e, c), hidden = skip.shape, out.shape[1]
        self.shares = shares(c, tiles, 32)
        while point_ffn.weights_of(c, hidden, e, self.shares) > point_ffn.MOST_WEIGHTS and c // self.shares > 16:
            self.shares *= 2

    def __call__(self, x: Tensor) -> Tensor:
        return point_ffn.point_ffn(x, *self.weights, eps=self.eps, splits=self.shares)


class Fused:
    """The parts of a click by fused kernels that all network shapes share.

    Args:
        embed, stages, norms, ffns, projects, head: of `Folded`, without the first stage's, on the device in fp16;
            `norms` and `ffns` of each stage's first and last Freq block.
        strides: of the stages.
        guided: whether a guide adds to the tokens of each stage.
    """

    def __init__(
        self,
        embed: layers.Embed,
        stages: Sequence[layers.Stage],
        norms: Sequence[layers.Norm],
        ffns: Sequence[layers.PointwiseFFN],
        projects: Sequence[layers.Linear],
        head: layers.Linear,
        strides: Sequence[int],
        guided: bool,
    ) -> None:
        norm = embed.norm
        taps = click_embed.taps_of(embed.proj.weight)
        self._embed: Weights = (taps, embed.proj.bias, norm.weight, norm.bias)
        self._embed_eps = norm.eps
        self._stages = [_FusedStage(s, n, stride) for s, n, stride in zip(stages, norms, strides, strict=True)]
        self._parts = [_FusedPart(f, p, _tiles(s)) for f, p, s in zip(ffns, projects, strides, strict=True)]
        assert head.bias is not None
        self._head = head.weight[0].float(), head.bias.float()
        self._guided = guided
        self._aside = Aside(head.weight.device)

    def __call__(
        self,
        freqs: Sequence[Callable[[Tensor, Tensor], Tensor]],
        features: Sequence[Tensor],
        previous: Tensor,
        points: Tensor,
        radius: float,
        out: Levels,
        keep: bool,
    ) -> Coarse:
        """A click; `freqs` are the Freq layers of the stages for one network shape, the rest as for `FusedClick`."""
        c1, p1, *more = features
        added: list[Tensor | None] = [g.permute(0, 2, 3, 1) for g in more] if more else [None] * len(self._stages)
        weights = (*self._embed, c1.permute(0, 2, 3, 1))
        x = click_embed.click_embed(previous, points, *weights, eps=self._embed_eps, radius=radius)
        parts, aside = [], self._aside
        for stage, freq, part, g in zip(self._stages, freqs, self._parts, added, strict=True):
            x, xn = stage(x, g)
            with aside.beside(x, xn):  # the next stage does not wait for it
                parts.append(part(freq(xn, x)))
        aside.join()
        p2, p3, p4 = parts
        weight, bias = self._head
        fused, logits = click_head.click_head(
            p1.permute(0, 2, 3, 1), p2, p3, p4, weight, bias, out.levels, out.total, keep=keep
        )
        return Coarse(logits, fused.permute(0, 3, 1, 2))

    def calls(self, height: int, width: int) -> list[tuple[str, tuple[Any, ...]]]:
        """The fused ops of a click on one image of this network shape: name and arguments; tensors hold no numbers."""
        device, c1, e = self._head[0].device, len(self._embed[1]), len(self._head[0])
        like = torch.empty(0, dtype=torch.float16, device=device)
        sides = [(4, c1), (4, e)]
        if self._guided:
            sides += [(s.stride, len(s.embed[1])) for s in self._stages]
        features = [like.new_empty(1, height // s, width // s, n).permute(0, 3, 1, 2) for s, n in sides]
        floats = torch.empty(0, dtype=torch.float32, device=device)
        points = floats.new_empty(1, 2 * SLOTS, 2)
        out = Levels(floats.new_empty(1, height, width, dtype=torch.uint16), floats.new_empty(1))
        with torch.inference_mode(), Recorder() as recorder:
            self([lambda xn, x: x] * len(self._stages), features, out.levels, points, 1.0, out, True)
        return recorder.fused

    def questions(self, height: int, width: int) -> list[Question]:
        """The questions that a click of this network shape asks `kernels.verification`."""
        calls = [(OPS[name], args) for name, args in self.calls(height, width)]
        device = self._head[0].device
        # what is asked for by name is not tried
        calls = [(op, args) for op, args in calls if not dispatch.is_named(op.name, device.type, "auto", *args)]
        able = [(op.name, op.form(*args)) for op, args in calls if op.verify(*args)[0]]
        asked = [dispatch.question(name, "triton", device, form) for name, form in able]
        return list({question.key: question for question in asked}.values())


@dataclass(frozen=True, slots=True, eq=False)
class FusedClick:
    """`Fused` for one network shape."""

    shared: Fused
    freqs: list[nn.Module]
    """For each stage but the first: the blocks of its Freq layer, in order, for this shape."""
    keep: bool
    """Whether a refiner will read the answer."""

    def __call__(
        self, features: Sequence[Tensor], previous: Tensor, points: Tensor, radius: float, out: Levels
    ) -> Coarse:
        """Answer a click.

        Args:
            features: `plan.ProjectedFeatures` or `plan.GuidedProjections`, fp16, channels last.
            previous (Tensor): `[B, H, W]`, float32 probabilities or uint16 levels before the click.
            points (Tensor): float32 `[B, 2 * SLOTS, 2]`, as `click_maps` takes them.
            radius (float): of a click's disk, pixels.
            out (Levels): filled with the answer.

        Returns:
            Coarse: for the refiner; empty where there is none.
        """
        mixes = [_mixed(list(blocks.children())) for blocks in self.freqs]
        return self.shared(mixes, features, previous, points, radius, out, self.keep)


def _mixed(blocks: Sequence[Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """The blocks of a Freq layer up to the last one's FFN, from a map's norm and the map."""

    def mixed(xn: Tensor, x: Tensor) -> Tensor:
        for block, following in itertools.pairwise(blocks):
            x = block.ffn(block.mix(xn, x))
            xn = following.norm(x)
        y: Tensor = blocks[-1].mix(xn, x)
        return y

    return mixed


def offered(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fused kernels may run on this device at all, for maps of this type.

    If ``ACTIVEFREQ_BACKEND`` asks for the references of all of them, the plan's layers run instead: they compute the
    same and are faster than the references.
    """
    if dtype != torch.float16 or device.type not in triton_support.DEVICES or not triton_support.available()[0]:
        return False
    return any(dispatch.requested(name, device.type) != "reference" for name in OPS)


def unsuited(embed: layers.Embed, stages: Sequence[nn.Module], strides: Sequence[int]) -> str:
    """Why a network cannot click by fused kernels; empty if it can."""
    if not all(isinstance(s, layers.Stage) for s in stages):
        return "its stages are not a Mix Transformer's"
    convs = [(embed.proj, 7, 4), *((s.embed.proj, 3, 2) for s in stages if isinstance(s, layers.Stage))]
    if any(conv.kernel != (side, side) or conv.stride != (step, step) for conv, side, step in convs):
        return "its patches are not embedded by 7x7 of stride 4, then 3x3 of stride 2"
    if list(strides) != [8, 16, 32]:
        return f"its stages have strides {list(strides)}, not 8, 16 and 32"
    return ""


def say(reason: str) -> None:
    """Log once why clicks do not run by fused kernels."""
    if reason not in _said:
        _said.add(reason)
        _log.info("clicks run as torch's operations: %s", reason)


class Aside:
    """Work that runs beside what follows it: on a CUDA device on a second stream, elsewhere at once.

    A graph that is captured meanwhile has a branch there.  Operands are kept until the branches are joined, so that
    their memory is not given to the work that they run beside.

    Args:
        device (torch.device): where.
    """

    _all: ClassVar[weakref.WeakSet[Aside]] = weakref.WeakSet()
    _choosing: ClassVar = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._kept: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._choose(device)

    def _choose(self, device: torch.device) -> None:
        """Take a stream that no other engine has, if there is one: launches of one stream share counters
        (`kernels.triton_rows`).  Engines' own streams are of another kind, see `graphs.cuda`."""
        with self._choosing:
            # a stream itself must not be weakly referred to: when it goes, torch 2.11 leaves the reference dangling
            taken = [other._stream for other in self._all]
            for _ in range(32):  # torch has so many of a device, and hands them out in turn
                stream = torch.cuda.Stream(device)
                if stream not in taken:
                    self._stream = stream
                    self._all.add(self)
                    return
        _log.info("Freq blocks run after each other: no stream of %s is free for them", device)

    @contextmanager
    def beside(self, *operands: Tensor) -> Iterator[None]:
        """Within this work goes aside; it begins when everything before it is done."""
        if self._stream is None:
            yield
            return
        self._kept += operands
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What follows waits for everything that was put aside."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        self._kept.clear()


class Recorder(TorchDispatchMode):
    """Writes down what would be launched, by name: fused ops and FreqModules, which are not run, and all other
    operators, which are.  What is not run returns empty memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused: list[tuple[str, tuple[Any, ...]]] = []
        self.names: list[str] = []
        """The names of everything that would be launched, in order; views and allocations launch nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space == "activefreq":
            self.names.append(name)
            if name in OPS:
                self.fused.append((name, tuple(args[:-1])))
                out = OPS[name].outputs(*args[:-1])
                return out if len(out) > 1 else out[0]
            if name == "freq_module_packed":
                return torch.empty_like(args[0])
            return func(*args, **(kwargs or {}))
        with self:
            out = func.decompose(*args, **(kwargs or {}))
        if out is NotImplemented:
            out = func(*args, **(kwargs or {}))
            if not (func.is_view or name.startswith(("empty", "new_empty"))):
                self.names.append(name)
        return out
