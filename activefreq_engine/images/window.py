"""Chooses which values are shown as black and as white where the caller does not say."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidImageError
from activefreq_engine.images.raster import strips

Window = tuple[float, float]
"""(low, high): the values shown as black and as white."""

_PERCENTILES = (0.5, 99.5)
_SAMPLES = 1_000_000  # about so many values are sorted for the percentiles
_SPIKE = 1e-3  # share of the pixels that one value must have to be taken for "no data"
_GROUND = (5.0, 95.0)  # percentiles between which the ground of a sparse picture lies
_NOISE = 0.25  # share of the ground's variance that survives averaging over blocks, if the ground is only noise
_EVEN = 0.05  # share of the ground's variance that is noise at least, if the ground is called even
_SENSOR = 65535  # a bright object is at most so many times the ground's spread away from it: no sensor has more steps


def choose_window(pixels: NDArray[Any], invalid: NDArray[np.bool_] | None = None) -> Window:
    """The default window of a picture; `load_image` states the rule.

    Args:
        pixels (integers or floats `[H, W]` or `[H, W, C]`): NaN means "no data"; infinite values are ignored.
        invalid (bool `[H, W]`, optional): pixels without data.

    Raises:
        InvalidImageError: no pixel has a finite value.
    """
    step = max(1, int(np.sqrt(pixels.size / _SAMPLES)))
    sample = pixels[::step, ::step].astype(np.float64)
    keep = np.isfinite(sample)
    if invalid is not None:
        shown = ~invalid[::step, ::step]
        keep &= shown if sample.ndim == 2 else shown[..., None]
    values = sample.ravel() if keep.all() else sample[keep]
    low, high = _range(pixels, invalid, ())
    if values.size == 0:
        return low, high
    ignored = no_data_values(values, pixels, invalid)
    if ignored:
        values = values[~np.isin(values, ignored)]
        low, high = _range(pixels, invalid, ignored)
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    p_low, p_high = (float(p) for p in np.percentile(values, _PERCENTILES))
    reach = 0.5 * (p_high - p_low)
    if high > p_high + reach or low < p_low - reach:
        p_low, p_high = _sparse(pixels, invalid, ignored, values, (p_low, p_high))
    return (p_low, p_high) if p_low < p_high else (low, high)


def widened(window: Window) -> Window:
    """A window whose lower value is below its higher one, whatever the picture: one of a single value has none."""
    low, high = window
    if low < high:
        return low, high
    if low + 1 > low:
        return low, low + 1
    beside = float(np.nextafter(low, 0))  # so large that adding 1 changes nothing
    return min(low, beside), max(low, beside)


def to_8_bit(array: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Scale values so that `window` becomes 0..255, and clip them: uint8 of the same shape.  NaN becomes 0."""
    low, high = window
    halved = not np.isfinite(high - low)  # the difference overflows: values at both ends of float64
    low, high = (low / 2, high / 2) if halved else (low, high)
    scale = 255.0 / (high - low) if high > low else 0.0
    out = np.empty(array.shape, np.uint8)
    for y0, y1 in strips(array.shape[0], array[0].size):
        part = array[y0:y1].astype(np.float64)
        if halved:
            part /= 2
        if array.dtype.kind == "f":
            part = np.nan_to_num(np.clip(part, low, high), copy=False, nan=low)
        out[y0:y1] = np.rint(np.clip((part - low) * scale, 0, 255))
    return out


def _range(pixels: NDArray[Any], invalid: NDArray[np.bool_] | None, ignored: tuple[float, ...]) -> Window:
    """Smallest and largest finite value of the pixels that have data."""
    low, high = np.inf, -np.inf
    for y0, y1 in strips(len(pixels), pixels[0].size):
        part = pixels[y0:y1]
        if invalid is not None:
            part = part[~invalid[y0:y1]]
        if pixels.dtype.kind == "f":
            part = part[np.isfinite(part)]
        if ignored:
            part = part[~np.isin(part, ignored)]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    if low > high:
        raise InvalidImageError("image has no finite value: all are NaN, infinite, or marked as no data")
    return low, high


def no_data_values(values: NDArray[np.float64], pixels: NDArray[Any], invalid: Any = None) -> tuple[float, ...]:
    """Values that stand for "no data": the smallest or the largest one if many pixels have it exactly, and if it is
    further from the other values than these spread (below 0: further than half of that).  At most three are found.

    Args:
        values (floats `[N]`): the finite values of the picture, or a sample of them.
        pixels, invalid: the picture, as for `choose_window`.
    """
    found: list[float] = []
    for _ in range(3):  # some pictures have two
        rest = values[~np.isin(values, found)] if found else values
        spike = next((v for v in (rest.min(), rest.max()) if _is_spike(float(v), rest, pixels, invalid)), None)
        if spike is None:
            break
        found.append(float(spike))
    return tuple(found)


