"""Converts the pictures of Pillow to `Raster`."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from activefreq_engine.images.raster import Raster, say_once, strips

_ORIENTATION = 0x0112  # the EXIF and TIFF tag


def from_pillow(image: Image.Image) -> Raster:
    """Load a picture of any mode; the raster keeps the orientation that is still to be undone.

    Raises:
        Exception: whatever the decoder raises on damaged or hostile bytes; callers turn it into `InvalidImageError`.
    """
    image.load()  # must come before the orientation is asked for: here Pillow turns a TIFF upright and drops its tag
    orientation = _orientation(image)
    transparency = image.info.get("transparency")
    profile = image.info.get("icc_profile")
    mode = image.mode
    if mode in ("La", "RGBa", "RGBX", "HSV", "YCbCr"):
        # Pillow converts premultiplied alpha to plain alpha only
        mode = {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    pixels = _pixels(image, mode)
    raster = Raster(pixels, orientation=orientation, profile=profile if isinstance(profile, bytes) else None)
    if mode == "1":
        raster.pixels, raster.bits = (pixels != 0).view(np.uint8), 1
    elif mode in ("LA", "PA"):
        raster.pixels, raster.alpha = pixels[..., 0], pixels[..., 1]
    elif mode == "RGBA":
        raster.pixels, raster.alpha = pixels[..., :3], pixels[..., 3]
    if mode in ("P", "PA"):
        raster.kind, raster.palette = "index", _palette(image, transparency)
    elif mode == "LAB":
        raster.kind = "lab"
    elif mode == "CMYK":
        raster.kind = "cmyk"
    elif raster.pixels.ndim == 3:
        raster.kind = "rgb"
    if transparency is not None and raster.alpha is None and raster.kind in ("grey", "rgb"):
        add_transparency(raster, transparency)
    return raster


def add_transparency(raster: Raster, colour: Any) -> None:
    """Make one colour, a number or three, fully transparent."""
    same = raster.pixels == np.asarray(colour)
    same = same.all(axis=2) if same.ndim == 3 else same
    raster.alpha = np.where(same, 0, _opaque(raster)).astype(raster.pixels.dtype)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # many programs write EXIF wrongly, and the picture can be shown all the same
        say_once(f"unreadable EXIF ({error}): the picture is taken as stored. Said once for each such message")
        return 1


def _opaque(raster: Raster) -> int:
    return (1 << raster.bits) - 1 if raster.bits else int(np.iinfo(raster.pixels.dtype).max)


def header_orientation(image: Image.Image) -> int:
    """EXIF orientation without decoding the picture, which ``getexif`` would do to a PNG."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    if _ORIENTATION in exif:
        return int(exif[_ORIENTATION])
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp.encode() if isinstance(xmp, str) else xmp)
    return int(found[1]) if found else 1


def _pixels(image: Image.Image, mode: str) -> NDArray[Any]:
    """The pixels as an array, converted in strips of rows: Pillow would hold several copies of the whole picture."""
    width, height = image.size
    out: NDArray[Any] | None = None
    for y0, y1 in strips(height, 4 * width):
        strip = image.crop((0, y0, width, y1))
        part = np.asarray(strip if strip.mode == mode else strip.convert(mode))
        if out is None:
            out = np.empty((height, *part.shape[1:]), part.dtype)
        out[y0:y1] = part
    assert out is not None
    return out


def _palette(image: Image.Image, transparency: Any) -> NDArray[np.uint8]:
    """256 colours, `[256, 3]`, or `[256, 4]` where some are transparent."""
    palette = image.palette
    if palette is None:
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if palette.mode == "RGBA":
        colours = np.frombuffer(bytes(image.getpalette("RGBA") or ()), np.uint8).reshape(-1, 4)
    else:
        colours = np.frombuffer(bytes(image.getpalette("RGB") or ()), np.uint8).reshape(-1, 3)
    table = np.zeros((256, colours.shape[1]), np.uint8)
    table[: len(colours)] = colours[:256]
    if transparency is None:
        return table
    alpha = np.full(256, 255, np.uint8)
    if isinstance(transparency, bytes):
        alpha[: len(transparency)] = np.frombuffer(transparency[:256], np.uint8)
    else:
        alpha[int(transparency)] = 0
    return np.column_stack([table[:, :3], alpha])
