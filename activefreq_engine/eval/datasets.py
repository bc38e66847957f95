"""Evaluation data on disk -> a list of samples.  A sample is one (image, object).

Layouts, told apart by `load_dataset`:

``masks``
    ``images/NAME.jpg`` and ``masks/NAME.png``: one object an image; two values, 0 and any other.
``labels``
    ``images/NAME.jpg`` and ``labels/NAME.png`` (or ``instances/``): 8- or 16-bit, each non-zero value is one object.
``isic2017``
    The official ``ISIC-2017_<split>_Data`` and ``ISIC-2017_<split>_Part1_GroundTruth``; superpixels are skipped.
``volumes``
    ``images/NAME.mhd`` and ``labels/NAME.mhd`` (or ``.mha``; needs SimpleITK): OAI-ZIB.  Slices along the first array
    axis; each non-zero label value of a slice is one object.

Files are listed, matched and measured when the data set is opened, and decoded only when a sample is used.
"""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine.errors import DatasetError, InvalidArgumentError, InvalidImageError
from activefreq_engine.eval.clickers import IGNORE
from activefreq_engine.images import image_size, load_image, load_labels
from activefreq_engine.images.folders import IMAGE_SUFFIXES, MASK_SUFFIXES, Pair, entries, listing, match
from activefreq_engine.images.window import no_data_values, to_8_bit
from activefreq_engine.values import short, whole

LAYOUTS = ("masks", "labels", "isic2017", "volumes")
LABEL_FOLDERS = ("labels", "instances")
META_SUFFIXES = (".mhd", ".mha")
SPLIT_FOLDERS = ("train", "val", "test")
WINDOW_PERCENTILES = (0.5, 99.5)
"""A volume's intensities between these percentiles (over all its voxels with data) map linearly to 0..255."""

Rgb = NDArray[np.uint8]
Truth = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Sample:
    """One object in one image."""

    id: str
    """Unique in its data set: the image's name, with ``#VALUE`` where a label map holds several objects."""
    object: int
    """Value of the object in its label map; 1 for a plain mask."""
    image_id: str
    """Samples with the same image_id share the image, which is then decoded once."""
    load_image: Callable[[], Rgb]
    """Reads the image, uint8 ``[H, W, 3]`` RGB.  Raises DatasetError."""
    load_mask: Callable[[], Truth]
    """Reads the truth, int8 ``[H, W]``: 1 object, 0 background, -1 ignored.  Raises DatasetError."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The samples of one folder, in a fixed order (by file name, then slice, then label value)."""

    name: str
    layout: str
    samples: tuple[Sample, ...]
    ignore_label: int | None = None
    """Value of the pixels that count neither for clicks nor for IoU; for the report, since samples know it already."""


