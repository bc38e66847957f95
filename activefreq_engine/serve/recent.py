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


class Recent(Generic[Opened]):
    """Remembers what `make` returned for the last `KEPT` pictures, by their content.  Safe in several threads.

    Args:
        make: called with each new picture, uint8 `[H, W]` or `[H, W, 3]`; its result is remembered.
        max_pixels: a larger picture is refused before it is decoded.
    """

    def __init__(self, make: Callable[[NDArray[np.uint8]], Opened], max_pixels: int) -> None:
        self._make, self._max_pixels = make, max_pixels
        self._opened: OrderedDict[str, Opened] = OrderedDict()
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
                return self._opened[key]
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidImageError("the picture is not base64") from error
        made = self._make(load_image(data, max_pixels=self._max_pixels))
        with self._lock:
            kept = self._opened.setdefault(key, made)
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        return kept
