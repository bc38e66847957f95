"""Reads volumes (DICOM, NIfTI, MetaImage, NRRD) as slices, with their position in space.  Needs SimpleITK."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidImageError, InvalidMaskError
from activefreq_engine.files import write_file
from activefreq_engine.images.dicom import Dicom, is_dicom
from activefreq_engine.images.load import MAX_PIXELS, load_image
from activefreq_engine.images.raster import say_once
from activefreq_engine.images.volume_files import NiftiPlace, check_alone, check_whole, wrongly_added
from activefreq_engine.images.window import Window, choose_window, widened

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd", ".dcm")
"""Endings of files that are read as volumes; DICOM is also told by its first bytes."""


_TAGS = {
    "NiftiImageIO": ("vox_offset", "bitpix", "scl_slope", "scl_inter"),
    "GDCMImageIO": tuple(f"0028|{n}" for n in ("0004", "0101", "0103", "1050", "1051", "1052", "1053", "1056")),
}
"""The header entries that are read.  Others may hold bytes that SimpleITK cannot turn into text."""


_UNEVEN = 0.1  # share of the distance of two slices by which a slice may lie elsewhere: positions are rounded
_TILT = 1e-3  # and share of its distance from the first slice: so are directions


class TooManyPixelsError(InvalidImageError):
    """A volume has more pixels than allowed."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a volume or a picture lies in space, in SimpleITK's conventions: x first, millimetres, LPS."""

    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]
    nifti: NiftiPlace | None = None
    """Of a NIfTI file, its place as stored."""


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A stack of slices of one size, along the slowest axis of the file as stored: nothing is resampled or turned."""

    planes: NDArray[Any]
    """`[Z, H, W]` or `[Z, H, W, 3]`, in the units of the file: slope and intercept are applied, and larger values are
    brighter."""
    geometry: Geometry
    window: Window | None = None
    """(low, high), the values shown as black and white, if the file has such a window (the first one of a DICOM
    file)."""

    def default_window(self) -> Window:
        """`window` if the file has one, else what `load_image` would choose for all slices together."""
        return widened(self.window or choose_window(self.planes.reshape(-1, *self.planes.shape[2:])))

    def pixels(self, index: int, window: Window | None = None) -> NDArray[np.uint8]:
        """A slice as `Session.set_image` takes it, uint8 `[H, W]` or `[H, W, 3]`.

        Args:
            index (int): number of the slice, counted from 0.
            window ((float, float), optional): values shown as black and white. Default: `default_window`.
        """
        shown = None if self.planes.dtype == np.uint8 else window or self.default_window()
        return load_image(self.planes[index], window=shown, copy=False)

    def save_labels(self, path: str | os.PathLike[str], labels: Any) -> None:
        """Write labels as a volume with the origin, spacing and direction of this one, in the format that the ending
        names.

        Args:
            path: target; it ends in .nii, .nii.gz, .mha or .nrrd.
            labels: integers or bool `[Z, H, W]`, of this volume's size.

        Raises:
            InvalidMaskError: the labels have another size than the volume, or are not integers.
            InvalidImageError: SimpleITK is missing, or cannot write the file; the target is then as it was.
        """
        array = np.asarray(labels)
        if array.shape != self.planes.shape[:3] or array.dtype.kind not in "bui":
            raise InvalidMaskError(
                f"the labels have shape {array.shape} and type {array.dtype}; expected integers of shape "
                f"{self.planes.shape[:3]}"
            )
        target = Path(path)
        try:
            write_file(target, label_file(array, self.geometry, target.name))
        except (RuntimeError, OSError) as error:
            raise InvalidImageError(f"cannot write {path}: {_reason(error)}; what was there is as it was") from error


def label_file(labels: NDArray[Any], geometry: Geometry | None, name: str) -> bytes:
    """The content of a label volume.

    Args:
        labels: integers or bool `[Z, H, W]`.
        geometry (Geometry, optional): where they lie.
        name: the file's name; its ending is the format.

    Raises:
        InvalidImageError: SimpleITK is missing.
        RuntimeError: SimpleITK cannot write such a file.
    """
    sitk = _simpleitk(name)
    kind = np.uint8 if labels.dtype == np.bool_ else labels.dtype.newbyteorder("=")
    labels = labels.astype(kind, copy=False)
    image = sitk.GetImageFromArray(labels[0] if geometry is not None and len(geometry.origin) == 2 else labels)
    if geometry is not None:
        image.SetOrigin(geometry.origin)
        image.SetSpacing(geometry.spacing)
        image.SetDirection(geometry.direction)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / Path(name).name  # the writer chooses the format by the ending
        sitk.WriteImage(image, str(written), True)
        data = written.read_bytes()
    if geometry is None or geometry.nifti is None or not name.lower().endswith((".nii", ".nii.gz")):
        return data
    return geometry.nifti.put(data)


def load_volume(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Volume:
    """Read a volume, or a single medical picture as a volume of one slice.

    DICOM: slope and intercept are applied, and the first window becomes `Volume.window`.  Where white is zero
    (MONOCHROME1), values and window are inverted.  Frames become slices.  A folder holds one series, which is put in
    its order in space.  NIfTI: slope and intercept are applied.

    Args:
        source: a file, the bytes of a file, or a folder with one DICOM series.
        name (str, optional): for bytes, the name of the file, whose ending tells the format. Default: DICOM.
        max_pixels (int): a volume with more pixels, over all slices, is refused before it is decoded. Default:
            `MAX_PIXELS`, 134 million.

    Raises:
        InvalidImageError: SimpleITK is missing, or the source cannot be used; the message says why.
    """
    if isinstance(source, bytes):
        shown = Path(name or "volume.dcm").name
        suffix = next((s for s in VOLUME_SUFFIXES if shown.lower().endswith(s)), ".dcm")
        _simpleitk(shown)  # before anything is written
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"volume{suffix}"
                path.write_bytes(source)
                return _read(path, shown, max_pixels)
        except OSError as error:
            raise InvalidImageError(f"cannot read {shown}: it cannot be put on the disk: {error}") from error
    path = Path(source)
    try:
        if not path.is_dir():
            path.open("rb").close()  # tells why a file cannot be opened, which SimpleITK does not
    except (OSError, ValueError) as error:
        raise InvalidImageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not path.name.lower().endswith(".nii.gz"):
        return _read(path, path.name, max_pixels)
    # NIfTI's library would open the .nii of the same name, if one lies beside it: show it the file alone
    try:
        with tempfile.TemporaryDirectory() as folder:
            alone = Path(folder) / "volume.nii.gz"
            try:
                alone.symlink_to(path.resolve())
            except OSError:  # Windows wants a right for links
                shutil.copyfile(path, alone)
            return _read(alone, path.name, max_pixels)
    except OSError as error:
        raise InvalidImageError(f"cannot read {path.name}: no folder for temporary files: {error}") from error


def _read(path: Path, name: str, max_pixels: int) -> Volume:
    sitk = _simpleitk(name)
    files = [str(path)]
    if path.is_dir():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if len(series) != 1:
            raise InvalidImageError(f"{name} holds {len(series)} DICOM series; expected a folder with one")
        files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0]))
    reader = sitk.ImageFileReader()
    try:
        kind = _kind(Path(files[0]))
        reader.SetImageIO(kind)  # SimpleITK would guess one, and the checks made here are for this reader only
        check_alone(path, name)
        scales, places, positions = set(), [], []
        for file in reversed(files):  # the first file comes last: its header becomes that of the volume
            if kind == "GDCMImageIO":
                positions = Dicom.of(Path(file).read_bytes(), name).positions
            reader.SetFileName(file)
            reader.ReadImageInformation()
            size, components = reader.GetSize(), reader.GetNumberOfComponents()
            of_one = int(np.prod(size, dtype=np.float64))
            if of_one == 0 or of_one * len(files) > max_pixels:
                raise TooManyPixelsError(f"{name} has {of_one * len(files)} pixels; allowed are 1 to {max_pixels}")
            if len(size) not in (2, 3) or components not in (1, 3):
                raise InvalidImageError(
                    f"{name} has {len(size)} axes and {components} values a pixel; allowed are 2 or 3 axes and 1 "
                    "value, or 3 for colour"
                )
            tags = {key: reader.GetMetaData(key).strip() for key in _TAGS.get(kind, ()) if reader.HasMetaDataKey(key)}
            check_whole(Path(file), name, tags, of_one)
            scales.add((tags.get("0028|1053"), tags.get("0028|1052")))
            places.append(Geometry(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection()))
        excess = wrongly_added(tags)
        if path.is_dir():
            _check_stack(places[::-1], name)
            # SimpleITK's own type is that of the first slice, which may be too small for values of the others
            image = sitk.ReadImage(files, sitk.sitkFloat64 if len(scales) > 1 else sitk.sitkUnknown, kind)
        else:
            image = reader.Execute()
    except InvalidImageError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # ValueError: words in place of numbers in a header
        if "orthonormal" in str(error):
            raise InvalidImageError(f"{name} has sheared axes; resample it to axes at right angles first") from error
        raise InvalidImageError(
            f"cannot decode {name}; the file may be truncated or corrupt, or of a kind that SimpleITK does not read"
        ) from error
    planes = sitk.GetArrayFromImage(image)
    planes = planes[None] if image.GetDimension() == 2 else planes
    planes = planes - planes.dtype.type(excess) if excess else planes
    if planes.dtype.kind == "f" and not np.isfinite(planes).all():
        raise InvalidImageError(f"{name} has NaN or infinite values; replace them first")
    window = _window(tags)
    if planes.ndim == 4:
        window = None
    elif window is not None and planes.dtype == np.uint8:
        planes = planes.astype(np.int16)  # so that a window applies to it
    if len(positions) == len(planes):
        _say_uneven(positions, places[0], name)
    nifti = NiftiPlace.of(path) if kind == "NiftiImageIO" else None
    place = Geometry(image.GetOrigin(), image.GetSpacing(), image.GetDirection(), nifti)
    return Volume(np.ascontiguousarray(planes), place, window)


def _check_stack(places: list[Geometry], name: str) -> None:
    """Refuse slices that do not lie one above the other at even distances: SimpleITK would place them as if they did.

    Slices that all have one position, or none, pass: their order is that of their numbers.

    Raises:
        InvalidImageError: a slice is missing, there are several volumes or planes of several directions, or the stack
            is tilted.
    """
    first = places[0]
    if len(first.origin) != 3 or len(places) == 1:
        return
    shapes = np.array([(*p.direction, *p.spacing[:2]) for p in places])
    if not np.allclose(shapes, shapes[0], rtol=1e-3, atol=1e-3):
        raise InvalidImageError(
            f"{name} holds slices of several directions or pixel sizes; keep the files of one stack"
        )
    if _uneven([p.origin for p in places], first):
        raise InvalidImageError(
            f"{name} is no stack of slices at even distances: slices are missing, there are several volumes in it, or "
            "the gantry was tilted. Keep the files of one volume, or resample it first"
        )


def _uneven(positions: Sequence[Sequence[float]], first: Geometry) -> bool:
    """Whether slices do not lie one above the other at even distances.  All at one position are even."""
    at = np.array(positions) - positions[0]
    normal = np.reshape(first.direction, (3, 3))[:, 2]
    step = float(at[-1] @ normal) / (len(at) - 1)
    off = np.linalg.norm(at - np.arange(len(at))[:, None] * step * normal, axis=1)
    return bool((off > _UNEVEN * abs(step) + _TILT * np.linalg.norm(at, axis=1)).any())


def _say_uneven(positions: list[bytes], first: Geometry, name: str) -> None:
    """Say in the log that the frames of a file are no even stack.  They are right one by one, so they are read."""
    try:
        places = [tuple(float(v) for v in text.decode("ascii").rstrip("\0 ").split("\\")) for text in positions]
        uneven = len(places) > 1 and {len(p) for p in places} == {3} and _uneven(places, first)
    except ValueError:  # no numbers
        return
    if uneven:
        say_once(
            f"{name} has frames at uneven distances, of several volumes or of a tilted gantry: each is read as it is, "
            "but labels saved for all of them lie elsewhere in space than the frames"
        )


def _kind(path: Path) -> str:
    """The name of SimpleITK's reader for a file: DICOM is known by its first bytes, other formats by the ending."""
    with path.open("rb") as file:
        if is_dicom(file.read(132)):
            return "GDCMImageIO"
    ending = path.suffix.lower()
    return {".nii": "NiftiImageIO", ".gz": "NiftiImageIO", ".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}.get(
        ending, "GDCMImageIO"
    )


