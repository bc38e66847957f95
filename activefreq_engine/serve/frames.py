"""The binary messages of the WebSocket.  `page/frames.js` reads them; both sides are tested against each other.

Little-endian, a head of 32 bytes and a body::

    uint8   kind      1: part of a mask, 2: uncertainty
    uint8   flags     bit 0: the mask is whole, what was known of the object is to be forgotten
    uint16  object    its number
    uint32  seq       of the request that this answers
    uint32  x0 y0 x1 y1   the box, half-open, in image pixels; all 0 when nothing changed
    float32 ms        what the request took in the server
    uint16  width     of the body of kind 2, and 0 for kind 1
    uint16  height

The body of kind 1 is the mask inside the box, a bit a pixel, the first pixel in the highest bit, each row filled up
to a whole byte.  The body of kind 2 is one byte a pixel, entropy 0 to 1 bit as 0 to 255, `width` times `height`
spread evenly over the box.
"""

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.types import Box

HEAD = struct.Struct("<BBHIIIIIfHH")
MASK, UNCERTAINTY = 1, 2
WHOLE = 1
UNCERTAINTY_SIDE = 512
"""Longest side of an uncertainty map that is sent."""


def changed_box(before: NDArray[np.bool_] | None, after: NDArray[np.bool_]) -> Box | None:
    """Smallest box around the pixels that differ, None when none does; `before` None means an empty mask."""
    differ = after.view(np.uint8) if before is None else np.bitwise_xor(before, after).view(np.uint8)
    x, y, width, height = cv2.boundingRect(differ)
    return (x, y, x + width, y + height) if width else None


def mask_frame(
    mask: NDArray[np.bool_], box: Box | None, *, number: int, seq: int, elapsed_ms: float, whole: bool = False
) -> bytes:
    """The part of a mask that lies in `box`."""
    x0, y0, x1, y1 = box or (0, 0, 0, 0)
    head = HEAD.pack(MASK, WHOLE if whole else 0, number, seq, x0, y0, x1, y1, elapsed_ms, 0, 0)
    return head + np.packbits(mask[y0:y1, x0:x1], axis=1).tobytes()


def uncertainty_frame(uncertainty: NDArray[np.float32], *, number: int, seq: int) -> bytes:
    """The uncertainty of the whole image, shrunk to at most `UNCERTAINTY_SIDE` pixels a side."""
    height, width = uncertainty.shape
    scale = min(1.0, UNCERTAINTY_SIDE / max(height, width))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    small = uncertainty if scale == 1 else cv2.resize(uncertainty, (w, h), interpolation=cv2.INTER_AREA)
    body = np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)
    return HEAD.pack(UNCERTAINTY, 0, number, seq, 0, 0, width, height, 0.0, w, h) + body.tobytes()
