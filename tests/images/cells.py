"""The table of docs/pictures.md: each cell is a file that an independent library writes, and what reading it must give.

`python -m tests.images.cells` prints the table.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import cv2
import numpy as np
import pyvips
import tifffile
from PIL import Image

H, W = 21, 34


@dataclass(frozen=True)
class Cell:
    """One kind of file."""

    format: str
    samples: str
    """Type and bits of a sample."""
    colours: str
    """What the samples mean."""
    variant: str
    """Compression, layout, byte order, orientation."""
    make: Callable[[np.random.Generator], tuple[bytes, np.ndarray]]
    """The file, and the right picture: uint8 `[H, W]` or `[H, W, 3]` as `load_image` gives it with `WINDOW`."""
    refused: str | None = None
    """Words of the refusal."""
    tolerance: int = 0
    """Grey levels."""

    def __str__(self) -> str:
        return "-".join(p.replace(" ", "_") for p in (self.format, self.samples, self.colours, self.variant) if p)


def window(dtype: np.dtype) -> tuple[float, float]:
    """Values shown as black and white: an odd part of what the samples run over."""
    low, high = span(dtype)
    return low + 0.1 * (high - low), low + 0.8 * (high - low)


def span(dtype: np.dtype) -> tuple[float, float]:
    """What `values` draws from."""
    if dtype.kind == "f":
        return -3.0, 900.0
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return (low / 4, high / 4) if dtype.itemsize > 2 else (low, high)


def values(rng: np.random.Generator, dtype: np.dtype, bands: int) -> np.ndarray:
    """`[H, W]` or `[H, W, bands]`: blocks of noise, so that a shifted or turned picture is another one."""
    low, high = span(dtype)
    grid = rng.uniform(low, high, (H, W, bands))
    grid = grid if dtype.kind == "f" else np.floor(grid)
    grid = grid.astype(dtype)
    return grid[..., 0] if bands == 1 else grid


def shown(stored: np.ndarray, inverted: bool = False) -> np.ndarray:
    """The definition: uint8 as it is, everything else through the window."""
    if stored.dtype == np.uint8:
        out = stored.copy()
    else:
        low, high = window(stored.dtype)
        out = np.rint(np.clip((stored.astype(np.float64) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    return 255 - out if inverted else out


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`alpha` from 0 to 1."""
    colours = colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, 2)
    return np.rint(colours * alpha[..., None] + 255 * (1 - alpha[..., None])).astype(np.uint8)