def _window(tags: dict[str, str]) -> Window | None:
    """The first window of a DICOM file (PS3.3 C.11.2.1.2), for the values that SimpleITK returns."""
    try:
        centre, width = (float(tags[key].split("\\")[0]) for key in ("0028|1050", "0028|1051"))
        slope, intercept = float(tags.get("0028|1053", 1)), float(tags.get("0028|1052", 0))
        largest = -1 if tags.get("0028|0103") == "1" else 2 ** int(tags.get("0028|0101", 16)) - 1
    except (KeyError, ValueError):
        return None
    if tags.get("0028|1056") != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    low, high = centre - width / 2, centre + width / 2
    if not (np.isfinite([low, high]).all() and low < high):
        return None
    if tags.get("0028|0004") != "MONOCHROME1":
        return low, high
    # white is zero: SimpleITK has inverted the stored values (signed ones about -1/2), so the window is inverted, too
    total = slope * largest + 2 * intercept
    return (total - high, total - low)


def _simpleitk(name: str) -> Any:
    try:
        import SimpleITK  # noqa: N813, RUF100
    except ImportError as error:
        raise InvalidImageError(
            f'{name} is a medical image and needs SimpleITK: pip install ".[medical]" in the checkout'
        ) from error
    return SimpleITK


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
