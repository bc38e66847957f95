"""What is computed from the clicks on an object, extended with each click, so that the hundredth costs no more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.session.boxes import with_pixel
from activefreq_engine.session.prompts import Mark
from activefreq_engine.session.zoom import Slots
from activefreq_engine.types import Box, Click


class ClickTally:
    """The clicks on an object that has no other marks; empty when made.  It never changes: a click makes another
    one."""

    __slots__ = ("_slots", "inside", "marks", "pixels")

    marks: tuple[Mark, ...]
    """The clicks, oldest first."""
    pixels: dict[tuple[int, int], bool]
    """The newest sign of each clicked pixel (x, y), oldest first."""
    inside: Box | None
    """Around the pixels of all positive clicks."""

    def __init__(self) -> None:
        self.marks, self.pixels, self.inside = (), {}, None
        self._slots: Slots | None = None

    def then(self, new: Sequence[Mark]) -> ClickTally | None:
        """The tally with more marks; None if one of them is no click."""
        found = ClickTally()
        found.marks = (*self.marks, *new)
        found.pixels, found.inside, found._slots = self.pixels.copy(), self.inside, self._slots
        for mark in new:
            if type(mark) is not Click:
                return None
            found._add(int(mark.x), int(mark.y), mark.positive)
        return found

    def _add(self, x: int, y: int, positive: bool) -> None:
        if (x, y) in self.pixels:
            del self.pixels[x, y]
            self._slots = None
        elif self._slots is not None:
            self._slots = self._slots.then(x, y, positive)
        self.pixels[x, y] = positive
        if positive:
            self.inside = with_pixel(self.inside, x, y)

    def points(self, box: Box, height: int, width: int) -> NDArray[np.float32]:
        """`zoom.point_slots` of the clicks; not to be written to."""
        slots = self._slots
        if slots is None or slots.grid != (box, height, width):
            slots = self._slots = Slots.of(self.pixels, box, height, width)
        return slots.points