def turned(picture: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores, for each value of the tag, of an upright picture."""
    flat = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: lambda p: np.rot90(p, -1),
    }[orientation](picture)
    return np.ascontiguousarray(flat)


# --- TIFF by tifffile ---


def tiff(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(
        out, byteorder=options.pop("byteorder", "<"), bigtiff=options.pop("bigtiff", False)
    ) as file:
        file.write(array, metadata=None, **options)
    return out.getvalue()


def tiff_plain(rng, dtype, bands, photometric, *, planar=None, orientation=1, **options):
    stored = values(rng, dtype, bands)
    written = turned(stored, orientation)
    if orientation != 1:
        options["extratags"] = [(274, 3, 1, orientation, True)]
    if planar == "separate":
        written = np.ascontiguousarray(written.transpose(2, 0, 1))
    return (
        tiff(written, photometric=photometric, planarconfig=planar, **options),
        shown(stored, inverted=photometric == "miniswhite"),
    )


def tiff_broad_tiles(rng, dtype):
    """Two rows of tiles, the second of which reaches beyond the picture."""
    stored = values(rng, dtype, 3)[:, :32]
    planes = np.ascontiguousarray(stored.transpose(2, 0, 1))
    return tiff(planes, photometric="rgb", planarconfig="separate", tile=(16, 32), compression="zlib"), shown(stored)


def tiff_alpha(rng, dtype, kind, colours=3):
    """A fourth (or second) sample: unassociated, associated (premultiplied) or unspecified."""
    top = 1.0 if dtype.kind == "f" else np.iinfo(dtype).max
    stored = values(rng, dtype, colours)
    alpha = rng.choice([0.0, 0.25, 1.0], (H, W))
    alpha[0, 0] = 1
    sample = (alpha * top).astype(dtype)
    exact = sample / top
    written = stored
    if kind == "assocalpha":
        factor = exact if colours == 1 else exact[..., None]
        written = (stored * factor).astype(dtype)
        stored = (written / np.where(factor == 0, 1, factor)).astype(dtype)
    file = tiff(
        np.dstack([written, sample]),
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig="contig",
        extrasamples=[kind],
    )
    right = shown(stored)
    return file, right if kind == "unspecified" else over_white(right, exact)


def tiff_alpha_of_12_bits(rng):
    """What a camera of 12 bits writes into 16: opaque is 4095."""
    stored = values(rng, np.dtype("u2"), 3) >> 4
    alpha = rng.choice([0.0, 0.25, 1.0], (H, W))
    alpha[0, 0] = 1
    sample = (alpha * 4095).astype(np.uint16)
    file = tiff(np.dstack([stored, sample]), photometric="rgb", planarconfig="contig", extrasamples=["unassalpha"])
    return file, over_white(shown(stored), sample / 4095)


def tiff_palette(rng, dtype):
    colours = 1 << 8 * dtype.itemsize
    table = rng.integers(0, 256, (3, colours)) * 257
    stored = rng.integers(0, colours, (H, W)).astype(dtype)
    file = tiff(stored, photometric="palette", colormap=table.astype(np.uint16))
    return file, (table[:, stored] // 257).transpose(1, 2, 0).astype(np.uint8)


def tiff_cmyk(rng, dtype):
    stored = values(rng, dtype, 4)
    c, m, y, k = np.moveaxis(stored / np.iinfo(dtype).max, -1, 0)
    file = tiff(stored, photometric="separated", planarconfig="contig")
    return file, np.rint(255 * np.stack([(1 - c) * (1 - k), (1 - m) * (1 - k), (1 - y) * (1 - k)], -1))


def tiff_lab(rng, dtype, photometric="cielab"):
    """Colours that sRGB can show, from the definition of Lab with a white of D50."""
    rgb = rng.integers(90, 170, (H, W, 3))  # near the edges of sRGB one step of a or b is many grey levels
    lab = srgb_to_lab(rgb / 255)
    full = np.iinfo(dtype).max
    if photometric == "cielab":
        signed = np.rint(lab[..., 1:] * (1 if dtype.itemsize == 1 else 256)).astype(f"i{dtype.itemsize}")
        stored = np.dstack([np.rint(lab[..., 0] * full / 100).astype(dtype), signed.view(dtype)])
    else:
        stored = np.rint((lab + np.array([0, 128, 128])) * [2.55, 1, 1]).astype(np.uint8).astype(dtype)
        stored = stored if dtype.itemsize == 1 else stored << 8
    return tiff(stored, photometric=photometric, planarconfig="contig"), rgb


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # sRGB to XYZ with the white of D50, by Bradford
    matrix = np.array(
        [
            [0.4360747, 0.3850649, 0.1430804],
            [0.2225045, 0.7168786, 0.0606169],
            [0.0139322, 0.0971045, 0.7141733],
        ]
    )
    t = linear @ matrix.T / [0.96422, 1.0, 0.82521]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def tiff_bits(rng, bits, photometric):
    """Samples of any depth, packed row by row, highest bit first."""
    stored = rng.integers(0, 1 << bits, (H, W))
    rows = [
        np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).ravel()).tobytes() for row in stored
    ]
    tags = {256: W, 257: H, 258: bits, 259: 1, 262: photometric, 277: 1, 278: H}
    right = stored * 255 // ((1 << bits) - 1) if bits <= 8 else shown(stored.astype(np.uint16))
    return raw_tiff(b"".join(rows), tags), 255 - right if photometric == 0 else right


def tiff_of_what(rng, dtype, bands, **options):
    """Samples that mean something else than grey or colours."""
    stored = values(rng, dtype, bands)
    return tiff(stored, planarconfig="contig", **options), stored


def tiff_complex(rng, code):
    stored = values(rng, np.dtype("f4"), 1).astype(code)
    return tiff(stored, photometric="minisblack"), stored.real


def raw_tiff(data: bytes, tags: dict[int, int]) -> bytes:
    """A TIFF of one strip; every tag is one number."""
    tags = dict(sorted({**tags, 273: 8, 279: len(data)}.items()))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + table + bytes(4)


# --- pyvips ---

VIPS = {
    "u1": "uchar",
    "u2": "ushort",
    "u4": "uint",
    "i1": "char",
    "i2": "short",
    "i4": "int",
    "f4": "float",
    "f8": "double",
}


def vips(array: np.ndarray) -> pyvips.Image:
    array = np.ascontiguousarray(array)
    bands = array.shape[2] if array.ndim == 3 else 1
    code = VIPS[f"{array.dtype.kind}{array.dtype.itemsize}"]
    image = pyvips.Image.new_from_memory(array.tobytes(), array.shape[1], array.shape[0], bands, code)
    if bands < 3:
        return image.copy(interpretation="b-w" if array.dtype.itemsize == 1 else "grey16")
    return image.copy(interpretation="srgb" if array.dtype.itemsize == 1 else "rgb16")


def vips_file(rng, dtype, bands, suffix, *, orientation=1, **options):
    """Grey, grey and alpha, RGB or RGBA, by the number of bands."""
    colours = bands - (bands in (2, 4))
    stored = values(rng, dtype, colours)
    written, right = stored, shown(stored)
    if colours != bands:
        top = np.iinfo(dtype).max
        alpha = rng.choice([0, top // 3, top], (H, W)).astype(dtype)
        written, right = np.dstack([stored, alpha]), over_white(right, alpha / top)
    image = vips(turned(written, orientation))
    if orientation != 1:
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    return image.write_to_buffer(suffix, **options), right


def vips_smooth(rng, bands, suffix, *, orientation=1, **options):
    """For codecs that lose something: a smooth picture."""
    y, x = np.mgrid[:48, :80]
    stored = np.stack([60 + y + x, 200 - 2 * y, 40 + 2 * x], -1)[..., :bands].astype(np.uint8)
    stored = stored[..., 0] if bands == 1 else stored
    image = vips(turned(stored, orientation))
    if orientation != 1:
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    return image.write_to_buffer(suffix, **options), stored


def vips_low_bits(rng, bits, suffix, **options):
    stored = rng.integers(0, 1 << bits, (H, W)) * 255 // ((1 << bits) - 1)
    return vips(stored.astype(np.uint8)).write_to_buffer(suffix, bitdepth=bits, **options), stored


def vips_palette(rng, suffix, transparent, **options):
    """Few colours, so that the encoder's palette is exact."""
    colours = rng.integers(0, 256, (6, 3), dtype=np.uint8)
    index = rng.integers(0, 6, (H, W))
    stored, right = colours[index], colours[index]
    if transparent:
        alpha = np.where(index == 2, 0, 255).astype(np.uint8)
        stored, right = np.dstack([stored, alpha]), over_white(right, alpha / 255)
    return vips(stored).write_to_buffer(suffix, **options), right


# --- PNG, PNM and others, byte by byte or by OpenCV ---


def png(stored: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    h, w = stored.shape[:2]
    rows = []
    for row in stored.reshape(h, -1):
        if depth == 16:
            rows.append(b"\0" + row.astype(">u2").tobytes())
        else:
            bits = row[:, None] >> np.arange(depth)[::-1] & 1
            rows.append(b"\0" + np.packbits(bits.astype(np.uint8).ravel()).tobytes())
    body = zlib.compress(b"".join(rows))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*p) for p in parts)


