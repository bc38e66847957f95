"""A picture or a volume as nnInteractive's clients see it: prompts in array order, one buffer, one undo for all.

Each slice has a session of its own, made when it is first touched.  What counts is the buffer: before a slice is
clicked, its session is made to hold the mask that the buffer has there.  So slices along different axes can be mixed.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import BoxPrompt, Click, Engine, Lasso, Scribble, Session
from activefreq_engine.images import load_image
from activefreq_engine.masks import to_polygons
from activefreq_engine.serve.batches import Batches
from activefreq_engine.serve.errors import ServeError
from activefreq_engine.serve.strokes import MOST_LINES, paths
from activefreq_engine.types import Prompt as Said

SLICES = 32
"""Most slices whose sessions are kept; those of others are made again."""
CORNERS = 10_000
"""Most corners of one lasso; of a longer outline some are left out."""
UNDO_BYTES = 2**28
"""Most bytes kept for undo; the oldest entries go first."""

Place = tuple[int, int]
"""Axis and index of a slice."""
Changed = list[list[int]]
"""A box in array order, ``[[low, high], ...]``, half-open."""


@dataclass(frozen=True, slots=True)
class SlicePrompt:
    """What was said about one slice, as one step of the client."""

    place: Place
    said: tuple[Said, ...]
    adds: bool = False
    """Says of a box that it adds to the slice's mask if there is one, and does not begin anew."""


@dataclass(frozen=True, slots=True)
class _Before:
    """A slice's mask before a prompt, and how many steps of its session the prompt took; or the mask of all slices
    before a segmentation to begin with."""

    bits: NDArray[np.uint8]
    place: Place | None = None
    steps: int = 0
    session: Session | None = None


