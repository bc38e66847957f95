"""What callers hand a session, checked and as plain Python values.  It comes from outside and is not trusted."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from activefreq_engine.errors import InvalidArgumentError, InvalidClickError
from activefreq_engine.session import boxes
from activefreq_engine.session.history import Picture, Scene
from activefreq_engine.types import Box, Click


def object_index(scene: Scene, number: Any) -> int:
    """Where the object of this number is."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise InvalidArgumentError(f"object number is {number!r}; expected an integer")
    if not 1 <= number <= len(scene.objects):
        raise InvalidArgumentError(f"there is no object {number}; objects are 1 to {len(scene.objects)}")
    return int(number) - 1


def view_box(scene: Scene, corners: tuple[Any, ...]) -> Box:
    """What `look` was given, as whole pixels of the image."""
    numbers = [finite(v) for v in corners]
    x0, y0, x1, y1 = (n for n in numbers if n is not None) if None not in numbers else (0.0, 0.0, 0.0, 0.0)
    height, width = scene.picture.shape
    if not (x0 < x1 and y0 < y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0):
        raise InvalidArgumentError(
            f"look({', '.join(map(short, corners))}) is no part of the image of width {width}, height {height}; "
            "expected x0 < x1 and y0 < y1 in image pixels, or None"
        )
    return boxes.to_pixels((x0, y0, x1, y1), scene.picture.bounds)


def is_number(value: Any) -> bool:
    """Whether it is a real number; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def finite(value: Any) -> float | None:
    """The number as a float; None if it is no finite number."""
    if not is_number(value):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None


def check_click(picture: Picture, click: Click) -> Click:
    """The click with plain Python values, if it is one inside the image."""
    height, width = picture.shape
    if not (is_number(click.x) and is_number(click.y)):
        raise InvalidClickError(f"click is (x={click.x!r}, y={click.y!r}); expected two numbers")
    if not isinstance(click.positive, (bool, np.bool_)):
        raise InvalidClickError(f"positive is {click.positive!r}; expected True (object) or False (background)")
    x, y = finite(click.x), finite(click.y)
    if x is None or y is None or not (0 <= x < width and 0 <= y < height):
        raise InvalidClickError(
            f"click (x={short(click.x)}, y={short(click.y)}) is outside the image of width {width}, height {height}; "
            f"x comes first and must be at least 0 and below {width}, y at least 0 and below {height}"
        )
    return Click(x, y, bool(click.positive))


def short(value: Any) -> str:
    """A number for a message."""
    text = "a huge number" if isinstance(value, int) and abs(value) >= 10**40 else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def click_list(scene: Scene, coords: Any, labels: Any) -> list[Click]:
    """`predict`'s arrays as checked clicks."""
    try:
        points, signs = np.asarray(coords, dtype=np.float64), np.asarray(labels)
        good = not signs.size or bool(np.isin(signs, (0, 1)).all())
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
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
        check_click(scene.picture, Click(x, y, bool(s)))
        for (x, y), s in zip(points.tolist(), signs.tolist(), strict=True)
    ]