def png_transparent_colour(rng, depth, bands):
    """The tRNS chunk of a picture without palette: one colour is transparent."""
    stored = rng.integers(0, 1 << depth, (H, W, bands))
    stored[3:9, 4:20] = stored[5, 5]
    colour = stored[5, 5]
    clear = (stored == colour).all(2)
    pixels = stored[..., 0] if bands == 1 else stored
    file = png(pixels, depth, 0 if bands == 1 else 2, (b"tRNS", struct.pack(f">{bands}H", *colour.tolist())))
    right = shown(pixels.astype(np.uint16)) if depth == 16 else pixels * 255 // ((1 << depth) - 1)
    return file, over_white(right, np.where(clear, 0.0, 1.0))


def png_palette(rng, depth, transparent):
    table = rng.integers(0, 256, (1 << depth, 3), dtype=np.uint8)
    stored = rng.integers(0, 1 << depth, (H, W))
    alpha = rng.choice([0, 85, 255], 1 << depth).astype(np.uint8)
    chunks = [(b"PLTE", table.tobytes())] + ([(b"tRNS", alpha.tobytes())] if transparent else [])
    right = table[stored]
    return png(stored, depth, 3, *chunks), over_white(right, alpha[stored] / 255) if transparent else right


def pnm(rng, kind, white):
    """P1 to P6."""
    bands = 3 if kind in (3, 6) else 1
    stored = rng.integers(0, white + 1, (H, W, bands))
    if kind in (1, 4):
        right = 255 * (1 - stored[..., 0])
    elif white <= 255:
        right = np.rint(stored * (255 / white))
    else:
        right = shown(stored.astype(np.uint16))
    head = f"P{kind}\n# made by hand\n{W} {H}\n".encode() + (b"" if kind in (1, 4) else f"{white}\n".encode())
    if kind <= 3:
        body = "\n".join(" ".join(map(str, row.ravel())) for row in stored).encode()
    elif kind == 4:
        body = np.packbits(stored[..., 0].astype(np.uint8), axis=1).tobytes()
    else:
        body = stored.astype(">u2" if white > 255 else np.uint8).tobytes()
    return head + body, right if bands == 3 or right.ndim == 2 else right[..., 0]


