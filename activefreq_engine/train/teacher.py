"""Features of a frozen teacher network, computed once per packed image and cropped as the images are.

A teacher folder holds `features.f16`, `[N, T, G, G]` of the N packed images, each scaled so that its longer side is
16 G pixels and padded at the bottom and the right, and `teacher.json`, which names the images in their order and holds
T, G and the mean and the standard deviation of every channel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError

TEACHER_STRIDE = 16  # image pixels of a feature cell, for the teacher and for the crops


class Teacher:
    """The features in a folder.

    Raises:
        DatasetError: the folder is not whole.
    """

    def __init__(self, folder: Path) -> None:
        try:
            facts = json.loads((folder / "teacher.json").read_text())
            self.images = [str(i) for i in facts["images"]]
            self.channels, self.grid = int(facts["channels"]), int(facts["grid"])
            self.mean = torch.tensor(facts["mean"], dtype=torch.float32).view(-1, 1, 1)
            self.std = torch.tensor(facts["std"], dtype=torch.float32).view(-1, 1, 1)
            finite = bool(self.mean.isfinite().all()) and bool(self.std.isfinite().all()) and bool((self.std > 0).all())
            if not len(self.mean) == len(self.std) == self.channels or not 0 < self.grid <= 4096 or not finite:
                raise ValueError("its grid, channels, means and standard deviations do not fit together")
            self.features = np.memmap(
                folder / "features.f16",
                np.float16,
                mode="r",
                shape=(len(self.images), self.channels, self.grid, self.grid),
            )
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as e:
            raise DatasetError(f"{folder} holds no teacher's features ({e}); make them with train.distill") from None

    def check(self, entries: Sequence[dict[str, Any]]) -> None:
        """Raise DatasetError unless the features are those of these packed images, in this order."""
        if [e["id"] for e in entries] != self.images:
            raise DatasetError("the teacher's features are those of other images; make them anew for this data")

    def crop(self, image: int, shape: tuple[int, int], affine: NDArray[np.float64], size: int) -> Tensor:
        """Standardised features of a crop, float16 `[T, size/16, size/16]`.

        Args:
            image (int): index of the packed image.
            shape (tuple): its height and width.
            affine: `[2, 3]`, crop pixel (u, v, 1) -> image pixel (x, y), pixel centres at integers.
            size (int): side of the crop, a multiple of 16.
        """
        # two samples a cell and direction, then their mean: a large crop's cells are larger than the teacher's
        step = TEACHER_STRIDE / 2
        centres = (np.arange(size // TEACHER_STRIDE * 2) + 0.5) * step - 0.5
        u, v = np.meshgrid(centres, centres)
        xy = np.stack([u, v, np.ones_like(u)], axis=-1) @ affine.T
        # -1..1 spans the padded square
        grid = torch.from_numpy(2 * (xy + 0.5) / max(shape) - 1).float()
        features = torch.from_numpy(np.array(self.features[image])).float()
        sampled = F.grid_sample(features[None], grid[None], padding_mode="border", align_corners=False)
        return ((F.avg_pool2d(sampled, 2)[0] - self.mean) / self.std).half()
