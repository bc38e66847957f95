"""The small frozen values that cross the public interface.  Coordinates are (x, y) in image pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""``(x0, y0, x1, y1)`` in image pixels, half-open: x1 and y1 are outside."""


@dataclass(frozen=True, slots=True)
class Click:
    """One click.  Pixel column i spans ``i <= x < i + 1``, so ``int(x), int(y)`` is the clicked pixel."""

    x: float
    """Column in image pixels, ``0 <= x < width``."""
    y: float
    """Row in image pixels, ``0 <= y < height``."""
    positive: bool = True
    """True: this pixel belongs to the object.  False: it does not."""


@dataclass(frozen=True, slots=True)
class BoxPrompt:
    """A box around an object, from edge to edge: ``x0 <= x < x1``, ``y0 <= y < y1`` in image pixels."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Scribble:
    """A line drawn by hand: the pixels under it belong to the object, or do not belong to it."""

    points: tuple[tuple[float, float], ...]
    """(x, y) in image pixels, in the order of drawing, each inside the image as a click is; one or more."""
    positive: bool = True
    """True: these pixels belong to the object.  False: they do not."""


@dataclass(frozen=True, slots=True)
class Lasso:
    """A closed line drawn around a part of the image; the last point is joined to the first.

    A pixel belongs to the lasso if the line goes around the pixel's centre, also where the line crosses itself.
    """

    points: tuple[tuple[float, float], ...]
    """(x, y) in image pixels, ``0 <= x <= width``, ``0 <= y <= height``; three or more."""
    positive: bool = True
    """True: the object, or a part of it that is missing, lies in here.  False: nothing in here belongs to it."""


Prompt = Click | BoxPrompt | Scribble | Lasso
"""One thing that a person says about an object."""


@dataclass(frozen=True, slots=True)
class ClickResult:
    """What one step of a session produced."""

    mask: NDArray[np.bool_]
    """bool ``[H, W]`` at image resolution, read-only."""
    changed_bbox: Box | None
    """Smallest box around the pixels in which the mask differs from the one before the step; None when nothing
    changed."""
    elapsed_ms: float
    """Measured wall time of the whole call in milliseconds."""
    clicks: int
    """Number of clicks on the current object, this one included; other prompts do not count."""
    timings: dict[str, float] | None = None
    """With ``profile=True`` the milliseconds of each stage, in order: "look" (choosing and cutting out the region),
    "prepare" (what depends on the image alone; missing when it was remembered), "click" (the network), "focus",
    "refine" (the refiner; missing where there is nothing to redraw), "paint" (the mask at image resolution)."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A place where a click is worth most, for a person to accept or ignore."""

    x: int
    """Column of the proposed click in image pixels."""
    y: int
    """Row of the proposed click in image pixels."""
    positive: bool
    """Proposed sign: True adds the region to the mask, False removes it."""
    score: float
    """Region score, the weighted sum of mpe, ape and rgu; larger is more urgent."""
    region_bbox: Box
    """Box of the region, half-open."""
    area: int
    """Pixels in the region."""
    mpe: float
    """Maximum pixel entropy in the region, bits (0..1)."""
    ape: float
    """Average pixel entropy over the region, bits (0..1)."""
    rgu: float
    """Regional group uncertainty, bits (0..1); see `AcSelect` for the variants."""
