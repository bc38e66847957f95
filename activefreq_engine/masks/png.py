"""Checks masks, and reads and writes masks and label maps as PNG."""

from __future__ import annotations

import io
import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from activefreq_engine.errors import InvalidArgumentError, InvalidImageError, InvalidMaskError
from activefreq_engine.files import write_file
from activefreq_engine.images import as_array, load_labels
from activefreq_engine.memory import typed
from activefreq_engine.values import short, whole


@typed
def as_mask(mask: Any, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Check a mask and return it as bool `[H, W]`.

    Args:
        mask: array or tensor `[H, W]` of bool, or of integers that are all 0 or 1, or all 0 or 255.
        shape ((int, int), optional): the (height, width) it must have.

    Raises:
        InvalidMaskError: the mask has a wrong type, shape or value.
    """
    array = array_of(mask, "mask")
    if shape is not None:
        shape = _size(shape)
    if array.ndim != 2 or 0 in array.shape or (shape is not None and array.shape != shape):
        wanted = "[H, W] with at least one pixel" if shape is None else f"[{shape[0]}, {shape[1]}] as the image"
        raise InvalidMaskError(f"mask has shape {array.shape}; expected {wanted} (height first)")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "ui":
        raise InvalidMaskError(f"mask has dtype {array.dtype}; allowed are bool and integers: try probs > threshold")
    values = np.unique(array)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        raise InvalidMaskError(
            f"mask has values {values[:5].tolist()}{'...' if len(values) > 5 else ''}; allowed are 0 and 1, or 0 and "
            "255. For one object of a label map pass labels == n"
        )
    return array != 0


@typed
def save_png(path: str | os.PathLike[str], mask: Any) -> None:
    """Write a mask as an 8-bit grey PNG of 0 and 255.  The file is written whole or not at all.

    Raises:
        InvalidMaskError: the argument is not a mask, see `as_mask`.
        FileWriteError: the file cannot be written.
        InvalidArgumentError: the name ends like another format's, as .jpg.
    """
    _save(path, Image.fromarray(as_mask(mask).astype(np.uint8) * np.uint8(255)))


@typed
def save_labels_png(path: str | os.PathLike[str], labels: NDArray[np.integer[Any]]) -> None:
    """Write a label map as PNG: indexed, with a colour for each label, up to 255 labels; 16-bit grey above.

    Args:
        path: target file.
        labels (integer `[H, W]`): 0 is background; at most 65535.

    Raises:
        InvalidMaskError: wrong type, shape or values.
        FileWriteError: the file cannot be written.
        InvalidArgumentError: the name ends like another format's, as .jpg.
    """
    labels = array_of(labels, "labels")
    if labels.ndim != 2 or 0 in labels.shape or labels.dtype.kind not in "ui":
        raise InvalidMaskError(f"labels have shape {labels.shape} and dtype {labels.dtype}; expected integers [H, W]")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise InvalidMaskError(f"labels run from {low} to {high}; allowed are 0 to 65535")
    if high > 255:
        _save(path, Image.fromarray(labels.astype(np.uint16)))
        return
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(_palette())
    _save(path, image)


@typed
def load_labels_png(path: str | os.PathLike[str]) -> NDArray[np.int32]:
    """Read a file of `save_png` or `save_labels_png`: int32 `[H, W]`, the palette indices or grey values as stored.

    Raises:
        InvalidMaskError: the file cannot be read, or is a colour image.
    """
    try:
        labels = load_labels(path)
    except InvalidImageError as error:
        raise InvalidMaskError(f"cannot read mask '{path}': {error}") from error
    if int(labels.max()) > np.iinfo(np.int32).max or int(labels.min()) < np.iinfo(np.int32).min:
        raise InvalidMaskError(f"'{path}' has values from {labels.min()} to {labels.max()}; allowed are those of int32")
    return labels.astype(np.int32)


def _save(path: str | os.PathLike[str], image: Image.Image) -> None:
    suffix = os.path.splitext(str(path))[1].lower()
    if suffix in (".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"):
        raise InvalidArgumentError(f"masks are written as PNG, but '{path}' ends in {suffix}; end the name in .png")
    out = io.BytesIO()
    image.save(out, format="PNG")
    write_file(path, out.getvalue())


def _size(shape: Any) -> tuple[int, int]:
    try:
        height, width = shape
    except (TypeError, ValueError) as error:
        raise InvalidMaskError(f"shape is {short(shape)}; expected (height, width)") from error
    return whole("height", height), whole("width", width)


def array_of(source: Any, what: str) -> NDArray[Any]:
    """The array behind an array, a tensor or a list.  What a masked array of NumPy hides is outside: 0.

    Raises:
        InvalidMaskError: no array can be made of it.
    """
    try:
        array = source.filled(0) if isinstance(source, np.ma.MaskedArray) else as_array(source)
        return np.asarray(source) if array is None else np.asarray(array)
    except (
        InvalidImageError,
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:  # lists with rows of different lengths, tensors on another device
        raise InvalidMaskError(f"{what}: no array can be made of a {type(source).__name__}: {error}") from error


def _palette() -> list[int]:
    """256 RGB colours: black, then bright ones, each far in hue from the one before (by the golden angle)."""
    hue = (np.arange(256) * 0.618034 % 1 * 180).astype(np.uint8)
    value = np.where(np.arange(256) % 2, 255, 200).astype(np.uint8)
    hsv = np.stack([hue, np.full(256, 200, np.uint8), value], axis=1)[None]
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    rgb[0] = 0
    return rgb.ravel().tolist()
