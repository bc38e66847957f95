"""Masks and label maps are read as they are stored, and paired with their pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activefreq_engine import DatasetError, InvalidImageError, masks
from activefreq_engine.images import load_labels
from activefreq_engine.images.folders import IMAGE_SUFFIXES, MASK_SUFFIXES, listing, match

from .cells import H, W, png, tiff, tiff_bits, turned


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour", [0, 3])
def test_values_of_a_png(rng, depth, colour):
    if (depth, colour) == (16, 3):
        return
    stored = rng.integers(0, 1 << depth, (H, W))
    chunks = [(b"PLTE", rng.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes())] if colour else []
    assert np.array_equal(load_labels(png(stored, depth, colour, *chunks)), stored)
    chunks.append((b"tRNS", bytes([0, 255]) if colour else bytes(2)))  # transparency says nothing about labels
    assert np.array_equal(load_labels(png(stored, depth, colour, *chunks)), stored)


@pytest.mark.parametrize("white", [1, 3, 100, 254, 255, 1000])
@pytest.mark.parametrize("kind", [2, 5])
def test_values_of_a_pnm(rng, white, kind):
    stored = rng.integers(0, white + 1, (H, W))
    as_text = " ".join(map(str, stored.ravel())).encode()
    body = as_text if kind == 2 else stored.astype(">u2" if white > 255 else "u1").tobytes()
    data = f"P{kind}\n{W} {H}\n{white}\n".encode() + body
    assert np.array_equal(load_labels(data), stored)


@pytest.mark.parametrize("code", ["u1", "u2", "u4", "i2", "i4", "i8", "f4", "f8"])
def test_values_of_a_tiff(rng, code):
    stored = rng.integers(0, 120, (H, W)).astype(code)
    data = tiff(turned(stored, 6), photometric="minisblack", extratags=[(274, 3, 1, 6, True)], compression="zlib")
    got = load_labels(data)
    assert np.array_equal(got, stored)
    assert got.dtype.kind in "ui"


def test_white_is_zero_counts_the_other_way(rng):
    for bits in (1, 4, 12):
        data, _ = tiff_bits(np.random.default_rng(3), bits, 0)
        stored = np.random.default_rng(3).integers(0, 1 << bits, (H, W))
        assert np.array_equal(load_labels(data), (1 << bits) - 1 - stored)


def test_our_own_files(tmp_path, rng):
    for top in (1, 7, 255, 256, 40000):
        labels = rng.integers(0, top + 1, (H, W))
        masks.save_labels_png(tmp_path / "a.png", labels)
        assert np.array_equal(load_labels(tmp_path / "a.png"), labels)
        assert np.array_equal(masks.load_labels_png(tmp_path / "a.png"), labels)
    mask = rng.random((H, W)) < 0.5
    masks.save_png(tmp_path / "a.png", mask)
    assert np.array_equal(load_labels(tmp_path / "a.png"), mask * 255)


def test_colour_pictures(rng):
    grey = rng.integers(0, 9, (H, W), dtype=np.uint8)

    def encoded(*bands):
        out = io.BytesIO()
        Image.fromarray(np.dstack(bands)).save(out, "PNG")
        return out

    assert np.array_equal(load_labels(encoded(grey, grey, grey)), grey)
    assert np.array_equal(load_labels(encoded(grey, grey, grey, 255 - grey)), grey)
    coloured = encoded(grey, 0 * grey, 2 * grey)
    with pytest.raises(InvalidImageError, match="one channel"):
        load_labels(coloured)
    assert np.array_equal(load_labels(coloured, any_colour=True), 2 * grey)
    with pytest.raises(InvalidImageError, match="whole numbers"):
        load_labels(tiff(rng.random((H, W)).astype(np.float32), photometric="minisblack"))
    with pytest.raises(InvalidImageError, match="whole numbers"):
        load_labels(tiff(np.full((H, W), np.nan, np.float32), photometric="minisblack"))


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / n for n in names]


def test_capitals_and_hidden_files(tmp_path, caplog):
    touch(tmp_path / "a", "b.PNG", "a.JPG", "._a.JPG", ".DS_Store", "c.TiFf", "d.heic", "notes.txt")
    assert [p.name for p in listing(tmp_path / "a", IMAGE_SUFFIXES)] == ["a.JPG", "b.PNG", "c.TiFf"]
    assert "d.heic" in caplog.text
    assert "notes.txt" not in caplog.text
    with pytest.raises(DatasetError, match="missing"):
        listing(tmp_path / "none", IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("IMG_1.JPG", "IMG_1.PNG"),
        ("IMG_1.JPG", "img_1.png"),
        ("cell.tif", "cell_mask.png"),
        ("Cell.tif", "CELL_MASK.TIF"),
        ("x.png", "x_segmentation.png"),
        ("x_mask.png", "x_mask.png"),
        ("x.y.png", "x.y.png"),
    ],
)
def test_names_that_belong_together(tmp_path, image, mask):
    images, truths = touch(tmp_path / "i", image), touch(tmp_path / "m", mask, "other.png")
    assert listing(tmp_path / "m", MASK_SUFFIXES)
    (pair,) = match(images, truths)
    assert (pair.image, pair.truth, pair.name) == (images[0], truths[0], images[0].stem)


@pytest.mark.parametrize(
    ("images", "truths", "says"),
    [
        (["a.png", "b.png"], ["a.png"], "no mask for 1 of 2"),
        (["a.png", "a.jpg"], ["a.png"], "same name"),
        (["a.png"], ["a.png", "a.tif"], "same image"),
        (["a.png"], ["A_mask.png", "a_label.png"], "both belong"),
        (["a.png", "A.png"], ["a_mask.png"], "same mask"),
    ],
)
def test_names_that_do_not(tmp_path, images, truths, says):
    with pytest.raises(DatasetError, match=says):
        match(touch(tmp_path / "i", *images), touch(tmp_path / "m", *truths))
    # an exact name goes before a likely one
    (pair,) = match(touch(tmp_path / "j", "a.png"), touch(tmp_path / "n", "a.png", "a_mask.png"))
    assert pair.truth.name == "a.png"


def test_accents_may_be_written_in_either_way(tmp_path):
    apart, whole = "Mu\u0308ll e\u0301", "M\u00fcll \u00e9"
    for image, truth in ((apart, whole), (whole, apart), (whole, apart + "_mask"), (whole.upper(), apart)):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (pair,) = match(touch(folder / "images", f"{image}.png"), touch(folder / "masks", f"{truth}.png"))
        assert pair.truth.stem == truth


def test_folders_within_a_folder_are_named(tmp_path, caplog):
    touch(tmp_path / "images", "a.png")
    touch(tmp_path / "images" / "more", "b.PNG")
    touch(tmp_path / "images" / "notes", "b.txt")
    (tmp_path / "images" / "loop").symlink_to("nowhere")
    assert [p.name for p in listing(tmp_path / "images", IMAGE_SUFFIXES)] == ["a.png"]
    assert "1 folders within" in caplog.text
    assert "more; left out" in caplog.text
