"""The present mask, and how the next one is made from it.

A click changes little of a large mask.  So the next mask is made in the memory of the one before the present mask, if
nobody holds that any more: what has changed since is copied, and the outline is painted anew.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.runtime.painting import Painted
from activefreq_engine.session import boxes
from activefreq_engine.session.boxes import union
from activefreq_engine.session.canvas import Canvas, changed_bbox
from activefreq_engine.session.click_tally import FEW, ClickTally
from activefreq_engine.session.painter import Painter
from activefreq_engine.types import Box

_NOWHERE = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A canvas and its mask."""

    canvas: Canvas
    mask: NDArray[np.bool_]
    """bool `[H, W]`, read-only."""
    painter: Painter | None = None
    """The session's painter of the mask, if the canvas has one layer and no `fixed`."""
    painted: Painted | None = None
    """The bits that the engine painted, if the engine painted the mask."""
    spare: list[NDArray[np.bool_]] = field(default_factory=list)
    """The memory of an older mask, until it is taken: one array, or none."""
    stale: Box | None = None
    """The box in which the spare mask differs from this one."""

    @classmethod
    def of(cls, canvas: Canvas) -> Shown:
        """Paint a canvas."""
        if canvas.fixed is not None:
            return cls(canvas, _read_only(canvas.mask()))
        mask = np.zeros((canvas.height, canvas.width), np.bool_)
        painter = canvas.paint(mask)
        return cls(canvas, _read_only(mask), painter)

    @classmethod
    def given(cls, canvas: Canvas, mask: NDArray[np.bool_]) -> Shown:
        """A canvas whose mask is known; it becomes read-only."""
        return cls(canvas, _read_only(mask))

    def beneath(self, canvas: Canvas) -> Shown:
        """Another canvas that has the same mask."""
        return replace(self, canvas=canvas)

    def then(
        self, canvas: Canvas, mask_box: Box | None, clicked: ClickTally | None = None, painted: Painted | None = None
    ) -> tuple[Shown, Box | None, Box | None]:
        """What is shown for another canvas, which has no `fixed`, and where it differs.

        Args:
            canvas (Canvas): of the same picture and threshold.
            mask_box (Box, optional): of this mask; None when it is empty.
            clicked (ClickTally, optional): the marks of `canvas`, if they are those of this canvas with clicks added.
            painted (Painted, optional): the canvas without its marks (all clicks), if the engine painted it.

        Returns:
            What is shown then, the box of its mask, and that of the pixels which differ.
        """
        if painted is not None and clicked is not None:
            return self._taken_over(canvas, mask_box, clicked, painted)
        painter = canvas.painter()
        before = self.painter if clicked is not None and painter is not None and painter.fits(self.painter) else None
        first = canvas.laid_over(self.canvas) if clicked is not None else 0
        mask, written = self._memory(mask_box, alike=before is not None or first > 0)
        found = None
        if painter is not None and before is not None and clicked is not None:
            columns, rows, signs = clicked.arrays
            found = painter.repaint(mask, before, rows * mask.shape[1] + columns, signs)
        if found is None:
            if written is not None and not first:
                _part(mask, written)[...] = False
            painter = canvas.paint(mask, clicked, first)
        if found is None or painter is None or clicked is None or not painter.outlined:
            box = boxes.bbox_from_sides(lambda part: _part(mask, part), canvas.reach(clicked))
            within = union(mask_box, box)
            if first:
                within = None
                for layer in canvas.layers[first:]:
                    within = union(within, layer.box)
            changed = changed_bbox(self.mask, mask, within)
            if first and clicked is not None:
                changed = clicked.with_changed(changed, self.mask)
        else:
            box, changed = self._labelled(mask, clicked, *found)
        return Shown(canvas, _read_only(mask), painter, None, self._lent(), changed), box, changed

    def _lent(self) -> list[NDArray[np.bool_]]:
        """This mask's memory, for the mask after the next one.  Another thread may still read this mask, so nobody
        writes to the memory before that."""
        memory = self.mask.base
        whole = isinstance(memory, np.ndarray) and memory.dtype == np.bool_ and memory.shape == self.mask.shape
        return [cast("NDArray[np.bool_]", memory)] if whole else []

    def _taken_over(
        self, canvas: Canvas, mask_box: Box | None, clicked: ClickTally, painted: Painted
    ) -> tuple[Shown, Box | None, Box | None]:
        """`then` for a mask that the engine has painted."""
        if painted.alike:
            mask, write = self._free(), painted.changed
            if mask is None:
                mask = self.mask.copy()
            elif boxes.union(painted.region, self.stale) == painted.region:
                write = union(write, self.stale)
            elif self.stale is not None:
                _part(mask, self.stale)[...] = _part(self.mask, self.stale)
        else:
            mask, written = self._memory(mask_box, alike=False)
            write = painted.inside
            if written is not None:
                _part(mask, written)[...] = False
        if write is not None:
            painted.write(mask, write)
        box, changed = self._labelled(mask, clicked, painted.inside, painted.changed)
        if not painted.alike:
            changed = changed_bbox(self.mask, mask, union(mask_box, box))
        return Shown(canvas, _read_only(mask), None, painted, self._lent(), changed), box, changed

    def _labelled(
        self, mask: NDArray[np.bool_], clicked: ClickTally, box: Box | None, changed: Box | None
    ) -> tuple[Box | None, Box | None]:
        """Give clicked pixels of the next mask their signs.

        Args:
            mask: what was painted, with those signs or without.
            clicked (ClickTally): this mask's clicks and new ones.
            box (Box, optional): of what was painted, with those signs or without.
            changed (Box, optional): likewise of what differs from what was painted before.

        Returns:
            The box of the mask, and that of the pixels which differ from this one.
        """
        if len(clicked.newest) <= FEW:
            return self._labelled_in_turn(mask, clicked, box, changed)
        clicked.label(mask)
        box, changed = union(box, clicked.labelled), clicked.with_changed(changed, self.mask)
        before, after = memoryview(cast(Any, self.mask)), memoryview(cast(Any, mask))
        # where a clicked pixel lies on a side but not in the mask, or is as it was, perhaps nothing else is there
        if box is not None and not all(after[y, x] for x, y in clicked.on_sides(box)):
            box = boxes.tightened(mask, box)
        if changed is not None and any(before[y, x] == after[y, x] for x, y in clicked.on_sides(changed)):
            changed = boxes.tightened(self.mask, changed, mask)
        return box, changed

    def _labelled_in_turn(
        self, mask: NDArray[np.bool_], clicked: ClickTally, box: Box | None, changed: Box | None
    ) -> tuple[Box | None, Box | None]:
        """As `_labelled`, pixel by pixel: for the clicks that an object usually takes this is quicker."""
        before, after = memoryview(cast(Any, self.mask)), memoryview(cast(Any, mask))
        # most clicks lie between the sides of both boxes, so they move no side
        x0, y0, x1, y1 = box or _NOWHERE
        u0, v0, u1, v1 = changed or _NOWHERE
        x1, y1, u1, v1 = x1 - 1, y1 - 1, u1 - 1, v1 - 1
        loose = unsure = False
        for (x, y), click in clicked.newest.items():
            positive = click.positive
            after[y, x] = positive
            if not (x0 < x < x1 and y0 < y < y1):
                if positive:
                    box = boxes.with_pixel(box, x, y)
                elif x0 <= x <= x1 and y0 <= y <= y1:
                    loose = True  # perhaps nothing else lies on that side of the box
            if before[y, x] != positive:
                changed = boxes.with_pixel(changed, x, y)
            elif u0 <= x <= u1 and v0 <= y <= v1 and not (u0 < x < u1 and v0 < y < v1):
                unsure = True
        if loose and box is not None:
            box = boxes.tightened(mask, box)
        if unsure and changed is not None:
            changed = boxes.tightened(self.mask, changed, mask)
        return box, changed

    def _memory(self, mask_box: Box | None, *, alike: bool) -> tuple[NDArray[np.bool_], Box | None]:
        """Memory for another mask, and the box outside of which it is all False.  With `alike` it holds this mask."""
        mask = self._free()
        if not alike:
            return (np.zeros(self.mask.shape, np.bool_), None) if mask is None else (mask, union(mask_box, self.stale))
        if mask is None:
            mask = self.mask.copy()
        elif self.stale is not None:
            _part(mask, self.stale)[...] = _part(self.mask, self.stale)
        return mask, mask_box

    def _free(self) -> NDArray[np.bool_] | None:
        """The spare memory, or None if somebody still holds its mask or a part of it."""
        if not (_COUNTED and self.spare):
            return None
        memory, references = _taken(self.spare)
        return memory if references == _ALONE else None


def _read_only(memory: NDArray[np.bool_]) -> NDArray[np.bool_]:
    mask = memory.view()
    mask.flags.writeable = False
    return mask


def _part(mask: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    return mask[box[1] : box[3], box[0] : box[2]]


def _taken(spare: list[NDArray[np.bool_]]) -> tuple[NDArray[np.bool_], int]:
    memory = spare.pop()
    return memory, sys.getrefcount(memory)


_COUNTED = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether the interpreter counts references exactly at any moment."""
_ALONE = _taken([np.empty(0, np.bool_)])[1]
