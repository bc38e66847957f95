"""Sources other than plain arrays, pages, profiles, and files that are hostile or no pictures at all."""

import contextlib
import functools
import io
import os
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips
import tifffile
import torch
from PIL import EpsImagePlugin, Image, ImageCms, ImageFile

from activefreq_engine import ActiveFreqError, InvalidArgumentError, InvalidImageError
from activefreq_engine.images import decode, image_size, load_image, load_values
from activefreq_engine.images.raster import say_once

from .cells import CELLS, H, W, png, raw_tiff, tiff, turned, values, vips


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def picture(rng: np.random.Generator, bands: int = 3) -> np.ndarray:
    return values(rng, np.dtype("u1"), bands)


# --- sources ---


def test_bytes_and_file_objects(rng, tmp_path):
    image = picture(rng)
    data = encoded(image)
    (tmp_path / "a.png").write_bytes(data)

    class Pipe(io.RawIOBase):
        """Gives its bytes once, and cannot go back."""

        def read(self, size=-1):
            return self.inner.read(size)

    class Drip(io.RawIOBase):
        """Gives less than it is asked for, as network drives do."""

        def __init__(self, data):
            self.inner = io.BytesIO(data)

        def readinto(self, buffer):
            part = self.inner.read(min(7, len(buffer)))
            buffer[: len(part)] = part
            return len(part)

        def seek(self, *at):
            return self.inner.seek(*at)

    pipe = Pipe()
    pipe.inner = io.BytesIO(data)
    written = io.BytesIO()
    written.write(data)  # its position is at the end
    with open(tmp_path / "a.png", "rb") as file:
        spread = memoryview(np.repeat(np.frombuffer(data, np.uint8), 2))[::2]
        sources = (data, bytearray(data), memoryview(data), spread, io.BytesIO(data), written, pipe, file, Drip(data))
        for source in sources:
            assert np.array_equal(load_image(source), image)
        assert not file.closed
    with open(tmp_path / "a.png", encoding="latin-1") as text, pytest.raises(InvalidImageError, match="'rb'"):
        load_image(text)
    with pytest.raises(InvalidImageError, match="empty"):
        load_image(b"")

    class Broken:
        def read(self, size=-1):
            raise RuntimeError("connection lost")

    with pytest.raises(InvalidImageError, match="connection lost"):
        load_image(Broken())


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t,
        lambda t: t.float() / 255,
        lambda t: (t.float() / 255).requires_grad_(),
        lambda t: (t.float() / 255).requires_grad_() * 1,
        lambda t: t.double() / 255,
        lambda t: (t.float() / 255).half(),
        lambda t: (t.float() / 255).bfloat16(),
        lambda t: torch.view_as_complex(torch.stack([t.float() / 255] * 2, -1)).conj().real,
        lambda t: (t.float() / 255).to_sparse(),
        lambda t: torch.quantize_per_tensor(t.float(), 1.0, 0, torch.quint8),
        lambda t: t.to("meta"),
        lambda t: t > 5,
        lambda t: t.float() * 1j,
        lambda t: t.permute(2, 0, 1),
    ],
)
def test_tensors_are_read_or_refused(rng, make):
    image = picture(rng)
    tensor = make(torch.from_numpy(image.copy()))
    before = tensor.clone() if tensor.layout == torch.strided and not tensor.is_quantized else None
    try:
        got = load_image(tensor)
    except InvalidImageError:
        return
    assert np.abs(got.astype(int) - image).max() <= 1
    got[...] = 0  # a copy: the tensor stays as it is
    assert torch.equal(tensor, before)


def test_a_tensor_that_can_be_read_is_not_refused(rng):
    image = picture(rng)
    for tensor in (torch.from_numpy(image).float().requires_grad_() / 255, torch.from_numpy(image).int()):
        assert load_image(tensor).shape == image.shape


@pytest.mark.parametrize(
    "path",
    [
        "https://example.org/a.jpg",
        Path("https://example.org/a.jpg"),
        "S3://bucket/a.png",
        "file:///a.png",
        "data:image/png;base64,AAAA",
    ],
)
def test_urls_are_refused_in_words(path):
    with pytest.raises(InvalidImageError, match="URL"):
        load_image(path)


