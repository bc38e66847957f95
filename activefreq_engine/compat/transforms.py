"""SAM's input frame: the picture scaled so that its longer side is 1024."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.session.zoom import resize


class ResizeLongestSide:
    """Scales pictures, points and boxes between a picture and SAM's frame, as SAM's class of this name does.

    Args:
        target_length (int): longer side of the frame.
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 `[H, W, C]` -> the same with its longer side at the target."""
        height, width = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        scaled: NDArray[np.uint8] = resize(image, height, width)
        return scaled

    def apply_coords(self, coords: NDArray[Any], original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """`[..., 2]` (x, y) in pixels of a picture of (H, W) -> the same in the frame."""
        return np.asarray(coords, np.float64) * self.factors(original_size)

    def apply_boxes(self, boxes: NDArray[Any], original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """`[B, 4]` (x0, y0, x1, y1), as `apply_coords`."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """`apply_coords` for tensors; float32."""
        return coords.to(torch.float) * coords.new_tensor(self.factors(original_size), dtype=torch.float)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """`apply_boxes` for tensors; float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def factors(self, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """The factors of x and of y for a picture of (H, W); rounding makes them differ a little."""
        old_h, old_w = original_size[0], original_size[1]
        new_h, new_w = self.get_preprocess_shape(old_h, old_w, self.target_length)
        return np.array([new_w / old_w, new_h / old_h])

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """(height, width) in the frame of a picture of these sides."""
        scale = long_side_length / max(oldh, oldw)
        return max(1, int(oldh * scale + 0.5)), max(1, int(oldw * scale + 0.5))
