"""A picture or a volume as nnInteractive's clients see it: prompts in array order, one buffer, one undo for all.

Each slice has a session of its own, made when it is first touched.  The buffer is what counts: a slice's session is
brought to what the buffer shows before it is clicked, so slices along different axes go together.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import Click, Engine, Session
from activefreq_engine.images import load_image
from activefreq_engine.serve.batches import Batches
from activefreq_engine.serve.errors import ServeError

SLICES = 32
"""Slices whose sessions are kept; others are made again."""
STROKE = 5
"""Clicks that stand for a scribble."""
UNDO_BYTES = 2**28
"""Of the slices that undo brings back."""

Place = tuple[int, int]
"""Axis and index of a slice."""
Changed = list[list[int]]
"""A box in array order, ``[[low, high], ...]``, half-open."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Clicks on one slice: one for a point, several for a scribble."""

    place: Place
    clicks: tuple[Click, ...]


@dataclass(frozen=True, slots=True)
class _Before:
    """A slice as it was, and how many of its session's steps led away from it."""

    place: Place
    bits: NDArray[np.uint8]
    steps: int
    session: Session


class Volume:
    """An image `[C, X, Y, Z]` with C 1 or 3, and the mask that prompts make in it.

    The slice axis is the one that the last flat prompt was flat along; before the first, an axis of length 1, else the
    one with the largest spacing, else the first.
    """

    def __init__(self, image: NDArray[Any], spacing: Sequence[float] | None, engine: Engine, batches: Batches) -> None:
        if image.ndim != 4 or image.shape[0] not in (1, 3):
            raise ServeError(f"the image has shape {list(image.shape)}; expected [C, X, Y, Z] with C 1 or 3")
        self._image = _eight_bit(image)
        self.shape = image.shape[1:]
        self.axis = _first_axis(self.shape, spacing)
        self.mask = np.zeros(self.shape, np.bool_)
        self.queued: list[Prompt] = []
        self._engine, self._batches = engine, batches
        self._sessions: OrderedDict[Place, Session] = OrderedDict()
        self._before: list[_Before] = []

    # --- prompts ---

    def point(self, at: Sequence[int], positive: bool) -> Prompt:
        """A prompt of one voxel."""
        if len(at) != 3 or not all(0 <= a < n for a, n in zip(at, self.shape, strict=True)):
            raise ServeError(f"the point {list(at)} is outside the image of shape {list(self.shape)}")
        return Prompt((self.axis, at[self.axis]), (self._click(at, self.axis, positive),))

    def scribble(self, drawn: NDArray[np.bool_], offset: Sequence[int], positive: bool) -> Prompt:
        """A prompt of the voxels of a stroke in one slice, by a few of them that are spread along it."""
        voxels = np.argwhere(drawn) + np.asarray(offset)
        if not len(voxels):
            raise ServeError("the scribble is empty")
        flat = [axis for axis in range(3) if np.ptp(voxels[:, axis]) == 0]
        if not flat:
            raise ServeError("the scribble does not lie in one slice; draw in one slice at a time")
        if self.axis not in flat:
            self.axis = flat[0]
        chosen = _spread(voxels, STROKE)
        return Prompt(
            (self.axis, int(chosen[0][self.axis])), tuple(self._click(v, self.axis, positive) for v in chosen.tolist())
        )

    @staticmethod
    def _click(at: Sequence[int], axis: int, positive: bool) -> Click:
        row, column = (a for i, a in enumerate(at) if i != axis)
        return Click(column + 0.5, row + 0.5, positive)

    # --- what changes the mask ---

    async def run(self, prompts: Sequence[Prompt], threads: Callable[..., Any]) -> Changed | None:
        """Carry out prompts; the box around what changed."""
        before = self.mask.copy()
        for prompt in prompts:
            await self._apply(prompt, threads)
        return _box(before, self.mask)

    async def _apply(self, prompt: Prompt, threads: Callable[..., Any]) -> None:
        shown = self._shown(prompt.place)
        session = self._sessions.get(prompt.place)
        if session is None:
            session = await threads(self._make, prompt.place)
        self._sessions.move_to_end(prompt.place)
        kept, steps = np.packbits(shown), 0
        if not np.array_equal(session.mask, shown):
            await threads(session.load_mask, shown.copy())
            steps = 1
        for click in prompt.clicks:
            await asyncio.wrap_future(self._batches.submit(session, click))
            steps += 1
        shown[...] = session.mask
        self._before.append(_Before(prompt.place, kept, steps, session))
        while sum(b.bits.nbytes for b in self._before) > UNDO_BYTES and len(self._before) > 1:
            del self._before[0]

    def undo(self) -> tuple[bool, Changed | None]:
        """Take back the last prompt; whether there was one, and the box around what changed."""
        if self.queued:
            self.queued.pop()
            return True, None
        if not self._before:
            return False, None
        last = self._before.pop()
        shown = self._shown(last.place)
        before = self.mask.copy()
        shown[...] = np.unpackbits(last.bits, count=shown.size).reshape(shown.shape).astype(np.bool_)
        if self._sessions.get(last.place) is last.session:
            for _ in range(last.steps):
                last.session.undo()
        return True, _box(before, self.mask)

    def start_from(self, labels: NDArray[Any]) -> None:
        """Begin with a given mask: what was done before is forgotten."""
        if labels.shape != self.shape:
            raise ServeError(f"the segmentation has shape {list(labels.shape)}, the image {list(self.shape)}")
        self.reset()
        self.mask[...] = labels != 0

    def reset(self) -> None:
        """An empty mask, and nothing to undo."""
        self.close()
        self.mask[...] = False

    def close(self) -> None:
        """Let go of the sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._before.clear()
        self.queued.clear()

    # --- inside ---

    def _shown(self, place: Place) -> NDArray[np.bool_]:
        axis, index = place
        found: NDArray[np.bool_] = np.moveaxis(self.mask, axis, 0)[index]
        return found

    def _make(self, place: Place) -> Session:
        axis, index = place
        plane = np.moveaxis(self._image, axis + 1, 1)[:, index]
        pixels = np.ascontiguousarray(plane[0] if len(plane) == 1 else np.moveaxis(plane, 0, -1))
        session = Session(engine=self._engine)
        session.set_image(pixels, copy=False)
        self._sessions[place] = session
        while len(self._sessions) > SLICES:
            self._sessions.popitem(last=False)[1].close()
        return session


def _eight_bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8: as it is where the values are those of an 8-bit image, whatever their type; else through one window, the
    0.5 and 99.5 percentiles of a sample of the whole volume, the same for all slices."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ServeError("the image has NaN or infinite values; replace them first")
    low, high = float(image.min()), float(image.max())
    step = max(1, round((image.size / 1_000_000) ** (1 / 3)))
    sample = image[:, ::step, ::step, ::step].astype(np.float64)
    if low >= 0 and 1 < high <= 255 and np.array_equal(sample, np.rint(sample)):
        return np.rint(image).astype(np.uint8)
    p_low, p_high = (float(p) for p in np.percentile(sample, (0.5, 99.5)))
    window = (p_low, p_high) if p_low < p_high else (low, high if high > low else low + 1)
    out = np.empty(image.shape, np.uint8)
    for channel in range(image.shape[0]):
        for index in range(image.shape[1]):
            out[channel, index] = load_image(image[channel, index], window=window, copy=False)
    return out


def _first_axis(shape: Sequence[int], spacing: Sequence[float] | None) -> int:
    if 1 in shape:
        return list(shape).index(1)
    if spacing is not None and len(spacing) == 3 and sorted(spacing)[2] > sorted(spacing)[1]:
        return int(np.argmax(spacing))
    return 0


def _spread(voxels: NDArray[np.integer[Any]], count: int) -> NDArray[np.integer[Any]]:
    """At most so many of some voxels, each far from the ones before, the first in the middle of them."""
    if len(voxels) > 20_000:
        voxels = voxels[:: len(voxels) // 20_000 + 1]
    middle = voxels.mean(axis=0)
    chosen = [int(np.argmin(((voxels - middle) ** 2).sum(axis=1)))]
    distance = np.full(len(voxels), np.inf)
    while True:
        distance = np.minimum(distance, ((voxels - voxels[chosen[-1]]) ** 2).sum(axis=1))
        if len(chosen) == count or distance.max() < 1:
            return voxels[chosen]
        chosen.append(int(np.argmax(distance)))


def _box(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Changed | None:
    differ = before != after
    found = []
    for axis in range(3):
        along = np.flatnonzero(differ.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(along):
            return None
        found.append([int(along[0]), int(along[-1]) + 1])
    return found
