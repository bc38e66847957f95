"""The window that is chosen when nobody says: no-data values, outliers, sparse objects must not flatten a picture."""

import cv2
import numpy as np
import pytest

from activefreq_engine.images import load_image


def terrain(rng: np.random.Generator, shape: tuple[int, int] = (200, 280)) -> np.ndarray:
    """A smooth landscape, 60 to 140, with some noise."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return 100 + 20 * np.sin(x / 20) + 20 * np.cos(y / 17) + rng.normal(0, 2, shape)


def percentiles(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255))


@pytest.mark.parametrize("share", [0.001, 0.004, 0.01, 0.08, 0.5, 0.9])
@pytest.mark.parametrize("nothing", [-9999.0, -32768.0, 1e20, -3.4e38, 65535.0])
def test_values_without_data_do_not_count(rng, nothing, share):
    image = terrain(rng)
    hole = np.zeros(image.shape, bool)
    hole.ravel()[: max(100, int(share * image.size))] = True
    got = load_image(np.where(hole, nothing, image))
    assert np.abs(got[~hole] - percentiles(image[~hole])).max() <= 1
    assert (got[hole] == (0 if nothing < 0 else 255)).all()


def test_two_values_without_data(rng):
    image = terrain(rng)
    shown = percentiles(image[40:])
    image[:20], image[20:40] = -9999, -3.4e38
    assert np.abs(load_image(image)[40:] - shown).max() <= 1


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_a_scanner_s_padding(rng, dtype):
    """CT: air is -1024, the corners outside the scanner's circle are -3024."""
    noise = rng.standard_normal((200, 280))
    image = np.where(terrain(rng) > 100, 40 + 30 * noise, -1000 + 8 * noise)
    image[60:90, 60:90] = 1200
    image[:30, :30] = -3024
    got = load_image(image.astype(dtype))
    soft = got[image > -500]
    assert np.ptp(got[(image > -1100) & (image < 200)].astype(int)) > 90
    assert soft.max() == 255


def test_no_data_bands_of_a_colour_picture(rng):
    image = np.dstack([terrain(rng), terrain(rng) + 5, terrain(rng) + 9])
    shown = percentiles(image[30:])
    image[:30] = -9999
    assert np.abs(load_image(image)[30:] - shown).max() <= 1


def test_masked_arrays_and_nan_floats_within_0_1(rng):
    image = terrain(rng)
    mask = rng.random(image.shape) < 0.3
    got = load_image(np.ma.MaskedArray(np.where(mask, 7e5, image), mask))
    assert np.abs(got[~mask] - percentiles(image[~mask])).max() <= 1
    assert (got[mask] == 0).all()
    unit = rng.random((30, 40)).astype(np.float32)
    unit[:3] = -9999  # reflectances with a no-data value are within [0, 1] all the same
    assert np.array_equal(load_image(unit)[3:], np.rint(unit[3:] * 255.0))


@pytest.mark.parametrize("smooth", [0.0, 1.2])
@pytest.mark.parametrize("vignetting", [0.0, 12.0])
@pytest.mark.parametrize("radius", [5, 14, 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sparse_object_keeps_its_shades(rng, smooth, vignetting, radius, sign):
    y, x = np.mgrid[:300, :400]
    ground = rng.normal(0, 3, x.shape)
    if smooth:
        ground = cv2.GaussianBlur(ground, (0, 0), smooth) * 4
    ground = ground - vignetting * (((x - 200) / 200) ** 2 + ((y - 150) / 150) ** 2)
    distance = np.hypot(x - 250, y - 150)
    cell = distance < radius
    raw = 20000 + sign * np.where(cell, 300 + 1600 * (1 - distance / radius), ground)
    for _ in range(5):  # hot and dead pixels
        raw[tuple(rng.integers(0, 110, 2))] = rng.choice([0, 65535])
    got = load_image(raw.astype(np.uint16)).astype(int)
    assert len(np.unique(got[cell])) > 20 * min(1, radius / 10)
    assert got[~cell].std() < 20
    assert np.mean(got[cell] == (255 if sign > 0 else 0)) < 0.1


def test_a_bright_speck_does_not_darken_a_picture(rng):
    """Metal in a CT, a lamp in a photograph: the rest is what people look at."""
    image = terrain(rng)
    image[100:108, 100:108] = rng.uniform(3000, 30000, (8, 8))
    image[5, 5] = 60000
    assert np.array_equal(load_image(image), percentiles(image))


def test_a_saturated_object_on_noise_stays_white(rng):
    raw = rng.normal(100, 3, (300, 400))
    raw[50:120, 60:130] = 65535
    got = load_image(raw.astype(np.uint16))
    assert (got[50:120, 60:130] == 255).all()
    assert got[200:].std() < 20


@pytest.mark.parametrize("nothing", [32767.0, 65535.0, 2.0**32 - 1, 1e20])
@pytest.mark.parametrize("share", [0.002, 0.1, 0.4])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_slope_is_no_ground_of_noise(rng, nothing, share, noise):
    y, x = np.mgrid[:200, :280]
    image = 100 + 3 * x + y + noise * rng.standard_normal(x.shape)
    hole = np.zeros(image.shape, bool)
    hole.ravel()[-int(share * image.size) :] = True
    got = load_image(np.where(hole, nothing, image))
    assert np.abs(got[~hole] - percentiles(image[~hole])).max() <= 1


@pytest.mark.parametrize("nothing", [2**32 - 1, 2**31 - 1])
def test_what_no_sensor_shows_is_no_data_on_noise_too(rng, nothing):
    """The gaps between the chips of an X-ray detector."""
    image = rng.normal(1000, 30, (300, 400))
    shown = percentiles(np.floor(np.delete(image, range(100, 130), 0)))
    image[100:130] = nothing
    assert np.abs(np.delete(load_image(image.astype(np.uint32)), range(100, 130), 0) - shown).max() <= 1


def test_few_values_are_all_shown():
    image = np.full((90, 120), 960, np.uint16)
    image[20:50, 30:80] = 3200
    image[60:70, 30:80] = 9000
    got = load_image(image)
    assert [int(v) for v in np.unique(got)] == [0, 71, 255]


def test_ordinary_pictures_go_by_the_percentiles(rng):
    for image in (
        terrain(rng),
        rng.normal(1000, 200, (60, 90)),
        rng.gamma(2, 300, (80, 120)),
        rng.random((50, 40)) * 9,
    ):
        assert np.array_equal(load_image(image), percentiles(image))
    noise = rng.normal(1000, 200, (60, 90))
    noise[3, 4] = 30000
    assert np.array_equal(load_image(noise), percentiles(noise))


def test_large_pictures_are_sampled_and_read_by_strips(rng):
    image = rng.integers(0, 4096, (1200, 2001), dtype=np.uint16)
    step = int(np.sqrt(image.size / 1_000_000))
    low, high = np.percentile(image[::step, ::step], (0.5, 99.5))
    expected = np.rint(np.clip((image.astype(float) - low) * (255 / (high - low)), 0, 255))
    assert np.array_equal(load_image(image), expected)
