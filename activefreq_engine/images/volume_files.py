"""What SimpleITK does not check in a file: that it is whole, and alone, and that its numbers have one scale."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from activefreq_engine.errors import InvalidImageError

_LOCAL = re.compile(rb"(?:^|\n)ElementDataFile[ \t]*=[ \t]*(?:LOCAL|Local|local)[ \t]*\r?\n")
_BLANK = re.compile(rb"\n\r?\n")
_ELSEWHERE = re.compile(rb"data\s*file\s*:", re.IGNORECASE)
_SYNTAX = re.compile(rb"\x02\x00\x10\x00UI..([\d.]+)", re.DOTALL)
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")  # pixels as they are, not compressed
_SLOPE = re.compile(rb"\x28\x00\x53\x10DS..([-+.0-9eE]+)", re.DOTALL)  # (0028,1053) with its type spelt out
_SMALLEST = 2.0**-126  # of normal numbers in float32


def check_alone(path: Path, name: str) -> None:
    """Refuse a .mha or .nrrd file whose header says that its pixels are in another file.

    Whoever may hand in such a header may not be allowed to see that other file.

    Raises:
        InvalidImageError: it does, or its header cannot be read.
    """
    ending = path.suffix.lower()
    if ending not in (".mha", ".nrrd"):
        return
    data = path.read_bytes()
    if ending == ".mha":
        # nowhere a second one: lines can be made of which ITK skips some
        at = data.find(b"ElementDataFile")
        alone = _LOCAL.match(data, max(0, at - 1)) is not None and data.find(b"ElementDataFile", at + 1) < 0
    else:
        end = _BLANK.search(data)
        alone = end is not None and _ELSEWHERE.search(data, 0, end.start()) is None
    if not alone:
        raise InvalidImageError(
            f"{name} does not say that it holds its pixels itself; save header and pixels in one file"
        )


def check_whole(path: Path, name: str, tags: Mapping[str, str], values: int) -> None:
    """Refuse a NIfTI or DICOM file that is too short for its pixels: what is missing would be read as zeros.

    Args:
        tags: its header, as SimpleITK tells it.
        values (int): pixels of the file, over all slices.

    Raises:
        InvalidImageError: it is too short, or its last pixels cannot be read.
    """
    if "vox_offset" in tags:
        needed = int(float(tags["vox_offset"])) + values * int(tags["bitpix"]) // 8
        whole = _unzips_to(path, needed) if path.suffix.lower() == ".gz" else path.stat().st_size >= needed
    elif "0028|0100" in tags:
        with path.open("rb") as file:
            syntax = _SYNTAX.search(file.read(4096))
        if syntax is not None and syntax[1].decode() not in _NATIVE:
            return
        samples = 2 if tags.get("0028|0004", "").endswith("_422") else int(tags.get("0028|0002", 1))
        bits = int(tags["0028|0100"])
        if bits == 1 and values % 8:
            raise InvalidImageError(
                f"{name} has {values} pixels of one bit, which do not fill bytes: SimpleITK reads the last ones "
                "wrong; save it with 8 bits a pixel"
            )
        needed = values * samples * bits // 8
        whole = path.stat().st_size >= needed
    else:
        return
    if not whole:
        raise InvalidImageError(f"{name} is truncated: it holds less than the {needed} bytes that its header asks for")


def _unzips_to(path: Path, size: int) -> bool:
    """Whether a gzip file holds so many bytes; no more are unpacked."""
    try:
        with gzip.open(path) as file:
            while size > 0 and (part := file.read(min(1 << 20, size))):
                size -= len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return size <= 0


def check_one_scale(path: Path, name: str, tags: Mapping[str, str]) -> None:
    """Refuse DICOM frames with slopes of their own: SimpleITK takes the first one's for all.

    Raises:
        InvalidImageError: they differ.
    """
    if int(tags.get("0028|0008", 1)) > 1 and len(slopes := set(_SLOPE.findall(path.read_bytes()))) > 1:
        raise InvalidImageError(
            f"{name} has {len(slopes)} different rescale slopes for its frames; expected one for all. Save it as a "
            "series with a file for each frame"
        )


def wrongly_added(tags: Mapping[str, str]) -> float:
    """What SimpleITK added to a NIfTI file's values and should not have: 0, or the intercept beside a slope that is
    none (NIfTI-1: "If the scl_slope field is nonzero, then each voxel value should be scaled").
    What is no number arrives here as 0.
    """
    slope, intercept = float(tags.get("scl_slope", 1)), float(tags.get("scl_inter", 0))
    return intercept if abs(slope) < _SMALLEST else 0.0
