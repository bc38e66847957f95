"""What a session remembers: the image, and the steps of each object, done and undone.

A `Scene` never changes.  A call makes the next one from it and puts it in place by one assignment, so whoever reads in
another thread sees one moment, and a call that is interrupted has either happened or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.session import zoom
from activefreq_engine.session.canvas import Canvas
from activefreq_engine.session.click_tally import ClickTally
from activefreq_engine.session.features import FeatureCache
from activefreq_engine.session.packed_mask import PackedMask
from activefreq_engine.session.packing import Packing
from activefreq_engine.session.prompts import Mark, prompt_of, with_marks
from activefreq_engine.session.shown import Shown
from activefreq_engine.types import Box, Click, Prompt

AT_HAND = 16  # so many of the current object's newest steps are never packed


@dataclass(frozen=True, slots=True)
class Pass:
    """Prompts that the network was shown together, in one pass: clicks, or one of another kind."""

    marks: tuple[Mark, ...]
    view: Box | None = None
    """Where the user was looking; None for automatic."""


@dataclass(frozen=True, slots=True)
class Points:
    """All prompts on an object given at once, as `Session.predict` takes them."""

    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One thing the user did, and its outcome.  Small, so a history of any depth is cheap."""

    event: Prompt | Points | PackedMask | None
    """A prompt, a list of clicks, or a mask that was loaded; None for the blank start."""
    canvas: Canvas
    roi: Box | None = None
    """The region the network looked at; None for the whole image."""
    mask_box: Box | None = None
    """Box of the step's mask; None when it is empty."""
    start: PackedMask | None = None
    """The loaded mask that the step goes back to; None for a blank start."""
    passes: tuple[Pass, ...] = ()
    """The passes that lead from that start to this step."""

    def pack(self) -> None:
        """Keep the canvas in less memory; it paints the same.  Safe while other threads read the step: they see the old
        canvas or the packed one."""
        object.__setattr__(self, "canvas", self.canvas.packed())


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """The steps of one object."""

    blank: Step
    done: tuple[Step, ...] = ()
    undone: tuple[Step, ...] = ()
    """The next step to redo is the last."""

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
        """Clicks since the last loaded mask or box, or since the start."""
        return self.step.canvas.clicks

    @property
    def waiting(self) -> tuple[Step, ...]:
        """Older steps that are not packed yet; the newest `AT_HAND` never are."""
        return tuple(s for s in self.done[:-AT_HAND] if not s.canvas.is_packed)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Prompts since the last loaded mask, or from the last box on, else since the start."""
        return tuple(prompt_of(m) for m in self.step.canvas.marks)

    @property
    def untouched(self) -> bool:
        """Whether no step was ever made on the object."""
        return not (self.done or self.undone)

    def push(self, step: Step) -> History:
        """The history with one more step; undone steps are forgotten."""
        return History(self.blank, (*self.done, step))

    def undo(self) -> History:
        """The history with its last step taken back."""
        return History(self.blank, self.done[:-1], (*self.undone, self.done[-1]))

    def redo(self) -> History:
        """The history with its last undone step done again."""
        return History(self.blank, (*self.done, self.undone[-1]), self.undone[:-1])


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session works; see `Session` for the meaning."""

    threshold: float
    zoom: bool
    refine: bool


@dataclass(slots=True, eq=False)
class Picture:
    """The image, and what is remembered about it to save work.  No answer depends on what is remembered."""

    image: NDArray[np.uint8]
    """`[H, W]` or `[H, W, 3]`."""
    window: tuple[float, float] | None
    """The window as `set_image` was given it."""
    settings: SessionSettings
    shown: Shown | None = None
    """The canvas whose mask was asked for last, with that mask."""
    digest: str | None = None
    """The image's hash; computed when asked for."""
    features: FeatureCache = field(default_factory=FeatureCache)
    """The engine's image features by region, for all objects."""
    shrunk: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """The image halved so many times; made when asked for."""
    clicked: ClickTally | None = None
    """The tally of the clicks on the object that was answered last."""
    packing: Packing = field(default_factory=Packing)
    """Steps to be kept in less memory."""

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
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def bounds(self) -> Box:
        """The whole image as a box."""
        return 0, 0, self.image.shape[1], self.image.shape[0]

    def after(self, step: Step, new: Pass) -> tuple[tuple[Mark, ...], ClickTally | None]:
        """All marks of an object with new ones added, and their tally: None unless the new ones are clicks and so are
        all others but a box at the beginning."""
        known, before = self.clicked, step.canvas.marks
        if known is None or known.marks is not before:
            known = ClickTally.of(before)
        found = None if known is None else known.then(new.marks)
        return (with_marks(before, new.marks), None) if found is None else (found.marks, found)

    def mask(self, canvas: Canvas) -> NDArray[np.bool_]:
        """bool `[H, W]`, read-only: the mask of a canvas.  Asked for again, it is not painted again."""
        return self.showing(canvas).mask

    def showing(self, canvas: Canvas) -> Shown:
        """The mask of a canvas, together with what the next mask is made from."""
        shown = self.shown
        if shown is None or shown.canvas is not canvas:
            shown = self.shown = Shown.of(canvas)
        return shown

    def show(self, canvas: Canvas, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Remember the mask of a canvas and return it as read-only; nobody may write to `mask` any more."""
        self.shown = shown = Shown.given(canvas, mask)
        return shown.mask


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image and its objects at one moment."""

    picture: Picture
    objects: tuple[History, ...]
    selected: int = 0
    """Index of the current object."""
    view: Box | None = None
    """Where the user is looking; None for automatic."""

    @staticmethod
    def of(picture: Picture) -> Scene:
        """An image with one blank object."""
        return Scene(picture, (History(Step(None, Canvas(*picture.shape, picture.settings.threshold))),))

    @property
    def history(self) -> History:
        """The current object's."""
        return self.objects[self.selected]

    @property
    def blank(self) -> Step:
        """Where every object starts."""
        return self.objects[0].blank

    def mask(self) -> NDArray[np.bool_]:
        """bool `[H, W]`, read-only: the current object's mask."""
        return self.picture.mask(self.history.step.canvas)

    def having(self, history: History) -> Scene:
        """The scene with another history of the current object; that history's older steps will be packed."""
        if len(history.done) > AT_HAND:
            self.picture.packing.later([history.done[-AT_HAND - 1]])
        objects = (*self.objects[: self.selected], history, *self.objects[self.selected + 1 :])
        return Scene(self.picture, objects, self.selected, self.view)

    def selecting(self, index: int) -> Scene:
        """The scene with another current object; the steps of the object that was current will be packed."""
        if index != self.selected:
            self.picture.packing.later((*self.history.done, *self.history.undone))
        return replace(self, selected=index)
