import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from activefreq_engine import InvalidImageError, Session, SessionStateError
from activefreq_engine.images import image_digest, load_image

from .fakes import random_image


def test_uint8_is_taken_as_it_is(rng):
    for channels in (1, 3):
        image = random_image(rng, 7, 12, channels)
        loaded = load_image(image)
        assert np.array_equal(loaded, image)
        assert not np.shares_memory(loaded, image)
        assert np.shares_memory(load_image(image, copy=False), image)
    assert np.array_equal(load_image(image[..., :1]), image[..., 0])


def test_strided_input_comes_back_contiguous(rng):
    image = random_image(rng, 14, 12)[::2, ::-1]
    loaded = load_image(image, copy=False)
    assert np.array_equal(loaded, image)
    assert loaded.flags.c_contiguous


def test_alpha_is_composited_over_white(rng):
    image = random_image(rng, 5, 8, 4)
    image[0, 0, 3], image[0, 1, 3] = 0, 255
    loaded = load_image(image)
    alpha = image[..., 3:] / 255
    assert np.abs(loaded - (image[..., :3] * alpha + 255 * (1 - alpha))).max() <= 0.5 + 1e-9
    assert (loaded[0, 0] == 255).all()
    assert np.array_equal(loaded[0, 1], image[0, 1, :3])
    assert np.array_equal(load_image(image / np.float32(255)), loaded)
    assert np.array_equal(load_image(image.astype(np.uint16) * 257, window=(0, 65535)), loaded)


def test_floats_within_0_1_are_scaled_by_255(rng):
    image = rng.random((6, 9)).astype(np.float32)
    assert np.array_equal(load_image(image), np.rint(image * 255.0))


def test_other_types_are_windowed_by_percentiles(rng):
    image = rng.normal(1000, 200, (60, 90)).astype(np.int16)
    image[3, 4] = 30000  # one hot pixel must not turn the rest black
    low, high = np.percentile(image, (0.5, 99.5))
    expected = np.rint(np.clip((image - low) * (255 / (high - low)), 0, 255))
    assert np.array_equal(load_image(image), expected)
    assert load_image(image).std() > 30
    assert np.array_equal(load_image(image.astype(">i2")), expected)


def test_window_given_by_the_caller():
    image = np.array([[-1000, 0, 60, 100, 3000]], np.int16)
    assert load_image(image, window=(0, 100)).tolist() == [[0, 0, 153, 255, 255]]


def test_sparse_and_constant_images():
    sparse = np.zeros((100, 100), np.uint16)
    sparse[2, 3] = 4000
    assert load_image(sparse).max() == 255
    assert (load_image(np.full((4, 5), 7000, np.uint16)) == 0).all()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 0), np.uint8), "empty"),
        (np.zeros(7, np.uint8), "shape"),
        (np.zeros((2, 3, 4, 3), np.uint8), "shape"),
        (np.zeros((5, 6, 2), np.uint8), "shape"),
        (np.zeros((3, 50, 60), np.uint8), "channels come last"),
        (np.zeros((5, 6), bool), "dtype bool"),
        (np.zeros((5, 6), complex), "dtype complex"),
        (np.array([["a", "b"]]), "dtype"),
        (np.full((5, 6), np.nan), "NaN"),
        (np.array([[np.inf, -np.inf]]), "infinite"),
        (np.ma.masked_all((5, 6), np.uint16), "no data"),
        ([[1, 2], [3, 4]], "list"),
        (None, "NoneType"),
        ("/no/such/file.png", "no such file"),
        ("/", "directory"),
    ],
)
def test_unusable_images(image, says):
    with pytest.raises(InvalidImageError, match=says):
        load_image(image)


def test_nan_is_no_data_and_shown_black(rng):
    image = rng.normal(1000, 200, (40, 60)).astype(np.float32)
    holes = rng.random(image.shape) < 0.2
    with_holes = np.where(holes, np.nan, image)
    for window in (None, (900, 1100)):
        whole = load_image(image, window=window or np.percentile(image[~holes], (0.5, 99.5)))
        assert np.array_equal(load_image(with_holes, window=window), np.where(holes, 0, whole))
    assert load_image(np.array([[-np.inf, 0, 10, np.inf]]), window=(0, 10)).tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0, np.inf), (0, 10**400), (1,), "ab", 3])