class PromptedVolume:
    """An image `[C, X, Y, Z]` with C 1 or 3, and the mask that prompts make in it.

    The slice axis is the axis along which the last flat prompt was flat.  Before the first such prompt it is an axis of
    length 1 if there is one, else the one with the largest spacing, else the first.
    """

    def __init__(self, image: NDArray[Any], spacing: Sequence[float] | None, engine: Engine, batches: Batches) -> None:
        if image.ndim != 4 or image.shape[0] not in (1, 3):
            raise ServeError(f"the image has shape {list(image.shape)}; expected [C, X, Y, Z] with C 1 or 3")
        self._image = _eight_bit(image)
        self.shape = image.shape[1:]
        self.axis = _first_axis(self.shape, spacing)
        self.mask = np.zeros(self.shape, np.bool_)
        self.queued: list[SlicePrompt] = []
        self._engine, self._batches = engine, batches
        self._sessions: OrderedDict[Place, Session] = OrderedDict()
        self._before: list[_Before] = []

    # --- prompts ---

    def point(self, at: Sequence[int], positive: bool) -> SlicePrompt:
        """A click on one voxel, given in array order."""
        if len(at) != 3 or not all(0 <= a < n for a, n in zip(at, self.shape, strict=True)):
            raise ServeError(f"the point {list(at)} is outside the image of shape {list(self.shape)}")
        return SlicePrompt((self.axis, at[self.axis]), (self._click(at, self.axis, positive),))

    def scribble(self, drawn: NDArray[np.bool_], offset: Sequence[int], positive: bool) -> SlicePrompt:
        """A scribble from the voxels of a stroke in one slice."""
        place, plane, (left, top) = self._flat(drawn, offset, "scribble")
        lines = [[(x + left + 0.5, y + top + 0.5) for x, y in line] for line in paths(plane)]
        return SlicePrompt(place, tuple(Scribble(tuple(line), positive) for line in lines))

    def lasso(self, drawn: NDArray[np.bool_], offset: Sequence[int], positive: bool) -> SlicePrompt:
        """A lasso in one slice, from the voxels that it encloses or from those of its line alone."""
        place, plane, (left, top) = self._flat(drawn, offset, "lasso")
        rings = sorted((p.exterior for p in to_polygons(plane, holes="drop")), key=_extent, reverse=True)[:MOST_LINES]
        corner = np.array([left, top], np.float64)
        rings = [(ring[:: len(ring) // CORNERS + 1] + corner).tolist() for ring in rings]
        return SlicePrompt(place, tuple(Lasso(tuple((x, y) for x, y in ring), positive) for ring in rings))

    def box(self, corners: Sequence[Sequence[int]], positive: bool) -> SlicePrompt:
        """A box ``[[low, high], ...]`` in one slice, half-open; what lies outside the image is cut off."""
        corners = [(max(low, 0), min(high, n)) for (low, high), n in zip(corners, self.shape, strict=True)]
        if not all(low < high for low, high in corners):
            raise ServeError(f"the box {[list(c) for c in corners]} is empty or outside the image {list(self.shape)}")
        flat = [axis for axis in range(3) if corners[axis][1] - corners[axis][0] == 1]
        if not flat:
            raise ServeError("the box does not lie in one slice; draw in one slice at a time")
        if self.axis not in flat:
            self.axis = flat[0]
        (y0, y1), (x0, x1) = (c for axis, c in enumerate(corners) if axis != self.axis)
        place = self.axis, corners[self.axis][0]
        if not positive:
            ring = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
            return SlicePrompt(place, (Lasso(tuple((float(x), float(y)) for x, y in ring), False),))
        return SlicePrompt(place, (BoxPrompt(x0, y0, x1, y1),), adds=True)

    def _flat(
        self, drawn: NDArray[np.bool_], offset: Sequence[int], what: str
    ) -> tuple[Place, NDArray[np.bool_], tuple[int, int]]:
        """Where the voxels of a drawing lie: the slice, the drawing in its plane, and the (x, y) of that plane's
        corner."""
        spans = [np.flatnonzero(drawn.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        if not len(spans[0]):
            raise ServeError(f"the {what} is empty")
        flat = [axis for axis in range(3) if len(spans[axis]) == 1]
        if not flat:
            raise ServeError(f"the {what} does not lie in one slice; draw in one slice at a time")
        if self.axis not in flat:
            self.axis = flat[0]
        plane = np.ascontiguousarray(np.moveaxis(drawn, self.axis, 0)[spans[self.axis][0]])
        top, left = (int(offset[axis]) for axis in range(3) if axis != self.axis)
        return (self.axis, int(spans[self.axis][0]) + int(offset[self.axis])), plane, (left, top)

    @staticmethod
    def _click(at: Sequence[int], axis: int, positive: bool) -> Click:
        row, column = (a for i, a in enumerate(at) if i != axis)
        return Click(column + 0.5, row + 0.5, positive)

    # --- what changes the mask ---

    async def run(self, prompts: Sequence[SlicePrompt], threads: Callable[..., Any]) -> Changed | None:
        """Carry out prompts; returns the box around the voxels that changed."""
        before = self.mask.copy()
        for prompt in prompts:
            await self._apply(prompt, threads)
        return _box(before, self.mask)

    async def _apply(self, prompt: SlicePrompt, threads: Callable[..., Any]) -> None:
        shown = self._shown(prompt.place)
        session = self._sessions.get(prompt.place)
        if session is None:
            session = await threads(self._make, prompt.place)
        self._sessions.move_to_end(prompt.place)
        kept, steps = np.packbits(shown), 0
        if not np.array_equal(session.mask, shown):
            await threads(session.load_mask, shown.copy())
            steps = 1
        for said in prompt.said:
            if prompt.adds and isinstance(said, BoxPrompt) and shown.any():
                x0, y0, x1, y1 = said.x0, said.y0, said.x1, said.y1
                said = Lasso(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
            await asyncio.wrap_future(self._batches.submit(session, said))
            steps += 1
        shown[...] = session.mask
        self._keep(_Before(kept, prompt.place, steps, session))

    def _keep(self, before: _Before) -> None:
        self._before.append(before)
        while sum(b.bits.nbytes for b in self._before) > UNDO_BYTES and len(self._before) > 1:
            del self._before[0]

    def undo(self) -> tuple[bool, Changed | None]:
        """Take back the last prompt, or the last segmentation to begin with; returns whether there was one, and the box
        around the voxels that changed."""
        if self.queued:
            self.queued.pop()
            return True, None
        if not self._before:
            return False, None
        last = self._before.pop()
        shown = self.mask if last.place is None else self._shown(last.place)
        before = self.mask.copy()
        shown[...] = np.unpackbits(last.bits, count=shown.size).reshape(shown.shape).astype(np.bool_)
        if last.session is not None and last.session in self._sessions.values():
            for _ in range(last.steps):
                last.session.undo()
        return True, _box(before, self.mask)

    def start_from(self, labels: NDArray[Any]) -> None:
        """Begin with a given mask, as one step that can be taken back; no session remembers earlier prompts."""
        if labels.shape != self.shape:
            raise ServeError(f"the segmentation has shape {list(labels.shape)}, the image {list(self.shape)}")
        self._keep(_Before(np.packbits(self.mask)))
        self._forget()
        self.mask[...] = labels != 0

    def reset(self) -> None:
        """An empty mask, and nothing to undo."""
        self.close()
        self.mask[...] = False

    def close(self) -> None:
        """Let go of the sessions."""
        self._forget()
        self._before.clear()

    # --- inside ---

    def _forget(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self.queued.clear()

    def _shown(self, place: Place) -> NDArray[np.bool_]:
        axis, index = place
        found: NDArray[np.bool_] = np.moveaxis(self.mask, axis, 0)[index]
        return found

    def _make(self, place: Place) -> Session:
        axis, index = place
        plane = np.moveaxis(self._image, axis + 1, 1)[:, index]
        pixels = np.ascontiguousarray(plane[0] if len(plane) == 1 else np.moveaxis(plane, 0, -1))
        session = Session(engine=self._engine, wait=math.inf)  # who ends a session waits for the click under way
        session.set_image(pixels, copy=False)
        self._sessions[place] = session
        while len(self._sessions) > SLICES:
            self._sessions.popitem(last=False)[1].close()
        return session


def _eight_bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The volume as uint8.  Values of an 8-bit image stay as they are, whatever their type.  Others go through one
    window for all slices: the 0.5 and 99.5 percentiles of a sample of the whole volume."""
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
    if low == high:
        return np.zeros(image.shape, np.uint8)
    window = (p_low, p_high) if p_low < p_high else (low, high)
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


def _extent(ring: NDArray[np.int32]) -> int:
    """Area of the box around a ring."""
    return int(np.prod(np.ptp(ring, axis=0)))


def _box(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Changed | None:
    differ = before != after
    found = []
    for axis in range(3):
        along = np.flatnonzero(differ.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(along):
            return None
        found.append([int(along[0]), int(along[-1]) + 1])
    return found
