"""`Raster` -> 8-bit grey or RGB as a screen shows it: window, colour space, profile, transparency, orientation."""

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from activefreq_engine.errors import InvalidImageError
from activefreq_engine.images.raster import Raster, say_once, strips, upright
from activefreq_engine.images.window import Window, choose_window, to_8_bit

_SAME = 2  # grey levels: a profile that moves no colour by more is taken for sRGB


def to_uint8(raster: Raster, window: Window | None) -> NDArray[np.uint8]:
    """uint8 `[H, W]` or `[H, W, 3]`, upright, C-contiguous.  Changes `raster`, which must not be used afterwards."""
    if raster.kind == "index":
        assert raster.palette is not None
        shown = raster.palette[np.minimum(raster.pixels, len(raster.palette) - 1)]
        if shown.shape[2] == 4:
            raster.alpha = shown[..., 3]
            shown = shown[..., :3]
    elif raster.kind == "cmyk":
        shown = _cmyk(_scaled(raster), raster.profile)
        raster.profile = None
    elif raster.kind == "lab":
        shown = _transformed(raster.pixels, "LAB", "RGB", _lab_to_srgb())
    elif raster.pixels.dtype == np.uint8:
        shown = _scaled(raster)
    else:
        if raster.premultiplied and raster.alpha is not None:
            raster.pixels = _straight(raster.pixels, raster.alpha)
            raster.premultiplied = False
        if window is None:
            left_out = raster.invalid
            if raster.alpha is not None:
                left_out = raster.alpha == 0 if left_out is None else left_out | (raster.alpha == 0)
            window = choose_window(raster.pixels, left_out)
        shown = to_8_bit(raster.pixels, window)
    if raster.inverted:
        np.subtract(255, shown, out=shown)
    if raster.invalid is not None:
        shown = shown if shown.flags.writeable else shown.copy()
        shown[raster.invalid] = 0
    if raster.profile is not None:
        shown = _profiled(shown, raster.profile)
    if raster.alpha is not None:
        if raster.premultiplied:
            shown = _straight(shown, raster.alpha)
        shown = _over_white(shown, _alpha8(raster.alpha, raster.bits))
    return upright(shown, raster.orientation)