def test_bad_windows(window):
    with pytest.raises(InvalidImageError, match="window"):
        load_image(np.zeros((3, 4)), window=window)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_files(tmp_path, rng, suffix):
    for channels in (1, 3):
        image = random_image(rng, 9, 14, channels)
        path = tmp_path / f"a{suffix}"
        Image.fromarray(image).save(path)
        assert np.array_equal(load_image(path), image)
        assert np.array_equal(load_image(str(path)), image)
        assert np.array_equal(load_image(Image.fromarray(image)), image)


def test_pil_modes(rng):
    grey = random_image(rng, 9, 14, 1)
    rgba = random_image(rng, 9, 14, 4)
    assert np.array_equal(load_image(Image.fromarray(grey > 99)), np.where(grey > 99, 255, 0))
    assert np.array_equal(load_image(Image.fromarray(rgba)), load_image(rgba, alpha=True))
    for mode in ("CMYK", "YCbCr", "HSV", "P"):
        image = Image.fromarray(rgba[..., :3]).convert(mode)
        assert np.array_equal(load_image(image), np.asarray(image.convert("RGB")))
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(rgba[..., 3])])
    assert np.array_equal(load_image(la), load_image(np.dstack([grey, grey, grey, rgba[..., 3]]), alpha=True))
    deep = grey.astype(np.uint16) * 16
    assert np.array_equal(load_image(Image.fromarray(deep)), load_image(deep))


def test_16_bit_png(tmp_path, rng):
    image = rng.integers(0, 4096, (20, 31), dtype=np.uint16)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), load_image(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, rng, orientation):
    upright = np.kron(random_image(rng, 2, 3, 1), np.ones((16, 16), np.uint8))
    # what the camera stores, for each value of the tag
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(load_image(path), upright)
    with Image.open(path) as image:
        assert np.array_equal(load_image(image), upright)


def test_truncated_and_corrupt_files(tmp_path, rng):
    buffer = io.BytesIO()
    Image.fromarray(random_image(rng, 64, 48)).save(buffer, format="PNG")
    data = buffer.getvalue()
    for cut in (0, 4, 30, 200, len(data) // 2, len(data) - 200):
        (tmp_path / "a.png").write_bytes(data[:cut])
        with pytest.raises(InvalidImageError):
            load_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"not an image at all")
    with pytest.raises(InvalidImageError, match=r"a\.png"):
        load_image(tmp_path / "a.png")


def test_pixel_bomb_is_refused_before_decoding(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 2_900, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"  # a header that promises 174 megapixels, and no pixels: decoding would fail otherwise
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidImageError, match="174000000 pixels"):
            load_image(path)
    with pytest.raises(InvalidImageError, match="allowed are 100"):
        load_image(np.zeros((11, 10), np.uint8), max_pixels=100)


def test_digest_tells_images_apart(rng):
    image = random_image(rng, 6, 10, 1)
    other = image.copy()
    other[5, 9] ^= 1
    assert image_digest(image) == image_digest(image.copy())
    assert len({image_digest(i) for i in (image, other, image.reshape(10, 6))}) == 3


def test_a_session_reads_as_load_image_does(engine, rng):
    image = random_image(rng, 40, 60, 4)
    image[..., 3] = 40
    for options in ({"alpha": True}, {"alpha": False}, {"bgr": True}, {"bgr": True, "alpha": True}):
        with Session(engine=engine) as session:
            session.set_image(image, **options)
            session.click(30, 20)
            state = session.state_dict()
            with Session.restore(state, load_image(image, **options), engine=engine) as again:
                assert np.array_equal(again.mask, session.mask)
            with Session.restore(state, image, engine=engine, **options) as again:
                assert np.array_equal(again.mask, session.mask)
    with pytest.raises(SessionStateError):
        Session.restore(state, image, engine=engine)
