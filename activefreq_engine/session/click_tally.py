"""What is computed from the clicks on an object, extended with each click, so that the thousandth costs little more.

What is left to grow with the number of clicks is copied and looked through by C code, a few nanoseconds a click.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.session.boxes import with_pixel
from activefreq_engine.session.prompts import Mark
from activefreq_engine.session.zoom import Slots
from activefreq_engine.types import Box, BoxPrompt, Click

FEW = 24  # up to so many clicks Python is quicker than NumPy

Arrays = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]
"""x, y and signs of `[N]` clicked pixels."""


class ClickTally:
    """The clicks on an object that has no other marks, but perhaps a box that it began with; empty when made.  It never
    changes: a click makes another one."""

    __slots__ = ("_arrays", "_lines", "_slots", "inside", "labelled", "marks", "new", "newest", "twice")

    marks: tuple[Mark, ...]
    """The marks, oldest first."""
    new: tuple[Click, ...]
    """Those by which it differs from the tally that it was made from."""
    newest: dict[tuple[int, int], Click]
    """The newest click on each clicked pixel (x, y), oldest first."""
    twice: frozenset[tuple[int, int]]
    """The pixels with two clicks that are not the same in place and sign."""
    inside: Box | None
    """Around the pixels of all positive clicks, also those of which a newer click says the contrary."""
    labelled: Box | None
    """Around the pixels of which the newest click is positive."""

    def __init__(self) -> None:
        self.marks, self.new, self.newest, self.twice, self.inside = (), (), {}, frozenset(), None
        self.labelled = None
        self._arrays: Arrays | None = None
        self._slots: Slots | None = None
        self._lines: tuple[dict[int, list[int]], dict[int, list[int]]] = {}, {}
        """The rows of clicked pixels by column, and the columns by row, and perhaps more: all tallies that were made
        from one another add to the same lists, which saves copies.  A thread may read while another one adds."""

    @classmethod
    def of(cls, marks: tuple[Mark, ...]) -> ClickTally | None:
        """The tally of all marks on an object; None if one of them, apart from a box at the beginning, is no click."""
        boxed = bool(marks) and type(marks[0]) is BoxPrompt
        found = cls().then(marks[int(boxed) :])
        if found is not None:
            found.marks = marks
        return found

    def then(self, new: Sequence[Mark]) -> ClickTally | None:
        """The tally with more marks; None if one of them is no click."""
        found = ClickTally()
        found.marks = (*self.marks, *new)
        found.newest, found.twice = self.newest.copy(), self.twice
        found.inside, found.labelled, found._slots, found._lines = self.inside, self.labelled, self._slots, self._lines
        found.new = clicks = tuple(mark for mark in new if type(mark) is Click)
        if len(clicks) < len(new):
            return None
        for click in clicks:
            found._add(click)
        if self._arrays is not None and len(new) == 1 and FEW < len(found.newest) == len(self.newest) + 1:
            (x, y), click = next(reversed(found.newest.items()))
            columns, rows, signs = self._arrays
            found._arrays = _with(columns, x), _with(rows, y), _with(signs, click.positive)
        return found

    @property
    def arrays(self) -> Arrays:
        """The clicked pixels and the signs of their newest clicks, oldest first."""
        if self._arrays is None:
            at = np.fromiter(chain.from_iterable(self.newest), np.intp, 2 * len(self.newest)).reshape(-1, 2)
            signs = np.array([c.positive for c in self.newest.values()], np.bool_)
            self._arrays = np.ascontiguousarray(at[:, 0]), np.ascontiguousarray(at[:, 1]), signs
        return self._arrays

    def _add(self, click: Click) -> None:
        pixel = x, y = int(click.x), int(click.y)
        before = self.newest.pop(pixel, None)
        if before is not None:
            self._slots = None
            if before != click:
                self.twice |= {pixel}
        else:
            self._lines[0].setdefault(x, []).append(y)
            self._lines[1].setdefault(y, []).append(x)
            if self._slots is not None:
                self._slots = self._slots.then(x, y, click.positive)
        self.newest[pixel] = click
        if click.positive:
            self.inside, self.labelled = with_pixel(self.inside, x, y), with_pixel(self.labelled, x, y)
        elif before is not None and before.positive:
            self.labelled = None
            for (x, y), other in self.newest.items():
                if other.positive:
                    self.labelled = with_pixel(self.labelled, x, y)

    def slots(self, box: Box, height: int, width: int) -> Slots:
        """The clicks as the network sees them on a region and its grid."""
        if self._slots is not None and self._slots.grid == (box, height, width):
            return self._slots
        return Slots.of(*self.arrays, box, height, width)

    def points(self, box: Box, height: int, width: int) -> NDArray[np.float32]:
        """`zoom.point_slots` of the clicks; not to be written to.  Further clicks on the same region add to it."""
        self._slots = self.slots(box, height, width)
        return self._slots.points

    def label(self, mask: NDArray[np.bool_]) -> None:
        """Give the clicked pixels of a mask `[H, W]` their signs, as `prompts.enforce` does."""
        if len(self.newest) > FEW:
            columns, rows, signs = self.arrays
            mask[rows, columns] = signs
            return
        pixels = memoryview(cast(Any, mask))
        for (x, y), click in self.newest.items():
            pixels[y, x] = click.positive

    def with_changed(self, box: Box | None, before: NDArray[np.bool_]) -> Box | None:
        """The smallest box around a box and the pixels of the newest clicks to which a mask gives another sign."""
        for click in self.new:
            x, y = int(click.x), int(click.y)
            if before[y, x] != self.newest[x, y].positive:
                box = with_pixel(box, x, y)
        return box

    def on_sides(self, box: Box) -> list[tuple[int, int]]:
        """The clicked pixels (x, y) on the sides of a box; perhaps also some whose clicks were taken back."""
        x0, y0, x1, y1 = box
        columns, rows = self._lines
        found: list[tuple[int, int]] = []
        for x in (x0, x1 - 1):
            if x in columns:
                found += [(x, y) for y in columns[x] if y0 <= y < y1]
        for y in (y0, y1 - 1):
            if y in rows:
                found += [(x, y) for x in rows[y] if x0 <= x < x1]
        return found


def _with(values: NDArray[Any], value: int | bool) -> NDArray[Any]:
    """`[N + 1]`: some values and another one."""
    out = np.empty(len(values) + 1, values.dtype)
    out[:-1] = values
    out[-1] = value
    return out
