"""Reads pictures from outside, bytes or files, and checks them before they are decoded: photographs, pictures of 16
bits, slides by region, volumes by slices."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidImageError
from activefreq_engine.images import Slide, Window, image_size, load_image, load_values, load_volume
from activefreq_engine.images.raster import say_once
from activefreq_engine.images.volumes import VOLUME_SUFFIXES, Geometry, TooManyPixelsError
from activefreq_engine.images.window import choose_window, widened
from activefreq_engine.serve.errors import ConflictError, NotFoundError, TooLargeError
from activefreq_engine.types import Box

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
SLIDE_SUFFIXES = (".svs", ".ndpi", ".scn", ".bif")
SUFFIXES = PICTURE_SUFFIXES + SLIDE_SUFFIXES + VOLUME_SUFFIXES
NEEDS = {"pictures": (), "volumes": ("SimpleITK",), "slides": ("tifffile", "zarr")}
"""Kind of file -> the packages that read it, apart from those that are always there."""
REGION_PIXELS = 2**22
"""Most pixels of a slide's region that is shown and clicked in."""


@dataclass(frozen=True, slots=True)
class SlideRegion:
    """The part of a slide that a picture shows.  All in pixels of the slide's full size."""

    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1); the picture may have fewer pixels than the box."""
    width: int
    """Width of the slide."""
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """One or more slices of one size."""

    name: str
    planes: NDArray[Any]
    """`[Z, H, W]` or `[Z, H, W, 3]`; uint8 as it is shown, or other values that a window turns into grey."""
    geometry: Geometry | None = None
    """Where a volume lies in space; None for a plain picture."""
    window: Window | None = None
    """The values that the file says are to be shown as black and as white; None if it says nothing."""
    region: SlideRegion | None = None
    """Where the picture lies in its slide; None for other pictures."""

    @property
    def width(self) -> int:
        """Columns of a slice."""
        return int(self.planes.shape[2])

    @property
    def height(self) -> int:
        """Rows of a slice."""
        return int(self.planes.shape[1])

    @property
    def slices(self) -> int:
        """Number of slices; 1 for a plain picture."""
        return len(self.planes)

    @property
    def windowed(self) -> bool:
        """Whether a window says which values are black and white."""
        return self.planes.dtype != np.uint8

    def range(self) -> Window:
        """The smallest and the largest finite value."""
        values = self.planes if self.planes.dtype.kind != "f" else self.planes[np.isfinite(self.planes)]
        return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)

    def default_window(self) -> Window:
        """The file's own window, or else the one that `load_image` would choose for all slices together."""
        return widened(self.window or choose_window(self.planes.reshape(-1, *self.planes.shape[2:])))

    def pixels(self, index: int, window: Window | None) -> NDArray[np.uint8]:
        """uint8 `[H, W]` or `[H, W, 3]`: a slice as it is shown and segmented."""
        return load_image(self.planes[index], window=window if self.windowed else None, copy=False)


def readable() -> list[str]:
    """The kinds of files, of `NEEDS`, whose packages are installed here.  None of the packages is loaded."""
    return [kind for kind, packages in NEEDS.items() if all(find_spec(p) is not None for p in packages)]


def read_picture(data: bytes, name: str, max_pixels: int) -> Planes:
    """Decode a picture or a volume.

    Args:
        data: the file's content.
        name: the file's name; its ending tells a volume from a picture, nothing else.
        max_pixels: more pixels, over all slices, are refused before anything is decoded.

    Raises:
        InvalidImageError: not a picture that can be read; the message says why.
        TooLargeError: too many pixels.
    """
    name = Path(name).name or "picture"
    if name.lower().endswith(VOLUME_SUFFIXES) or data[128:132] == b"DICM":
        return _read_volume(data, name, max_pixels)
    height, width = image_size(data)
    _check(height * width, max_pixels, name)
    return Planes(name, load_values(data, max_pixels=max_pixels)[None])


