"""A deterministic stand-in for a segmenter, and small data sets on disk."""

from types import SimpleNamespace

import cv2
import numpy as np


class DiskPainter:
    """Paints a disk of the click's sign around every click; probabilities fall off with distance."""

    def __init__(self, radius=6):
        self.radius = radius
        self.images_set = 0

    def set_image(self, image):
        assert image.dtype == np.uint8
        assert image.ndim == 3
        self.shape = image.shape[:2]
        self.images_set += 1
        self.reset()

    def reset(self):
        self.probs = np.zeros(self.shape, np.float32)

    def click(self, x, y, *, positive=True):
        rows, columns = np.indices(self.shape)
        near = (columns - x) ** 2 + (rows - y) ** 2 <= self.radius**2
        self.probs = np.where(near, np.float32(0.9 if positive else 0.1), self.probs)
        return SimpleNamespace(mask=self.probs > 0.49)


def blob(random, height, width):
    """A random smooth object, int8 0/1, neither empty nor full."""
    noise = cv2.GaussianBlur(random.random((height, width)).astype(np.float32), (0, 0), 5)
    mask = noise > np.quantile(noise, random.uniform(0.4, 0.8))
    return mask.astype(np.int8)


def write_pairs(root, sizes, *, kind="masks", objects=1, seed=0):
    """images/ and masks/ (one object) or labels/ (`objects` values, 16-bit when that is above 255)."""
    random = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / kind).mkdir()
    truths = []
    for i, (height, width) in enumerate(sizes):
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / f"case{i:02d}.png"), image)
        if kind == "masks":
            truth = blob(random, height, width)
            stored = truth.astype(np.uint8) * 255
        else:
            stripes = np.arange(width) * (objects + 1) // width
            truth = np.broadcast_to(stripes, (height, width)).astype(np.uint16)
            stored = truth if objects > 255 else truth.astype(np.uint8)
        cv2.imwrite(str(root / kind / f"case{i:02d}.png"), stored)
        truths.append(truth)
    return truths