def test_paths_that_cannot_be(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in [
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "directory"),
        (tmp_path / "pipe", "pipe"),
        ("/dev/zero", "device"),
        ("a" * 5000, "too long"),
        ("a\0b.png", "null"),
        ("", "no such file"),
    ]:
        with pytest.raises(InvalidImageError, match=says):
            load_image(path)


@pytest.mark.parametrize("limit", [None, 0, -5, "many", True, float("nan"), np.zeros(3)])
def test_limits_that_are_none(limit):
    with pytest.raises(InvalidArgumentError, match="max_pixels"):
        load_image(np.zeros((3, 4), np.uint8), max_pixels=limit)


def test_the_order_of_opencv(rng):
    image = picture(rng, 4)
    image[..., 3] = rng.choice([0, 255], (H, W))
    assert np.array_equal(load_image(image[..., [2, 1, 0, 3]], bgr=True), load_image(image))
    assert np.array_equal(load_image(image[..., 2::-1], bgr=True, copy=False), image[..., :3])
    with pytest.raises(InvalidImageError, match="bgr"):
        load_image(encoded(image), bgr=True)
    with pytest.raises(InvalidArgumentError, match="bgr"):
        load_image(image, bgr="yes")


# --- the fourth channel ---


@pytest.mark.parametrize(
    ("dtype", "opaque"), [("u1", 255), ("u2", 65535), ("u2", 4095), ("i8", 255), ("i8", 4095), ("f4", 1)]
)
def test_alpha_of_an_array(rng, dtype, opaque):
    colours = values(rng, np.dtype("u1"), 3)
    share = rng.choice([0, 1 / 3, 1], (H, W))
    array = np.dstack([colours * (opaque / 255), share * opaque]).astype(dtype)
    got = load_image(array, window=(0, opaque))
    seen = array[..., :3] * (255.0 / opaque)
    exact = array[..., 3:] / opaque
    assert np.abs(got - (seen * exact + 255 * (1 - exact))).max() <= 1
    assert np.array_equal(load_image(array, window=(0, opaque), alpha=True), got)
    plain = load_image(array[..., :3].copy(), window=(0, opaque))
    assert np.array_equal(load_image(array, window=(0, opaque), alpha=False), plain)


@pytest.mark.parametrize("scale", [1, 16, 1 / 255])
def test_infrared_is_not_alpha(rng, scale):
    y, x = np.mgrid[:128, :150]
    shapes = np.where((x - 64) ** 2 + (y - 64) ** 2 < 900, 40, 150) + rng.normal(0, 4, x.shape)
    scene = np.dstack([60 + shapes / 3, 20 + shapes / 2, 90 - shapes / 3, shapes]).clip(1, 255)
    stretched = scene.copy()
    stretched[..., 3] = np.clip((scene[..., 3] - 45) * 2.2, 0, 255)  # some pixels are 0, some 255
    stretched[..., 3][rng.random(x.shape) < 0.005] = 255
    for array in (scene * scale, stretched * scale):
        array = array.astype({1: np.uint8, 16: np.uint16}.get(scale, np.float32))
        assert np.array_equal(load_image(array), load_image(array[..., :3].copy()))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(41, 1), (1, 41), (1, 1), (2, 1)])
def test_a_fourth_band_of_the_thinnest_pictures(rng, shape):
    """A column has no edges to compare, which NumPy warned of."""
    for low, high in ((0, 1), (0.01, 0.99)):
        array = rng.uniform(low, high, (*shape, 4)).astype(np.float32)
        array[0, 0, 3], array[-1, -1, 3] = 0.01, 0.99
        assert load_image(array).shape == (*shape, 3)


def test_a_file_s_alpha_can_be_left_out(rng):
    image = picture(rng, 4)
    assert np.array_equal(load_image(encoded(image), alpha=False), image[..., :3])
    indexed = io.BytesIO()
    flat = Image.fromarray(rng.integers(0, 4, (H, W), dtype=np.uint8), "P")
    flat.putpalette(list(range(12)))
    flat.save(indexed, "PNG", transparency=b"\0\x80")
    right = np.asarray(flat.convert("RGB"))
    assert np.array_equal(load_image(indexed, alpha=False), right)


