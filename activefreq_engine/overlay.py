"""Draws segmentations for people to look at: mask outline, prompts, uncertainty.

Red and green are never used to tell things apart.  Positive clicks are blue disks marked "+", negative ones orange
squares marked "-", and outlines are white with a dark edge, so that they show on any image.
"""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from activefreq_engine.errors import InvalidArgumentError, InvalidImageError, InvalidMaskError
from activefreq_engine.types import BoxPrompt, Click, Lasso, Prompt, Suggestion

POSITIVE = (0, 114, 178)
NEGATIVE = (213, 94, 0)
_LIGHT = (255, 255, 255)
_DARK = (20, 20, 20)

Pixels = NDArray[np.uint8]
"""uint8 ``[H, W, 3]``, RGB."""


def draw_mask(image: Pixels, mask: NDArray[np.bool_], *, tint: float = 0.2) -> Pixels:
    """The image with the mask tinted blue, and the outline of the mask and of its holes drawn in white.

    Args:
        image (array): uint8 ``[H, W, 3]``, RGB; not changed.
        mask (array): bool ``[H, W]``.
        tint (float, optional): how much of the inside is blue, 0..1. Default: 0.2.

    Raises:
        InvalidImageError, InvalidMaskError: image or mask has another shape or type.
    """
    _check_image(image)
    if mask.shape != image.shape[:2] or mask.dtype != np.bool_:
        raise InvalidMaskError(
            f"got a mask of shape {mask.shape} and type {mask.dtype}; the image needs bool {image.shape[:2]}"
        )
    picture = image.copy()
    if mask.any():
        picture[mask] = ((1 - tint) * picture[mask] + tint * np.array(POSITIVE)).round().astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = _unit(image)
    cv2.drawContours(picture, contours, -1, _DARK, 2 * width + 1, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, _LIGHT, width, cv2.LINE_AA)
    return picture


def draw_prompts(image: Pixels, prompts: Iterable[Prompt]) -> Pixels:
    """The image with every prompt numbered, the first being 1: a click as its mark, a box, a scribble and a lasso as a
    line with the mark at its first point.

    Args:
        image (array): uint8 ``[H, W, 3]``, RGB; not changed.
        prompts (iterable): each a Click, BoxPrompt, Scribble or Lasso, in (x, y) pixels of this image.
    """
    _check_image(image)
    picture = Image.fromarray(image)
    pen, unit = ImageDraw.Draw(picture), _unit(image)
    marks = []
    for prompt in prompts:
        if isinstance(prompt, Click):
            marks.append(prompt)
            continue
        if isinstance(prompt, BoxPrompt):
            x0, y0, x1, y1 = prompt.x0, prompt.y0, prompt.x1, prompt.y1
            line, positive = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], True
        else:
            line, positive = list(prompt.points), prompt.positive
            line += line[:1] if isinstance(prompt, Lasso) else []
        for colour, width in ((_LIGHT, 4 * unit), (POSITIVE if positive else NEGATIVE, 2 * unit)):
            pen.line([(x, y) for x, y in line], fill=colour, width=width, joint="curve")
        marks.append(Click(*line[0], positive))
    for number, mark in enumerate(marks, start=1):
        _mark(pen, mark.x, mark.y, mark.positive, str(number), unit, filled=True)
    return np.array(picture)


def draw_suggestions(image: Pixels, suggestions: Iterable[Suggestion]) -> Pixels:
    """The image with every suggested click as a white mark: a disk with a blue "+", a square with an orange "-".

    Args:
        image (array): uint8 ``[H, W, 3]``, RGB; not changed.
        suggestions (iterable of Suggestion): in (x, y) pixels of this image.
    """
    _check_image(image)
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for place in suggestions:
        _mark(pen, place.x, place.y, place.positive, "", _unit(image), filled=False)
    return np.array(picture)


def draw_uncertainty(image: Pixels, uncertainty: NDArray[np.floating]) -> Pixels:
    """A grey image under a heat map, from transparent (0 bits) to opaque yellow (1 bit, a coin toss).

    Args:
        image (array): uint8 ``[H, W, 3]``, RGB; not changed.
        uncertainty (array): ``[H, W]``, entropy in bits, 0..1.

    Raises:
        InvalidArgumentError: `uncertainty` has another shape, or a value that is not in 0..1.
    """
    _check_image(image)
    if uncertainty.shape != image.shape[:2] or not bool(((uncertainty >= 0) & (uncertainty <= 1)).all()):
        raise InvalidArgumentError(
            f"got uncertainty of shape {uncertainty.shape}; the image needs {image.shape[:2]}, every value in 0..1 bit"
        )
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    weight = uncertainty[..., None].astype(np.float32)
    heat = heat_colours(uncertainty)
    return ((1 - weight) * (0.6 * grey) + weight * heat).round().astype(np.uint8)


def heat_colours(values: NDArray[np.floating]) -> Pixels:
    """Colours of values in 0..1, ``[H, W]`` -> ``[H, W, 3]`` RGB: black to yellow, brightness rising all the way."""
    levels = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, at `size` pixels, so that no font file of the system is needed."""
    return ImageFont.load_default(size)


def _check_image(image: Pixels) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InvalidImageError(f"got an array of shape {image.shape}, type {image.dtype}; needs uint8 [H, W, 3], RGB")


def _unit(image: Pixels) -> int:
    """Line width that suits the image's size: 1 pixel for each 300 of the shorter side."""
    return max(1, round(min(image.shape[:2]) / 300))


def _mark(pen: ImageDraw.ImageDraw, x: float, y: float, positive: bool, text: str, unit: int, *, filled: bool) -> None:
    colour = POSITIVE if positive else NEGATIVE
    r = 9 * unit
    # Integer pixel columns are drawn at their centre: a click at 12.7 lies in pixel 12.
    x, y = int(x), int(y)
    shape = pen.ellipse if positive else pen.rectangle
    if filled:
        shape((x - r, y - r, x + r, y + r), fill=colour, outline=_LIGHT, width=unit)
        # Pillow's own font has the hyphen but no minus sign.
        pen.text((x, y), ("+" if positive else "-") + text, fill=_LIGHT, font=font(11 * unit), anchor="mm")
        return
    shape((x - r, y - r, x + r, y + r), fill=_LIGHT, outline=colour, width=2 * unit)
    arm = r // 2
    pen.line((x - arm, y, x + arm, y), fill=colour, width=2 * unit)
    if positive:
        pen.line((x, y - arm, x, y + arm), fill=colour, width=2 * unit)
