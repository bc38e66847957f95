import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from activefreq_engine import InvalidArgumentError, InvalidMaskError, masks

any_mask = hnp.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 37)))
quick = settings(max_examples=60, deadline=None)


@quick
@given(any_mask)
def test_rle_equals_pycocotools(mask):
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = masks.to_coco_rle(mask)
    assert ours["size"] == list(theirs["size"])
    assert ours["counts"].encode() == theirs["counts"]
    assert np.array_equal(coco.decode(ours), mask)
    assert np.array_equal(masks.from_coco_rle(theirs), mask)
    plain = masks.to_coco_rle(mask, compressed=False)
    assert np.array_equal(coco.decode(coco.frPyObjects(plain, *plain["size"])), mask)


@quick
@given(any_mask)
def test_rle_round_trip_through_json(mask):
    for compressed in (True, False):
        assert np.array_equal(
            masks.from_coco_rle(json.loads(json.dumps(masks.to_coco_rle(mask, compressed=compressed)))), mask
        )


def test_rle_of_a_long_run():
    mask = np.zeros((3000, 41), bool)
    mask[5, 40] = True
    assert masks.to_coco_rle(mask)["counts"].encode() == coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]
    assert np.array_equal(masks.from_coco_rle(masks.to_coco_rle(mask)), mask)


@pytest.mark.parametrize(
    "rle",
    [
        None,
        {},
        {"size": [2, 3]},
        {"size": [2], "counts": [6]},
        {"size": [2, -3], "counts": [6]},
        {"size": [2, True], "counts": [2]},
        {"size": [2.0, 3], "counts": [6]},
        {"size": [100_000, 100_000], "counts": [10_000_000_000]},
        {"size": [2, 3], "counts": [5]},
        {"size": [2, 3], "counts": [7]},
        {"size": [2, 3], "counts": [8, -2]},
        {"size": [2, 3], "counts": [3.0, 3.0]},
        {"size": [2, 3], "counts": "\x7f"},
        {"size": [2, 3], "counts": "é"},
        {"size": [2, 3], "counts": "P"},
        {"size": [2, 3], "counts": "P" * 50},
        {"size": [2, 3], "counts": ""},
    ],
)
def test_damaged_rle(rle):
    with pytest.raises(InvalidMaskError):
        masks.from_coco_rle(rle)


def test_png_round_trip(tmp_path, rng):
    mask = rng.random((13, 29)) > 0.5
    masks.save_png(tmp_path / "m.png", mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), mask * 255)
    assert np.array_equal(masks.load_labels_png(tmp_path / "m.png") > 0, mask)


@pytest.mark.parametrize(("highest", "mode"), [(0, "P"), (5, "P"), (255, "P"), (256, "I;16"), (65535, "I;16")])
def test_label_png_round_trip(tmp_path, rng, highest, mode):
    labels = rng.integers(0, highest + 1, (13, 29)).astype(np.int32)
    labels[0, 0] = highest
    path = tmp_path / "l.png"
    masks.save_labels_png(path, labels)
    with Image.open(path) as image:
        assert image.mode == mode
        if mode == "P":
            palette = np.array(image.getpalette()).reshape(-1, 3)
            assert len(np.unique(palette[: min(highest + 1, 12)], axis=0)) == min(highest + 1, 12)
    assert np.array_equal(masks.load_labels_png(path), labels)


def test_label_png_refuses(tmp_path, rng):
    for labels in (np.zeros((3, 4)), np.full((3, 4), -1), np.full((3, 4), 65536), np.zeros((2, 3, 4), int)):
        with pytest.raises(InvalidMaskError):
            masks.save_labels_png(tmp_path / "l.png", labels)
    Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(InvalidMaskError, match="RGB"):
        masks.load_labels_png(tmp_path / "rgb.png")
    with pytest.raises(InvalidMaskError, match="cannot read"):
        masks.load_labels_png(tmp_path / "none.png")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_as_mask_accepts(dtype):
    mask = masks.as_mask(np.array([[0, 1, 1], [1, 0, 0]], dtype), (2, 3))
    assert mask.dtype == bool
    assert mask.tolist() == [[False, True, True], [True, False, False]]
    assert masks.as_mask(np.array([[0, 255]], np.uint8)).tolist() == [[False, True]]


def test_what_a_masked_array_hides_is_outside(tmp_path):
    hidden = np.ma.masked_array(np.full((2, 3), 1), [[0, 0, 1], [1, 0, 0]])
    assert masks.as_mask(hidden, (2, 3)).tolist() == [[True, True, False], [False, True, True]]
    masks.save_labels_png(tmp_path / "m.png", 7 * hidden)
    assert masks.load_labels_png(tmp_path / "m.png").tolist() == [[7, 7, 0], [0, 7, 7]]


@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 2), bool), np.zeros(6, bool), np.zeros((2, 3)), np.array([[0, 1, 2], [0, 0, 0]]), None, "mask"],
)
def test_as_mask_refuses(mask):
    with pytest.raises(InvalidMaskError):
        masks.as_mask(mask, (2, 3))


@pytest.mark.parametrize("name", ["m.jpg", "m.JPEG", "m.tif", "m.bmp", "m.webp", "m.gif"])
def test_a_png_is_not_written_under_the_name_of_another_format(tmp_path, name):
    for save in (masks.save_png, masks.save_labels_png):
        with pytest.raises(InvalidArgumentError, match=r"end the name in \.png"):
            save(tmp_path / name, np.ones((3, 4), np.uint8))
    assert not list(tmp_path.iterdir())
    for good in ("m.png", "m.PNG", "m", "m.v2"):
        masks.save_png(tmp_path / good, np.ones((3, 4), np.uint8))
        assert masks.load_labels_png(tmp_path / good).tolist() == [[255] * 4] * 3
