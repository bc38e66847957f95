"""Image input: anything a user has in hand -> 8-bit grey or RGB, or an error that says what is wrong with it.

Grey images stay one channel and nothing is ever converted to float as a whole, so a 100 megapixel image costs its
8-bit copy and no more.
"""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from activefreq_engine.errors import InvalidImageError

MAX_PIXELS = 2**27
"""Default limit on height * width: 134 megapixels."""

Window = tuple[float, float]
"""(low, high): the values shown as black and as white."""

_PERCENTILES = (0.5, 99.5)
_SAMPLES = 1_000_000  # values looked at for the percentiles
_CHUNK = 4_000_000  # values converted at once: bounds the temporary float64 arrays to 32 MB


def load_image(
    source: Any, *, window: Window | None = None, copy: bool = True, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Turn `source` into the 8-bit image that the engine works on.

    Args:
        source: a path; a PIL image; or an array (anything with ``__array__``) of shape `[H, W]`, `[H, W, 1]`,
            `[H, W, 3]` (RGB) or `[H, W, 4]` (RGB and alpha), with any real numeric type.

            - Files and PIL images are turned upright by their EXIF orientation; of several frames the first is taken.
            - Alpha is composited over white, as image viewers show it.
            - uint8 is taken as it is.  Floats that all lie in [0, 1] are scaled by 255.  Everything else (uint16,
              signed integers, other floats) goes through `window`.
        window ((float, float), optional): (low, high) values shown as black and white, applied to every input that
            is not uint8.  Default: the 0.5 and 99.5 percentiles over all channels (of about a million values spread
            evenly over the image), or minimum and maximum where these coincide.
        copy (bool): False uses a C-contiguous uint8 array in place: the caller must not change it afterwards.
            Default: True.
        max_pixels (int): larger images are refused, files before they are decoded. Default: `MAX_PIXELS`.

    Returns:
        uint8 `[H, W]` (grey) or `[H, W, 3]` (RGB), C-contiguous.

    Raises:
        InvalidImageError: the source cannot be used; the message says why.
    """
    if window is not None:
        window = _check_window(window)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), window, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pil(source, window, max_pixels, "image")
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source), window, copy, max_pixels)
    raise InvalidImageError(
        f"image is a {type(source).__name__}; allowed are a path, a PIL image and an array of shape [H, W], "
        "[H, W, 1], [H, W, 3] or [H, W, 4]"
    )


def image_digest(image: NDArray[np.uint8]) -> str:
    """sha256 (hex) over shape and pixels of an image as `load_image` returns it."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.data)
    return digest.hexdigest()


def _from_file(path: Path, window: Window | None, max_pixels: int) -> NDArray[np.uint8]:
    if not path.is_file():
        what = "a directory, not a file" if path.is_dir() else "no such file"
        raise InvalidImageError(f"cannot read image '{path}': {what}")
    try:
        with warnings.catch_warnings():
            # the limit below is ours, explicit and tested before decoding
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Exception as error:  # a decoder fed with hostile bytes may raise anything
        raise InvalidImageError(f"cannot read image '{path}': {error}") from error
    with image:
        return _from_pil(image, window, max_pixels, f"image '{path}'")


def _from_pil(image: Image.Image, window: Window | None, max_pixels: int, name: str) -> NDArray[np.uint8]:
    _check_size(image.height, image.width, max_pixels, name)
    try:
        orientation = image.getexif().get(0x0112, 1)
        image.load()
    except Exception as error:  # as above: truncated and corrupt files fail here, in many ways
        raise InvalidImageError(f"cannot decode {name}: {error}. The file may be truncated or corrupt") from error
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        pixels = _from_array(np.asarray(image), window, copy=True, max_pixels=max_pixels)
    else:
        pixels = _pil_to_uint8(image)
    return _upright(pixels, orientation)


def _pil_to_uint8(image: Image.Image) -> NDArray[np.uint8]:
    """By strips of rows: PIL's own conversions and its export to NumPy hold several copies of the whole image."""
    if image.mode in ("1", "L"):
        mode = "L"
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        mode = "RGBA"
    else:
        mode = "RGB"
    width, height = image.size
    out = np.empty((height, width) if mode == "L" else (height, width, 3), np.uint8)
    for y0, y1 in _strips(height, width * len(mode)):
        strip = image.crop((0, y0, width, y1))
        if strip.mode in ("La", "RGBa"):  # premultiplied alpha converts only to its plain counterpart
            strip = strip.convert(strip.mode.upper())
        part = np.asarray(strip.convert(mode))
        out[y0:y1] = _over_white(part[..., :3], part[..., 3]) if mode == "RGBA" else part
    return out


def _upright(pixels: NDArray[np.uint8], orientation: Any) -> NDArray[np.uint8]:
    """Undo the camera's rotation, EXIF tag 0x0112; 1 and unknown values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _from_array(array: NDArray[Any], window: Window | None, copy: bool, max_pixels: int) -> NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: try image.transpose(1, 2, 0)"
        raise InvalidImageError(
            f"image has shape {array.shape}; allowed are [H, W], [H, W, 1], [H, W, 3] and [H, W, 4]{hint}"
        )
    _check_size(array.shape[0], array.shape[1], max_pixels, "image")
    if array.dtype.kind not in "uif":
        raise InvalidImageError(f"image has dtype {array.dtype}; allowed are integers and floats, uint8 being best")
    if array.ndim == 3 and array.shape[2] == 4:
        return _flatten_alpha(array, window)
    if array.dtype != np.uint8:
        return _to_uint8(array, _window_of(array) if window is None else window)
    return np.array(array, order="C") if copy else np.ascontiguousarray(array)


def _flatten_alpha(array: NDArray[Any], window: Window | None) -> NDArray[np.uint8]:
    rgb, alpha = array[..., :3], array[..., 3]
    if array.dtype != np.uint8:
        rgb = _to_uint8(rgb, _window_of(rgb) if window is None else window)
        opaque = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
        alpha = _to_uint8(alpha, (0.0, opaque))
    out = np.empty(rgb.shape, np.uint8)
    for y0, y1 in _strips(rgb.shape[0], rgb.shape[1] * 4):
        out[y0:y1] = _over_white(rgb[y0:y1], alpha[y0:y1])
    return out


def _over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    a = alpha[..., None].astype(np.uint32)
    return ((rgb * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def _window_of(array: NDArray[Any]) -> Window:
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InvalidImageError("image has NaN or infinite values; replace them first, e.g. numpy.nan_to_num(image)")
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    step = max(1, int(np.sqrt(array.size / _SAMPLES)))
    p_low, p_high = np.percentile(array[::step, ::step].astype(np.float64), _PERCENTILES)
    return (float(p_low), float(p_high)) if p_low < p_high else (low, high)


def _to_uint8(array: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    low, high = window
    scale = 255.0 / (high - low) if high > low else 0.0
    out = np.empty(array.shape, np.uint8)
    for y0, y1 in _strips(array.shape[0], array[0].size):
        part = array[y0:y1].astype(np.float64)
        if not np.isfinite(part).all():
            raise InvalidImageError(
                "image has NaN or infinite values; replace them first, e.g. numpy.nan_to_num(image)"
            )
        out[y0:y1] = np.rint(np.clip((part - low) * scale, 0, 255))
    return out


def _strips(rows: int, values_per_row: int) -> list[tuple[int, int]]:
    step = max(1, _CHUNK // max(1, values_per_row))
    return [(y, min(y + step, rows)) for y in range(0, rows, step)]


def _check_size(height: int, width: int, max_pixels: int, name: str) -> None:
    if height < 1 or width < 1:
        raise InvalidImageError(f"{name} is empty: height {height}, width {width}; both must be at least 1")
    if height * width > max_pixels:
        raise InvalidImageError(
            f"{name} has {height * width} pixels (height {height}, width {width}); allowed are {max_pixels}. "
            "Shrink or tile it, or raise max_pixels"
        )


def _check_window(window: Any) -> Window:
    try:
        low, high = (float(v) for v in window)
    except (TypeError, ValueError) as error:
        raise InvalidImageError(f"window is {window!r}; expected two numbers (low, high)") from error
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InvalidImageError(f"window is ({low}, {high}); expected finite numbers with low < high")
    return low, high