# --- pages ---


def said(caplog) -> str:
    return "\n".join(r.getMessage() for r in caplog.records)


def test_of_several_pages_the_first_is_read(rng, caplog):
    pages = rng.integers(0, 60000, (5, H, W), dtype=np.uint16)
    data = tiff(pages, photometric="minisblack")
    for _ in range(2):
        assert np.array_equal(load_image(data, window=(0, 60000)), load_image(pages[0], window=(0, 60000)))
    assert said(caplog).count("5 pages: page 1 is read (34 x 21") == 1  # once


def test_pyramids_give_their_full_size(rng, caplog):
    full = np.kron(picture(rng), np.ones((8, 8, 1), np.uint8))
    levels = [full[:: 2**i, :: 2**i] for i in range(3)]
    thumbnail_first = io.BytesIO()
    with tifffile.TiffWriter(thumbnail_first) as file:
        for level in levels[::-1]:
            file.write(level, subfiletype=int(level.shape != full.shape), metadata=None, photometric="rgb")
    small_first = io.BytesIO()
    with tifffile.TiffWriter(small_first) as file:
        for level in levels[::-1]:
            file.write(level, metadata=None, photometric="rgb")
    libvips = vips(full).write_to_buffer(
        ".tif", pyramid=True, tile=True, tile_width=64, tile_height=64, compression="lzw"
    )
    for source in (thumbnail_first, small_first, libvips):
        say_once.cache_clear()
        assert np.array_equal(load_image(source), full)
    assert "272 x 168" in said(caplog)


