"""`load_image` and `load_labels`: paths, bytes, file objects, PIL images, arrays and tensors -> pixels."""

import hashlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from activefreq_engine.errors import ActiveFreqError, InvalidArgumentError, InvalidImageError
from activefreq_engine.images.convert import is_alpha, to_uint8
from activefreq_engine.images.decode import decode, decoded_size
from activefreq_engine.images.pillow import from_pillow
from activefreq_engine.images.raster import Raster, check_size, say_once, upright
from activefreq_engine.images.window import Window

MAX_PIXELS = 2**27
"""Default limit on height * width: 134 megapixels."""

# one slash is enough after the names of protocols: pathlib turns two into one
_URL = re.compile(r"[a-z][a-z0-9+.-]+://|(https?|ftp|file|s3|gs):/|data:[^,]*,", re.IGNORECASE)


def load_image(
    source: Any,
    *,
    window: Window | None = None,
    copy: bool = True,
    max_pixels: int = MAX_PIXELS,
    alpha: bool | None = None,
    bgr: bool = False,
) -> NDArray[np.uint8]:
    """Turn `source` into the 8-bit image that the engine works on.

    Args:
        source: a path; the bytes of a file; a binary file object, read from its start; a PIL image; or an array or
            tensor (anything with ``__array__``) of shape `[H, W]`, `[H, W, 1]`, `[H, W, 3]` (RGB) or `[H, W, 4]`, with
            any real numeric type.  docs/pictures.md lists the file formats.

            - Files and PIL images are turned upright by their orientation tag.  Of several pages or frames the first is
              taken, of a pyramid the full size.
            - Transparency is composited over white, as image viewers show it.
            - CMYK, Lab, palettes and colours with an ICC profile are converted to sRGB.
            - uint8 is taken as it is.  Floats that all lie in [0, 1] are scaled by 255.  Everything else (uint16,
              signed integers, other floats) goes through `window`.
        window ((float, float), optional): (low, high), values of the source shown as black and white, applied to every
            input that is not uint8.  Default: the 0.5 and 99.5 percentiles over all channels (of about a million values
            spread evenly over the image), or minimum and maximum where the two percentiles are equal.  Two rules change
            this:

            - Pixels without data are left out.  These are NaN, infinite values, masked pixels of an array, fully
              transparent pixels, and pixels with the no-data value of a GeoTIFF.  The smallest or largest value is
              also taken for "no data" if at least one pixel in a thousand has exactly this value, and if its distance
              from the percentiles of the other values is more than these percentiles lie apart (for a negative value
              such as -9999 or -3024: more than half of that).  A saturated object on a ground of noise is none, unless
              it is farther away than a sensor of 16 bits can show.
              NaN, masked and tagged pixels are shown black, all others as the window says.
            - If the middle nine tenths of the values are only noise, the window is widened to the extremes of the image
              after a 3 x 3 median, that is, to everything larger than single pixels: a bright cell on dark ground
              keeps its shades.
        copy (bool): False may return a C-contiguous uint8 array itself, which must not be changed afterwards.
            Default: True.
        max_pixels (int): larger images are refused; files are refused before they are decoded. Default: `MAX_PIXELS`.
        alpha (bool, optional): whether the fourth channel is alpha.  False leaves it out, e.g. infrared.  Default: as
            the file says; for arrays, if it looks like alpha: its largest value means opaque (255, 4095, 65535, 1.0,
            ...) and at least one in forty of the pixels that are not transparent has it, or it is a fade that shares
            no edges with the colours.
        bgr (bool): the channels of an array come in the order of OpenCV. Default: False.

    Returns:
        uint8 `[H, W]` (grey) or `[H, W, 3]` (RGB), C-contiguous.

    Example:
        >>> load_image(np.array([[0, 100], [200, 50]], np.uint16), window=(0, 200)).tolist()
        [[0, 127], [255, 64]]

    Raises:
        InvalidImageError: the source cannot be used; the message says why.
        InvalidArgumentError: `max_pixels`, `alpha` or `bgr` is not of its type.
    """
    if window is not None:
        window = check_window(window)
    max_pixels = _check_limit(max_pixels)
    for key, value in (("alpha", alpha), ("bgr", bgr)):
        if not (isinstance(value, bool) or (value is None and key == "alpha")):
            raise InvalidArgumentError(f"{key} is {value!r}; allowed are True and False")
    array = as_array(source)
    if array is not None:
        with _typed("image"):
            return _from_array(array, window, copy, max_pixels, alpha, bgr)
    if bgr:
        raise InvalidImageError("bgr is for arrays: files and PIL images know the order of their channels")
    raster, band, name = _decoded(source, max_pixels)
    if alpha is False:
        raster.alpha = None
        if raster.palette is not None:
            raster.palette = raster.palette[:, :3]
    with _typed(name):
        if band is not None:
            _fourth(raster, band, alpha)
        return to_uint8(raster, window)


