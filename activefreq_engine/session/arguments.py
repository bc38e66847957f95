"""Checks what callers hand a session, and makes plain Python values of it.  It comes from outside and is not trusted.

Each function raises the error that `Session`'s methods name.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from activefreq_engine.errors import InvalidArgumentError, InvalidClickError, InvalidPromptError
from activefreq_engine.session import boxes
from activefreq_engine.session.history import Picture, Scene
from activefreq_engine.session.prompts import Mark, mark_of
from activefreq_engine.types import Box, BoxPrompt, Click, Prompt, Scribble
from activefreq_engine.values import finite, is_number, short

MOST_POINTS = 10_000
"""Most points of a scribble or a lasso."""


def object_index(scene: Scene, number: Any) -> int:
    """Index of the object with this number (from 1)."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise InvalidArgumentError(f"object number is {number!r}; expected an integer")
    if not 1 <= number <= len(scene.objects):
        raise InvalidArgumentError(f"there is no object {number}; there are objects 1 to {len(scene.objects)}")
    return int(number) - 1


def view_box(scene: Scene, corners: tuple[Any, ...]) -> Box:
    """What `look` was given, as whole pixels of the image."""
    found = _corners(scene.picture, corners)
    if found is None:
        height, width = scene.picture.shape
        raise InvalidArgumentError(
            f"look({', '.join(map(short, corners))}) is no part of the image of width {width}, height {height}; "
            "expected x0 < x1 and y0 < y1 in image pixels, or None"
        )
    return boxes.to_pixels(found, scene.picture.bounds)


def _corners(picture: Picture, corners: tuple[Any, ...]) -> tuple[float, float, float, float] | None:
    """The corners as floats, if they make a box that overlaps the image; else None."""
    numbers = [n for n in map(finite, corners) if n is not None]
    if len(numbers) != len(corners):
        return None
    x0, y0, x1, y1 = numbers
    height, width = picture.shape
    inside = x0 < x1 and y0 < y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0
    return (x0, y0, x1, y1) if inside else None


def check_click(picture: Picture, x: Any, y: Any, positive: Any) -> Click:
    """The click with plain Python values; raises unless it lies inside the image."""
    height, width = picture.shape
    u, v = finite(x), finite(y)
    if (u is None and not is_number(x)) or (v is None and not is_number(y)):
        raise InvalidClickError(f"click is (x={x!r}, y={y!r}); expected two numbers")
    if not isinstance(positive, (bool, np.bool_)):
        raise InvalidClickError(f"positive is {positive!r}; expected True (object) or False (background)")
    if u is None or v is None or not (0 <= u < width and 0 <= v < height):
        raise InvalidClickError(
            f"click (x={short(x)}, y={short(y)}) is outside the image of width {width}, height {height}; "
            f"x comes first and must be at least 0 and below {width}, y at least 0 and below {height}"
        )
    return Click(u, v, bool(positive))


def check_mark(picture: Picture, prompt: Prompt) -> Mark:
    """The mark of a prompt, with plain Python values; raises unless the prompt lies in the image."""
    if isinstance(prompt, Click):
        return check_click(picture, prompt.x, prompt.y, prompt.positive)
    if isinstance(prompt, BoxPrompt):
        return check_box(picture, (prompt.x0, prompt.y0, prompt.x1, prompt.y1))
    kind: Literal["scribble", "lasso"] = "scribble" if isinstance(prompt, Scribble) else "lasso"
    if not isinstance(prompt.positive, (bool, np.bool_)):
        raise InvalidPromptError(f"positive is {prompt.positive!r}; expected True (object) or False (background)")
    points = _points(picture, prompt.points, kind)
    return mark_of(type(prompt)(points, bool(prompt.positive)), *picture.shape)


def check_box(picture: Picture, corners: Any) -> BoxPrompt:
    """The box `(x0, y0, x1, y1)`; raises unless it overlaps the image."""
    height, width = picture.shape
    try:
        values = tuple(corners)
    except TypeError:
        values = ()
    if any(isinstance(v, (list, tuple)) or (isinstance(v, np.ndarray) and v.ndim > 0) for v in values):
        raise InvalidPromptError("box holds lists; expected four numbers x0, y0, x1, y1: one box, for one object")
    found = _corners(picture, values) if len(values) == 4 else None
    if found is None:
        got = f"({', '.join(map(short, values[:5]))})" if values else short(corners)
        raise InvalidPromptError(
            f"box {got} is no part of the image of width {width}, height {height}; expected x0, y0, x1, y1 with "
            "x0 < x1 and y0 < y1, in image pixels"
        )
    return BoxPrompt(*found)


def _points(picture: Picture, points: Any, kind: Literal["scribble", "lasso"]) -> tuple[tuple[float, float], ...]:
    """The points of a scribble or lasso as floats; raises unless all lie in the image."""
    height, width = picture.shape
    least = 1 if kind == "scribble" else 3
    try:
        number = len(points) if hasattr(points, "__len__") else 0
        array = np.asarray(points) if number <= MOST_POINTS else None
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidPromptError(f"the {kind} cannot be read as numbers [N, 2] (x, y): {error}") from error
    if array is None:
        raise InvalidPromptError(f"the {kind} has {number} points; allowed are {MOST_POINTS}: leave some out")
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < least or array.dtype.kind not in "uif":
        raise InvalidPromptError(
            f"the points of the {kind} have shape {array.shape} and type {array.dtype}; expected numbers [N, 2] "
            f"(x, y), N at least {least}"
        )
    array = array.astype(np.float64)
    low, high = array >= 0, (array < [width, height]) if kind == "scribble" else (array <= [width, height])
    good = (low & high).all(1)  # false for NaN
    if not good.all():
        x, y = array[~good][0].tolist()
        raise InvalidPromptError(
            f"the {kind} has a point (x={short(x)}, y={short(y)}) outside the image of width {width}, height {height}; "
            "x comes first. Cut off what lies outside"
        )
    return tuple(map(tuple, array.tolist()))


def click_list(scene: Scene, coords: Any, labels: Any) -> list[Click]:
    """`predict`'s arrays as checked clicks."""
    try:
        points, signs = np.asarray(coords), np.asarray(labels)
        if points.size and points.dtype.kind not in "uifO":
            raise TypeError(f"they are {points.dtype}")
        points = points.astype(np.float64)
        good = not signs.size or bool(np.isin(signs, (0, 1)).all())
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InvalidClickError(
            f"point_coords and point_labels cannot be read as numbers [N, 2] and [N]: {error}"
        ) from error
    if points.size == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2 or signs.shape != (len(points),):
        raise InvalidClickError(
            f"point_coords has shape {points.shape} and point_labels {signs.shape}; expected [N, 2] (x, y) and [N]"
        )
    if not good:
        raise InvalidClickError(
            f"point_labels has values {signs.tolist()[:5]}; allowed are 1 (object) and 0 (background), no boxes"
        )
    return [
        check_click(scene.picture, x, y, bool(s)) for (x, y), s in zip(points.tolist(), signs.tolist(), strict=True)
    ]
