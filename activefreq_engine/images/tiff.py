"""Reads TIFF in every sample type, depth and layout that microscopes, scanners and satellites write.

Pillow alone is not enough: it knows a fixed list of combinations, keeps 8 bits of 16-bit colour and mistakes planes for
pixels.  So this module reads the tags, libtiff (through Pillow) only undoes the compression, and NumPy turns the bytes
into samples.  Compressions that store 8 bits at most (JPEG, CCITT) are decoded by Pillow as a whole.
"""

import io
import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from activefreq_engine.errors import InvalidImageError
from activefreq_engine.images.pillow import from_pillow
from activefreq_engine.images.raster import Raster, check_size, say_once, strips

_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TAGS = {
    254: "subfile",
    256: "width",
    257: "height",
    258: "bits",
    259: "compression",
    262: "photometric",
    266: "fill_order",
    273: "strip_offsets",
    274: "orientation",
    277: "samples",
    278: "rows",
    279: "strip_counts",
    284: "planar",
    317: "predictor",
    320: "colour_map",
    322: "tile_width",
    323: "tile_height",
    324: "tile_offsets",
    325: "tile_counts",
    332: "inks",
    338: "extra",
    339: "format",
    530: "subsampling",
    34675: "profile",
    42113: "nodata",
}
_MAX_PAGES = 4096  # so many pages are looked at; a longer stack is read all the same
_MAX_TAG = 2**26  # bytes of one tag: the offsets of 8 million tiles
_GROUP = 2**25  # bytes of decompressed strips handled at once

_RAW = 1
_BYTEWISE = {5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 34925: "LZMA", 50000: "ZSTD"}
_BY_PILLOW = {2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1).ravel()

Tags = dict[str, Any]