def pfm(rng, bands, order):
    stored = values(rng, np.dtype("f4"), bands)
    head = f"{'PF' if bands == 3 else 'Pf'}\n{W} {H}\n{'-' if order == '<' else ''}1.0\n"
    return head.encode() + stored[::-1].astype(f"{order}f4").tobytes(), shown(stored)


def opencv(rng, dtype, bands, suffix, enlarge=1):
    stored = values(rng, dtype, bands).repeat(enlarge, 0).repeat(enlarge, 1)
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if suffix == ".jp2" else []
    done, data = cv2.imencode(suffix, stored[..., ::-1] if bands == 3 else stored, lossless)
    assert done
    return data.tobytes(), shown(stored)


def pillow(rng, compression):
    stored = values(rng, np.dtype("u1"), 3)
    out = io.BytesIO()
    Image.fromarray(stored).save(out, "TIFF", compression=compression)
    return out.getvalue(), stored


# --- the table ---

TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
WORDS = {"u": "unsigned", "i": "signed", "f": "float", "c": "complex"}


def words(code: str) -> str:
    return f"{8 * int(code[1:])}-bit {WORDS[code[0]]}"


def cells() -> Iterator[Cell]:
    for code in TYPES:
        dtype = np.dtype(code)
        make = partial(Cell, "TIFF", words(code))
        yield make(
            "grey", "strips", partial(tiff_plain, dtype=dtype, bands=1, photometric="minisblack", rowsperstrip=5)
        )
        yield make(
            "grey", "big-endian", partial(tiff_plain, dtype=dtype, bands=1, photometric="minisblack", byteorder=">")
        )
        yield make("grey, white is zero", "", partial(tiff_plain, dtype=dtype, bands=1, photometric="miniswhite"))
        yield make("RGB", "", partial(tiff_plain, dtype=dtype, bands=3, photometric="rgb", planar="contig"))
        yield make("RGB", "planes", partial(tiff_plain, dtype=dtype, bands=3, photometric="rgb", planar="separate"))
        tiled = partial(tiff_plain, dtype=dtype, bands=3, photometric="rgb", planar="contig", tile=(16, 16))
        yield make("RGB", "tiles, big-endian", partial(tiled, byteorder=">"))
        yield make(
            "RGB", "three bands", partial(tiff_plain, dtype=dtype, bands=3, photometric="minisblack", planar="contig")
        )
        deflate = {"compression": "zlib", "predictor": 3 if code[0] == "f" else 2}
        if code not in ("u8", "i8", "f2", "f4", "f8"):
            yield make("RGB", "deflate, predictor", partial(tiled, **deflate))
        yield make("RGB", "deflate", partial(tiled, compression="zlib"))
        apart = partial(tiff_plain, dtype=dtype, bands=3, photometric="rgb", planar="separate", compression="zlib")
        yield make("RGB", "planes, deflate, strips", partial(apart, rowsperstrip=5))
        yield make("RGB", "planes, deflate, tiles as wide as the picture", partial(tiff_broad_tiles, dtype=dtype))
        five = partial(tiff_plain, dtype=dtype, bands=5, photometric="minisblack", planar="contig")
        yield make("five bands", "", five, refused="5 bands")
    for code in ("c8", "c16"):
        yield Cell("TIFF", words(code), "grey", "", partial(tiff_complex, code=code), refused="complex")
    for bits, photometric in ((12, 32803), (8, 10), (8, 4)):
        what = {32803: "raw camera", 10: "ITU Lab", 4: "transparency mask"}[photometric]
        made = partial(tiff_bits, bits=bits, photometric=photometric)
        yield Cell("TIFF", f"{bits}-bit unsigned", what, "", made, refused="raw camera|ITU Lab|mask")
    yield Cell("TIFF", "24-bit unsigned", "grey", "", partial(tiff_bits, bits=24, photometric=1), refused="24 bits")
    for code, kind in product(("u1", "u2", "u4", "f4"), ("unassalpha", "assocalpha", "unspecified")):
        what = {"unassalpha": "RGBA", "assocalpha": "RGBA, premultiplied", "unspecified": "RGB and another band"}[kind]
        loss = 1 if kind != "unspecified" else 0
        yield Cell("TIFF", words(code), what, "", partial(tiff_alpha, dtype=np.dtype(code), kind=kind), tolerance=loss)
    for code in ("u1", "u2"):
        dtype = np.dtype(code)
        make = partial(Cell, "TIFF", words(code))
        yield make("grey and alpha", "", partial(tiff_alpha, dtype=dtype, kind="unassalpha", colours=1), tolerance=1)
        yield make("palette", "", partial(tiff_palette, dtype=dtype))
        yield make("CMYK", "", partial(tiff_cmyk, dtype=dtype), tolerance=3)
        yield make("Lab", "CIE", partial(tiff_lab, dtype=dtype), tolerance=8)
        yield make("Lab", "ICC", partial(tiff_lab, dtype=dtype, photometric="icclab"), tolerance=8)
    yield Cell("TIFF", words("u2"), "RGBA", "12 bits in 16", tiff_alpha_of_12_bits, tolerance=1)
    not_cmyk = {"photometric": "separated", "extratags": [(332, 3, 1, 2, True)]}
    other = partial(tiff_of_what, dtype=np.dtype("u1"), bands=4, **not_cmyk)
    yield Cell("TIFF", words("u1"), "inks other than CMYK", "", other, refused="inks other")
    other = partial(tiff_of_what, dtype=np.dtype("u2"), bands=3, photometric="ycbcr", subsampling=(1, 1))
    yield Cell("TIFF", words("u2"), "YCbCr", "", other, refused="YCbCr of uint16")
    for bits, photometric in product((1, 2, 3, 4, 5, 6, 7, 10, 12, 14), (0, 1)):
        colours = "grey" if photometric else "grey, white is zero"
        yield Cell("TIFF", f"{bits}-bit unsigned", colours, "", partial(tiff_bits, bits=bits, photometric=photometric))
    for orientation in range(1, 9):
        where = f"orientation {orientation}"
        for code, bands, photometric in (("u1", 3, "rgb"), ("u2", 1, "minisblack"), ("f4", 1, "minisblack")):
            make_it = partial(
                tiff_plain, dtype=np.dtype(code), bands=bands, photometric=photometric, orientation=orientation
            )
            yield Cell("TIFF", words(code), "RGB" if bands == 3 else "grey", where, make_it)
        for suffix in (".png", ".webp"):
            options = {"lossless": True} if suffix == ".webp" else {}
            make_it = partial(
                vips_file, dtype=np.dtype("u1"), bands=3, suffix=suffix, orientation=orientation, **options
            )
            yield Cell({".png": "PNG"}.get(suffix, "WebP"), "8-bit unsigned", "RGB", where, make_it)
        make_it = partial(vips_file, dtype=np.dtype("u2"), bands=3, suffix=".png", orientation=orientation)
        yield Cell("PNG", "16-bit unsigned", "RGB", where, make_it)
        for bands in (1, 3):
            make_it = partial(vips_smooth, bands=bands, suffix=".jpg", Q=95, orientation=orientation)
            yield Cell("JPEG", "8-bit unsigned", "RGB" if bands == 3 else "grey", where, make_it, tolerance=6)
    for compression, code, bands in product(("lzw", "deflate", "packbits"), ("u1", "u2", "f4"), (1, 3)):
        name = {"lzw": "LZW", "packbits": "PackBits"}.get(compression, compression)
        make_it = partial(vips_file, dtype=np.dtype(code), bands=bands, suffix=".tif", compression=compression)
        colours = "RGB" if bands == 3 else "grey"
        yield Cell("TIFF", words(code), colours, f"{name} by libvips", make_it)
        if compression != "packbits":
            predictor = "float" if code == "f4" else "horizontal"
            tiled = partial(make_it, predictor=predictor, tile=True, tile_width=16, tile_height=16)
            yield Cell("TIFF", words(code), colours, f"{name}, predictor, tiles", tiled)
    make_it = partial(vips_file, dtype=np.dtype("f8"), bands=3, suffix=".tif", compression="lzw", predictor="float")
    yield Cell("TIFF", words("f8"), "RGB", "LZW, predictor", make_it)
    for compression in ("zstd", "lzma"):  # which neither of the other libraries writes
        yield Cell("TIFF", words("u1"), "RGB", compression.upper(), partial(pillow, compression=compression))
    for bands in (1, 3):
        make_it = partial(vips_smooth, bands=bands, suffix=".tif", compression="jpeg", Q=95)
        yield Cell("TIFF", "8-bit unsigned", "RGB" if bands == 3 else "grey", "JPEG", make_it, tolerance=8)
    yield Cell(
        "TIFF",
        "1-bit unsigned",
        "grey",
        "CCITT",
        partial(vips_low_bits, bits=1, suffix=".tif", compression="ccittfax4"),
    )
    white = partial(vips_low_bits, bits=1, suffix=".tif", compression="ccittfax4", miniswhite=True)
    yield Cell("TIFF", "1-bit unsigned", "grey, white is zero", "CCITT", white)
    yield Cell(
        "TIFF",
        "8-bit unsigned",
        "RGBA",
        "LZW",
        partial(vips_file, dtype=np.dtype("u1"), bands=4, suffix=".tif", compression="lzw"),
        tolerance=1,
    )
    yield Cell(
        "TIFF",
        "16-bit unsigned",
        "RGBA",
        "LZW",
        partial(vips_file, dtype=np.dtype("u2"), bands=4, suffix=".tif", compression="lzw"),
        tolerance=1,
    )
    big = partial(tiff_plain, dtype=np.dtype("u2"), bands=3, photometric="rgb", planar="contig", bigtiff=True)
    yield Cell("TIFF", "16-bit unsigned", "RGB", "BigTIFF", big)
    for code, bands in product(("u1", "u2"), (1, 2, 3, 4)):
        colours = ("grey", "grey and alpha", "RGB", "RGBA")[bands - 1]
        make_it = partial(vips_file, dtype=np.dtype(code), bands=bands, suffix=".png")
        loss = 1 if bands in (2, 4) else 0
        yield Cell("PNG", words(code), colours, "", make_it, tolerance=loss)
        yield Cell("PNG", words(code), colours, "interlaced", partial(make_it, interlace=True), tolerance=loss)
    for bits in (1, 2, 4):
        yield Cell("PNG", f"{bits}-bit unsigned", "grey", "", partial(vips_low_bits, bits=bits, suffix=".png"))
    for bits in (1, 2, 4, 8, 16):
        make_it = partial(png_transparent_colour, depth=bits, bands=1)
        yield Cell("PNG", f"{bits}-bit unsigned", "grey, one transparent", "", make_it)
    for bits in (8, 16):
        make_it = partial(png_transparent_colour, depth=bits, bands=3)
        yield Cell("PNG", f"{bits}-bit unsigned", "RGB, one transparent", "", make_it)
    for bits, transparent in product((1, 2, 4, 8), (False, True)):
        make_it = partial(png_palette, depth=bits, transparent=transparent)
        colours = "palette, transparent" if transparent else "palette"
        yield Cell("PNG", f"{bits}-bit unsigned", colours, "", make_it, tolerance=int(transparent))
    for kind, white in [(1, 1), (4, 1), *product((2, 3, 5, 6), (255, 100, 1023, 4095, 65535))]:
        colours = "RGB" if kind in (3, 6) else "grey"
        make_it = partial(pnm, kind=kind, white=white)
        loss = 1 if white == 100 else 0
        yield Cell("PNM", f"up to {white}", colours, "text" if kind < 4 else "binary", make_it, tolerance=loss)
    for bands, order in product((1, 3), "<>"):
        what = "big-endian" if order == ">" else "little-endian"
        yield Cell("PFM", "32-bit float", "RGB" if bands == 3 else "grey", what, partial(pfm, bands=bands, order=order))
    for bands in (3, 4):
        make_it = partial(vips_file, dtype=np.dtype("u1"), bands=bands, suffix=".webp", lossless=True, exact=True)
        yield Cell("WebP", "8-bit unsigned", "RGBA" if bands == 4 else "RGB", "lossless", make_it, tolerance=bands - 3)
    lossy = partial(vips_smooth, bands=3, suffix=".webp", Q=95)
    yield Cell("WebP", "8-bit unsigned", "RGB", "lossy", lossy, tolerance=12)
    progressive = partial(vips_smooth, bands=3, suffix=".jpg", Q=95, interlace=True)
    yield Cell("JPEG", "8-bit unsigned", "RGB", "progressive", progressive, tolerance=8)
    for transparent in (False, True):
        make_it = partial(vips_palette, suffix=".gif", transparent=transparent, dither=0)
        yield Cell(
            "GIF", "8-bit unsigned", "palette, transparent" if transparent else "palette", "", make_it, tolerance=2
        )
    avif = partial(vips_smooth, bands=3, suffix=".avif", lossless=True)
    yield Cell("AVIF", "8-bit unsigned", "RGB", "lossless", avif, tolerance=3)
    for bands in (1, 3):
        yield Cell(
            "BMP",
            "8-bit unsigned",
            "RGB" if bands == 3 else "grey",
            "",
            partial(opencv, dtype=np.dtype("u1"), bands=bands, suffix=".bmp"),
        )
    for code, bands in product(("u1", "u2"), (1, 3)):
        make_it = partial(
            opencv, dtype=np.dtype(code), bands=bands, suffix=".jp2", enlarge=8
        )  # smaller ones it refuses
        yield Cell("JPEG 2000", words(code), "RGB" if bands == 3 else "grey", "lossless", make_it)


