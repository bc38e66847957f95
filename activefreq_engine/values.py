"""Checks single values that callers hand over, and makes plain Python values of them."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from activefreq_engine.errors import InvalidArgumentError


def is_number(value: Any) -> bool:
    """Whether a value is a real number; bools are not."""
    if type(value) is float or type(value) is int:  # asking for `Real` takes ten times as long
        return True
    return isinstance(value, Real) and type(value).__name__ not in ("bool", "bool_")


def finite(value: Any) -> float | None:
    """The value as a float; None if it is not a finite number."""
    if not is_number(value):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None


def whole(name: str, value: Any) -> int:
    """The value as an int; floats such as 3.0 are whole numbers too.

    Raises:
        InvalidArgumentError: it is not a whole number.
    """
    number = finite(value)
    if number is None or not number.is_integer():
        raise InvalidArgumentError(f"{name} is {short(value)}; expected a whole number")
    return int(value) if isinstance(value, Integral) else int(number)


def truth(name: str, value: Any) -> bool:
    """The value as a bool.

    Raises:
        InvalidArgumentError: it cannot be taken as true or false, as an array cannot.
    """
    try:
        return bool(value)
    except Exception as error:  # a library's own class may raise anything
        raise InvalidArgumentError(f"{name} is a {type(value).__name__}; expected True or False") from error


def short(value: Any) -> str:
    """A value as text for a message, cut short."""
    text = "a huge number" if isinstance(value, int) and abs(value) >= 10**40 else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def printable(text: str) -> str:
    """The text for a terminal, with escapes for what moves its cursor or turns its letters round: names come from
    outside."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
