"""What is measured on: a picture of any size with one object of known place and size, and clicks on it.

Made, not photographed, so that the image may grow while the object does not.  It resembles what the shipped weights
were trained on (a dark spot on skin), so that the masks are the network's usual work and not noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.types import Click

GROUND, SPOT = (205, 165, 145), (95, 62, 50)
TEMPLATE = 512  # the spot is drawn on a grid of this side and enlarged


@dataclass(frozen=True)
class Spot:
    """A picture and its object."""

    image: NDArray[np.uint8]
    """`[H, W, 3]`."""
    x: int
    """Column of the object's centre."""
    y: int
    """Row of the object's centre."""
    radius: int
    """Pixels from the centre to the rim, on average."""

    def clicks(self, seed: int = 0) -> Iterator[Click]:
        """Endless: the first one on the centre, then in turn two inside and one outside of the rim, close to it.

        All lie within the region around the object that the network looks at, so it stays.  `clicking.telling` turns
        the sign of those that agree with the mask.  At the rim that corrects an outline; further in it would cut holes
        into the object, which no two precisions answer alike.
        """
        rng = np.random.default_rng(seed)
        yield Click(self.x, self.y, True)
        number = 0
        while True:
            number += 1
            positive = number % 3 != 0
            reach = self.radius * rng.uniform(*((0.95, 1.0) if positive else (1.0, 1.05)))
            angle = rng.uniform(0, 2 * np.pi)
            yield Click(self.x + reach * np.cos(angle), self.y + reach * np.sin(angle), positive)


def scene(height: int, width: int, radius: int | None = None, seed: int = 0) -> Spot:
    """A dark spot with a ragged rim in the middle of bright, uneven ground.

    Args:
        height, width: of the image, pixels.
        radius: of the spot, pixels; at most a quarter of the shorter side, which is the default.
        seed: another seed is another spot.
    """
    rng = np.random.default_rng(seed)
    radius = min(height, width) // 4 if radius is None else radius
    x, y = width // 2, height // 2
    image = _texture(rng, (8, 8), GROUND, (height, width))
    side = 4 * radius  # of the patch; the spot takes up its middle half
    top, left = y - side // 2, x - side // 2
    row, column = ((np.mgrid[:TEMPLATE, :TEMPLATE] + 0.5) / TEMPLATE - 0.5) * 4
    angle = np.arctan2(row, column)
    rim = 1 + sum(0.1 / k * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (3, 5, 7))
    inside = 255 / (1 + np.exp(25 * (np.hypot(row, column) - rim)))
    weight = cv2.resize(np.rint(inside).astype(np.uint8), (side, side))
    spot = _texture(rng, (12, 12), SPOT, (side, side))
    for y0 in range(0, side, 256):  # in strips, so that a large image does not need many times its memory
        w = weight[y0 : y0 + 256, :, None].astype(np.uint16)
        part = image[top + y0 : top + y0 + len(w), left : left + side]
        part[:] = (part * (255 - w) + spot[y0 : y0 + 256] * w) // 255
    return Spot(image, x, y, radius)


def _texture(
    rng: np.random.Generator, grid: tuple[int, int], colour: tuple[int, int, int], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """A colour with smooth, random lights and shadows: uint8 `[*shape, 3]`."""
    coarse = np.clip(np.array(colour) + rng.normal(0, 14, (*grid, 1)), 0, 255).astype(np.uint8)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
