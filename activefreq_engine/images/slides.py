"""Large TIFF files and whole-slide images, read by region.  Needs tifffile and zarr."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidArgumentError, InvalidImageError
from activefreq_engine.images.convert import to_uint8
from activefreq_engine.images.load import MAX_PIXELS
from activefreq_engine.images.raster import Raster
from activefreq_engine.types import Box

_BLACK_IS_ZERO, _RGB, _YCBCR = 1, 2, 6
_KEPT = (1, 5, 8, 32773, 32946, 34925, 50000)  # compressions that keep YCbCr; codecs of JPEG and the like give RGB


class Slide:
    """A large TIFF file (SVS, OME-TIFF, BigTIFF and others that tifffile reads); only the parts that you ask for are
    decoded.

    Args:
        path: the file.  Of several series the first is read, with all levels of its pyramid.

    Example:
        >>> with Slide("slide.svs") as slide, Session() as session:  # doctest: +SKIP
        ...     box = (40_000, 20_000, 42_000, 21_500)
        ...     session.set_image(slide.read(box))
        ...     part = session.click(812, 640).mask  # of the box

    Raises:
        InvalidImageError: tifffile or zarr is missing, or the file is not a TIFF of grey or RGB pixels.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import tifffile
            import zarr
        except ImportError as error:
            raise InvalidImageError(
                f'{path} is read by region with tifffile and zarr: pip install ".[slides]" in the checkout ({error})'
            ) from error
        try:
            self._file = tifffile.TiffFile(os.fspath(path))
        except (OSError, ValueError) as error:  # tifffile's own error is a ValueError
            raise InvalidImageError(f"cannot read {path} as TIFF: {error}") from error
        try:
            series = self._file.series[0]
            self._first = _channels_first(series.axes, str(path))
            self._premultiplied = _check_colours(series, str(path))
            self._levels: list[Any] = [zarr.open(series.aszarr(level=i), mode="r") for i in range(len(series.levels))]
        except InvalidImageError:
            self._file.close()
            raise
        except Exception as error:  # a damaged file fails in many ways
            self._file.close()
            raise InvalidImageError(f"cannot read {path}: {type(error).__name__}: {error}") from error

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) at full size."""
        return self.levels[0]

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(height, width) of each level of the pyramid, the full size first."""
        sizes = [a.shape[1:3] if self._first else a.shape[:2] for a in self._levels]
        return [(int(h), int(w)) for h, w in sizes]

    def covered(self, box: Box, level: int = 0) -> tuple[float, float, float, float]:
        """The area that `read` returns for a box, as (x0, y0, x1, y1) in pixels of the full size.

        It may differ from the box, since `read` returns whole pixels of the level and nothing outside the picture.

        Raises:
            InvalidArgumentError: as for `read`.
        """
        rows, columns = self._cells(box, level)
        (height, width), (h, w) = self.shape, self.levels[level]
        x, y = width / w, height / h
        return columns.start * x, rows.start * y, columns.stop * x, rows.stop * y

    def read(self, box: Box, level: int = 0) -> NDArray[Any]:
        """Read a part of the picture, in the file's own type.

        Args:
            box: (x0, y0, x1, y1) in pixels of the full size, half-open; what lies outside the picture is cut
                off.
            level (int): level of the pyramid, as numbered in `levels`. Default: 0, the full size.

        Returns:
            `[h, w]` or `[h, w, 3]`: the pixels of the level that the box covers, as `Session.set_image` takes them.
            Transparency is composited over white; a fourth band that the file does not call alpha is left out.

        Raises:
            InvalidArgumentError: there is no such level, or the box has no part of the picture.
            InvalidImageError: the part has more than `MAX_PIXELS`, or the file is damaged there.
        """
        rows, columns = self._cells(box, level)
        shape = rows.stop - rows.start, columns.stop - columns.start
        if shape[0] * shape[1] > MAX_PIXELS:
            raise InvalidImageError(
                f"box {box} has {shape[0] * shape[1]} pixels at level {level}; allowed are {MAX_PIXELS}: take a higher "
                "level"
            )
        try:
            where = (slice(None), rows, columns) if self._first else (rows, columns)
            found = np.asarray(self._levels[level][where])
        except Exception as error:  # codecs raise what they like
            raise InvalidImageError(f"cannot decode box {box} at level {level}: {error}") from error
        found = np.moveaxis(found, 0, -1) if self._first else found
        if found.ndim == 3 and found.shape[2] == 4:
            alpha = None if self._premultiplied is None else found[..., 3]
            colours = Raster(found[..., :3], "rgb", alpha=alpha, premultiplied=bool(self._premultiplied))
            found = colours.pixels if alpha is None else to_uint8(colours, None)
        return np.ascontiguousarray(found)

    def _cells(self, box: Box, level: int) -> tuple[slice, slice]:
        """The rows and columns of a level that a box, in pixels of the full size, touches."""
        if not 0 <= level < len(self._levels):
            raise InvalidArgumentError(f"level is {level!r}; allowed are 0 to {len(self._levels) - 1}")
        (height, width), (h, w) = self.shape, self.levels[level]
        x0, x1 = (min(max(x, 0), width) * w / width for x in (box[0], box[2]))
        y0, y1 = (min(max(y, 0), height) * h / height for y in (box[1], box[3]))
        rows, columns = slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1)))
        if rows.stop <= rows.start or columns.stop <= columns.start:
            raise InvalidArgumentError(f"box {box} is no part of the picture of width {width}, height {height}")
        return rows, columns

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _channels_first(axes: str, name: str) -> bool:
    """Whether the axis of colours comes before rows; refuses an array that is not a picture."""
    if axes in ("YX", "YXS"):
        return False
    if axes in ("SYX", "CYX"):
        return True
    raise InvalidImageError(f"{name} has the axes {axes}; only grey and colour pictures are read (YX, YXS, SYX, CYX)")


def _check_colours(series: Any, name: str) -> bool | None:
    """Whether the colours are multiplied by the alpha; None if there is none.  Refuses what tifffile would hand out as
    it is stored, and what would then be taken for grey or RGB: palettes, inverted grey, CMYK and others."""
    page = series.keyframe
    meaning, bands = int(page.photometric), dict(zip(series.axes, series.shape, strict=True))
    alpha = next((int(kind) for kind in page.extrasamples if int(kind) in (1, 2)), None)
    good = meaning == _BLACK_IS_ZERO
    if len(bands) == 3:  # some programs call three bands of colour grey
        good |= meaning == _RGB or (meaning == _YCBCR and int(page.compression) not in _KEPT)
        composited = bands.get("S") == 4 and (alpha is None or series.dtype == np.uint8)
        good &= composited or 3 in (bands.get("S"), bands.get("C"))
    if not good:
        raise InvalidImageError(
            f"{name} has {series.dtype} pixels {series.axes} {series.shape} of photometric interpretation {meaning}; "
            "by region only grey and RGB are read, and transparency of 8 bits. Save it as RGB of 8 bits"
        )
    return None if alpha is None else alpha == 1
