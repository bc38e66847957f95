"""Encoded pictures -> `Raster`: an allow-list of formats, each opened by name, so that no other decoder ever runs."""

import io
import re
import struct
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    WebPImagePlugin,
)

from activefreq_engine.errors import InvalidImageError
from activefreq_engine.images.pillow import add_transparency, from_pillow, header_orientation
from activefreq_engine.images.raster import Raster, check_size, say_once
from activefreq_engine.images.tiff import is_tiff, read_tiff, tiff_size

try:
    from PIL import AvifImagePlugin
except ImportError:  # before Pillow 11.3
    AvifImagePlugin = None  # type: ignore[assignment]

MAX_SCANS = 100
"""A JPEG may have at most so many scans; cameras and editors write about ten."""
MAX_SCANNED = 2**31
"""Limit on scans times pixels of a JPEG, so that decoding takes some ten seconds at most."""
MAX_EXIF = 2**22
"""Limit on the bytes of EXIF in a JPEG; the standard allows 64 kB."""

_FORMATS = "JPEG, PNG, TIFF, WebP, BMP, GIF, PNM, PFM, JPEG 2000 and AVIF"
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
# files that are refused: (offset, bytes found there, what the file is and what to do)
_STRANGERS: tuple[tuple[int, bytes, str], ...] = (
    (128, b"DICM", "a DICOM file; read it with images.load_volume and pass one slice, or convert it to TIFF"),
    (344, b"n+1\0", "a NIfTI volume; read it with images.load_volume and pass one slice"),
    (4, b"n+2\0", "a NIfTI volume; read it with images.load_volume and pass one slice"),
    (344, b"ni1\0", "the header of a NIfTI volume; read it with images.load_volume and pass one slice"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it. A NIfTI volume (.nii.gz): images.load_volume reads it"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it"),
    (0, b"%PDF", "a PDF; save the page as PNG"),
    (0, b"%!", "PostScript, which is a program and is never run; save it as PNG"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript, which is a program and is never run; save it as PNG"),
    (0, b"8BPS", "a Photoshop document; save it as PNG or TIFF"),
    (0, b"\x93NUMPY", "a NumPy file; pass numpy.load(path)"),
    (0, b"\x89HDF", "an HDF5 file; read it with h5py and pass an array"),
    (0, b"NRRD", "an NRRD volume; read it with SimpleITK and pass one slice as an array"),
    (0, b"ObjectType", "a MetaImage header; read it with SimpleITK and pass one slice as an array"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture; read it with OpenEXR and pass an array"),
    (0, b"\xff\x0a", "JPEG XL; save it as PNG"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL; save it as PNG"),
    (0, b"\xff\xd8\xff\xf7", "JPEG-LS; save it as PNG"),
    (0, b"#?RADIANCE", "a Radiance HDR picture; read it with OpenCV and pass an array"),
    (0, b"SIMPLE  =", "a FITS file; read it with astropy and pass an array"),
    (0, b"ZISRAWFILE", "a Zeiss CZI slide; save a region of it as TIFF"),
    (4, b"ftyp", "a video, or a picture of an unknown kind; save one frame as PNG"),
    (0, b"{", "text, perhaps JSON, not a picture"),
    (0, b"data:image/", "a data URL; decode what follows the comma by base64.b64decode and pass the bytes"),
    (0, b"iVBORw0KGgo", "a PNG in base64; decode it by base64.b64decode and pass the bytes"),
    (0, b"/9j/", "a JPEG in base64; decode it by base64.b64decode and pass the bytes"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the picture; run git lfs pull"),
    (0, b"<svg", "an SVG drawing; save it as PNG"),
    (0, b"<?xml", "XML, perhaps an SVG drawing; save it as PNG"),
    (0, b"<!DOCTYPE", "a web page, not a picture; was the download refused?"),
    (0, b"<html", "a web page, not a picture; was the download refused?"),
    (0, b"\0\x05\x16\x07", "a note of macOS about another file (its name begins with ._); remove it"),
)


def decode(file: IO[bytes], max_pixels: int, name: str) -> tuple[Raster, NDArray[Any] | None]:
    """Decode the first picture of a seekable binary file.  `name` is how messages call it.

    Returns:
        The raster, and either a fourth band of which the file does not say whether it is alpha, or None.

    Raises:
        InvalidImageError: the file is not a picture of a known format, is larger than `max_pixels` or is damaged; the
            message says which.
    """
    try:
        file.seek(0)
        head = file.read(512)
        if is_tiff(head):
            return read_tiff(file, max_pixels, name)
        if _is_pnm(head):
            return _read_pnm(file, max_pixels, name), None
        if _is_webp(head):
            # before Pillow opens it, which takes the memory of a whole picture
            check_size(*_webp_size(head), max_pixels, name)
        with _open(file, head, name) as image:
            check_size(image.height, image.width, max_pixels, name)
            return _read(file, image, head, name), None
    except Image.DecompressionBombError:
        # only a WebP gets here: Pillow's own limit holds for the whole process; ours was checked above
        pixels = _by_opencv(file, name)
        alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
        return Raster(pixels[..., 2::-1], "rgb", alpha=alpha), None
    except InvalidImageError:
        raise
    except MemoryError as error:
        raise InvalidImageError(f"not enough memory to decode {name}; shrink it") from error
    except Exception as error:  # a decoder fed with hostile bytes may raise anything
        raise InvalidImageError(f"cannot decode {name}: {error}. The file may be truncated or corrupt") from error


def decoded_size(file: IO[bytes], name: str) -> tuple[int, int]:
    """(height, width) of the upright picture, from the header of the file.

    Raises:
        InvalidImageError: the file is not a picture of a known format, or is damaged.
    """
    try:
        file.seek(0)
        head = file.read(512)
        if is_tiff(head):
            return tiff_size(file, name)
        if _is_pnm(head):
            _, width, height, _, _ = _pnm_header(head + file.read(4096), name)
            return height, width
        with _open(file, head, name) as image:
            return (image.width, image.height) if header_orientation(image) >= 5 else (image.height, image.width)
    except InvalidImageError:
        raise
    except Exception as error:  # as above
        raise InvalidImageError(f"cannot read {name}: {error}. The file may be truncated or corrupt") from error


def _open(file: IO[bytes], head: bytes, name: str) -> ImageFile.ImageFile:
    """Open a file with Pillow's class for its format.  ``Image.open`` is not used: it may pick a decoder that starts
    other programs, and it limits the number of pixels for the whole process."""
    opener = _opener(head)
    if opener is None or head[:4] == b"\xff\xd8\xff\xf7":  # JPEG-LS begins like JPEG
        raise InvalidImageError(f"cannot read {name}: {_stranger(head)}")
    file.seek(0)
    if opener is JpegImagePlugin.JpegImageFile:
        data = file.read()
        _check_jpeg(data, name)
        file = io.BytesIO(data)
    return opener(file)


def _opener(head: bytes) -> Any:
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if _is_webp(head):
        return WebPImagePlugin.WebPImageFile
    if head[:2] == b"BM":
        return BmpImagePlugin.BmpImageFile
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return GifImagePlugin.GifImageFile
    if head[:4] == b"\xff\x4f\xff\x51" or head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n":
        return Jpeg2KImagePlugin.Jpeg2KImageFile
    if (
        AvifImagePlugin is not None
        and head[4:8] == b"ftyp"
        and (head[8:12] in (b"avif", b"avis") or b"avif" in head[16:64])
    ):
        return AvifImagePlugin.AvifImageFile
    return None


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _webp_size(head: bytes) -> tuple[int, int]:
    """(height, width) from the first chunk."""
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1
    if head[12:16] == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    return int.from_bytes(head[28:30], "little") & 0x3FFF, int.from_bytes(head[26:28], "little") & 0x3FFF


def _stranger(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return "it is HEIC; save it as JPEG or PNG (pillow-heif reads it, too)"
    for at, magic, what in _STRANGERS:
        if head[at : at + len(magic)].lower() == magic.lower():
            return f"it is {what}"
    return f"it is not a picture of a known format; allowed are {_FORMATS}"


def _read(file: IO[bytes], image: ImageFile.ImageFile, head: bytes, name: str) -> Raster:
    if getattr(image, "is_animated", False):
        say_once(f"{name} holds {getattr(image, 'n_frames', 0)} frames: the first is read. Said once for each file")
    if image.format == "PNG":
        return _read_png(file, image, head, name)
    if image.format == "JPEG2000" and (deep := _deep_jpeg2000(file, name)) is not None:
        return deep
    return from_pillow(image)


def _read_png(file: IO[bytes], image: ImageFile.ImageFile, head: bytes, name: str) -> Raster:
    depth, colour = head[24], head[25]
    if colour == 0 and depth < 8:
        # Pillow scales the greys to 0..255, and leaves the transparent one as it is
        transparency = image.info.pop("transparency", None)
        raster = from_pillow(image)
        if depth > 1:
            raster.pixels, raster.bits = raster.pixels // np.uint8(255 // ((1 << depth) - 1)), depth
        if transparency is not None:
            add_transparency(raster, int(bool(transparency)) if depth == 1 else int(transparency))
    else:
        raster = from_pillow(image)  # also checks the whole file
    if depth == 16 and colour != 0:  # Pillow keeps only the high bytes
        deep = _by_opencv(file, name)
        raster.pixels, raster.alpha = deep[..., 2::-1], deep[..., 3] if deep.shape[2] == 4 else None
        if colour == 4:
            raster.pixels, raster.kind = deep[..., 0], "grey"
    return raster


def _deep_jpeg2000(file: IO[bytes], name: str) -> Raster | None:
    """A JPEG 2000 of more than 8 bits, of which Pillow would cut the colours and stretch the greys; None if it has
    8."""
    file.seek(0)
    data = file.read(1 << 16)
    at = data.find(b"\xff\x4f\xff\x51")  # start of the codestream and its size marker
    if at < 0 or len(data) < at + 45:
        return None
    count = struct.unpack_from(">H", data, at + 40)[0]
    depths = {data[i] for i in range(at + 42, min(len(data), at + 42 + 3 * count), 3)}
    if depths <= set(range(8)):
        return None
    if len(depths) != 1 or next(iter(depths)) & 0x80 or count not in (1, 3):
        raise InvalidImageError(
            f"{name} is JPEG 2000 of {count} bands of depths {sorted(depths)}; allowed above 8 bits are unsigned grey "
            "and RGB. Convert it to TIFF"
        )
    pixels = _by_opencv(file, name)
    bits = next(iter(depths)) + 1
    return Raster(pixels[..., ::-1] if count == 3 else pixels, "rgb" if count == 3 else "grey", bits=bits)


def _by_opencv(file: IO[bytes], name: str) -> NDArray[Any]:
    file.seek(0)
    data = np.frombuffer(file.read(), np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise InvalidImageError(f"cannot decode {name}; the file may be truncated or corrupt")
    return pixels


# --- JPEG ---

_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # not an escaped byte, not a restart


def _check_jpeg(data: bytes, name: str) -> None:
    """Refuse a JPEG that would keep the decoder busy for minutes: hundreds of scans of one picture, megabytes of
    EXIF."""
    at, scans, exif, pixels = 2, 0, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        kind, at = data[found.end() - 1], found.end()
        if kind == 0xD9 or len(data) < at + 2:
            return
        if kind in (0x01, 0xD8):
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        if kind == 0xDA:
            scans += 1
            if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
                raise InvalidImageError(
                    f"{name} is a JPEG of {pixels} pixels in {scans} or more scans, which takes too long to decode; "
                    f"allowed are {MAX_SCANS} scans, and {MAX_SCANNED} pixels in all scans together"
                )
        elif kind == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            exif += size
            if exif > MAX_EXIF:
                raise InvalidImageError(f"{name} is a JPEG with more than {MAX_EXIF} bytes of EXIF; remove them")
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            pixels = int.from_bytes(data[at + 3 : at + 5], "big") * int.from_bytes(data[at + 5 : at + 7], "big")
        at += size


# --- PNM and PFM ---

_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_PNM = re.compile(
    rb"(P[1-6Ff])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})(?:" + _GAP + rb"([-+]?[\d.]{1,20}(?:[eE][-+]?\d\d?)?))?"
)


def _is_pnm(head: bytes) -> bool:
    return re.match(rb"P[1-6Ff][\s#]", head) is not None


def _pnm_header(head: bytes, name: str) -> tuple[bytes, int, int, float, int]:
    """Kind, width, height, the value of white (for PFM the scale, whose sign tells the byte order), length of the
    header."""
    found = _PNM.match(head)
    if found is None:
        raise InvalidImageError(f"cannot read {name}: its PNM header is damaged")
    if found[1] in (b"P1", b"P4"):
        return found[1], int(found[2]), int(found[3]), 1.0, found.end(3)
    if found[4] is None or not float(found[4]):
        raise InvalidImageError(f"cannot read {name}: its PNM header does not say what white is")
    return found[1], int(found[2]), int(found[3]), float(found[4]), found.end()


def _read_pnm(file: IO[bytes], max_pixels: int, name: str) -> Raster:
    """Read PNM or PFM: up to 8 bits by Pillow; above, here, since Pillow would rescale greys and cut colours to 8
    bits."""
    file.seek(0)
    kind, width, height, white, end = _pnm_header(file.read(4608), name)
    check_size(height, width, max_pixels, name)
    is_float, is_text = kind in (b"PF", b"Pf"), kind in (b"P2", b"P3")
    if not is_float and white <= 255:
        file.seek(0)
        with PpmImagePlugin.PpmImageFile(file) as image:
            raster = from_pillow(image)
        if kind not in (b"P1", b"P4") and white < 255:
            # Pillow scales to 0..255, which leaves every value its own place
            raster.pixels, raster.white = np.rint(raster.pixels * (white / 255)).astype(np.uint8), int(white)
        return raster
    if not is_float and not (white.is_integer() and white <= 65535):
        raise InvalidImageError(f"cannot read {name}: its PNM header has white at {white}; allowed are 1 to 65535")
    bands = 3 if kind in (b"P3", b"P6", b"PF") else 1
    count = height * width * bands
    file.seek(end if is_text else end + 1)
    if is_text:
        text = re.sub(rb"#[^\n\r]*", b"", file.read()).decode("ascii")
        values = np.fromstring(text, np.int64, count, sep=" ")
        if len(values) < count or values.min() < 0 or values.max() > white:
            raise InvalidImageError(f"cannot decode {name}: it ends too early, or has values beyond 0 and {white:.0f}")
    else:
        dtype = np.dtype(">u2" if not is_float else "<f4" if white < 0 else ">f4")
        data = file.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise InvalidImageError(f"cannot decode {name}: it ends too early; the file is truncated")
        values = np.frombuffer(data, dtype)
    pixels = values.reshape(height, width, bands).astype(np.float32 if is_float else np.uint16)
    if is_float:
        pixels = np.ascontiguousarray(pixels[::-1])  # rows run upwards
    bits = 0 if is_float else int(white).bit_length()
    return Raster(pixels, "rgb", bits=bits) if bands == 3 else Raster(pixels[..., 0], bits=bits)