def _read_volume(data: bytes, name: str, max_pixels: int) -> Planes:
    try:
        volume = load_volume(data, name=name, max_pixels=max_pixels)
    except TooManyPixelsError as error:
        raise TooLargeError(str(error)) from error
    return Planes(name, volume.planes, volume.geometry, volume.window)


def is_slide(path: Path, max_pixels: int) -> bool:
    """Whether a file is opened by region: a slide's name, a pyramid, or a TIFF of more pixels than are opened whole."""
    if path.name.lower().endswith(SLIDE_SUFFIXES):
        return True
    if not path.name.lower().endswith((".tif", ".tiff")):
        return False
    try:
        with Slide(path) as slide:
            return len(slide.levels) > 1 or slide.shape[0] * slide.shape[1] > max_pixels
    except InvalidImageError:  # tifffile is missing or cannot read it: treat it like any other picture
        return False


def read_region(path: Path, name: str, box: Box | None) -> Planes:
    """A part of a slide, from the finest level at which it has at most `REGION_PIXELS`.

    Args:
        path, name: the file, and the name to show for it.
        box: (x0, y0, x1, y1) in pixels of the full size; None for the whole slide.

    Raises:
        InvalidImageError: the file is not a slide that can be read.
        InvalidArgumentError: the box does not lie in the slide.
    """
    with Slide(path) as slide:
        height, width = slide.shape
        box = box or (0, 0, width, height)
        for level in range(len(slide.levels)):
            x0, y0, x1, y1 = slide.covered(box, level)
            h, w = slide.levels[level]
            if (x1 - x0) * w / width * (y1 - y0) * h / height <= REGION_PIXELS:
                break
        pixels = slide.read(box, level)
        region = SlideRegion(slide.covered(box, level), width, height)
    shrink = (pixels.shape[0] * pixels.shape[1] / REGION_PIXELS) ** 0.5
    if shrink > 1:
        pixels = cv2.resize(pixels, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    return Planes(Path(name).name, pixels[None], region=region)


def _check(pixels: int, most: int, name: str) -> None:
    if pixels > most:
        raise TooLargeError(f"{name} has {pixels} pixels; this server takes {most}")


class Folder:
    """The folder of `--images`: its pictures, and nothing outside of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve(strict=True)

    def names(self) -> list[str]:
        """Paths relative to the folder, with forward slashes, sorted; links that lead out are left out, and names that
        are no text, which no client could send back.

        Raises:
            NotFoundError: the folder is not there any more.
        """
        if not self.root.is_dir():
            raise NotFoundError(f"the folder of pictures, {self.root}, is gone; bring it back")
        found = []
        for path in sorted(self.root.rglob("*")):
            if not path.name.lower().endswith(SUFFIXES):
                continue
            name = path.relative_to(self.root).as_posix()
            if any(part.startswith(".") for part in Path(name).parts) or self._inside(path) is None:
                continue
            if _is_text(name):
                found.append(name)
            else:
                say_once(f"the name of {name!r} is no UTF-8; left out: rename it")
        return found

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of one of `names`.

        Raises:
            NotFoundError: there is no such file inside the folder.
            ConflictError: it cannot be read.
            TooLargeError: it is larger than `max_bytes`.
        """
        path = self.path(name)
        try:
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise ConflictError(f"the picture {name} cannot be read: {error.strerror or error}") from error
        if len(data) > max_bytes:
            raise TooLargeError(f"{name} has more than {max_bytes} bytes, which is what this server takes")
        return data

    def path(self, name: str) -> Path:
        """The file of one of `names`.

        Raises:
            NotFoundError: there is no such file inside the folder.
        """
        path = self._inside(self.root / name) if "\0" not in name and _is_text(name) else None
        if path is None or not name.lower().endswith(SUFFIXES):
            raise NotFoundError(f"there is no picture {name!r} in the folder")
        return path

    def _inside(self, path: Path) -> Path | None:
        """The real path of a file after links are followed, if that lies in the folder; else None."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):  # missing, or links in a circle
            return None
        return real if real.is_file() and real.is_relative_to(self.root) else None


def _is_text(name: str) -> bool:
    """Whether a file name can be sent; Python keeps bytes that are no UTF-8 as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
