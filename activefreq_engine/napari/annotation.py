"""Segments objects in an image of two or more axes, slice by slice, and keeps the labels that a viewer shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import ClickResult, Engine, Session, Suggestion
from activefreq_engine.errors import InvalidImageError
from activefreq_engine.images import Window

MOST_OBJECTS = 65535
"""Highest number of an object, since labels are uint16."""


class Plane(NamedTuple):
    """A slice of an image: rows run along the first of `axes`, columns along the second."""

    axes: tuple[int, int]
    at: tuple[int, ...]
    """Index of the slice on each of the other axes, in their order."""

    def of(self, array: Any) -> Any:
        """This slice of an array, `[H, W]`, or `[H, W, C]` where the array also has an axis of colours; a view if
        possible."""
        where: list[Any] = list(self.at)
        for axis in self.axes:
            where.insert(axis, slice(None))
        return array[tuple(where)]

    def point(self, row: float, column: float) -> list[float]:
        """Coordinates of a point of the slice on all axes."""
        where: list[float] = list(self.at)
        for axis, value in zip(self.axes, (row, column), strict=True):
            where.insert(axis, value)
        return where


class Change(NamedTuple):
    """A rectangle of labels that a step has changed."""

    plane: Plane
    rows: slice
    columns: slice
    labels: NDArray[np.uint16]
    """`[h, w]`: the new labels of the rectangle."""
    changed: NDArray[np.bool_]
    """`[h, w]`: which of them are others than before the step."""
    elapsed_ms: float


class _SliceSession:
    """One slice in the engine: its session, and which of the session's objects has which number of ours."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.numbers: dict[int, int] = {}
        self._told = np.zeros(session.shape, np.uint16)
        """The labels as of the last step."""

    def select(self, number: int) -> None:
        """Make an object the session's current one; an object that this slice does not have yet is begun."""
        if number not in self.numbers:
            self.numbers[number] = 1 if not self.numbers else self.session.object_count + 1
            if self.session.object_count < self.numbers[number]:
                self.session.next_object()
        self.session.select_object(self.numbers[number])

    def step(self, rows: slice, columns: slice) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """The labels of a rectangle that a step has changed, uint16 `[h, w]`, and which of them are new, bool `[h, w]`;
        where objects overlap, the higher number wins."""
        told = self._told[rows, columns]
        labels = np.zeros_like(told)
        for number in sorted(self.numbers):
            labels[self.session.mask_of(self.numbers[number])[rows, columns]] = number
        changed = labels != told
        told[...] = labels
        return labels, changed


class Annotation:
    """An image with its objects.  Must not be used by several threads at once.

    Args:
        data: the image, an array or anything that is sliced like one (dask, zarr); colours are its last axis.
        rgb (bool): whether it has colours.
        window ((float, float), optional): values shown as black and white; not used for uint8.
        engine (Engine): segments the slices.

    Raises:
        InvalidImageError: the image has less than two axes.
    """

    def __init__(self, data: Any, *, rgb: bool, window: Window | None, engine: Engine) -> None:
        self.shape = tuple(int(n) for n in data.shape[: len(data.shape) - rgb])
        if len(self.shape) < 2:
            raise InvalidImageError(f"the image has the shape {self.shape}; expected at least two axes")
        self.labels = np.zeros(self.shape, np.uint16)
        """The objects, as a label map for the viewer to show; `paint` writes into it."""
        self.number = 1
        """Number of the current object."""
        self._data, self._engine = data, engine
        self._window = None if data.dtype == np.uint8 else window
        self._slices: dict[Plane, _SliceSession] = {}
        self._done: list[tuple[Plane, int]] = []
        self._undone: list[tuple[Plane, int]] = []

    def click(self, plane: Plane, x: float, y: float, positive: bool) -> Change:
        """Click on the current object; (x, y) in pixels of the slice, as for `Session.click`."""
        return self._step(plane, lambda session: session.click(x, y, positive))

    def box(self, plane: Plane, x0: float, y0: float, x1: float, y1: float) -> Change:
        """Draw a box around the current object, in pixels of the slice, as for `Session.box`."""
        return self._step(plane, lambda session: session.box(x0, y0, x1, y1))

    def scribble(self, plane: Plane, points: Sequence[tuple[float, float]], positive: bool) -> Change:
        """Scribble on the current object; points (x, y) in pixels of the slice, as for `Session.scribble`."""
        return self._step(plane, lambda session: session.scribble(points, positive))

    def undo(self) -> Change | None:
        """Take back the last step, whichever slice and object it was on; None when there is none."""
        return self._back(self._done, self._undone, Session.undo)

    def redo(self) -> Change | None:
        """Repeat the step that `undo` took back last; None when there is none."""
        return self._back(self._undone, self._done, Session.redo)

    def next_object(self) -> int:
        """Begin a new object and return its number; at `MOST_OBJECTS` it stays there."""
        used = max((number for _, number in (*self._done, *self._undone)), default=0)
        self.number = min(used + 1, MOST_OBJECTS)
        return self.number

    def suggest(self, plane: Plane, k: int = 1) -> list[Suggestion]:
        """Where a click on the current object is worth most; empty on a slice where the object has no prompt yet."""
        found = self._begun(plane)
        return [] if found is None else found.session.suggest(k)

    def uncertainty(self, plane: Plane) -> NDArray[np.float32] | None:
        """Entropy in bits `[H, W]` of the current object; None on a slice where the object has no prompt yet."""
        found = self._begun(plane)
        return None if found is None else found.session.uncertainty

    def prepare(self, plane: Plane) -> Plane:
        """Let the network look at a slice, or at the object on it, before the next click comes; returns the slice."""
        found = self._slices.get(plane) or self._open(plane)
        found.session.prepare()
        return plane

    def paint(self, change: Change) -> None:
        """Write a change into `labels`.  Pixels that the step did not change stay, also those drawn by hand."""
        part = change.plane.of(self.labels)[change.rows, change.columns]
        part[change.changed] = change.labels[change.changed]

    def close(self) -> None:
        """Close the sessions of all slices."""
        for found in self._slices.values():
            found.session.close()
        self._slices.clear()

    # --- inside ---

    def _step(self, plane: Plane, act: Callable[[Session], ClickResult]) -> Change:
        found = self._slices.get(plane) or self._open(plane)
        found.select(self.number)
        result = act(found.session)
        self._done.append((plane, self.number))
        self._undone.clear()
        return self._change(plane, found, result)

    def _back(
        self, source: list[tuple[Plane, int]], target: list[tuple[Plane, int]], act: Callable[[Session], Any]
    ) -> Change | None:
        if not source:
            return None
        plane, number = source[-1]
        found = self._slices[plane]
        found.select(number)
        result = act(found.session)
        target.append(source.pop())
        self.number = number
        return self._change(plane, found, result)

    @staticmethod
    def _change(plane: Plane, found: _SliceSession, result: ClickResult) -> Change:
        x0, y0, x1, y1 = result.changed_bbox or (0, 0, 0, 0)
        rows, columns = slice(y0, y1), slice(x0, x1)
        return Change(plane, rows, columns, *found.step(rows, columns), result.elapsed_ms)

    def _open(self, plane: Plane) -> _SliceSession:
        session = Session(engine=self._engine)
        session.set_image(np.ascontiguousarray(plane.of(self._data)), window=self._window)
        found = self._slices[plane] = _SliceSession(session)
        return found

    def _begun(self, plane: Plane) -> _SliceSession | None:
        found = self._slices.get(plane)
        if found is None or self.number not in found.numbers:
            return None
        found.select(self.number)
        return found
