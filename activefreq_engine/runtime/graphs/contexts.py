"""Runs clicks through buffers that stay in place, so that CUDA can replay all the work as one graph.

A context is one piece of work on one network shape and batch size: what depends on the image (`PrepareContext`), a
click (`ClickContext`), a focus box (`RefineContext`).  Its `run` is a plain function of its buffers, the same on every
device, from the copy to the device to the copy back; a `Replayer` decides whether it is called or replayed.  `Contexts`
keeps them for an engine.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.conventions import SLOTS
from activefreq_engine.kernels import verification
from activefreq_engine.kernels.click_maps import click_maps
from activefreq_engine.kernels.mask_bits import paints
from activefreq_engine.models import IMAGE_MEAN, IMAGE_STD, Coarse, FreqFormerConfig
from activefreq_engine.runtime import levels
from activefreq_engine.runtime.levels import Found
from activefreq_engine.runtime.painting import WORDS, Easel, Painted, PaintRequest, joined
from activefreq_engine.runtime.plan.plan import Plan, PlanFeatures
from activefreq_engine.runtime.plan.planned import Planned

BATCHES = (1, 2, 4, 8)
"""Batch sizes of contexts.  A batch takes the smallest size that holds it; a batch larger than all takes several turns
of the largest."""

TURNS = 8
"""So many turns of a large batch of clicks have contexts of their own.  Sessions that click together again, in the same
order, then find their features, previous answers and painted bits where they left them."""

TURNS_KEPT = 16
"""Contexts of second and later turns that all network shapes may have together: each holds 26 MB at B0, 384 px and half
precision.  Where there are so many, further shapes take their turns at one context."""

SHAPES_KEPT = 32
"""Network shapes whose contexts stay in memory: an engine of 512 pixels has 31."""

Recordable = Callable[[], tuple[Tensor, ...]]
"""A function that reads buffers and returns its results, which stay on the device."""


class Replayer(Protocol):
    """How work is run.  The results of captured work are overwritten by the next replay of any work."""

    device: torch.device

    def active(self) -> AbstractContextManager[None]:
        """A context manager; everything between buffers and results happens within it."""

    def capture(self, work: Recordable) -> Recordable:
        """The same work in a form that can be replayed."""

    def wait(self) -> None:
        """Wait until everything that was started is done."""


class Transfer:
    """Arrays that go to the device, or come from it, together: in one copy, and in memory that does not move.

    Args:
        device (torch.device): the device.
        parts: name=(shape, dtype).
    """

    ALIGNMENT: ClassVar = 16  # bytes

    def __init__(self, device: torch.device, **parts: tuple[tuple[int, ...], torch.dtype]) -> None:
        ends = [0]
        for shape, dtype in parts.values():
            size = prod(shape) * dtype.itemsize
            ends.append(ends[-1] + -(-size // self.ALIGNMENT) * self.ALIGNMENT)
        self._host = _host((ends[-1],), torch.uint8, device)
        self._device = torch.zeros(ends[-1], dtype=torch.uint8, device=device)
        self.arrays: dict[str, NDArray[Any]] = {}
        """The parts on the host."""
        self.tensors: dict[str, Tensor] = {}
        """The parts on the device."""
        for start, (name, (shape, dtype)) in zip(ends, parts.items(), strict=False):
            part = slice(start, start + prod(shape) * dtype.itemsize)
            self.arrays[name] = self._host[part].view(dtype).view(shape).numpy()
            self.tensors[name] = self._device[part].view(dtype).view(shape)

    def write(self, name: str, rows: Sequence[NDArray[Any]]) -> None:
        """Fill the first rows of a part.  The other rows keep old values; what is computed from them is not used."""
        for k, row in enumerate(rows):
            self.arrays[name][k] = row

    def send(self) -> None:
        """Start the copy to the device.  The arrays must not be written to before it is done."""
        self._device.copy_(self._host, non_blocking=True)

    def fetch(self) -> None:
        """Start the copy to the host.  The arrays must not be read before it is done."""
        self._host.copy_(self._device, non_blocking=True)


class Context(ABC):
    """One piece of work with its buffers; captured on first use."""

    def __init__(self, replayer: Replayer) -> None:
        self._replayer = replayer
        self._replay: Recordable | None = None

    @abstractmethod
    def run(self) -> tuple[Tensor, ...]:
        """The work: a fixed sequence of operations on buffers.  A replay repeats the operations, not the Python
        code."""

    def ready(self) -> Recordable:
        """A function that replays `run`.  It is captured on first use; the capture overwrites what `run` writes."""
        if self._replay is None:
            self._replay = self._replayer.capture(self.run)
        return self._replay

    def replay(self) -> Any:
        """Results of `run` for the present content of the buffers; copy them before anything else is replayed."""
        return self.ready()()

    def _put(self, buffers: Sequence[Tensor], items: Sequence[Sequence[Tensor]]) -> None:
        """Copy the tensors `[1, ...]` of each item into the first rows of the buffers."""
        for k, item in enumerate(items):
            for buffer, tensor in zip(buffers, item, strict=True):
                buffer[k : k + 1].copy_(tensor)


class _Image:
    """uint8 RGB `[B, H, W, 3]` -> float32 `[B, 3, H, W]`: `models.normalise` with its constants on the device."""

    def __init__(self, device: torch.device) -> None:
        self.mean = torch.tensor(IMAGE_MEAN, dtype=torch.float32, device=device)
        self.std = torch.tensor(IMAGE_STD, dtype=torch.float32, device=device)

    def __call__(self, crops: Tensor) -> Tensor:
        return ((crops.float() / 255.0 - self.mean) / self.std).permute(0, 3, 1, 2)


class PrepareContext(Context):
    """Crops -> `ProjectedFeatures`."""

    def __init__(self, plan: Plan, batch: int, replayer: Replayer) -> None:
        super().__init__(replayer)
        self._plan = plan
        self._image = _Image(replayer.device)
        self._transfer = Transfer(replayer.device, crops=((batch, plan.height, plan.width, 3), torch.uint8))

    def run(self) -> PlanFeatures:
        self._transfer.send()
        return self._plan.prepare(self._image(self._transfer.tensors["crops"]))

    def __call__(self, crops: Sequence[NDArray[np.uint8]]) -> list[PlanFeatures]:
        """`ProjectedFeatures` of each crop, in their own memory."""
        self._transfer.write("crops", crops)
        out = self.replay()
        return [type(out)(*(t[k : k + 1].clone() for t in out)) for k in range(len(crops))]


class _Outbox:
    """Probabilities on their way to the host, and the boxes of what was painted."""

    def __init__(self, batch: int, height: int, width: int, device: torch.device) -> None:
        shape = (batch, height, width)
        self._transfer = Transfer(
            device, levels=(shape, torch.uint16), total=((batch,), torch.float32), found=((batch, 8), torch.int32)
        )
        self.given: list[weakref.ref[NDArray[np.uint16]] | None] = [None] * batch
        """The levels of each row that `read` returned last; the device holds the same numbers."""

    def hold(self, row: int, values: NDArray[Any]) -> None:
        """Make a row of `levels` hold these values, uint16 levels or float32 probabilities.  If it holds them already,
        nothing is copied."""
        given = self.given[row]
        if given is not None and given() is values:
            return
        self.given[row] = None
        array = self._transfer.arrays["levels"][row]
        array[...] = values if values.dtype == np.uint16 else np.rint(values * np.float32(levels.ONE))
        self._transfer.tensors["levels"][row].copy_(torch.from_numpy(array), non_blocking=True)

    @property
    def levels(self) -> levels.Levels:
        """The memory for the answer, on the device."""
        return levels.Levels(self._transfer.tensors["levels"], self._transfer.tensors["total"])

    @property
    def found(self) -> tuple[Tensor, NDArray[np.int32]]:
        """The boxes, on the device and on the host, int32 `[B, 8]` as `kernels.mask_bits` writes them."""
        return self._transfer.tensors["found"], self._transfer.arrays["found"]

    def holding(self, values: NDArray[np.uint16]) -> Tensor | None:
        """The row that `read` returned as these very levels, on the device, if it still holds them."""
        rows = (k for k, given in enumerate(self.given) if given is not None and given() is values)
        row = next(rows, None)
        return None if row is None else self._transfer.tensors["levels"][row]

    def fetch(self) -> None:
        """Start the copy of everything to the host."""
        self._transfer.fetch()

    def read(self, items: int) -> list[Found]:
        """Copies of the first items; call it after they have arrived."""
        arrays = self._transfer.arrays
        found = [Found(arrays["levels"][k].copy(), float(arrays["total"][k])) for k in range(items)]
        for k, item in enumerate(found):
            item.levels.flags.writeable = False  # so that the device goes on holding the same numbers
            self.given[k] = weakref.ref(item.levels)
        return found


class ClickContext(Context):
    """Features, previous probabilities and click slots -> probabilities."""

    def __init__(
        self,
        plan: Plan,
        batch: int,
        radius: float,
        like: PlanFeatures,
        shelf: Shelf,
        replayer: Replayer,
        easel: Easel | None = None,
    ) -> None:
        super().__init__(replayer)
        self._plan, self._radius, self._shelf, self._easel = plan, radius, shelf, easel
        before = {} if plan.fused else {"previous": ((batch, plan.height, plan.width), torch.float32)}
        small = {"points": ((batch, 2 * SLOTS, 2), torch.float32), "asked": ((batch, 8), torch.int32)}
        self._transfer = Transfer(replayer.device, **before, **small)
        self._features = tuple(_rows(t, batch) for t in like)
        self.held: list[weakref.ref[Tensor] | None] = [None] * batch
        """The features that each row holds: while a region stays the same, they need not be copied again."""
        self._outbox = _Outbox(batch, plan.height, plan.width, replayer.device)

    def run(self) -> Coarse:
        self._transfer.send()
        points = self._transfer.tensors["points"]
        if self._plan.fused is not None:
            found = self._outbox.levels  # holds the previous answer, which is read, and then the new one
            kept: Coarse = self._plan.fused(self._features, found.levels, points, self._radius, found)
            self._paint()
            self._outbox.fetch()
            return kept
        previous = self._transfer.tensors["previous"]
        disks = click_maps(points, self._plan.height, self._plan.width, radius=self._radius)
        answer: Coarse = self._plan.click(*self._features, torch.cat([previous[:, None], disks], dim=1))
        levels.write(answer.logits, self._outbox.levels)
        self._paint()
        self._outbox.fetch()
        return answer

    def _paint(self) -> None:
        if self._easel is not None:
            self._easel.paint(self._outbox.levels.levels, self._transfer.tensors["asked"], self._outbox.found[0])

    def __call__(
        self,
        features: Sequence[PlanFeatures],
        previous: Sequence[NDArray[Any]],
        points: Sequence[NDArray[np.float32]],
        wanted: Sequence[PaintRequest | None] = (),
    ) -> list[tuple[Found, KeptCoarse | None]]:
        """Probabilities `[h, w]` of each click, and what the refiner needs, if there is one.  Waits for the device.

        Masks that are wanted are painted if there is an easel.
        """
        if self._plan.fused is None:
            self._transfer.write("previous", [levels.probabilities(p) for p in previous])
        else:
            self.ready()
            for k, values in enumerate(previous):
                self._outbox.hold(k, values)
        self._transfer.write("points", points)
        for k, item in enumerate(features):
            held = self.held[k]
            if held is None or held() is not item.c1:
                self.held[k] = None  # until all of the new features are there
                for buffer, tensor in zip(self._features, item, strict=True):
                    buffer[k : k + 1].copy_(tensor)
                self.held[k] = weakref.ref(item.c1)
        self._outbox.given[:] = [None] * len(self.held)  # every row will be overwritten
        work = self.ready()  # a capture runs the work, so masks are asked for only after it
        painted, asked = self._ask(wanted)
        out: Any = work()
        for k, request in painted.items():
            self._easel_in_use().fetch(k, request, int(asked[k, 4]))
        coarse: list[KeptCoarse | None] = [None] * len(features)
        if self._plan.refine is not None:
            for k in range(len(features)):
                coarse[k] = self._shelf.take(out.logits[k : k + 1], out.embedding[k : k + 1])
        self._replayer.wait()
        found = self._outbox.read(len(features))
        for k, request in painted.items():
            found[k] = found[k]._replace(painted=self._painted(k, request, asked[k]))
        return list(zip(found, coarse, strict=True))

    def holding(self, values: NDArray[np.uint16]) -> Tensor | None:
        """Levels that an earlier call returned, uint16 `[h, w]` on the device, if they are still there."""
        return self._outbox.holding(values)

    def _ask(self, wanted: Sequence[PaintRequest | None]) -> tuple[dict[int, PaintRequest], NDArray[np.int32]]:
        """The requests that will be painted, by row, and a copy of what is asked of `kernels.mask_bits`."""
        asked = self._transfer.arrays["asked"]
        asked[...] = 0
        if self._easel is None:
            return {}, asked
        shape, easel = (self._plan.height, self._plan.width), self._easel
        rows = {k: r for k, r in enumerate(wanted) if r is not None and easel.ask(k, r, shape, asked[k])}
        return rows, asked.copy()

    def _easel_in_use(self) -> Easel:
        assert self._easel is not None
        return self._easel

    def _painted(self, row: int, request: PaintRequest, asked: NDArray[np.int32]) -> Painted:
        """The mask of a row whose first turn has arrived; further turns are painted here."""
        easel, boxes = self._easel_in_use(), self._outbox.found[1]
        painted = easel.read(row, request, asked, boxes[row])
        height, at_once = int(asked[0]), int(asked[4])
        if at_once == height:
            easel.know(row, painted)
            return painted
        parts = [painted]
        for top in range(at_once, height, at_once):
            asked[3:5] = top, min(at_once, height - top)
            self._transfer.arrays["asked"][...] = 0
            self._transfer.arrays["asked"][row] = asked
            self._transfer.send()
            self._paint()
            self._outbox.fetch()
            easel.fetch(row, request, int(asked[4]))
            self._replayer.wait()
            parts.append(easel.read(row, request, asked, boxes[row]))
        return joined(request, parts)


class RefineContext(Context):
    """Coarse answers, boxes, crops and click slots -> probabilities on the boxes."""

    def __init__(self, plan: Plan, side: int, batch: int, radius: float, like: KeptCoarse, replayer: Replayer) -> None:
        super().__init__(replayer)
        self._plan, self._side, self._radius = plan, side, radius
        self._image = _Image(replayer.device)
        self._transfer = Transfer(
            replayer.device,
            boxes=((batch, 4), torch.float32),
            points=((batch, 2 * SLOTS, 2), torch.float32),
            crops=((batch, side, side, 3), torch.uint8),
        )
        self._coarse = Coarse(_rows(like.logits, batch), _rows(like.embedding, batch))
        self._outbox = _Outbox(batch, side, side, replayer.device)

    def run(self) -> tuple[()]:
        assert self._plan.refine is not None
        self._transfer.send()
        parts = self._transfer.tensors
        disks = click_maps(parts["points"], self._side, self._side, radius=self._radius)
        image = self._image(parts["crops"])
        logits, embedding = self._coarse
        levels.write(self._plan.refine(embedding, logits, parts["boxes"], image, disks), self._outbox.levels)
        self._outbox.fetch()
        return ()

    def __call__(
        self,
        coarse: Sequence[KeptCoarse],
        boxes: Sequence[tuple[float, float, float, float]],
        crops: Sequence[NDArray[np.uint8]],
        points: Sequence[NDArray[np.float32]],
    ) -> list[Found]:
        """Probabilities `[S, S]` on each box.  Waits for the device."""
        self._transfer.write("boxes", [np.array(b, np.float32) for b in boxes])
        self._transfer.write("points", points)
        self._transfer.write("crops", crops)
        self._put(self._coarse, [(c.logits, c.embedding) for c in coarse])
        self.replay()
        self._replayer.wait()
        return self._outbox.read(len(coarse))


class KeptCoarse:
    """A coarse answer that stays valid after later clicks.  When its last reference goes, its memory returns to the
    shelf.
    """

    __slots__ = ("_shelf", "embedding", "logits")

    def __init__(self, logits: Tensor, embedding: Tensor, shelf: list[tuple[Tensor, Tensor]]) -> None:
        self.logits, self.embedding, self._shelf = logits, embedding, shelf

    def __del__(self) -> None:
        self._shelf.append((self.logits, self.embedding))


class Shelf:
    """Memory for coarse answers, used again and again, so that no click allocates."""

    def __init__(self) -> None:
        self._free: list[tuple[Tensor, Tensor]] = []

    def take(self, logits: Tensor, embedding: Tensor) -> KeptCoarse:
        """A copy of one answer, which stays valid."""
        try:
            kept = self._free.pop()
        except IndexError:
            kept = torch.empty_like(logits), torch.empty_like(embedding)
        kept[0].copy_(logits)
        kept[1].copy_(embedding)
        return KeptCoarse(*kept, self._free)


class _Bucket:
    """The contexts of one network shape."""

    def __init__(
        self, plan: Plan, config: FreqFormerConfig, replayer: Replayer, easel: Callable[[int], Easel | None]
    ) -> None:
        self.plan, self._config, self._replayer, self._easel = plan, config, replayer, easel
        self._shelf = Shelf()
        self._made: dict[tuple[type[Context], int, int], Any] = {}

    def prepare(self, batch: int) -> PrepareContext:
        return self._get(PrepareContext, batch, lambda: PrepareContext(self.plan, batch, self._replayer))

    def click(self, batch: int, like: PlanFeatures, turn: int) -> ClickContext:
        radius = self._config.click_radius
        return self._get(
            ClickContext,
            batch,
            lambda: ClickContext(self.plan, batch, radius, like, self._shelf, self._replayer, self._easel(turn)),
            turn,
        )

    def has(self, batch: int, turn: int) -> bool:
        """Whether there is a click context of this turn."""
        return (ClickContext, batch, turn) in self._made

    @property
    def later_turns(self) -> int:
        """How many contexts there are of second and later turns."""
        return sum(turn > 0 for _, _, turn in self._made)

    def refine(self, batch: int, like: KeptCoarse) -> RefineContext:
        side, radius = self._config.refine_size, self._config.click_radius
        return self._get(
            RefineContext, batch, lambda: RefineContext(self.plan, side, batch, radius, like, self._replayer)
        )

    def holding(self, values: NDArray[np.uint16]) -> Tensor | None:
        """The same levels on the device, if a click context still holds them."""
        for context in self._made.values():
            found = context.holding(values) if isinstance(context, ClickContext) else None
            if found is not None:
                return found
        return None

    def _get(self, kind: type[Context], batch: int, make: Callable[[], Any], turn: int = 0) -> Any:
        if (kind, batch, turn) not in self._made:
            self._made[kind, batch, turn] = make()
        return self._made[kind, batch, turn]


class Contexts:
    """Plans run through contexts (an `Executor`).

    Args:
        model (Planned): the model.
        replayer (Replayer): how work is run, and where.
    """

    paints, compiles, unclear = True, True, False

    def __init__(self, model: Planned, replayer: Replayer) -> None:
        self.model, self.precision = model, model.precision
        self._replayer = replayer
        self._folded = model.folded()
        self._buckets: OrderedDict[tuple[int, int], _Bucket] = OrderedDict()
        self._easels: list[Easel] = []  # of each turn
        self._asked = self._right = False  # whether the kernel that paints was tried, and whether it is right

    def active(self) -> AbstractContextManager[None]:
        return self._replayer.active()

    def prepare(self, crops: Sequence[NDArray[np.uint8]]) -> list[PlanFeatures]:
        features: list[PlanFeatures] = []
        folded = self.model.folded()
        if folded is not self._folded:  # the weights have changed
            self._buckets.clear()
            self._folded = folded  # last, in case of an interrupt
        for part in _parts(len(crops)):
            self._replayer.wait()  # the copies of the previous part may not be done
            features += self._bucket(crops[0].shape[:2]).prepare(_batch(part))(crops[part])
        return features

    def click(
        self,
        features: Sequence[PlanFeatures],
        previous: Sequence[NDArray[Any]],
        points: Sequence[NDArray[np.float32]],
        wanted: Sequence[PaintRequest | None] = (),
    ) -> list[tuple[Found, KeptCoarse | None]]:
        answers: list[tuple[Found, KeptCoarse | None]] = []
        for number, part in enumerate(_parts(len(features))):
            bucket, batch = self._bucket(previous[0].shape), _batch(part)
            context = bucket.click(batch, features[0], self._turn(number, bucket, batch))
            answers += context(features[part], previous[part], points[part], wanted[part])
        return answers

    def refine(
        self,
        coarse: Sequence[KeptCoarse],
        boxes: Sequence[tuple[float, float, float, float]],
        crops: Sequence[NDArray[np.uint8]],
        points: Sequence[NDArray[np.float32]],
    ) -> list[Found]:
        found: list[Found] = []
        for part in _parts(len(coarse)):
            context = self._bucket(coarse[0].logits.shape[2:]).refine(_batch(part), coarse[0])
            found += context(coarse[part], boxes[part], crops[part], points[part])
        return found

    def wait(self) -> None:
        self._replayer.wait()

    def verify(self, height: int, width: int) -> None:
        """Try the kernels of a network shape, which may be compiled for it, so that its plan finds the verdicts."""
        verification.judge(self._folded.questions(height, width))

    def _turn(self, part: int, bucket: _Bucket, batch: int) -> int:
        """Which turn's context takes a part of a batch."""
        turn = part % TURNS
        if turn == 0 or bucket.has(batch, turn):
            return turn
        return turn if sum(b.later_turns for b in self._buckets.values()) < TURNS_KEPT else 0

    def holding(self, values: NDArray[np.uint16]) -> Tensor | None:
        """Levels of an answer, uint16 `[h, w]` on the device, if they are still there; until the next click."""
        bucket = self._buckets.get((values.shape[0], values.shape[1]))
        return None if bucket is None else bucket.holding(values)

    def _painting(self, turn: int) -> Easel | None:
        """The memory in which a turn's masks are painted; None if the kernel is not right on this device: then the
        session paints.
        """
        if not self._asked:
            self._asked, self._right = True, paints(self._replayer.device, WORDS)
        if not self._right:
            return None
        while len(self._easels) <= turn:
            self._easels.append(Easel(BATCHES[-1], self._replayer.device))
        return self._easels[turn]

    @property
    def replayer(self) -> Replayer:
        """The object that runs the work, on its device."""
        return self._replayer

    def _bucket(self, shape: tuple[int, ...]) -> _Bucket:
        height, width = shape
        bucket = self._buckets.pop((height, width), None)
        if bucket is None:
            bucket = _Bucket(self._folded.plan(height, width), self.model.config, self._replayer, self._painting)
        self._buckets[height, width] = bucket
        if len(self._buckets) > SHAPES_KEPT:
            self._buckets.popitem(last=False)
        return bucket


def _parts(items: int) -> Iterator[slice]:
    """Slices of consecutive items, each no longer than the largest batch."""
    for start in range(0, items, BATCHES[-1]):
        yield slice(start, min(start + BATCHES[-1], items))


def _batch(part: slice) -> int:
    """The smallest batch size that holds a slice."""
    return next(b for b in BATCHES if b >= part.stop - part.start)


def _host(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the host; on CUDA in pinned memory, so that copies run beside other work."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


def _rows(like: Tensor, batch: int) -> Tensor:
    """Zeros for a batch of items like this one `[1, ...]`, in its layout."""
    strides = like.numel(), *like.stride()[1:]
    return torch.empty_strided((batch, *like.shape[1:]), strides, dtype=like.dtype, device=like.device).zero_()