CELLS = list(cells())


# --- docs/pictures.md ---


def table() -> str:
    """One line for each format and meaning of the samples: their types, then what else was varied, or the refusal."""
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in CELLS:
        rows.setdefault((cell.format, cell.colours, "refused" if cell.refused else "read"), []).append(cell)
    order = list(dict.fromkeys(c.format for c in CELLS))
    lines = ["| format | colours | samples | tested with | result | cells |", "|---|---|---|---|---|---|"]
    for (kind, colours, verdict), group in sorted(rows.items(), key=lambda r: (order.index(r[0][0]), r[0][2])):
        samples: dict[str, list[str]] = {}
        for cell in group:
            bits, _, what = cell.samples.partition("-bit ")
            samples.setdefault(what, [])
            if bits not in samples[what]:
                samples[what].append(bits)
        types = "; ".join(
            f"{what} {', '.join(sorted(bits, key=int))}" if what else ", ".join(bits) for what, bits in samples.items()
        )
        variants = [v for v in dict.fromkeys(c.variant for c in group) if v and not v.startswith("orientation")]
        turned_too = ["orientations 1 to 8"] if any(c.variant.startswith("orientation") for c in group) else []
        how = "; ".join(variants + turned_too)
        lines.append(f"| {kind} | {colours} | {types} | {how} | {verdict} | {len(group)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
