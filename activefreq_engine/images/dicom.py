"""A DICOM file looked through before GDCM, SimpleITK's reader of DICOM, decodes it.

GDCM takes whatever length an element claims as memory, divides by the number of RLE segments even where it is 0, and
gives wrong pixels, without a word, for some kinds of files that are rare and correct.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import NoReturn

from activefreq_engine.errors import InvalidImageError

DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 92, 93, 201, 202, 203))

_META, _PIXELS, _TABLE, _POSITION = 0x0002, 0x7FE00010, 0x00283000, 0x00200032
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_MEANINGS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DEEPEST = 32  # levels of sequences inside sequences
_MOST = 2**21  # elements in a file
_INFLATED = 2**28  # bytes of a deflated file once it is inflated
_SLOPE = re.compile(rb"\x28\x00\x53\x10DS..([-+.0-9eE]+)", re.DOTALL)  # (0028,1053) with its type spelt out
_UNPACK = "save it uncompressed, as pydicom's `Dataset.decompress` does"


def is_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes of a file are DICOM's."""
    return head[128:132] == b"DICM"


@dataclass(slots=True)
class Dicom:
    """The parts of a DICOM file that tell whether it can be decoded."""

    name: str
    """How messages call the file."""
    data: bytes = field(repr=False)
    syntax: str = _IMPLICIT
    native: int | None = None
    """Number of bytes of the pixels, where these are not compressed."""
    fragments: list[memoryview] = field(default_factory=list)
    """The pieces of compressed pixels, in the order of the file."""
    by_table: bool = False
    """Whether a lookup table, in place of slope and intercept, turns stored values into units."""
    positions: list[bytes] = field(default_factory=list)
    """Text of the positions of frames, ``x\\y\\z``, where each has one of its own."""
    _said: dict[int, bytes] = field(default_factory=dict)
    """Short elements of group 0028, which describes the pixels."""
    _left: int = _MOST

    @staticmethod
    def of(data: bytes, name: str) -> Dicom:
        """Read a file's elements to its end, and check that its pixels are what the header says.

        Raises:
            InvalidImageError: the elements cannot be read, there are no pixels or too few of them, or GDCM would decode
                them wrong.
        """
        file = Dicom(name, data)
        if not is_dicom(data[:132]):
            raise InvalidImageError(f"{name} is no DICOM file: it lacks the mark DICM after its first 128 bytes")
        try:
            at = file._read_meta(132)
            if file.syntax == DEFLATED:
                file.data, at = file._inflated(at), 0
            file._elements(at, len(file.data), 0, file.syntax != _IMPLICIT)
        except (struct.error, IndexError):
            file._refuse("it ends within an element")
        if file.native is None and not file.fragments:
            raise InvalidImageError(
                f"{name} is DICOM without a picture that SimpleITK reads: a report, contours, floats or the like"
            )
        file._check()
        return file

    def _refuse(self, why: str) -> NoReturn:
        raise InvalidImageError(f"{self.name} is truncated or corrupt: {why}")

    def _read_meta(self, at: int) -> int:
        """Read the elements of group 2, which describe the file, and return where they end."""
        while at < len(self.data) and struct.unpack_from("<H", self.data, at)[0] == _META:
            tag, _, length, at = self._head(at, True, "<")
            if length > len(self.data) - at:
                self._refuse("an element of its meta information is longer than the file")
            if tag == 0x00020010:
                self.syntax = self.data[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
            at += length
        return at

    def _inflated(self, at: int) -> bytes:
        try:
            unpacker = zlib.decompressobj(-15)
            found = unpacker.decompress(memoryview(self.data)[at:], _INFLATED)
        except zlib.error as error:
            self._refuse(str(error))
        if not unpacker.eof:
            self._refuse(f"what is packed in it does not end, or not within {_INFLATED >> 20} MB")
        return found

    def _head(self, at: int, explicit: bool, order: str) -> tuple[int, bytes, int, int]:
        """An element's tag, type (empty where the file does not say it) and length, and where its value begins."""
        group, element = struct.unpack_from(order + "HH", self.data, at)
        tag = group << 16 | element
        if not explicit or group == 0xFFFE:
            return tag, b"", struct.unpack_from(order + "I", self.data, at + 4)[0], at + 8
        kind = self.data[at + 4 : at + 6]
        if not (kind.isalpha() and kind.isupper()):
            self._refuse(f"element ({group:04x},{element:04x}) has no type")
        if kind in _LONG:
            return tag, kind, struct.unpack_from(order + "I", self.data, at + 8)[0], at + 12
        return tag, kind, struct.unpack_from(order + "H", self.data, at + 6)[0], at + 8

    def _elements(self, at: int, end: int, depth: int, explicit: bool, open_ended: bool = False) -> int:
        """Read elements up to `end`, or, where their length is undefined, up to the mark that ends their item."""
        filled = len(self.data.rstrip(b"\0")) if depth == 0 else end  # what follows the pixels may be zeros
        order = ">" if self.syntax == _BIG_ENDIAN else "<"
        while at < end:
            if depth == 0 and at >= filled and (self.native is not None or self.fragments):
                return end
            self._left -= 1
            if self._left < 0:
                self._refuse(f"it has more than {_MOST} elements")
            tag, kind, length, at = self._head(at, explicit, order)
            if tag == _ITEM_END and open_ended:
                return at
            self.by_table |= depth == 0 and tag == _TABLE and length > 0
            if length == _UNDEFINED:
                if tag == _PIXELS:
                    found, at = self._pieces(at, end, order)
                    self.fragments = found if depth == 0 else self.fragments
                else:
                    at = self._items(at, end, depth + 1, explicit and kind != b"UN", order, True)
                continue
            if length > end - at:
                self._refuse(f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) is longer than what is left of the file")
            if depth == 0 and (tag in self._said or (tag == _PIXELS and (self.native is not None or self.fragments))):
                self._refuse(f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) is there twice")
            if tag == _PIXELS:
                self.native = length if depth == 0 else self.native
            elif depth == 2 and tag == _POSITION:  # of an item in the item of a frame
                self.positions.append(self.data[at : at + length])
            elif depth == 0 and tag >> 16 == 0x0028 and length <= 64:
                self._said[tag] = self.data[at : at + length]
            elif kind == b"SQ" or (kind == b"" and self.data[at : at + 4] == b"\xfe\xff\x00\xe0"):
                self._items(at, at + length, depth + 1, explicit, order, False)
            at += length
        if open_ended:
            self._refuse("an item has no end")
        return at

    def _items(self, at: int, end: int, depth: int, explicit: bool, order: str, open_ended: bool) -> int:
        """Read the items of a sequence."""
        if depth > _DEEPEST:
            self._refuse(f"more than {_DEEPEST} sequences lie in one another")
        while at < end:
            tag, _, length, at = self._head(at, False, order)
            if tag == _SEQUENCE_END and open_ended:
                return at
            if tag != _ITEM or (length != _UNDEFINED and length > end - at):
                self._refuse("a sequence holds what is no item, or one longer than itself")
            undefined = length == _UNDEFINED
            at = self._elements(at, end if undefined else at + length, depth, explicit, undefined)
        if open_ended:
            self._refuse("a sequence has no end")
        return at

    def _pieces(self, at: int, end: int, order: str) -> tuple[list[memoryview], int]:
        """The fragments of compressed pixels, without the first, which is a table of frames; and where the fragments
        end."""
        found: list[memoryview] = []
        while True:
            tag, _, length, at = self._head(at, False, order)
            if tag == _SEQUENCE_END:
                return found[1:], at
            if tag != _ITEM or length > end - at:
                self._refuse("a fragment of its compressed pixels is longer than what is left of the file")
            found.append(memoryview(self.data)[at : at + length])
            at += length

    def _number(self, element: int, default: int | None = None) -> int:
        """The two-byte number of an element of group 0028."""
        found = self._said.get(0x00280000 | element)
        if found is None or len(found) < 2:
            if default is None:
                self._refuse(f"element (0028,{element:04x}) is missing")
            return default
        return int(struct.unpack_from(">H" if self.syntax == _BIG_ENDIAN else "<H", found)[0])

    def _text(self, element: int) -> str:
        return self._said.get(0x00280000 | element, b"").rstrip(b"\0 ").decode("latin-1")

    def _check(self) -> None:
        """Refuse pixels that GDCM would decode wrong or fill up with zeros."""
        meaning, bits, colour = self._text(0x0004), self._number(0x0100), self._number(0x0002, 1) == 3
        try:
            frames = max(1, int(self._text(0x0008) or 1))
            slope = float(self._text(0x1053) or 1)
        except ValueError:
            self._refuse("its number of frames or its rescale slope is no number")
        self._check_kind(meaning, colour, bits, slope)
        if self.by_table:
            raise InvalidImageError(
                f"{self.name} gives its units by a lookup table (Modality LUT), which SimpleITK does not apply; save "
                "what pydicom's `apply_modality_lut` gives"
            )
        if frames > 1 and len(slopes := set(_SLOPE.findall(self.data))) > 1:
            raise InvalidImageError(
                f"{self.name} has {len(slopes)} different rescale slopes for its frames; expected one for all. Save it "
                "as a series with a file for each frame"
            )
        values = frames * self._number(0x0010) * self._number(0x0011)
        if self.fragments:
            self._check_frames(frames, 3 if colour else 1, bits)
            return
        if bits == 1 and values % 8:
            raise InvalidImageError(
                f"{self.name} has {values} pixels of one bit, which do not fill bytes: SimpleITK reads the last ones "
                "wrong; save it with 8 bits a pixel"
            )
        needed = values * (2 if meaning.endswith("_422") else 3 if colour else 1) * bits // 8
        if self.native is None or self.native < needed:
            raise InvalidImageError(
                f"{self.name} is truncated: it holds less than the {needed} bytes that its header asks for"
            )

    def _check_kind(self, meaning: str, colour: bool, bits: int, slope: float) -> None:
        """Refuse kinds of files of which GDCM 3.0 was seen to give wrong pixels."""
        wrong, stored, planes = None, self._number(0x0101, bits), self._number(0x0006, 0) == 1
        if bits not in (1, 8, 16, 32) or not 1 <= stored <= bits or (bits == 32 and stored < 32):
            wrong = f"{stored} of {bits} bits"
        elif self._number(0x0002, 1) not in (1, 3) or self._number(0x0103, 0) not in (0, 1) or meaning not in _MEANINGS:
            wrong = f"{self._number(0x0002, 1)} values a pixel, {meaning or 'of no meaning'}"
        elif self._number(0x0102, stored - 1) != stored - 1:
            wrong = "bits that do not begin at the lowest one"
        elif slope == 0:
            wrong = "a rescale slope of 0"
        elif meaning == "MONOCHROME1" and (bits > 16 or (self._number(0x0103, 0) == 1 and stored != bits)):
            wrong = f"{stored} of {bits} bits and white for the smallest value"
        elif meaning == "PALETTE COLOR" and bits == 16 and self._number(0x1101) != 0:
            wrong = "a palette of fewer than 65536 colours for 16 bits"
        elif bits > 16 and (self.syntax == _BIG_ENDIAN or (colour and planes)):
            wrong = f"{bits} bits, big-endian or in planes"
        elif colour and self.syntax == RLE and (bits > 8 or (planes and meaning != "RGB") or meaning.endswith("_422")):
            wrong = f"{meaning} of {bits} bits in RLE"
        elif colour and planes and self.syntax in _JPEG_LS + _JPEG_2000:
            wrong = "planes of colour in JPEG-LS or JPEG 2000, which have none"
        elif colour and meaning == "RGB" and self.syntax in _JPEG and b"JFIF" in bytes(self.fragments[0][:32]):
            raise InvalidImageError(
                f"{self.name} says that its colours are RGB, and its JPEG that they are YCbCr; set its photometric "
                "interpretation to YBR_FULL_422 if they are, or save it uncompressed"
            )
        elif self.fragments and self.syntax not in (RLE, *_JPEG, *_JPEG_LS, *_JPEG_2000):
            wrong = f"the transfer syntax {self.syntax}"
        if wrong is not None:
            advice = _UNPACK if self.fragments else "write it anew, by pydicom for example"
            raise InvalidImageError(f"{self.name} has {wrong}, which SimpleITK does not read right; {advice}")

    def _check_frames(self, frames: int, samples: int, bits: int) -> None:
        """Refuse frames that are missing, or of another size than the header says."""
        if len(self.fragments) < frames:
            self._refuse(f"it says that it has {frames} frames, and holds {len(self.fragments)}")
        wanted = (self._number(0x0010), self._number(0x0011), samples)
        if self.syntax == RLE:
            # by the standard a frame of these kinds is one fragment; a single frame in several fragments is read all
            # the same
            for frame in self.fragments[:frames] if frames > 1 else [memoryview(b"".join(self.fragments))]:
                if not _good_rle(frame, wanted[0] * wanted[1], samples * bits // 8):
                    self._refuse("a frame is no RLE of its size")
            return
        heads = self.fragments if len(self.fragments) == frames else self.fragments[:1]
        for frame in heads:
            found = _jpeg_2000_size(frame) if self.syntax in _JPEG_2000 else _jpeg_size(frame)
            if found is None or found[:3] != wanted or found[3] > bits:
                said = "no size" if found is None else "{1} x {0} with {2} of {3} bits".format(*found)
                self._refuse(f"it has {wanted[1]} x {wanted[0]} with {samples} of {bits} bits, and a frame {said}")


def _good_rle(frame: memoryview, pixels: int, segments: int) -> bool:
    """Whether an RLE frame has so many segments, each long enough for its pixels: one byte stands for 64 pixels at
    most."""
    if len(frame) < 64:
        return False
    count, *starts = struct.unpack_from("<16I", frame)
    if count != segments or not 1 <= count <= 15 or starts[0] != 64:
        return False
    ends = [*starts[1:count], len(frame)]
    return all(64 <= a < b <= len(frame) and (b - a) * 64 >= pixels for a, b in zip(starts, ends, strict=False))


def _jpeg_size(frame: memoryview) -> tuple[int, int, int, int] | None:
    """Height, width, values per pixel and bits per value of a JPEG or JPEG-LS image."""
    at = 2 if bytes(frame[:2]) == b"\xff\xd8" else len(frame)
    while at + 9 < len(frame) and frame[at] == 0xFF:
        mark = frame[at + 1]
        if mark == 0xF7 or (0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC)):
            bits, height, width, samples = struct.unpack_from(">BHHB", frame, at + 4)
            return height, width, samples, bits
        at += 1 if mark == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg_2000_size(frame: memoryview) -> tuple[int, int, int, int] | None:
    """Height, width, values per pixel and bits per value of a JPEG 2000 image."""
    at = bytes(frame[:4096]).find(b"\xff\x4f\xff\x51")  # it follows the boxes of a JP2 file, where there are any
    if at < 0 or len(frame) < at + 43:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, at + 8)
    samples, bits = struct.unpack_from(">HB", frame, at + 40)
    return bottom - top, right - left, samples, (bits & 0x7F) + 1