def opaque_value(alpha: NDArray[Any], bits: int = 0) -> float:
    """The value of a fully opaque pixel: the largest that `bits` bits hold.  Without `bits` it is guessed: 1 for floats
    up to 1, else the smallest customary maximum (255, 1023, ..., 65535, ...) that no value exceeds."""
    if bits:
        return float((1 << bits) - 1)
    if alpha.dtype == np.uint8:
        return 255.0
    top = float(alpha.max())
    if alpha.dtype.kind == "f" and top <= 1:
        return 1.0
    if alpha.dtype == np.uint16 and top > 16383:
        return 65535.0
    customary = (255.0, 1023.0, 4095.0, 16383.0, 32767.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
    return next((c for c in customary if top <= c), top)


def is_alpha(band: NDArray[Any], colours: NDArray[Any]) -> bool:
    """Whether a fourth band that nobody has named looks like alpha.

    Either its largest value is that of a fully opaque pixel, and at least one in forty of the pixels that are not fully
    transparent has this value; infrared, the other common fourth band, is rarely saturated.  Or it runs from nearly
    transparent to nearly opaque and does not have the edges of the picture: then it is a fade, since infrared shares
    the edges of the colours.
    """
    opaque = opaque_value(band)
    if np.count_nonzero(band == opaque) * 40 >= max(1, np.count_nonzero(band)):
        return True
    if band.min() > 0.05 * opaque or band.max() < 0.95 * opaque or band.shape[1] < 2:  # a single column has no edges
        return False
    step = max(1, band.size // 1_000_000)
    edges = np.abs(np.diff(band[::step].astype(np.float64), axis=1)).ravel()
    others = np.abs(np.diff(colours[::step].astype(np.float64).mean(axis=2), axis=1)).ravel()
    spread = float(edges.std() * others.std())
    return spread == 0 or float(((edges - edges.mean()) * (others - others.mean())).mean()) < 0.3 * spread


def _scaled(raster: Raster) -> NDArray[np.uint8]:
    """Unsigned integers of any depth, scaled to 8 bits so that the largest possible value becomes 255."""
    pixels, bits = raster.pixels, raster.bits or 8 * raster.pixels.dtype.itemsize
    if pixels.dtype.kind != "u":
        raise InvalidImageError(f"CMYK of {pixels.dtype}; allowed are unsigned integers. Convert it to RGB first")
    if raster.white:
        return np.rint(np.arange(256) / raster.white * 255).clip(0, 255).astype(np.uint8)[pixels]
    if pixels.dtype == np.uint8 and bits == 8:
        return pixels
    if pixels.dtype == np.uint8:
        return (np.arange(256) * 255 // ((1 << bits) - 1)).clip(0, 255).astype(np.uint8)[pixels]
    return to_8_bit(pixels, (0.0, float((1 << bits) - 1)))


def _alpha8(alpha: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if alpha.dtype == np.uint8 and bits in (0, 8):
        return alpha
    return to_8_bit(alpha, (0.0, opaque_value(alpha, bits)))


def _straight(colours: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Undo the multiplication by alpha; fully transparent pixels keep their values."""
    opaque = opaque_value(alpha)
    out = np.empty_like(colours)
    top = np.iinfo(colours.dtype).max if colours.dtype.kind in "ui" else None
    for y0, y1 in strips(len(colours), colours[0].size):
        a = alpha[y0:y1].astype(np.float64)
        a = np.where(a == 0, opaque, a)
        part = colours[y0:y1] * (opaque / (a if colours.ndim == 2 else a[..., None]))
        out[y0:y1] = part if top is None else np.minimum(np.floor(part + 1e-6), top)
    return out


def _over_white(shown: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture over white, `[H, W, 3]`, as a viewer shows transparency on a white page."""
    out = np.empty((*shown.shape[:2], 3), np.uint8)
    for y0, y1 in strips(len(shown), shown.shape[1] * 4):
        a = alpha[y0:y1, :, None].astype(np.uint32)
        part = shown[y0:y1] if shown.ndim == 3 else shown[y0:y1, :, None]
        out[y0:y1] = (part * a + 255 * (255 - a) + 127) // 255
    return out


# --- colour spaces ---


def _transformed(pixels: NDArray[np.uint8], mode: str, target: str, transform: Any) -> NDArray[np.uint8]:
    out = np.empty(pixels.shape[:2] if target == "L" else (*pixels.shape[:2], 3), np.uint8)
    for y0, y1 in strips(len(pixels), pixels[0].size):
        strip = Image.fromarray(np.ascontiguousarray(pixels[y0:y1])) if mode != "LAB" else _lab_image(pixels[y0:y1])
        shown = np.asarray(ImageCms.applyTransform(strip, transform) if transform is not None else strip.convert("RGB"))
        out[y0:y1] = shown[..., 1] if target == "L" else shown
    return out


def _lab_image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.frombytes("LAB", (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels).tobytes())


@functools.cache
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _lab_to_srgb() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")


def _cmyk(pixels: NDArray[np.uint8], profile: bytes | None) -> NDArray[np.uint8]:
    transform = _transform(profile, "CMYK") if profile is not None else None
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for y0, y1 in strips(len(pixels), pixels[0].size):
        strip = Image.fromarray(np.ascontiguousarray(pixels[y0:y1]), "CMYK")
        out[y0:y1] = np.asarray(
            strip.convert("RGB") if transform is None else ImageCms.applyTransform(strip, transform)
        )
    return out


def _profiled(shown: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """Colours converted to sRGB by their profile.  Colours that are sRGB already keep every bit."""
    mode = "L" if shown.ndim == 2 else "RGB"
    transform = _transform(profile, mode)
    if transform is None:
        return shown
    steps = np.arange(0, 256, 15 if mode == "L" else 51, dtype=np.uint8)
    probe = steps[None] if mode == "L" else np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    moved = _transformed(probe, mode, mode, transform)
    if np.abs(moved.astype(int) - probe).max() <= _SAME:
        return shown
    return _transformed(shown, mode, mode, transform)


def _transform(profile: bytes, mode: str) -> Any:
    """The transform from a profile to sRGB; None, with a warning in the log, if the profile cannot be used."""
    try:
        return ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb(), mode, "RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError) as error:
        say_once(f"a colour profile cannot be used ({error}): colours are taken as stored. Said once for each message")
        return None
