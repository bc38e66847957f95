"""Small training data: bright ellipses on dark noise, learnable in a few steps."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray


def write_pairs(folder: Path, count: int, seed: int = 0, kind: str = "masks") -> Path:
    """`count` images of odd sizes, W != H, with an ellipse each (two, of values 1 and 7, in label maps)."""
    rng = np.random.default_rng(seed)
    for name in ("images", kind):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        h, w = int(rng.integers(45, 60)), int(rng.integers(61, 80))
        labels = np.zeros((h, w), np.uint8)
        cv2.ellipse(labels, (w // 4, h // 2), (int(rng.integers(7, 12)), 14), 20.0 * i, 0, 360, 1, -1)
        if kind != "masks":
            cv2.circle(labels, (3 * w // 4, h // 2), 9, 7, -1)
        image = rng.integers(0, 60, (h, w, 3), np.uint8) + (150 * (labels > 0)[..., None]).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i:03}.png"), image)
        cv2.imwrite(str(folder / kind / f"{i:03}.png"), labels * 255 if kind == "masks" else labels)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with masks."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 8)


def disk(height: int, width: int, x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
