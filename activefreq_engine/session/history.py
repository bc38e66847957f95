"""What a session remembers: the steps of each object, done and undone."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.session import zoom
from activefreq_engine.session.canvas import Canvas, PackedMask
from activefreq_engine.session.features import FeatureCache
from activefreq_engine.types import Box, Click

AT_HAND = 16  # newest steps of an object that are not packed
PAUSE = 0.1  # seconds without a click after which older ones are: packing takes a sixth of a click's processor time
BACKLOG = 32  # steps that wait for a pause; those beyond are packed beside clicks, so that memory stays bounded


_changing = threading.Lock()
"""Held while any `History.packing` changes, and during a fork, so that no child finds it held by nobody."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_changing.release)


@functools.cache
def _packer(process: int) -> ThreadPoolExecutor:
    """The one thread of a process that packs.  Kept, since to start one takes up to milliseconds of a click; a process
    that was forked has none of its parent's threads, so it is asked for by its number."""
    return ThreadPoolExecutor(1, "activefreq-pack")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One thing the user did, and its outcome.  Small, so a history of any depth is cheap."""

    event: Click | PackedMask | None
    """A click, or a mask that was loaded; None for the blank start."""
    canvas: Canvas
    roi: Box | None = None
    """The region the network looked at; None for the whole image."""
    mask_box: Box | None = None
    """Box of the step's mask; None when it is empty."""

    def pack(self) -> None:
        """Keep the canvas in less memory; it paints the same.  Safe while others read it: they see one or the other."""
        object.__setattr__(self, "canvas", self.canvas.packed())


@dataclass(slots=True, eq=False)
class History:
    """The steps of one object."""

    blank: Step
    done: list[Step] = field(default_factory=list)
    undone: list[Step] = field(default_factory=list)
    """The next step to redo is the last."""
    waiting: deque[Step] = field(default_factory=deque)
    """Steps to be packed, oldest first."""
    newest: float = 0.0
    """When the last step was added, `time.monotonic` seconds."""
    packing: int | None = None
    """The process in which `_pack` runs, or is about to; one that was forked from it begins anew."""

    @property
    def step(self) -> Step:
        """The current step."""
        return self.done[-1] if self.done else self.blank

    @property
    def previous(self) -> Step:
        """The step before the current one."""
        return self.done[-2] if len(self.done) > 1 else self.blank

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Clicks since the last loaded mask, or since the start."""
        return self.step.canvas.clicks

    @property
    def loaded(self) -> PackedMask | None:
        """The mask these clicks started from."""
        masks = [s.event for s in self.done if isinstance(s.event, PackedMask)]
        return masks[-1] if masks else None

    @property
    def untouched(self) -> bool:
        """Nothing was ever done here."""
        return not (self.done or self.undone)

    def push(self, step: Step) -> None:
        """Add a step; what was undone is forgotten."""
        self._add(step)
        self.undone.clear()

    def undo(self) -> bool:
        """Take the last step back; False when there is none."""
        if not self.done:
            return False
        self.undone.append(self.done.pop())
        return True

    def redo(self) -> bool:
        """Do the last undone step again; False when there is none."""
        if not self.undone:
            return False
        self._add(self.undone.pop())
        return True

    def clear(self) -> None:
        """Back to the blank start, with nothing to undo or redo."""
        self.done.clear()
        self.undone.clear()
        self.waiting.clear()

    def _add(self, step: Step) -> None:
        self.done.append(step)
        self.newest = time.monotonic()
        if len(self.done) > AT_HAND:
            self.waiting.append(self.done[-AT_HAND - 1])
        if not self.waiting:
            return
        process = os.getpid()
        with _changing:
            start, self.packing = self.packing != process, process
        if start:
            _packer(process).submit(self._pack)

    def _pack(self) -> None:
        """Pack the waiting steps, all of them in a pause and only those beyond the backlog before it; then look again,
        after other objects had their turn.  No click waits for it."""
        rest = self.newest + PAUSE - time.monotonic()
        while len(self.waiting) > (BACKLOG if rest > 0 else 0):
            try:
                step = self.waiting.popleft()
            except IndexError:  # `clear` took the last one
                break
            step.pack()
        if rest > 0:
            time.sleep(min(rest, 0.1))
        process = os.getpid()
        with _changing:
            self.packing = process if self.waiting else None
        if self.packing:
            _packer(process).submit(self._pack)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session works; see `Session` for the meaning."""

    threshold: float
    zoom: bool
    refine: bool


@dataclass(slots=True, eq=False)
class Scene:
    """An image and its objects.  Replaced as a whole by `Session.set_image`."""

    image: NDArray[np.uint8]
    """`[H, W]` or `[H, W, 3]`."""
    window: tuple[float, float] | None
    """As given to `set_image`."""
    settings: SessionSettings
    blank: Step
    objects: list[History]
    selected: int = 0
    """Index of the current object."""
    painted: tuple[Canvas, NDArray[np.bool_]] | None = None
    """The canvas whose mask was asked for last, and that mask."""
    digest: str | None = None
    """Of the image; computed when asked for."""
    features: FeatureCache = field(default_factory=FeatureCache)
    """The engine's image features by region, for all objects."""

    shrunk: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """The image halved so many times; made when asked for."""

    def crop(self, box: Box, halvings: int, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 `[height, width, 3]`: the content of a box, resampled from the image after so many halvings.

        The box is `boxes.aligned` to 2 ** halvings.
        """
        if halvings == 0:
            return zoom.crop_rgb(self.image, box, height, width)
        step = 2**halvings
        if halvings not in self.shrunk:
            self.shrunk[halvings] = zoom.shrunk(self.image, step)
        small = (box[0] // step, box[1] // step, -(-box[2] // step), -(-box[3] // step))
        return zoom.crop_rgb(self.shrunk[halvings], small, height, width)

    @property
    def history(self) -> History:
        """The current object's."""
        return self.objects[self.selected]

    @property
    def bounds(self) -> Box:
        """The whole image as a box."""
        return 0, 0, self.image.shape[1], self.image.shape[0]

    def mask(self, canvas: Canvas) -> NDArray[np.bool_]:
        """bool `[H, W]`, read-only: the mask of a canvas, painted once while it is asked for again and again."""
        painted = self.painted
        if painted is None or painted[0] is not canvas:
            painted = self.show(canvas, canvas.mask())
        return painted[1]

    def show(self, canvas: Canvas, mask: NDArray[np.bool_]) -> tuple[Canvas, NDArray[np.bool_]]:
        """Remember the mask of a canvas; it becomes read-only."""
        mask.flags.writeable = False
        self.painted = (canvas, mask)
        return self.painted
