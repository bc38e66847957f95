"""OpenCV's GrabCut (Rother et al., SIGGRAPH 2004) as a click segmenter, to compare with.

GrabCut wants a box or scribbles; clicks become both.  The first click sets up the labels: everything is probable
background but a square around the click, half as wide as the image's shorter side, which is probable object.  Each
click marks a disk of a fiftieth of that side for good, object or background.  Five rounds of GrabCut run after the
first click and one more, with the colour models so far, after each later one.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BOX = 0.5  # side of the first square, of the image's shorter side
DISK = 0.02  # radius of a click's disk, of the shorter side
FIRST_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class GrabCutStep:
    """The answer to a click."""

    mask: NDArray[np.bool_]
    """bool `[H, W]`."""


class GrabCutPredictor:
    """Clicks in, masks out.  Coordinates are (x, y) image pixels, as in `Session`."""

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Take an image, uint8 `[H, W, 3]` RGB, and forget all clicks."""
        self._image = np.ascontiguousarray(image[:, :, ::-1])
        self.reset()

    def reset(self) -> None:
        """Forget all clicks and keep the image."""
        self._labels = np.full(self._image.shape[:2], cv2.GC_PR_BGD, np.uint8)
        self._models = np.zeros((1, 65)), np.zeros((1, 65))  # of background and object; OpenCV fixes the shape
        self._started = False
        self._sure: list[tuple[int, int, bool]] = []

    def click(self, x: float, y: float, *, positive: bool = True) -> GrabCutStep:
        """Add a click at pixel (x, y) and return the new mask."""
        short = min(self._labels.shape)
        column, row = int(x), int(y)
        if not self._sure:
            half = round(BOX * short / 2)
            top, left = max(row - half, 0), max(column - half, 0)
            self._labels[top : row + half + 1, left : column + half + 1] = cv2.GC_PR_FGD
        self._sure.append((column, row, positive))
        for column, row, sign in self._sure:
            label = cv2.GC_FGD if sign else cv2.GC_BGD
            cv2.circle(self._labels, (column, row), max(1, round(DISK * short)), label, cv2.FILLED)
        if self._started:
            cv2.grabCut(self._image, self._labels, None, *self._models, 1, cv2.GC_EVAL)
        elif self._has(cv2.GC_FGD, cv2.GC_PR_FGD) and self._has(cv2.GC_BGD, cv2.GC_PR_BGD):
            cv2.setRNGSeed(0)  # the colour models start from k-means
            cv2.grabCut(self._image, self._labels, None, *self._models, FIRST_ROUNDS, cv2.GC_INIT_WITH_MASK)
            self._started = True
        return GrabCutStep(np.isin(self._labels, (cv2.GC_FGD, cv2.GC_PR_FGD)))

    def _has(self, *labels: int) -> bool:
        """GrabCut refuses to start when there is no object or no background at all; the labels then stay."""
        return bool(np.isin(self._labels, labels).any())