def is_tiff(head: bytes) -> bool:
    """Whether a file begins like a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_size(file: IO[bytes], name: str) -> tuple[int, int]:
    """(height, width), upright, of the page that `read_tiff` reads."""
    page, _, _ = _pick_page(file, name)
    height, width = page["height"], page["width"]
    return (width, height) if page["orientation"] >= 5 else (height, width)


def read_tiff(file: IO[bytes], max_pixels: int, name: str) -> tuple[Raster, NDArray[Any] | None]:
    """Decode one page of a TIFF: the full size of the first picture.

    Returns:
        The raster, and either a fourth band of which the file does not say whether it is alpha, or None.

    Raises:
        InvalidImageError: the page is larger than `max_pixels`, damaged, or of a kind that is not read; the message
            says which.
        Exception: whatever libtiff, struct and NumPy raise on hostile bytes; callers turn it into `InvalidImageError`.
    """
    page, number, order = _pick_page(file, name)
    check_size(page["height"], page["width"], max_pixels, name)
    compression = page["compression"]
    if compression in _BY_PILLOW:
        return _by_pillow(file, page, number, name)
    if compression != _RAW and compression not in _BYTEWISE:
        raise InvalidImageError(
            f"{name} is a TIFF of compression {compression}; allowed are none, JPEG, CCITT, "
            f"{', '.join(dict.fromkeys(_BYTEWISE.values()))}. Write it again with one of them"
        )
    dtype = _sample_type(page, name)
    samples = page["samples"]
    pixels = _decode(file, page, order, dtype, name)
    if page["fill_order"] not in (1, 2):
        raise InvalidImageError(f"{name} has fill order {page['fill_order']}; allowed are 1 and 2")
    colours = _colours(page, name)
    extra = tuple(page["extra"])
    raster = Raster(pixels, orientation=page["orientation"], profile=page["profile"])
    bits = page["bits"][0] if dtype.kind == "u" else 0
    raster.bits = 0 if bits == 16 else bits  # 16 may hold 10 to 16: as in a PNG, the largest alpha says what is opaque
    undeclared = None
    if samples > colours:
        declared = next((i for i, kind in enumerate(extra) if kind in (1, 2)), None)
        if declared is not None and colours + declared < samples:
            raster.alpha = pixels[..., colours + declared]
            raster.premultiplied = extra[declared] == 1
        elif samples == 4 and colours == 3 and not extra:
            undeclared = pixels[..., 3]
        left = samples - colours - (raster.alpha is not None or undeclared is not None)
        if left:
            say_once(
                f"{name} has {left} band(s) besides its colours that the file does not call alpha: left out. "
                "Said once for files of this kind"
            )
        pixels = raster.pixels = pixels[..., :colours]
    if colours == 1 and raster.pixels.ndim == 3:
        raster.pixels = raster.pixels[..., 0]
    raster.invalid = _no_data(raster.pixels, page["nodata"])
    photometric = page["photometric"]
    if photometric == _WHITE_IS_ZERO:
        raster.inverted = True
    elif photometric == _PALETTE:
        table = np.asarray(page["colour_map"], np.uint16)
        if not 1 <= bits <= 16 or table.size != 3 << bits:
            raise InvalidImageError(f"{name} has {table.size} palette values for {dtype} samples; it is damaged")
        if table.max() > 255:  # else an old writer stored 8 bits, against the standard; libtiff guesses this, too
            table = (table >> 8).astype(np.uint16)
        raster.kind, raster.palette = "index", table.reshape(3, -1).T.astype(np.uint8)
    elif photometric == _CMYK:
        raster.kind = "cmyk"
        if page["inks"] != 1:
            raise InvalidImageError(f"{name} has inks other than those of CMYK; convert it to RGB first")
        if raster.alpha is not None:
            raise InvalidImageError(f"{name} is CMYK with transparency; convert it to RGB first")
    elif photometric in (_CIELAB, _ICCLAB):
        raster.kind, raster.pixels, raster.bits = "lab", _lab8(raster.pixels, photometric, name), 8
    elif photometric == _YCBCR:
        if dtype != np.uint8:
            raise InvalidImageError(f"{name} is YCbCr of {dtype}; allowed are 8 bits. Convert it to RGB first")
        raster.kind = "rgb"
        raster.pixels = np.asarray(Image.fromarray(np.ascontiguousarray(raster.pixels), "YCbCr").convert("RGB"))
    elif colours == 3:
        raster.kind = "rgb"
    return raster, undeclared


# --- tags ---


def _pick_page(file: IO[bytes], name: str) -> tuple[Tags, int, str]:
    """The page to read, its number in the file, and the byte order."""
    pages, order = _pages(file, name)
    # 1: reduced in size, 4: a transparency mask
    full = [i for i, p in enumerate(pages) if not p["subfile"] & 5] or list(range(len(pages)))
    number = full[0]
    for i in full:  # a pyramid may begin with its smallest level
        first, page = pages[number], pages[i]
        alike = abs(page["width"] * first["height"] / max(1, first["width"] * page["height"]) - 1) < 0.02
        if alike and page["width"] >= 2 * first["width"]:
            number = i
    if len(pages) > 1:
        shown = pages[number]
        say_once(
            f"{name} has {len(pages)}{' or more' if len(pages) == _MAX_PAGES else ''} pages: page {number + 1} is read "
            f"({shown['width']} x {shown['height']}, width x height). Save another page as a file of its own to use it"
        )
    return pages[number], number, order


def _pages(file: IO[bytes], name: str) -> tuple[list[Tags], str]:
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count_format, entry, offset_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    offset = struct.unpack_from(order + offset_format, head, 8 if big else 4)[0]
    seen: set[int] = set()
    pages: list[Tags] = []
    while offset and offset not in seen and len(pages) < _MAX_PAGES:
        seen.add(offset)
        try:
            file.seek(offset)
            count = struct.unpack(order + count_format, _exactly(file, struct.calcsize(count_format), name))[0]
            table = _exactly(file, min(count, 4096) * entry + struct.calcsize(offset_format), name)
        except InvalidImageError:
            if not pages:
                raise
            break  # the picture is complete; only a later page is cut off
        pages.append(_tags(file, table[: -struct.calcsize(offset_format)], order, big, name))
        offset = struct.unpack(order + offset_format, table[-struct.calcsize(offset_format) :])[0]
    if not pages:
        raise InvalidImageError(f"{name} is a TIFF without a page")
    return pages, order


def _tags(file: IO[bytes], table: bytes, order: str, big: bool, name: str) -> Tags:
    entry, inline, count_format = (20, 8, "Q") if big else (12, 4, "I")
    found: Tags = {}
    for start in range(0, len(table), entry):
        tag, kind = struct.unpack_from(order + "HH", table, start)
        key = _TAGS.get(tag)
        code = _TYPES.get(kind, "B" if kind == 7 else None)
        if key is None or code is None:
            continue
        count = struct.unpack_from(order + count_format, table, start + 4)[0]
        size = count * struct.calcsize("=" + code)
        if size > _MAX_TAG:
            raise InvalidImageError(f"{name} has {size} bytes in its tag {tag}; it is damaged")
        at = start + entry - inline
        if size <= inline:
            data = table[at : at + size]
        else:
            file.seek(struct.unpack_from(order + ("Q" if big else "I"), table, at)[0])
            data = _exactly(file, size, name)
        if code == "s" or key == "profile":
            found[key] = data
        else:
            found[key] = struct.unpack(f"{order}{count}{code}", data)
    one = {
        k: int(v[0]) for k, v in found.items() if k not in ("profile", "nodata") and len(v) and not isinstance(v, bytes)
    }
    samples = one.get("samples", 1)
    bits = found.get("bits", (1,)) or (1,)
    page: Tags = {
        "subfile": one.get("subfile", 0),
        "width": one.get("width", 0),
        "height": one.get("height", 0),
        "bits": tuple(bits) * samples if len(bits) == 1 and samples <= 64 else tuple(bits),
        "compression": one.get("compression", 1),
        "photometric": one.get("photometric", 1 if samples < 3 else 2),
        "fill_order": one.get("fill_order", 1),
        "orientation": one.get("orientation", 1),
        "samples": samples,
        "planar": one.get("planar", 1),
        "predictor": one.get("predictor", 1),
        "format": set(found.get("format", (1,))) or {1},
        "extra": found.get("extra", ()),
        "colour_map": found.get("colour_map", ()),
        "inks": one.get("inks", 1),
        "subsampling": tuple(found.get("subsampling", (2, 2))),
        "profile": found.get("profile"),
        "nodata": found.get("nodata"),
    }
    if "tile_offsets" in found:
        page.update(tiled=True, tile=(one.get("tile_height", 0), one.get("tile_width", 0)))
        page.update(offsets=found["tile_offsets"], counts=found.get("tile_counts", ()))
    else:
        page.update(tiled=False, tile=(min(one.get("rows", page["height"]), page["height"]), page["width"]))
        page.update(offsets=found.get("strip_offsets", ()), counts=found.get("strip_counts", ()))
    return page


def _exactly(file: IO[bytes], size: int, name: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise InvalidImageError(f"{name} ends too early; the file is truncated")
    return data


def _sample_type(page: Tags, name: str) -> np.dtype[Any]:
    bits = set(page["bits"][: page["samples"]])
    formats = {1} if page["photometric"] in (_CIELAB, _ICCLAB) else page["format"]  # L unsigned, a and b signed
    if len(bits) != 1 or len(formats) != 1:
        raise InvalidImageError(f"{name} mixes samples of {sorted(bits)} bits, formats {sorted(formats)}; convert it")
    (depth,), (kind,) = bits, formats
    if kind in (1, 4) and 1 <= depth <= 16:
        return np.dtype(np.uint8 if depth <= 8 else np.uint16)
    letter = {1: "u", 2: "i", 3: "f", 4: "u"}.get(kind)
    if letter is None or depth not in ((16, 32, 64) if letter == "f" else (8, 16, 32, 64)):
        what = {1: "unsigned", 2: "signed", 3: "floating point", 5: "complex", 6: "complex"}.get(kind, f"format {kind}")
        raise InvalidImageError(
            f"{name} has {what} samples of {depth} bits; allowed are unsigned integers of 1 to 16, 32 and 64 bits, "
            "signed ones of 8, 16, 32 and 64, and floats of 16, 32 and 64"
        )
    return np.dtype(f"{letter}{depth // 8}")


def _colours(page: Tags, name: str) -> int:
    """How many samples of a pixel are colours."""
    samples, photometric, extra = page["samples"], page["photometric"], page["extra"]
    if photometric == _YCBCR and page["subsampling"] != (1, 1):
        raise InvalidImageError(f"{name} holds subsampled YCbCr without JPEG; convert it to RGB first")
    grey = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if grey and (samples == 4 or (samples == 3 and not {1, 2} & set(extra))):
        # GDAL and tifffile label three bands of more than 8 bits as grey with two extra samples
        page["extra"] = extra[2:]
        colours = 3
    else:
        known = {
            _WHITE_IS_ZERO: 1,
            _BLACK_IS_ZERO: 1,
            _RGB: 3,
            _PALETTE: 1,
            _CMYK: 4,
            _YCBCR: 3,
            _CIELAB: 3,
            _ICCLAB: 3,
        }
        if photometric not in known:
            what = {
                4: "a transparency mask",
                10: "ITU Lab",
                32803: "a raw camera picture",
                34892: "a raw camera picture",
            }
            raise InvalidImageError(
                f"{name} is {what.get(photometric, f'a TIFF of photometric interpretation {photometric}')}; allowed "
                "are grey, RGB, palette, CMYK, YCbCr and Lab. Convert it to RGB first"
            )
        colours = known[photometric]
    if samples < colours or samples > colours + 2 or (colours == 1 and samples == 2 and not extra):
        raise InvalidImageError(
            f"{name} has {samples} bands of photometric interpretation {photometric}; a picture has 1 (grey), 3 (RGB) "
            "or 4 (CMYK), and may have alpha. Choose three bands and save them as RGB, or pass an array [H, W, 3]"
        )
    return colours


# --- samples ---


def _decode(file: IO[bytes], page: Tags, order: str, dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """All samples of a page, `[H, W, samples]` in native byte order."""
    height, width, samples, bits = page["height"], page["width"], page["samples"], page["bits"][0]
    rows, columns = page["tile"]
    if not 1 <= samples <= 64 or rows < 1 or columns < 1:
        raise InvalidImageError(f"{name} has {samples} samples, strips or tiles of {columns} x {rows}; it is damaged")
    apart = page["planar"] == 2 and samples > 1
    together = 1 if apart else samples
    row_bytes = (columns * together * bits + 7) // 8
    if row_bytes * rows > 2 * (height * width * samples * dtype.itemsize) + 2**24:
        raise InvalidImageError(
            f"{name} has tiles of {columns} x {rows} pixels, larger than the picture; it is damaged"
        )
    across = -(-width // columns)
    down = -(-height // rows)
    planes = samples if apart else 1
    if len(page["offsets"]) < across * down * planes:
        raise InvalidImageError(
            f"{name} has {len(page['offsets'])} of its {across * down * planes} strips or tiles; it is damaged"
        )
    out = np.zeros((height, width, samples), dtype)
    for index, data in _segments(file, page, row_bytes, across * down * planes, down, across, name):
        plane, tile = divmod(index, across * down)
        y, x = tile // across * rows, tile % across * columns
        h, w = min(rows, height - y), min(columns, width - x)
        values = _samples(data[:h], columns, together, bits, order, dtype, page["predictor"], name)
        out[y : y + h, x : x + w, plane : plane + together] = values[:, :w]
    return out


def _segments(
    file: IO[bytes], page: Tags, row_bytes: int, number: int, down: int, across: int, name: str
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, bytes `[rows, row_bytes]`) of each strip or tile, decompressed.  A plane's last strip may have fewer
    rows."""
    rows, tiled = page["tile"][0], page["tiled"]
    last = page["height"] - (down - 1) * rows  # rows of a plane's last strip, cut to the picture, unlike a tile
    step = max(1, _GROUP // (rows * row_bytes))
    plane = down * across  # strips or tiles of a plane
    # a group ends with its plane: only the last strip of the TIFF that libtiff is given may have fewer rows
    starts = [i for first in range(0, number, plane) for i in range(first, first + plane, step)]
    for start in starts:
        group = range(start, min(start + step, start // plane * plane + plane))
        heights = [last if not tiled and i % plane // across == down - 1 else rows for i in group]
        if page["compression"] == _RAW:
            for i, h in zip(group, heights, strict=True):
                yield i, _read_raw(file, page, i, h, row_bytes, name)
            continue
        packed = []
        for i in group:
            if len(page["counts"]) <= i:
                raise InvalidImageError(f"{name} does not say how long its strips are; it is damaged")
            file.seek(page["offsets"][i])
            packed.append(_exactly(file, page["counts"][i], name))
        decoded = _decompress(packed, rows, sum(heights[:-1]) + heights[-1], row_bytes, page)
        y = 0
        for i, h in zip(group, heights, strict=True):
            yield i, decoded[y : y + h]
            y += h


def _read_raw(file: IO[bytes], page: Tags, i: int, rows: int, row_bytes: int, name: str) -> NDArray[np.uint8]:
    file.seek(page["offsets"][i])
    data = np.frombuffer(_exactly(file, rows * row_bytes, name), np.uint8).reshape(rows, row_bytes)
    return _REVERSED[data] if page["fill_order"] == 2 else data


def _decompress(packed: list[bytes], rows: int, total: int, row_bytes: int, page: Tags) -> NDArray[np.uint8]:
    """`[total, row_bytes]`: the strips as a grey TIFF of their bytes, which libtiff decodes."""
    entries = [
        (256, 4, [row_bytes]),
        (257, 4, [total]),
        (258, 3, [8]),
        (259, 3, [page["compression"]]),
        (262, 3, [1]),
        (266, 3, [page["fill_order"]]),
        (273, 4, [0] * len(packed)),
        (277, 3, [1]),
        (278, 4, [rows]),
        (279, 4, [len(p) for p in packed]),
    ]
    at = 8 + 2 + 12 * len(entries) + 4
    data_at = at + (8 * len(packed) if len(packed) > 1 else 0)
    offsets = [data_at]
    for p in packed[:-1]:
        offsets.append(offsets[-1] + len(p))
    table = tail = b""
    for tag, kind, values in entries:
        values = offsets if tag == 273 else values
        if len(values) > 1:
            table += struct.pack("<HHII", tag, kind, len(values), at + len(tail))
            tail += struct.pack(f"<{len(values)}I", *values)
        else:
            table += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", values[0])
    body = b"".join([b"II*\0", struct.pack("<IH", 8, len(entries)), table, bytes(4), tail, *packed])
    with TiffImagePlugin.TiffImageFile(io.BytesIO(body)) as image:
        image.load()
        return np.asarray(image)


def _samples(
    data: NDArray[np.uint8],
    columns: int,
    together: int,
    bits: int,
    order: str,
    dtype: np.dtype[Any],
    predictor: int,
    name: str,
) -> NDArray[Any]:
    """`[rows, columns, together]` from the bytes of a strip or tile."""
    rows = len(data)
    data = np.ascontiguousarray(data)
    if predictor not in (1, 2, 3) or (predictor == 3) > (dtype.kind == "f") or (predictor == 2 and bits % 8):
        raise InvalidImageError(f"{name} has predictor {predictor} on {bits}-bit samples; it is damaged")
    if bits not in (8, 16, 32, 64):
        return _unpack(data, columns * together, bits).reshape(rows, columns, together).astype(dtype)
    size = bits // 8
    if predictor == 3:
        # stored are differences of bytes; each row has the highest byte of all samples, then the second of all, ...
        data = np.cumsum(data.reshape(rows, -1, together), axis=1, dtype=np.uint8)
        data = np.ascontiguousarray(data.reshape(rows, size, columns * together).swapaxes(1, 2))
        return data.reshape(rows, -1).view(f">f{size}").reshape(rows, columns, together).astype(dtype)
    if predictor == 2:
        steps = data.view(f"{order}u{size}").reshape(rows, columns, together)
        return np.cumsum(steps, axis=1, dtype=f"u{size}").view(dtype)
    return data.view(f"{order}{dtype.kind}{size}").reshape(rows, columns, together)


def _unpack(data: NDArray[np.uint8], values: int, bits: int) -> NDArray[np.uint16]:
    """Integers of 1 to 16 bits, highest bit first, each row filled up to whole bytes."""
    out = np.empty((len(data), values), np.uint16)
    for y0, y1 in strips(len(data), values * bits):
        planes = np.unpackbits(data[y0:y1], axis=1, count=values * bits).reshape(y1 - y0, values, bits)
        part = out[y0:y1]
        part[...] = 0
        for i in range(bits):
            part <<= 1
            part |= planes[..., i]
    return out


def _no_data(pixels: NDArray[Any], text: bytes | None) -> NDArray[np.bool_] | None:
    """bool `[H, W]`: where all bands have the no-data value of GDAL's tag."""
    try:
        value = float((text or b"").strip(b"\0 \n"))
    except ValueError:
        return None
    found = pixels == (np.asarray(value).astype(pixels.dtype) if pixels.dtype.kind == "f" else value)
    return found.all(axis=2) if pixels.ndim == 3 else found


def _lab8(pixels: NDArray[Any], photometric: int, name: str) -> NDArray[np.uint8]:
    """Lab as `Raster` has it; stored a and b are signed (CIE) or offset by half their range (ICC)."""
    size = pixels.dtype.itemsize
    if pixels.dtype.kind not in "ui" or size > 2:
        raise InvalidImageError(f"{name} is Lab of {8 * size} bits; allowed are 8 and 16. Convert it to RGB first")
    out = np.array(pixels, order="C").view(f"u{size}")
    if size == 2:
        if photometric == _CIELAB:
            out[..., 1:] ^= 1 << 15
            out[..., 0] -= out[..., 0] >> 8  # 65535 is white; ICC has 65280
        out = ((out.astype(np.uint32) + 128) >> 8).clip(0, 255).astype(np.uint8)
    if size == 2 or photometric == _ICCLAB:
        out[..., 1:] ^= 128
    return out


def _by_pillow(file: IO[bytes], page: Tags, number: int, name: str) -> tuple[Raster, NDArray[Any] | None]:
    if page["tile"][0] * page["tile"][1] > 4 * page["height"] * page["width"] + 2**24:
        raise InvalidImageError(f"{name} has tiles far larger than the picture; it is damaged")
    file.seek(0)
    # from memory: libtiff would map the file itself, and a mapped file that shrinks kills the process
    with TiffImagePlugin.TiffImageFile(io.BytesIO(file.read())) as image:
        image.seek(number)
        return from_pillow(image), None
