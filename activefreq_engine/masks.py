"""Masks out and in: PNG, COCO run-length encoding, polygons.  Needs NumPy, OpenCV and Pillow, nothing of the engine.

Masks are bool `[H, W]`.  Run lengths and PNG are exact.  Polygons are exact as long as holes are kept and filled by
the rule of `from_polygons`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from activefreq_engine.errors import InvalidImageError, InvalidMaskError
from activefreq_engine.images import MAX_PIXELS, load_labels


def as_mask(mask: Any, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Check a mask.

    Args:
        mask: array `[H, W]` of bool, or of integers that are all 0 or 1, or all 0 or 255.
        shape ((int, int), optional): the (height, width) it must have.

    Raises:
        InvalidMaskError: wrong type, shape or values.
    """
    array = np.asarray(mask)
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


# --- PNG ---


def save_png(path: str | os.PathLike[str], mask: Any) -> None:
    """Write a mask as an 8-bit grey PNG, 0 and 255.

    Raises:
        InvalidMaskError: not a mask, see `as_mask`.
        OSError: the file cannot be written.
    """
    Image.fromarray(as_mask(mask).astype(np.uint8) * np.uint8(255)).save(path, format="PNG")


def save_labels_png(path: str | os.PathLike[str], labels: NDArray[np.integer[Any]]) -> None:
    """Write a label map: an indexed PNG with a colour for each label up to 255, else a 16-bit grey one.

    Args:
        path: target file.
        labels (integer `[H, W]`): 0 is background; at most 65535.

    Raises:
        InvalidMaskError: wrong type, shape or values.
        OSError: the file cannot be written.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or 0 in labels.shape or labels.dtype.kind not in "ui":
        raise InvalidMaskError(f"labels have shape {labels.shape} and dtype {labels.dtype}; expected integers [H, W]")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise InvalidMaskError(f"labels run from {low} to {high}; allowed are 0 to 65535")
    if high > 255:
        Image.fromarray(labels.astype(np.uint16)).save(path, format="PNG")
        return
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(_palette())
    image.save(path, format="PNG")


def load_labels_png(path: str | os.PathLike[str]) -> NDArray[np.int32]:
    """Read what `save_png` or `save_labels_png` wrote: int32 `[H, W]`, palette indices or grey values as stored.

    Raises:
        InvalidMaskError: not readable, or a colour image.
    """
    try:
        labels = load_labels(path)
    except InvalidImageError as error:
        raise InvalidMaskError(f"cannot read mask '{path}': {error}") from error
    if int(labels.max()) > np.iinfo(np.int32).max or int(labels.min()) < np.iinfo(np.int32).min:
        raise InvalidMaskError(f"'{path}' has values from {labels.min()} to {labels.max()}; allowed are those of int32")
    return labels.astype(np.int32)


def _palette() -> list[int]:
    """256 RGB colours: black, then bright ones that differ from their neighbours (steps of the golden angle in hue)."""
    hue = (np.arange(256) * 0.618034 % 1 * 180).astype(np.uint8)
    value = np.where(np.arange(256) % 2, 255, 200).astype(np.uint8)
    hsv = np.stack([hue, np.full(256, 200, np.uint8), value], axis=1)[None]
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    rgb[0] = 0
    return rgb.ravel().tolist()


# --- COCO run lengths ---


def to_coco_rle(mask: Any, *, compressed: bool = True) -> dict[str, Any]:
    """COCO run-length encoding: ``{"size": [height, width], "counts": ...}``, as pycocotools reads it.

    Runs go down the columns and start with background.  `counts` is an ASCII string (JSON-able) when compressed,
    else a list of integers.

    Raises:
        InvalidMaskError: not a mask, see `as_mask`.
    """
    mask = as_mask(mask)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    runs = ([0] if flat[0] else []) + counts.tolist()
    return {"size": [int(s) for s in mask.shape], "counts": _compress(runs) if compressed else runs}


def from_coco_rle(rle: Any) -> NDArray[np.bool_]:
    """bool `[H, W]` from either form of `to_coco_rle`; compressed counts may be str or bytes.

    Raises:
        InvalidMaskError: damaged, or larger than `MAX_PIXELS`.
    """
    try:
        height, width = rle["size"]
        counts = rle["counts"]
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidMaskError("RLE is not a dictionary with size [height, width] and counts") from error
    if not all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s > 0 for s in (height, width)):
        raise InvalidMaskError(f"RLE size is {rle['size']!r}; expected two positive integers [height, width]")
    if height * width > MAX_PIXELS:
        raise InvalidMaskError(f"RLE size {height}x{width} has {height * width} pixels; allowed are {MAX_PIXELS}")
    runs = _decompress(counts) if isinstance(counts, (str, bytes)) else counts
    if not isinstance(runs, (list, tuple)) or not all(
        isinstance(r, (int, np.integer)) and not isinstance(r, bool) and 0 <= r <= height * width for r in runs
    ):
        raise InvalidMaskError("RLE counts hold something other than run lengths that fit the size")
    if sum(runs) != height * width:
        raise InvalidMaskError(f"RLE counts add up to {sum(runs)} pixels; size {height}x{width} has {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, np.asarray(runs, np.int64)).reshape((height, width), order="F"))


def _compress(runs: list[int]) -> str:
    """COCO's text form: from the fourth run on the difference to the run two before, in base 32, low digits first,
    bit 5 marking "more to come", characters counted from '0'."""
    out = []
    for i, run in enumerate(runs):
        x = run - runs[i - 2] if i > 2 else run
        while True:
            digit, x = x & 31, x >> 5
            more = x != (-1 if digit & 16 else 0)
            out.append(chr(48 + digit + (32 if more else 0)))
            if not more:
                break
    return "".join(out)


def _decompress(text: str | bytes) -> list[int]:
    data = text.encode("ascii", errors="replace") if isinstance(text, str) else text
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 40:
            raise InvalidMaskError(f"RLE counts hold {chr(byte)!r} where no compressed run length can have it")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise InvalidMaskError("RLE counts end in the middle of a run length; the text is cut off")
    return runs


# --- polygons ---


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected piece of a mask.  Points are int32 `[N, 2]` (x, y), the pixels on the outline, N >= 1."""

    exterior: NDArray[np.int32]
    """Outermost pixels of the piece."""
    holes: tuple[NDArray[np.int32], ...] = ()
    """Around each hole, the pixels *of the piece* that enclose it: the hole is what lies strictly inside."""