def load_values(source: Any, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Read the values of a picture before any window is applied, for programs in which people choose the window.

    Args:
        source: a path, the bytes of a file, a binary file object or a PIL image.
        max_pixels (int): larger ones are refused. Default: `MAX_PIXELS`.

    Returns:
        `[H, W]` or `[H, W, 3]`, upright.  Where the picture has 8 bits: uint8, as `load_image` returns it.  Else values
        of another type; ``load_image(values, window=...)`` then equals ``load_image(source, window=...)``.  But a
        picture of more than 8 bits that has transparency, a colour profile, white as zero or pixels marked as no data
        comes as uint8, through the default window.

    Raises:
        InvalidImageError: the source cannot be used; the message says why.
    """
    raster, _, name = _decoded(source, _check_limit(max_pixels))
    plain = raster.alpha is None and raster.profile is None and raster.invalid is None and not raster.inverted
    if plain and raster.kind in ("grey", "rgb") and raster.pixels.dtype != np.uint8:
        return upright(raster.pixels, raster.orientation)
    with _typed(name):
        return to_uint8(raster, None)


def load_labels(source: Any, *, any_colour: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Read a mask or label map as it is stored: palette indices, grey values, upright.

    Args:
        source: a path, the bytes of a file, a binary file object or a PIL image.
        any_colour (bool): take the largest channel of a colour picture, as suits a mask that was painted in a colour.
            Default: False.
        max_pixels (int): larger ones are refused. Default: `MAX_PIXELS`.

    Returns:
        `[H, W]` of the stored integer type.  A colour picture whose channels are equal counts as grey.  Transparency is
        ignored.  Where zero is stored for white, values are inverted, so that white is the largest.  Floats that are
        whole numbers become int64.

    Raises:
        InvalidImageError: the source cannot be read, has colours, or has values that are not whole numbers.
    """
    raster, _, name = _decoded(source, _check_limit(max_pixels))
    values = raster.pixels
    coloured = f"{name} is a colour picture ({raster.kind.upper()}); a mask or label map needs one channel"
    if raster.kind in ("cmyk", "lab"):
        raise InvalidImageError(coloured)
    if values.ndim == 3:  # some tools save masks as RGB
        if not any_colour and (values != values[..., :1]).any():
            raise InvalidImageError(coloured)
        values = values.max(axis=2)
    if values.dtype.kind == "f":
        whole = np.rint(np.nan_to_num(values, nan=0.5, posinf=0.5, neginf=0.5))
        if not np.array_equal(whole, values) or np.abs(whole).max() > 2**53:
            raise InvalidImageError(f"{name} holds fractions or NaN; a mask or label map needs whole numbers")
        values = whole.astype(np.int64)
    if raster.inverted and values.dtype.kind == "u":
        top = (1 << raster.bits) - 1 if raster.bits else int(np.iinfo(values.dtype).max)
        values = (top - values).astype(values.dtype)
    return upright(values, raster.orientation)


def image_size(source: str | os.PathLike[str] | bytes) -> tuple[int, int]:
    """(height, width) of the upright image in a file, from its header.

    Raises:
        InvalidImageError: the file cannot be read.
    """
    with _opened(source) as (file, name):
        return decoded_size(file, name)


def is_url(path: str) -> bool:
    """Whether a text is no path but the address of something to be downloaded."""
    return _URL.match(path) is not None


def image_digest(image: NDArray[np.uint8]) -> str:
    """sha256 (hex) over shape and pixels of an image as `load_image` returns it."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.data)
    return digest.hexdigest()


def check_window(window: Any) -> Window:
    """(low, high) as floats.

    Raises:
        InvalidImageError: `window` is not two finite numbers with the lower one first.
    """
    try:
        low, high = (float(v) for v in window)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last: tensors
        raise InvalidImageError(f"window is {_short(window)}; expected two numbers (low, high)") from error
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InvalidImageError(f"window is ({low}, {high}); expected finite numbers with low < high")
    return low, high


def _check_limit(max_pixels: Any) -> int:
    try:
        if max_pixels >= 1 and not isinstance(max_pixels, bool):
            return int(min(max_pixels, 2**62))
    except (TypeError, ValueError, ArithmeticError):  # arrays, None: refused below
        pass
    raise InvalidArgumentError(f"max_pixels is {_short(max_pixels)}; allowed are whole numbers from 1")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@contextmanager
def _typed(name: str) -> Iterator[None]:
    """Turn whatever a library raises, and a lack of memory, into `InvalidImageError`, which callers expect."""
    try:
        with np.errstate(all="ignore"):  # a program may have made NumPy raise on overflows, but for its own numbers
            yield
    except ActiveFreqError:
        raise
    except MemoryError as error:
        raise InvalidImageError(f"not enough memory for {name}; shrink it") from error
    except Exception as error:
        raise InvalidImageError(f"cannot convert {name}: {type(error).__name__}: {error}") from error


# --- files ---


def _decoded(source: Any, max_pixels: int) -> tuple[Raster, NDArray[Any] | None, str]:
    """Raster, undeclared fourth band, and a name for messages."""
    if isinstance(source, Image.Image):
        return _from_pil(source, max_pixels)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read"):
        with _opened(source) as (file, name):
            return *decode(file, max_pixels, name), name
    raise InvalidImageError(
        f"image is a {type(source).__name__}; allowed are a path, the bytes of a file, a binary file object, a PIL "
        "image and an array of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
    )


@contextmanager
def _opened(source: Any) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable binary file, and its name for messages.  The caller's own file object stays open."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = source.tobytes() if isinstance(source, memoryview) else source
        yield io.BytesIO(data), f"image of {len(data)} bytes"
        return
    if not isinstance(source, (str, os.PathLike)):
        yield _seekable(source), "image"
        return
    path = os.fspath(source)
    name = f"image '{path!s}'" if len(path) <= 200 else f"image '{str(path)[:200]}...'"
    if isinstance(path, str) and is_url(path):
        raise InvalidImageError(f"cannot read {name}: it is a URL; download it first and pass the path or the bytes")
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISREG(kind):
            file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise InvalidImageError(f"cannot read {name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InvalidImageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(kind):
        what = "a directory" if stat.S_ISDIR(kind) else "a device, pipe or socket"
        raise InvalidImageError(f"cannot read {name}: {what}, not a file")
    with file:
        yield file, name


def _seekable(source: Any) -> IO[bytes]:
    try:
        try:
            source.seek(0)
            head = source.read(1)
            if isinstance(source, io.RawIOBase):  # may give less than it is asked for; decoders ask once
                source.seek(0)
                source = io.BytesIO(source.readall())
        except (AttributeError, OSError):  # a pipe or a response: no seek, or one that says no
            data = source.read()
            source, head = io.BytesIO(data), data[:1]
    except Exception as error:  # a caller's own class may raise anything
        raise InvalidImageError(f"cannot read the file object {type(source).__name__}: {error}") from error
    if not isinstance(head, bytes):
        raise InvalidImageError("the file object gives text, not bytes; open the file with mode 'rb'")
    return source


def _from_pil(image: Image.Image, max_pixels: int) -> tuple[Raster, NDArray[Any] | None, str]:
    check_size(image.height, image.width, max_pixels, "image")
    if image.format == "EPS" and isinstance(image, ImageFile.ImageFile) and image.tile:
        raise InvalidImageError("image is PostScript, which is a program and is never run here; save it as PNG")
    closed = "the PIL image was closed; pass it before its `with` block ends"
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.fp is None:  # Pillow 13 only asserts this
        raise InvalidImageError(closed)
    # the image was opened but not loaded, so nobody can have painted on it: read its file ourselves, since Pillow keeps
    # 8 bits of 16-bit colour
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.tell() == 0 and image.fp is not None:
        try:
            at = image.fp.tell()
            raster, band = decode(image.fp, max_pixels, "image")
            image.fp.seek(at)
            # else a smaller size was asked for (`draft`), or this is a pyramid's first page: prompts are in its pixels
            if sorted(raster.pixels.shape[:2]) == sorted(image.size):
                return raster, band, "image"
        except (InvalidImageError, OSError, ValueError, AttributeError) as error:
            say_once(f"Pillow reads a {image.format} picture, which may cost it depth: {error}")
    try:
        return from_pillow(image), None, "image"
    except ValueError as error:
        if "closed image" in str(error):
            raise InvalidImageError(closed) from error
        raise InvalidImageError(f"cannot decode image: {error}. The file may be truncated or corrupt") from error
    except Exception as error:  # truncated and corrupt files fail here, in many ways
        raise InvalidImageError(f"cannot decode image: {error}. The file may be truncated or corrupt") from error


# --- arrays ---


def as_array(source: Any) -> NDArray[Any] | None:
    """The array behind arrays and tensors of any library, on the CPU; None for other sources.

    Raises:
        InvalidImageError: no array can be made of it (meta, sparse and quantised tensors).
    """
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        return None
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    try:
        if torch is not None and isinstance(source, torch.Tensor):
            source = source.detach().resolve_conj().resolve_neg().cpu()
            source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
        if isinstance(source, np.ma.MaskedArray):
            return source
        if hasattr(source, "__array__"):
            return np.asarray(source)
    except Exception as error:  # meta, sparse and quantised tensors; a library's own refusal
        raise InvalidImageError(
            f"the image is a {type(source).__name__}, of which no array can be made: {error}. Pass a NumPy array"
        ) from error
    return None


def _from_array(
    array: NDArray[Any], window: Window | None, copy: bool, max_pixels: int, alpha: bool | None, bgr: bool
) -> NDArray[np.uint8]:
    masked = np.asarray(np.ma.getmaskarray(array)) if isinstance(array, np.ma.MaskedArray) else None
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: try image.transpose(1, 2, 0)"
        elif array.ndim == 3 and array.shape[2] > 4:
            hint = f"; of {array.shape[2]} bands choose three: image[..., [i, j, k]]"
        raise InvalidImageError(
            f"image has shape {array.shape}; allowed are [H, W], [H, W, 1], [H, W, 3] and [H, W, 4]{hint}"
        )
    check_size(array.shape[0], array.shape[1], max_pixels, "image")
    if array.dtype.kind not in "uif":
        raise InvalidImageError(f"image has dtype {array.dtype}; allowed are integers and floats, uint8 being best")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    raster = Raster(array, "rgb" if array.ndim == 3 else "grey")
    if masked is not None and masked.any():
        raster.invalid = np.asarray(masked.reshape(*array.shape[:2], -1).any(axis=2), np.bool_)
    if array.ndim == 3:
        raster.pixels = array[..., 2::-1] if bgr else array[..., :3]
        if array.shape[2] == 4:
            _fourth(raster, array[..., 3], alpha)
    pixels = to_uint8(raster, window)
    return pixels.copy() if copy and np.may_share_memory(pixels, array) else pixels


def _fourth(raster: Raster, band: NDArray[Any], alpha: bool | None) -> None:
    """Set a fourth band as the raster's alpha if the caller says so, or if nobody says and it looks like alpha."""
    if alpha or (alpha is None and is_alpha(band, raster.pixels)):
        raster.alpha = band
    elif alpha is None:
        say_once(
            "a fourth channel does not look like alpha and is left out; pass alpha=True to composite it over white, "
            "alpha=False to leave this line out"
        )