def _is_spike(value: float, values: NDArray[np.float64], pixels: NDArray[Any], invalid: Any) -> bool:
    same = values == value
    count = np.count_nonzero(same)
    if count < max(2, _SPIKE * values.size) or count == values.size:
        return False
    rest = values[~same]
    low, high = np.percentile(rest, _PERCENTILES)
    # a background may well be 0, but hardly exactly -3024
    gap = (0.5 if value < 0 else 1.0) * (high - low)
    far = value < low - gap or value > high + gap
    if not far or len(np.unique(rest[:: max(1, rest.size // 4096)])) < 16:  # with few values, any is frequent
        return False
    if value < low or value > high + _SENSOR * gap:
        return True
    # a saturated object on an even ground of noise is what the picture shows
    return not _is_noise(pixels, invalid, (value,), rest, even=True)


# --- sparse pictures ---


def _sparse(
    pixels: NDArray[Any],
    invalid: NDArray[np.bool_] | None,
    ignored: tuple[float, ...],
    values: NDArray[np.float64],
    window: Window,
) -> Window:
    """The window, widened where the ground is only noise and something larger than single pixels stands out of it."""
    if not _is_noise(pixels, invalid, ignored, values):
        return window
    low, high = window
    centre = float(np.median(values))
    for y0, y1 in strips(len(pixels), pixels[0].size):
        y = max(0, y0 - 1)
        part, _ = _flat(pixels, invalid, ignored, centre, slice(y, min(len(pixels), y1 + 1)))
        if part.max() > high or part.min() < low:
            calm = cv2.medianBlur(part, 3)  # single hot pixels and lines are gone
            low, high = min(low, float(calm.min())), max(high, float(calm.max()))
    return low, high


def _is_noise(
    pixels: NDArray[Any],
    invalid: NDArray[np.bool_] | None,
    ignored: tuple[float, ...],
    values: NDArray[np.float64],
    even: bool = False,
) -> bool:
    """Whether the values between the percentiles `_GROUND` are noise on an even or smoothly changing ground.

    Averages over blocks of noise vary little; those of a picture vary as its pixels do.  Vignetting, a quadratic
    surface, does not count.  With `even` it may not be most of what is there: a ramp is something to see.
    """
    low, high = (float(p) for p in np.percentile(values, _GROUND))
    if low == high:
        return True
    height, width = pixels.shape[:2]
    block = min(16, min(height, width) // 6)
    if block < 4:
        return False
    centre = (low + high) / 2
    sums, counts = [], []
    rows = max(1, 4_000_000 // (width * block)) * block
    squares = 0.0
    for y0 in range(0, height // block * block, rows):
        part, empty = _flat(pixels, invalid, ignored, centre, slice(y0, min(y0 + rows, height // block * block)))
        part = np.clip(part[:, : width // block * block], low, high) - np.float32(centre)
        part[empty[:, : part.shape[1]]] = 0
        squares += float(np.square(part, dtype=np.float64).sum())
        in_blocks = (len(part) // block, block, -1, block)
        sums.append(part.reshape(in_blocks).sum((1, 3), dtype=np.float64))
        counts.append(np.count_nonzero(~empty[:, : part.shape[1]].reshape(in_blocks), axis=(1, 3)))
    total, count = np.concatenate(sums), np.concatenate(counts)
    variance = squares / max(1, count.sum()) - (total.sum() / max(1, count.sum())) ** 2
    v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in count.shape), indexing="ij")
    full = 2 * count >= block * block  # a block of which less than half has data says little
    u, v, means = u[full], v[full], total[full] / count[full]
    if means.size < 12:  # a surface of six numbers would fit anything
        return False
    surface = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], 1)
    fitted = surface @ np.linalg.lstsq(surface, means, rcond=None)[0]
    if even and variance - float(fitted.var()) < _EVEN * variance:
        return False
    return float((means - fitted).var()) < _NOISE * variance


def _flat(
    pixels: NDArray[Any], invalid: NDArray[np.bool_] | None, ignored: tuple[float, ...], filler: float, rows: slice
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows as one float channel, with `filler` where there is no data; and where that is."""
    part = pixels[rows].astype(np.float64)
    bad = ~np.isfinite(part)
    if ignored:
        bad |= np.isin(part, ignored)
    part[bad] = filler
    if part.ndim == 3:
        # of each pixel the channel that is furthest from the filler
        part = np.take_along_axis(part, np.abs(part - filler).argmax(axis=2)[..., None], axis=2)[..., 0]
        bad = np.asarray(bad.all(axis=2), np.bool_)
    if invalid is not None:
        bad |= invalid[rows]
        part[bad] = filler
    return part.astype(np.float32), bad
