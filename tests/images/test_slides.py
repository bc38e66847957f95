"""Large TIFF by region: the same pixels as the whole file has, and nothing else decoded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activefreq_engine import InvalidArgumentError, InvalidImageError
from activefreq_engine.images import Slide, load_image

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("zarr")


@pytest.fixture
def pyramid(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, np.ndarray]:
    pixels = rng.integers(0, 255, (413, 611, 3)).astype(np.uint8)
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as out:
        how = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
        out.write(pixels, subifds=2, metadata={"axes": "YXS"}, **how)
        for step in (2, 4):
            out.write(pixels[::step, ::step], subfiletype=1, **how)
    return path, pixels


def test_regions_of_every_level(pyramid: tuple[Path, np.ndarray]) -> None:
    path, pixels = pyramid
    with Slide(path) as slide:
        assert slide.shape == (413, 611)
        assert slide.levels == [(413, 611), (207, 306), (104, 153)]
        np.testing.assert_array_equal(slide.read((100, 30, 333, 207)), pixels[30:207, 100:333])
        np.testing.assert_array_equal(slide.read((-50, 400, 5, 900)), pixels[400:, :5])
        part = slide.read((200, 100, 400, 300), level=1)
        assert 100 <= part.shape[0] <= 102
        np.testing.assert_array_equal(part[:100, :100], pixels[::2, ::2][50:150, 100:200])
        np.testing.assert_array_equal(slide.read((0, 0, 611, 413), level=2), pixels[::4, ::4])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_layouts(tmp_path: Path, planar: str, dtype: type, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 255, (80, 130, 3)).astype(dtype)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, tile=(32, 32))
    with Slide(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read((11, 7, 99, 70)), pixels[7:70, 11:99])
    tifffile.imwrite(tmp_path / "g.tif", pixels[..., 0], tile=(32, 32))
    with Slide(tmp_path / "g.tif") as slide:
        np.testing.assert_array_equal(slide.read((11, 7, 99, 70)), pixels[7:70, 11:99, 0])


def stored(path: Path, pixels: np.ndarray, photometric: str, **how: Any) -> Path:
    tifffile.imwrite(path, pixels, photometric=photometric, tile=(32, 32), **how)
    return path


@pytest.mark.parametrize("extra", [["unassalpha"], ["assocalpha"], ["unspecified"]])
def test_a_fourth_band_counts_as_in_whole_files(tmp_path: Path, extra: list[str], rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (80, 130, 4)).astype(np.uint8)
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    pixels[:40, :40, 3] = 0  # nothing in this part tells alpha from another band
    path = stored(tmp_path / "a.tif", pixels, "rgb", extrasamples=extra)
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read((3, 5, 40, 40)), load_image(path)[5:40, 3:40])
        np.testing.assert_array_equal(slide.read((3, 5, 99, 77)), load_image(path)[5:77, 3:99])


@pytest.mark.parametrize("kind", ["miniswhite", "palette", "separated", "ycbcr", "cielab", "channels", "deep alpha"])
def test_what_is_stored_otherwise_is_not_shown_as_it_is(tmp_path: Path, kind: str, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (80, 130)).astype(np.uint8)
    path = tmp_path / "a.ome.tif"
    if kind == "miniswhite":
        stored(path, grey, kind, ome=False)
    elif kind == "palette":
        stored(path, grey, kind, colormap=rng.integers(256, 65536, (3, 256)).astype(np.uint16), ome=False)
    elif kind == "channels":
        stored(path, np.stack([grey] * 4), "minisblack", ome=True, metadata={"axes": "CYX"})
    elif kind == "deep alpha":
        stored(path, np.dstack([grey] * 4).astype(np.uint16), "rgb", extrasamples=["unassalpha"], ome=False)
    else:
        stored(path, np.dstack([grey] * (4 if kind == "separated" else 3)), kind, ome=False)
    with pytest.raises(InvalidImageError, match="only grey and RGB"):
        Slide(path)


def test_what_is_refused(tmp_path: Path, pyramid: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = pyramid
    with Slide(path) as slide:
        for box in ((611, 0, 700, 5), (5, 5, 5, 9), (9, 5, 5, 9)):
            with pytest.raises(InvalidArgumentError, match="no part"):
                slide.read(box)
        with pytest.raises(InvalidArgumentError, match="level"):
            slide.read((0, 0, 5, 5), level=3)
        monkeypatch.setattr("activefreq_engine.images.slides.MAX_PIXELS", 99)
        with pytest.raises(InvalidImageError, match="higher level"):
            slide.read((0, 0, 10, 10))
    (tmp_path / "no.tif").write_bytes(b"II*\0" + bytes(60))
    for name in ("no.tif", "missing.tif"):
        with pytest.raises(InvalidImageError, match="cannot read"):
            Slide(tmp_path / name)
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 5, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(InvalidImageError, match="axes"):
        Slide(tmp_path / "stack.tif")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InvalidImageError, match=r"\.\[slides\]"):
        Slide(path)
