"""What SimpleITK leaves out for NIfTI, MetaImage and NRRD files: checks that a file is whole and refers to no other
file, and NIfTI's two places in space."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from activefreq_engine.errors import InvalidImageError

_LOCAL = re.compile(rb"(?:^|\n)ElementDataFile[ \t]*=[ \t]*(?:LOCAL|Local|local)[ \t]*\r?\n")
_LINE = re.compile(rb"([A-Za-z]+)[ \t]*=[ \t]*([^\s=:][ -~]*?)[ \t]*\r?\n")
_TEXTS = (
    b"AcquisitionDate AnatomicalOrientation BinaryData BinaryDataByteOrderMSB Comment CompressedData DistanceUnits "
    b"ElementByteOrderMSB ElementType Modality Name ObjectSubType ObjectType TransformType"
).split()
_AXES = b"CenterOfRotation DimSize ElementSize ElementSpacing Offset Origin Position".split()
_MATRICES = b"Orientation Rotation TransformMatrix".split()
_COUNTS = b"CompressedDataSize CompressionLevel ElementNumberOfChannels HeaderSize ID ParentID".split()
_TEXT = re.compile(rb".{1,250}")
_COUNT = re.compile(rb"-?\d{1,9}")
_FLOAT = re.compile(rb"[-+]?\d{1,20}(?:\.\d{0,30})?(?:[eE][-+]?[0-3]?\d)?")
_OVERFLOWS = re.compile(rb"Name\s*[=:][^\n]{250}|NDims\s*[=:]\s*(?![1-9]\s|\s)")
"""Header entries that make MetaIO, SimpleITK's reader, write beyond its memory."""
_HEADER = 2**20
_BLANK = re.compile(rb"\n\r?\n")
_ELSEWHERE = re.compile(rb"data\s*file\s*:", re.IGNORECASE)
_SMALLEST = 2.0**-126  # smallest normal number of float32


def check_alone(path: Path, name: str) -> None:
    """Refuse a .mha or .nrrd file whose header says that its pixels are in another file.

    Else a client of a server could read files of the server by naming them in a header.

    Raises:
        InvalidImageError: the header names another file, or cannot be read.
    """
    ending = path.suffix.lower()
    if ending not in (".mha", ".nrrd"):
        return
    with path.open("rb") as file:
        if ending == ".nrrd":
            head = file.read(_HEADER)
            end = _BLANK.search(head)
            alone = end is not None and _ELSEWHERE.search(head, 0, end.start()) is None
        elif not (alone := _plainly_local(file)):
            # ITK skips some lines and may take a later ElementDataFile than this one: in that case refuse a second one
            file.seek(0)
            data = file.read()
            at = data.find(b"ElementDataFile")
            local = _LOCAL.match(data, max(0, at - 1)) is not None
            alone = local and data.find(b"ElementDataFile", at + 1) < 0 and _OVERFLOWS.search(data) is None
    if not alone:
        raise InvalidImageError(
            f"{name} does not say that it holds its pixels itself; save header and pixels in one file"
        )


def _plainly_local(file: BinaryIO) -> bool:
    """Whether every line of a .mha header can be read in only one way, and the header says that the pixels follow
    it."""
    axes = 0
    for _ in range(100):
        line = _LINE.fullmatch(file.readline(_HEADER))
        if line is None:
            return False
        key, value = line.groups()
        if key == b"ElementDataFile":
            return value in (b"LOCAL", b"Local", b"local")
        if key == b"NDims":
            if axes or value not in (b"1", b"2", b"3", b"4"):
                return False
            axes = int(value)
        elif key in _TEXTS or key in _COUNTS:
            if (_TEXT if key in _TEXTS else _COUNT).fullmatch(value) is None:
                return False
        else:
            count = axes if key in _AXES else axes**2 if key in _MATRICES else 0
            numbers = value.split()
            if not count or len(numbers) != count or not all(map(_FLOAT.fullmatch, numbers)):
                return False
    return False


def check_whole(path: Path, name: str, tags: Mapping[str, str], values: int) -> None:
    """Refuse a NIfTI file that is too short for its pixels: what is missing would be read as zeros.

    Args:
        tags: the header of the file, as SimpleITK returns it.
        values (int): how many values the file must hold, over all slices.

    Raises:
        InvalidImageError: the file is too short.
    """
    if "vox_offset" not in tags:
        return
    needed = int(float(tags["vox_offset"])) + values * int(tags["bitpix"]) // 8
    whole = _unzips_to(path, needed) if path.suffix.lower() == ".gz" else path.stat().st_size >= needed
    if not whole:
        raise InvalidImageError(f"{name} is truncated: it holds less than the {needed} bytes that its header asks for")


def _unzips_to(path: Path, size: int) -> bool:
    """Whether a gzip file unpacks to at least so many bytes; no more than these are unpacked."""
    try:
        with gzip.open(path) as file:
            while size > 0 and (part := file.read(min(1 << 20, size))):
                size -= len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return size <= 0


def wrongly_added(tags: Mapping[str, str]) -> float:
    """The number that SimpleITK has wrongly added to the values of a NIfTI file; 0 if there is none.

    It adds the intercept even where the slope is 0; but NIfTI-1 says "If the scl_slope field is nonzero, then each
    voxel value should be scaled".  A header entry that is not a number arrives here as 0.
    """
    slope, intercept = float(tags.get("scl_slope", 1)), float(tags.get("scl_inter", 0))
    return intercept if abs(slope) < _SMALLEST else 0.0


@dataclass(frozen=True, slots=True)
class NiftiPlace:
    """Where a NIfTI file says that its voxels lie, as stored.

    It may say so twice, by a quaternion and by a matrix, which differ once a program has moved the volume.  SimpleITK
    takes one of the two, and others (FSL, SPM, nibabel) the other, so labels need both.
    """

    sides: tuple[float, ...]
    """Handedness, and the sides of a voxel."""
    unit: int
    """The code of their unit."""
    ways: tuple[float, ...]
    """The codes of quaternion and matrix (0: there is none), and their numbers."""

    @staticmethod
    def of(path: Path) -> NiftiPlace:
        """Read it from a file that SimpleITK can read."""
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            head = file.read(_NIFTI)
        order = _order(head)
        return NiftiPlace(
            struct.unpack_from(order + _SIDES, head, 76), head[123] & 7, struct.unpack_from(order + _WAYS, head, 252)
        )

    def put(self, data: bytes) -> bytes:
        """The bytes of a NIfTI file, packed or not, with this place."""
        packed = data[:2] == b"\x1f\x8b"
        file = bytearray(gzip.decompress(data) if packed else data)
        order = _order(file)
        struct.pack_into(order + _SIDES, file, 76, *self.sides)
        file[123] = file[123] & ~7 | self.unit
        struct.pack_into(order + _WAYS, file, 252, *self.ways)
        return gzip.compress(file, 6, mtime=0) if packed else bytes(file)


_NIFTI = 348  # bytes of a header, which begins with this number
_SIDES, _WAYS = "4f", "2h18f"


def _order(head: bytes | bytearray) -> str:
    return "<" if struct.unpack_from("<i", head)[0] == _NIFTI else ">"