def load_dataset(
    folder: str | Path,
    *,
    layout: str | None = None,
    split: str | None = None,
    labels: Collection[int] | None = None,
    ignore_label: int | None = None,
    slices: int | None = 3,
    limit: int | None = None,
    broken: Literal["raise", "keep"] = "raise",
) -> Dataset:
    """Open a folder of images with truth.

    Args:
        folder: see the module's list of layouts.
        layout: one of `LAYOUTS`; default: told from the folders present.
        split: which split of the ``isic2017`` layout, e.g. ``Test_v2``; needed only if the folder holds several, and
            refused for other layouts.
        labels: only these label values are objects; default: all but 0.  For the layouts ``labels`` and ``volumes``.
        ignore_label: mask or label value of pixels that count neither for clicks nor for IoU; default: none.  0 is
            refused for masks, of which it would leave the object alone.
        slices: slices of each volume, spread evenly over those that hold an object; None takes all of these.
        limit: only the first samples.
        broken: what to do with a picture or mask that cannot be read or whose sizes differ: "raise", or "keep" a sample
            that raises when it is loaded, so that it costs no more than itself.

    Returns:
        The data set, with at least one sample.

    Raises:
        DatasetError: the folder is missing or of no known layout, an image has no mask, sizes differ, a file cannot be
            read, an option is out of range or not for this layout, or nothing is left.  An empty mask is found, with
            the same error, when its sample is loaded.
        InvalidArgumentError: a label, `slices` or `limit` is no whole number.
    """
    try:
        root = Path(folder)
    except TypeError as error:
        raise DatasetError(f"folder is a {type(folder).__name__}; expected a path") from error
    limit = None if limit is None else whole("limit", limit)
    slices = None if slices is None else whole("slices", slices)
    ignore_label = None if ignore_label is None else whole("ignore_label", ignore_label)
    if labels is not None:
        if not isinstance(labels, Collection):
            raise InvalidArgumentError(f"labels is {short(labels)}; expected several label values, such as [2, 4]")
        labels = {whole("a label", value) for value in labels}
    if not os.path.isdir(root):  # False for a name that is too long, where Path.is_dir raises
        raise DatasetError(f"{root} is not a folder; give the folder that holds images/ and masks/ (or labels/)")
    if broken not in ("raise", "keep"):
        raise DatasetError(f"broken is {broken!r}; allowed are 'raise' and 'keep'")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit is {limit}; it must be at least 1")
    if slices is not None and slices < 1:
        raise DatasetError(f"slices is {slices}; it must be at least 1, or None for all")
    if layout is None:
        layout = _detect(root)
    if labels is not None and layout in ("masks", "isic2017"):
        raise DatasetError(f"labels choose among the values of label maps; {root} has layout {layout}: leave them out")
    if split is not None and layout in ("masks", "labels", "volumes"):
        raise DatasetError(f"split is for layout isic2017; {root} has layout {layout}: leave it out")
    if ignore_label == 0 and layout in ("masks", "isic2017"):
        raise DatasetError(
            f"ignore_label is 0, the value of all that is not the object in a mask; {root} has layout {layout}, so "
            "nothing but the object would count. Name the value of the pixels that shall not count, or leave it out"
        )
    if layout == "masks":
        pairs = match(listing(root / "images", IMAGE_SUFFIXES), listing(root / "masks", MASK_SUFFIXES))
        found = _mask_samples(pairs, ignore_label, broken)
    elif layout == "labels":
        pairs = match(listing(root / "images", IMAGE_SUFFIXES), listing(_label_folder(root), MASK_SUFFIXES))
        found = _label_samples(pairs, labels, ignore_label, broken)
    elif layout == "isic2017":
        found = _mask_samples(_isic_pairs(root, split), ignore_label, broken)
    elif layout == "volumes":
        images = listing(root / "images", META_SUFFIXES)
        # OAI-ZIB names a segmentation NAME.segmentation_masks.mhd: the part before the first dot is the scan.
        found = _volume_samples(
            match(images, listing(_label_folder(root), META_SUFFIXES), lambda stem: stem.split(".")[0]),
            labels,
            ignore_label,
            slices,
            broken,
        )
    else:
        raise DatasetError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    samples = tuple(islice(found, None if limit is None else min(limit, sys.maxsize)))
    if not samples:
        raise DatasetError(f"no object in {root} (layout {layout}): every label map is empty or `labels` excludes all")
    path = root.resolve()
    # The name of a split says little: isic2017/val, not val.
    name = f"{path.parent.name}/{path.name}" if path.name in SPLIT_FOLDERS else path.name
    return Dataset(name, layout, samples, ignore_label)


def _detect(root: Path) -> str:
    folders = {p.name for p in entries(root) if p.is_dir()}
    if any(name.startswith("ISIC-2017_") for name in folders):
        return "isic2017"
    truths = [name for name in ("masks", *LABEL_FOLDERS) if name in folders]
    if "images" not in folders or not truths:
        raise DatasetError(
            f"{root} holds the folders: {', '.join(sorted(folders)) or 'none'}; expected images/ with masks/, labels/ "
            "or instances/, or the official ISIC-2017_<split>_Data with ISIC-2017_<split>_Part1_GroundTruth"
        )
    if len(truths) > 1:
        raise DatasetError(f"{root} holds {' and '.join(truths)}: say which with layout (masks or labels)")
    if any(p.suffix.lower() in META_SUFFIXES for p in entries(root / "images")):
        return "volumes"
    return "masks" if truths == ["masks"] else "labels"


def _label_folder(root: Path) -> Path:
    present = [root / name for name in LABEL_FOLDERS if (root / name).is_dir()]
    if len(present) != 1:
        raise DatasetError(f"{root} must hold exactly one of the folders {' and '.join(LABEL_FOLDERS)}")
    return present[0]


# --- pictures ---------------------------------------------------------------------------------------------------------


