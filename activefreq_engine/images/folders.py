"""Folders of pictures with masks: which files count, and which mask belongs to which picture."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from activefreq_engine.errors import DatasetError
from activefreq_engine.images.raster import say_once

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".pbm")
_BESIDE = (".txt", ".csv", ".json", ".xml", ".md", ".yaml", ".yml", ".db", ".ini", ".html", ".raw", ".zraw")
_ENDINGS = ("_mask", "_masks", "_segmentation", "_label", "_labels")


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture, its mask or label map, and the name both go by."""

    name: str
    image: Path
    truth: Path


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden files such as the ``._NAME`` that macOS leaves on shares.

    Raises:
        DatasetError: there is no such folder, or it cannot be read.
    """
    try:
        if folder.is_dir():
            return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"cannot read folder {folder}: {error.strerror or error}") from error
    raise DatasetError(f"folder {folder} is missing; check the path")


def listing(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of a folder that have one of the suffixes, in small letters or capitals, sorted by name; at least one.

    Hidden files do not count.  Other files that could be pictures, and folders of more of them, are left out and named
    in the log.

    Raises:
        DatasetError: there is no such folder, it cannot be read, or no file in it has one of the suffixes.
    """
    shown = entries(folder)
    files = [p for p in shown if p.suffix.lower() in suffixes]
    left = [p.name for p in shown if p.suffix.lower() not in (*suffixes, *_BESIDE) and p.is_file()]
    inner = [p.name for p in shown if p.is_dir() and _holds_some(p, suffixes)]
    if not files:
        raise DatasetError(f"no file in {folder} ends in {', '.join(suffixes)}")
    for names, what in (
        (left, "files in {} are not of a type that is read here"),
        (inner, "folders within {} hold more files"),
    ):
        if names:
            more = ", ..." if len(names) > 3 else ""
            say_once(f"{len(names)} {what.format(folder)}: {', '.join(names[:3])}{more}; left out")
    return files


def _holds_some(folder: Path, suffixes: Sequence[str]) -> bool:
    try:
        return any(p.suffix.lower() in suffixes for p in entries(folder))
    except DatasetError:  # it may not be read, so nothing is known of it
        return False


def composed(name: str) -> str:
    """A file name with its accents in one piece with their letters.  macOS and programs on it take them apart, so two
    names that look alike may differ."""
    return unicodedata.normalize("NFC", name)


def match(images: Sequence[Path], truths: Sequence[Path], key: Callable[[str], str] = str) -> list[Pair]:
    """Pair images with truths by the key of their file stem.  Truths without an image are left out.

    A truth may also differ in capitals, write its accents in the other way of Unicode, or end in _mask, _masks,
    _segmentation, _label or _labels.

    Raises:
        DatasetError: an image without a truth, or two files that claim the same place.
    """
    by_name: dict[str, Path] = {}
    loosely: dict[str, list[Path]] = {}
    for truth in truths:
        if (other := by_name.setdefault(composed(key(truth.stem)), truth)) != truth:
            raise DatasetError(f"{other} and {truth} belong to the same image; keep one of them")
        loosely.setdefault(_loose(composed(key(truth.stem))), []).append(truth)
    pairs: dict[str, Pair] = {}
    taken: dict[Path, Path] = {}
    missing = []
    for image in images:
        name = composed(key(image.stem))
        if name in pairs:
            raise DatasetError(f"{pairs[name].image} and {image} have the same name {name!r}; keep one of them")
        near = loosely.get(name.casefold(), [])
        if name not in by_name and len(near) > 1:
            raise DatasetError(f"{near[0]} and {near[1]} both belong to {image}; keep one of them")
        found = by_name.get(name, near[0] if near else None)
        if found is None:
            missing.append(image.name)
            continue
        if (other := taken.setdefault(found, image)) != image:
            raise DatasetError(f"{other} and {image} have the same mask, {found}; keep one of them")
        pairs[name] = Pair(name, image, found)
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DatasetError(
            f"no mask for {len(missing)} of {len(images)} images: {shown}; files of the same name are missing in "
            f"{truths[0].parent}. Add the masks or remove the images"
        )
    return list(pairs.values())


def _loose(stem: str) -> str:
    stem = stem.casefold()
    for ending in _ENDINGS:
        stem = stem.removesuffix(ending)
    return stem