def to_polygons(mask: Any, *, holes: Literal["keep", "drop"] = "keep") -> list[Polygon]:
    """Outlines of the 8-connected pieces of a mask, through ``cv2.findContours``.

    Points are the outermost pixels themselves (OpenCV's convention), not their outer edges: a 3x3 square has corners
    two apart, one pixel is one point, a line is two.  Formats that want three points or more cannot hold the latter
    two; run lengths can.

    Args:
        mask: see `as_mask`.
        holes: "keep" lists them with their piece, and `from_polygons` restores the mask exactly; "drop" fills them,
            which is what a format without holes makes of a mask anyhow.

    Raises:
        InvalidMaskError: not a mask.
    """
    if holes not in ("keep", "drop"):
        raise InvalidMaskError(f"holes is {holes!r}; allowed are 'keep' and 'drop'")
    image = np.ascontiguousarray(as_mask(mask)).view(np.uint8)
    mode = cv2.RETR_CCOMP if holes == "keep" else cv2.RETR_EXTERNAL
    contours, hierarchy = cv2.findContours(image, mode, cv2.CHAIN_APPROX_SIMPLE)
    points = [c.reshape(-1, 2).astype(np.int32) for c in contours]
    inner: dict[int, list[NDArray[np.int32]]] = {}
    outer = []
    for i, parent in enumerate(hierarchy[0, :, 3].tolist() if len(points) else []):
        if parent < 0:
            outer.append(i)
        else:
            inner.setdefault(parent, []).append(points[i])
    return [Polygon(points[i], tuple(inner.get(i, ()))) for i in outer]


def from_polygons(polygons: Sequence[Polygon], height: int, width: int) -> NDArray[np.bool_]:
    """Fill polygons: bool `[height, width]`.

    Each piece is filled including its outline; then what lies strictly inside its holes is cleared.  A piece inside
    another one's hole keeps its pixels, whatever the order of the list.

    Raises:
        InvalidMaskError: a point lies outside the image, or is not an (x, y) pair of integers.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InvalidMaskError(f"size is {height}x{width}; both must be at least 1, their product at most {MAX_PIXELS}")
    out = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        rings = [_ring(r, height, width) for r in (polygon.exterior, *polygon.holes)]
        x, y, w, h = cv2.boundingRect(rings[0])
        piece = np.zeros((h, w), np.uint8)
        corner = np.array([x, y], np.int32)
        cv2.fillPoly(piece, [rings[0] - corner], 1)
        for ring in rings[1:]:
            hole = np.zeros_like(piece)
            cv2.fillPoly(hole, [ring - corner], 1)
            cv2.polylines(hole, [ring - corner], isClosed=True, color=0)
            piece[hole > 0] = 0
        out[y : y + h, x : x + w] |= piece
    return out.view(np.bool_)


def _ring(points: Any, height: int, width: int) -> NDArray[np.int32]:
    ring = np.asarray(points)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 1 or ring.dtype.kind not in "ui":
        raise InvalidMaskError(f"polygon has shape {ring.shape}, dtype {ring.dtype}; expected integers [N, 2] (x, y)")
    if (ring < 0).any() or (ring >= [width, height]).any():
        raise InvalidMaskError(f"polygon has points outside the image of width {width}, height {height}; x comes first")
    return np.ascontiguousarray(ring, np.int32)