def _isic_pairs(root: Path, split: str | None) -> list[Pair]:
    folders = [p.name for p in entries(root) if p.is_dir()]
    splits = [m[1] for name in folders if (m := re.fullmatch(r"ISIC-2017_(.+)_Data", name))]
    if split is None and len(splits) == 1:
        split = splits[0]
    if split is None or split not in splits:
        got = (
            f"no split {split!r}" if split is not None else "several splits" if splits else "no ISIC-2017_<split>_Data"
        )
        raise DatasetError(f"{root} holds {got}; choose split from: {', '.join(splits) or 'none present'}")
    truths = [name for name in folders if re.fullmatch(rf"ISIC-2017_{re.escape(split)}_(Part1_)?GroundTruth", name)]
    if len(truths) != 1:
        raise DatasetError(f"{root} holds no ISIC-2017_{split}_Part1_GroundTruth for ISIC-2017_{split}_Data")
    images = listing(root / f"ISIC-2017_{split}_Data", IMAGE_SUFFIXES)
    images = [p for p in images if not p.stem.endswith("_superpixels")]
    masks = listing(root / truths[0], MASK_SUFFIXES)
    return match(images, masks, lambda stem: stem.removesuffix("_segmentation"))


def _broken(pair: Pair, error: DatasetError) -> Sample:
    """A sample that says what is wrong with it when it is loaded."""

    def fail() -> NoReturn:
        raise error

    return Sample(pair.name, 0, pair.name, fail, fail)


def _mask_samples(pairs: Sequence[Pair], ignore_label: int | None, broken: str) -> Iterator[Sample]:
    for pair in pairs:
        try:
            _check_sizes(pair)
        except DatasetError as error:
            if broken == "raise":
                raise
            yield _broken(pair, error)
            continue
        yield Sample(pair.name, 1, pair.name, partial(_read_rgb, pair.image), partial(_read_mask, pair, ignore_label))


def _label_samples(
    pairs: Sequence[Pair], labels: Collection[int] | None, ignore_label: int | None, broken: str
) -> Iterator[Sample]:
    for pair in tqdm(pairs, desc="objects", unit="image", disable=None, leave=False):
        try:
            _check_sizes(pair)
            values = _objects(pair.truth, _read_labels(pair.truth), labels, ignore_label)
        except DatasetError as error:
            if broken == "raise":
                raise
            yield _broken(pair, error)
            continue
        for value in values:
            yield Sample(
                f"{pair.name}#{value}",
                value,
                pair.name,
                partial(_read_rgb, pair.image),
                partial(_read_object, pair.truth, value, ignore_label),
            )


def _present(values: NDArray[np.integer], ignore_label: int | None) -> list[int]:
    """The values beside 0 and that of pixels that do not count."""
    return [v for v in map(int, np.unique(values)) if v not in (0, ignore_label)]


def _objects(
    path: Path, label_map: NDArray[np.integer], labels: Collection[int] | None, ignore_label: int | None
) -> list[int]:
    present = _present(label_map, ignore_label)
    negative = [v for v in present if v < 0]
    if negative:  # as in training; often they mark what shall not count
        raise DatasetError(
            f"{path} has negative values, {negative[:5]}; objects have numbers from 1. Number them anew, or name the "
            "value of pixels that shall not count as ignore_label (--ignore-label)"
        )
    return [v for v in present if labels is None or v in labels]


def _check_sizes(pair: Pair) -> None:
    """Compare the sizes in both files' headers, so that a bad pair is found before an hour of evaluation."""
    try:
        image, truth = image_size(pair.image), image_size(pair.truth)
    except InvalidImageError as error:
        raise DatasetError(str(error)) from error
    if image != truth:
        raise DatasetError(
            f"{pair.image} is {image[1]} x {image[0]} (width x height) but its mask {pair.truth} is "
            f"{truth[1]} x {truth[0]}; they must agree"
        )


def _read_rgb(path: Path) -> Rgb:
    """As `Session.set_image` would see the file, but always with three channels."""
    try:
        image = load_image(path)
    except InvalidImageError as error:
        raise DatasetError(str(error)) from error
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def _read_labels(path: Path) -> NDArray[np.integer]:
    """Integer ``[H, W]``: grey values or palette indices."""
    try:
        return load_labels(path)
    except InvalidImageError as error:
        raise DatasetError(str(error)) from error


def _read_mask(pair: Pair, ignore_label: int | None) -> Truth:
    values = _read_labels(pair.truth)
    objects = _present(values, ignore_label)
    if not objects:
        but = f" but for pixels of the ignore label {ignore_label}" if values.any() else ""
        raise DatasetError(f"mask {pair.truth} is empty{but}; every sample needs an object. Remove {pair.image.name}")
    if len(objects) > 1:
        raise DatasetError(
            f"mask {pair.truth} holds {len(objects)} non-zero values, {objects[:5]}; a mask has one object. Put label "
            "maps into labels/, or say which value is ignored"
        )
    return _truth(values, objects[0], ignore_label)


