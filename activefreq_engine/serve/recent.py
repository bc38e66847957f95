"""A memory of recent pictures, for clients without sessions, which send the whole picture with each request."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidImageError
from activefreq_engine.images import load_image

Opened = TypeVar("Opened")

KEPT = 8
"""How many pictures each protocol remembers."""
KEPT_PIXELS = 2**27
"""How many pixels these have in all; the newest picture is kept in any case."""


class Recent(Generic[Opened]):
    """Remembers what `make` returned for the last `KEPT` pictures, by their content.  Safe in several threads.

    Args:
        make: called with each new picture, uint8 `[H, W]` or `[H, W, 3]`; its result is remembered.
        max_pixels: a larger picture is refused before it is decoded.
    """

    def __init__(self, make: Callable[[NDArray[np.uint8]], Opened], max_pixels: int) -> None:
        self._make, self._max_pixels = make, max_pixels
        self._opened: OrderedDict[str, tuple[Opened, int]] = OrderedDict()
        """By the content's hash: what was made, and the picture's pixels."""
        self._lock = threading.Lock()

    def of(self, text: str) -> Opened:
        """What `make` returned for a picture that comes as base64, with or without the head of a data URI.

        Raises:
            InvalidImageError: the text is not base64, or not a picture that can be read.
        """
        body = text.partition(",")[2] if text.startswith("data:") else text
        key = hashlib.sha256(body.encode()).hexdigest()
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key][0]
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidImageError("the picture is not base64") from error
        pixels = load_image(data, max_pixels=self._max_pixels)
        made = self._make(pixels)
        with self._lock:
            kept, _ = self._opened.setdefault(key, (made, pixels.shape[0] * pixels.shape[1]))
            while len(self._opened) > KEPT or (
                len(self._opened) > 1 and sum(count for _, count in self._opened.values()) > KEPT_PIXELS
            ):
                self._opened.popitem(last=False)
        return kept