def test_first_frame_of_an_animation(rng, caplog):
    frames = [Image.fromarray(picture(rng)) for _ in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(load_image(out), np.asarray(frames[0]))
    assert "3 frames: the first is read" in said(caplog)


def test_pages_that_are_cut_off_do_not_matter(rng):
    pages = rng.integers(0, 255, (3, H, W), dtype=np.uint8)
    data = tiff(pages, photometric="minisblack", contiguous=False)
    cut = data[: len(data) - H * W // 2]
    assert np.array_equal(load_image(cut), pages[0])


def test_the_no_data_tag_of_a_geotiff(rng):
    band = rng.uniform(200, 900, (H, W)).astype(np.float32)
    hole = rng.random((H, W)) < 0.3
    band[hole] = 5000
    data = tiff(band, photometric="minisblack", extratags=[(42113, "s", 0, "5000", True)])
    got = load_image(data)
    low, high = np.percentile(band[~hole], (0.5, 99.5))
    assert np.array_equal(
        got[~hole], np.rint(np.clip((band[~hole].astype(float) - low) * (255 / (high - low)), 0, 255))
    )
    assert (got[hole] == 0).all()


# --- colours ---


@functools.cache
def wide_gamut() -> bytes:
    return bytes(
        pyvips.Image.black(8, 8).copy(interpretation="srgb").icc_export(output_profile="p3").get("icc-profile-data")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_profiles_are_converted_to_srgb(kind):
    y, x = np.mgrid[:48, :64]
    image = np.dstack([40 + 3 * x, 200 - 3 * y, 90 + y + x]).astype(np.uint8)
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(image, kind, icc_profile=wide_gamut(), **options)
    # by libvips, an independent reader
    right = pyvips.Image.new_from_buffer(encoded(image, icc_profile=wide_gamut()), "").icc_transform(
        "srgb", embedded=True
    )
    right = right.numpy()[..., :3]
    assert np.abs(right.astype(int) - image).max() > 15  # the profile does something
    assert np.abs(load_image(data).astype(int) - right).max() <= (12 if kind == "JPEG" else 3)


def test_srgb_keeps_every_bit(rng):
    image = picture(rng)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(load_image(encoded(image, icc_profile=profile)), image)
    deep = rng.integers(0, 65536, (H, W, 3), dtype=np.uint16)
    data = vips(deep).write_to_buffer(".tif", profile="srgb")
    assert np.array_equal(load_image(data, window=(0, 65535)), load_image(deep, window=(0, 65535)))


def test_a_broken_profile_is_said_once(rng, caplog):
    image = picture(rng)
    for profile in (b"nonsense", wide_gamut()[:200]):
        for _ in range(2):
            assert np.array_equal(load_image(encoded(image, icc_profile=profile)), image)
    assert 1 <= said(caplog).count("colours are taken as stored") <= 2


def test_cmyk_by_its_profile():
    patches = np.full((32, 96, 3), 255, np.uint8)
    patches[:, 32:64], patches[:, 64:] = (200, 40, 40), (30, 90, 160)
    cmyk = vips(patches).icc_transform("cmyk", input_profile="srgb")
    for suffix in (".tif", ".jpg[Q=98]"):
        got = load_image(cmyk.write_to_buffer(suffix, profile="cmyk"))
        for x, right in ((16, 255), (48, [200, 40, 40]), (80, [30, 90, 160])):
            assert np.abs(got[16, x].astype(int) - right).max() <= 30  # ink has fewer colours than a screen


# --- hostile files, and files that are no pictures ---


def test_palettes_of_eight_bits_in_a_tiff(rng):
    # the standard has 16 bits; old writers, and some new ones, put 0 to 255 there
    colours, indices = rng.integers(0, 256, (256, 3), dtype=np.uint8), rng.integers(0, 256, (17, 23), dtype=np.uint8)
    colours[0] = 255
    for scale in (1, 257):
        out = io.BytesIO()
        tifffile.imwrite(out, indices, photometric="palette", colormap=colours.T.astype(np.uint16) * scale)
        assert np.array_equal(load_image(out.getvalue()), colours[indices])


def test_what_is_no_picture_is_named(tmp_path):
    for data, says in [
        (bytes(128) + b"DICM" + bytes(400), "DICOM"),
        (bytes(344) + b"n+1\0" + bytes(200), "NIfTI"),
        (b"\x1c\2\0\0n+2\0" + bytes(540), "NIfTI"),
        (b"\x1f\x8b\x08" + bytes(200), "NIfTI"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
        (b"%PDF-1.4\n", "PDF"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"<!doctype html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "macOS"),
        (b"\x93NUMPY\1\0", "numpy.load"),
        (b"\xff\x0a" + bytes(60), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
        (b"\xff\xd8\xff\xf7" + bytes(60), "JPEG-LS"),
        (b"\0\0\0\x18ftypmp42" + bytes(60), "video"),
        (b'{"version": "5.5.0", "shapes": []}', "JSON"),
        (b"iVBORw0KGgoAAAANSUhEUg==", "PNG in base64"),
        (b"data:image/png;base64,iVBORw0KGgo", "data URL"),
        (b"hello", "allowed are JPEG"),
        (b"II*\0\0\0\0\0", "without a page"),
    ]:
        (tmp_path / "a.jpg").write_bytes(data)
        for source in (tmp_path / "a.jpg", data):
            with pytest.raises(InvalidImageError, match=says):
                load_image(source)


def test_a_closed_pil_image_is_called_closed(rng):
    with Image.open(io.BytesIO(encoded(picture(rng), "PNG"))) as image:
        assert load_image(image).shape == (H, W, 3)
    for ask in (load_image, load_values):
        with pytest.raises(InvalidImageError, match="was closed"):
            ask(image)


def test_the_limit_counts_for_files_and_can_be_raised(tmp_path, monkeypatch, rng):
    path = tmp_path / "scan.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # as a host may have set it; files are then smaller here
    Image.new("1", (2000, 1500)).save(path)
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidImageError, match="3000000 pixels"):
            load_image(path, max_pixels=2_999_999)
        assert load_image(path, max_pixels=3_000_000).shape == (1500, 2000)
        for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"):
            with pytest.raises(InvalidImageError, match=r"714 pixels .* allowed are 713"):
                load_image(encoded(picture(rng), kind), max_pixels=713)
            assert load_image(encoded(picture(rng), kind), max_pixels=714).shape == (H, W, 3)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_webp_beyond_the_limit_of_pillow(monkeypatch, rng):
    image = picture(rng, 4)
    data = encoded(image, "WEBP", lossless=True, exact=True)
    right = load_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert np.array_equal(load_image(data), right)


def jpeg_with(*segments: bytes, scans: int = 1) -> bytes:
    y, x = np.mgrid[:64, :64]
    data = encoded(((x * y) % 251).astype(np.uint8), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:2] + b"".join(segments) + data[2:-2] + last * (scans - 1) + data[-2:]


def test_jpegs_that_would_take_minutes(rng):
    started = time.process_time()
    exif = b"\xff\xe1" + struct.pack(">H", 65008) + b"Exif\0\0" + bytes(65000)
    with pytest.raises(InvalidImageError, match="scans"):
        load_image(jpeg_with(scans=3000))
    with pytest.raises(InvalidImageError, match="EXIF"):
        load_image(jpeg_with(*[exif] * 400))
    big = jpeg_with(scans=90)
    at = big.index(b"\xff\xc2") + 5
    with pytest.raises(InvalidImageError, match="scans"):
        load_image(big[:at] + struct.pack(">HH", 11000, 12000) + big[at + 4 :])
    assert time.process_time() - started < 5
    # what cameras write
    for data in (jpeg_with(scans=9), jpeg_with(exif), encoded(picture(rng), "JPEG", progressive=True)):
        load_image(data)
    # a film behind the picture holds the marker by chance
    load_image(jpeg_with() + b"\xff\xda" * 5000)


def deflate_bomb(width: int, height: int, **tags: int) -> bytes:
    body = zlib.compress(bytes(20_000_000))
    return raw_tiff(body, {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 278: height, **tags})


def test_bombs(tmp_path):
    started = time.process_time()
    assert load_image(deflate_bomb(40, 30)).shape == (30, 40)  # 20 MB of zeros behind 1200 pixels: not unpacked
    tiles = {322: 60000, 323: 60000, 324: 8, 325: 100}
    for tags in ({256: 40, 257: 30, 258: 8, 259: 1, 262: 1, 277: 1, **tiles}, {256: 2**31, 257: 2**31, 262: 1}):
        with pytest.raises(InvalidImageError, match=r"tiles of|pixels"):
            load_image(raw_tiff(bytes(100), tags))
    long = bytearray(raw_tiff(bytes(1200), {256: 40, 257: 30, 258: 8, 259: 1, 262: 1, 277: 1, 278: 30}))
    at = long.index(struct.pack("<HH", 273, 4))
    long[at + 4 : at + 8] = struct.pack("<I", 2**31)
    with pytest.raises(InvalidImageError, match="tag 273"):
        load_image(bytes(long))
    loop = bytearray(raw_tiff(bytes(1200), {256: 40, 257: 30, 258: 8, 259: 1, 262: 1, 277: 1, 278: 30}))
    loop[-4:] = struct.pack("<I", 8 + 1200)  # the next page is this one
    assert load_image(bytes(loop)).shape == (30, 40)
    assert time.process_time() - started < 5


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch, rng):
    path = tmp_path / "a.tif"
    image = np.kron(picture(rng), np.ones((20, 20, 1), np.uint8))
    data = tiff(image, photometric="rgb", rowsperstrip=1)
    path.write_bytes(data)
    real = decode.read_tiff

    def shrink(*args):
        os.truncate(path, len(data) // 2)
        return real(*args)

    monkeypatch.setattr(decode, "read_tiff", shrink)
    with pytest.raises(InvalidImageError, match="truncated"):
        load_image(path)


@pytest.mark.parametrize(
    "cell",
    [c for i, c in enumerate(CELLS) if i % 11 == 0 and c.refused is None],
    ids=str,
)
def test_damaged_files_end_in_a_typed_error(cell, rng):
    data, _ = cell.make(rng)
    for _ in range(12):
        broken = bytearray(data)
        if rng.random() < 0.4:
            del broken[int(rng.integers(0, len(broken))) :]
        for _ in range(int(rng.integers(1, 6))):
            if broken:
                broken[int(rng.integers(0, min(len(broken), 400 if rng.random() < 0.7 else len(broken))))] = (
                    rng.integers(256)
                )
        started = time.process_time()
        for call in (load_image, image_size):
            with contextlib.suppress(ActiveFreqError):
                call(bytes(broken))
        assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "cell", [c for c in CELLS if c.variant in ("", "strips", "lossless") and c.refused is None], ids=str
)
def test_truncated_files_are_refused(cell, rng):
    data, _ = cell.make(rng)
    if cell.format in ("PNM", "PFM", "BMP", "PNG", "TIFF", "WebP"):
        with pytest.raises(InvalidImageError):
            load_image(data[: len(data) // 2])


def test_postscript_that_pillow_opened_is_not_run(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("it was run"))
    image = Image.open(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"))
    with pytest.raises(InvalidImageError, match="never run"):
        load_image(image)


def test_a_pil_image_that_is_not_loaded_keeps_its_depth(rng, tmp_path):
    deep = rng.integers(0, 4096, (H, W, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    cv2.imwrite(str(tmp_path / "a.tif"), deep[..., ::-1])
    right = load_image(deep, window=(0, 4095))
    for name in ("a.png", "a.tif"):
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(load_image(image, window=(0, 4095)), right)
            image.load()  # still of use


def test_a_pil_image_has_the_size_that_its_owner_sees(rng):
    pixels = rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(encoded(pixels, "JPEG")))
    image.draft("RGB", (75, 50))
    read = load_image(image)
    assert read.shape[1::-1] == image.size == (75, 50)
    assert np.array_equal(read, np.asarray(image))
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages) as out:
        out.write(pixels[::4, ::4], photometric="rgb")
        out.write(pixels, photometric="rgb")
    assert np.array_equal(load_image(Image.open(pages)), pixels[::4, ::4])
    assert np.array_equal(load_image(pages.getvalue()), pixels)


def test_threads_leave_nothing_behind(tmp_path, rng):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(rng)))
    filters, environment = list(warnings.filters), dict(os.environ)
    threads = [threading.Thread(target=lambda: [load_image(path) for _ in range(40)]) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (list(warnings.filters), dict(os.environ)) == (filters, environment)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_low_bit_png_of_labels_is_not_the_picture(rng):
    stored = rng.integers(0, 4, (H, W))
    assert np.array_equal(load_image(png(stored, 2, 0)), stored * 85)


@pytest.mark.parametrize("cell", [c for i, c in enumerate(CELLS) if i % 5 == 0 and c.refused is None], ids=str)
def test_values_before_the_window(cell, rng):
    data, _ = cell.make(rng)
    stored = load_values(data)
    for window in (None, (3.0, 170.0)):
        if stored.dtype != np.uint8:
            assert np.array_equal(load_image(stored, window=window), load_image(data, window=window))
    if stored.dtype == np.uint8:
        assert np.array_equal(stored, load_image(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pil_image_is_turned_once(rng, orientation):
    upright = picture(rng)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        data = encoded(turned(upright, orientation), kind, exif=exif)
        for loaded in (False, True):
            with Image.open(io.BytesIO(data)) as image:
                if loaded:
                    image.load()
                assert np.array_equal(load_image(image), upright)
    made = Image.fromarray(turned(upright, orientation))
    made.getexif()[0x0112] = orientation
    assert np.array_equal(load_image(made), upright)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_of_what_pillow_decodes_within_a_tiff(orientation):
    y, x = np.mgrid[:48, :80]
    upright = np.stack([60 + y + x, 200 - 2 * y, 40 + 2 * x], -1).astype(np.uint8)
    image = vips(turned(upright, orientation)).copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    for options in ({"compression": "jpeg", "Q": 95}, {"compression": "jpeg", "Q": 95, "tile": True}):
        data = image.write_to_buffer(".tif", **options)
        assert np.abs(load_image(data).astype(int) - upright).max() <= 8
        assert image_size(data) == (48, 80)


def test_orientation_in_xmp():
    upright = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(turned(upright, 6), "WEBP", lossless=True, xmp=xmp)
    assert np.array_equal(load_image(data), upright)
    assert image_size(data) == (H, W)