def _read_object(path: Path, value: int, ignore_label: int | None) -> Truth:
    return _truth(_read_labels(path), value, ignore_label)


def _truth(values: NDArray[np.integer], value: int, ignore_label: int | None) -> Truth:
    truth = (values == value).astype(np.int8)
    if ignore_label is not None:
        truth[values == ignore_label] = IGNORE
    return truth


# --- volumes ----------------------------------------------------------------------------------------------------------


def _volume_samples(
    pairs: Sequence[Pair], labels: Collection[int] | None, ignore_label: int | None, slices: int | None, broken: str
) -> Iterator[Sample]:
    # One volume of each kind stays in memory: samples come volume by volume.
    read_image = lru_cache(maxsize=1)(_read_windowed)
    read_labels = lru_cache(maxsize=1)(_read_volume)

    def load_slice(path: Path, z: int) -> Rgb:
        return np.repeat(read_image(path)[z][:, :, None], 3, axis=2)

    def load_object(path: Path, z: int, value: int) -> Truth:
        return _truth(read_labels(path)[z], value, ignore_label)

    for pair in pairs[:1]:
        _simpleitk(pair.image)  # where it is missing, that is no fault of a volume
    for pair in tqdm(pairs, desc="volumes", unit="volume", disable=None, leave=False):
        try:
            volume = read_labels(pair.truth)
            _check_volume(pair, volume)
            of_slices = {z: _objects(pair.truth, volume[z], labels, ignore_label) for z in range(len(volume))}
        except DatasetError as error:
            if broken == "raise":
                raise
            yield _broken(pair, error)
            continue
        objects = {z: found for z, found in of_slices.items() if found}
        for z in _spread(list(objects), slices):
            for value in objects[z]:
                image_id = f"{pair.name}:{z:03d}"
                yield Sample(
                    f"{image_id}#{value}",
                    value,
                    image_id,
                    partial(load_slice, pair.image, z),
                    partial(load_object, pair.truth, z, value),
                )


def _check_volume(pair: Pair, volume: NDArray[np.generic]) -> None:
    """Compare the labels' shape with the one in the image's header, and look at their type."""
    size = _volume_size(pair.image)
    if size != volume.shape:
        raise DatasetError(
            f"{pair.image} has {size} voxels (slices, rows, columns) but its labels {pair.truth} have "
            f"{volume.shape}; they must agree"
        )
    if not np.issubdtype(volume.dtype, np.integer):
        raise DatasetError(f"{pair.truth} holds {volume.dtype} values; labels must be integers")


def _spread(items: list[int], count: int | None) -> list[int]:
    """`count` items at the middles of `count` equal parts; all of them if there are no more."""
    if count is None or len(items) <= count:
        return items
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _simpleitk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise DatasetError(f'{path} needs SimpleITK: pip install ".[eval]" in the checkout') from error
    return SimpleITK


def _volume_size(path: Path) -> tuple[int, ...]:
    """(slices, rows, columns) from the header."""
    reader = _simpleitk(path).ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DatasetError(f"cannot read {path}: {_last_line(error)}") from error
    return tuple(reversed(reader.GetSize()))


def _read_volume(path: Path) -> NDArray[np.generic]:
    """``[slices, rows, columns]`` as stored."""
    sitk = _simpleitk(path)
    try:
        volume = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise DatasetError(f"cannot read {path}: {_last_line(error)}") from error
    if volume.ndim != 3:
        raise DatasetError(f"{path} has {volume.ndim} dimensions; expected 3")
    return volume


def _read_windowed(path: Path) -> NDArray[np.uint8]:
    """``[slices, rows, columns]``, `WINDOW_PERCENTILES` of the voxels that have data mapped to 0 and 255."""
    volume = _read_volume(path).astype(np.float32)
    values = volume[np.isfinite(volume)]
    sample = values[:: max(1, values.size // 1_000_000)].astype(np.float64)
    if nothing := no_data_values(sample, volume.reshape(-1, volume.shape[2])) if values.size else ():
        values = values[~np.isin(values, nothing)]
    low, high = np.percentile(values, WINDOW_PERCENTILES) if values.size else (np.nan, np.nan)
    if not np.isfinite((low, high)).all() or high <= low:
        raise DatasetError(
            f"{path} has no contrast between its percentiles {WINDOW_PERCENTILES}: {low} to {high}; remove it"
        )
    return to_8_bit(volume, (float(low), float(high)))


def _last_line(error: Exception) -> str:
    """ITK puts the reason on the last line of a long message."""
    return str(error).strip().splitlines()[-1].strip()
