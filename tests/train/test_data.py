"""Packed data, and the geometry of training crops."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from activefreq_engine.errors import DatasetError
from activefreq_engine.train import data as data_module
from activefreq_engine.train.data import (
    FAINTEST,
    LEAST_SHOWN,
    MIN_AREA,
    Crop,
    PackedDataset,
    StepSampler,
    distract,
    fade,
    hairs,
    pack,
    photometric,
    random_crop,
    surround,
)
from activefreq_engine.train.mix import Source

from .conftest import disk, write_pairs


def stored(packed: Path) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """Each entry with its image and labels, read without the class under test."""
    images, labels = (packed / "images.u8").read_bytes(), (packed / "labels.u16").read_bytes()
    out = []
    for e in json.loads((packed / "index.json").read_text())["entries"]:
        n, o = e["h"] * e["w"], e["offset"]
        image = np.frombuffer(images[3 * o : 3 * (o + n)], np.uint8).reshape(e["h"], e["w"], 3)
        out.append((e, image, np.frombuffer(labels[2 * o : 2 * (o + n)], np.uint16).reshape(e["h"], e["w"])))
    return out


# --- packing ----------------------------------------------------------------------------------------------------------
def test_packs_what_is_on_disk(pairs: Path, tmp_path: Path) -> None:
    entries = stored(pack([pairs], tmp_path))
    assert [e["id"] for e, _, _ in entries] == [f"{i:03}" for i in range(8)]
    for e, image, labels in entries:
        bgr = cv2.imread(str(pairs / "images" / f"{e['id']}.png"))
        np.testing.assert_array_equal(image, bgr[..., ::-1])
        np.testing.assert_array_equal(labels, cv2.imread(str(pairs / "masks" / f"{e['id']}.png"), 0) == 255)
        assert e["objects"] == [[1]]


@pytest.mark.parametrize("kind", ["labels", "instances"])
def test_label_maps_hold_several_objects(tmp_path: Path, kind: str) -> None:
    folder = write_pairs(tmp_path / "data", 2, kind=kind)
    for e, _, labels in stored(pack([folder], tmp_path / "packed")):
        assert e["objects"] == [[1], [7]]
        np.testing.assert_array_equal(labels, cv2.imread(str(folder / kind / f"{e['id']}.png"), -1))


def test_16_bit_label_values_survive(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 1, kind="labels")
    path = folder / "labels" / "000.png"
    labels = cv2.imread(str(path), -1).astype(np.uint16) * 9000
    cv2.imwrite(str(path), labels)
    ((e, _, got),) = stored(pack([folder], tmp_path / "packed"))
    assert e["objects"] == [[9000], [63000]]
    np.testing.assert_array_equal(got, labels)


@pytest.mark.parametrize("high", [1, 2, 200, 255])
def test_masks_with_any_two_values(tmp_path: Path, high: int) -> None:
    folder = write_pairs(tmp_path / "data", 1)
    path = folder / "masks" / "000.png"
    mask = cv2.imread(str(path), 0) > 127
    cv2.imwrite(str(path), mask.astype(np.uint8) * high)
    ((_, _, labels),) = stored(pack([folder], tmp_path / "packed"))
    np.testing.assert_array_equal(labels, mask)


def test_large_images_shrink_and_stay_aligned(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    mask = disk(301, 517, 200.3, 140.7, 90)
    cv2.imwrite(str(folder / "images" / "a.png"), np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255)
    cv2.imwrite(str(folder / "masks" / "a.png"), mask.astype(np.uint8) * 255)
    ((e, image, labels),) = stored(pack([folder], tmp_path / "packed", max_side=128))
    assert (e["h"], e["w"]) == (round(301 * 128 / 517), 128)
    soft = image[..., 0] / 255.0
    rows, columns = np.mgrid[: e["h"], : e["w"]]
    for axis in (rows, columns):  # centres of gravity of image and mask
        assert (soft * axis).sum() / soft.sum() == pytest.approx((labels * axis).sum() / labels.sum(), abs=0.06)


@pytest.mark.parametrize("shape", [(1, 3000), (2500, 2)])
def test_a_picture_as_thin_as_a_line_is_packed(tmp_path: Path, shape: tuple[int, int]) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / "line.png"), np.full(shape, 255, np.uint8))
    target = pack([tmp_path], tmp_path / "packed", max_side=384)
    entry = json.loads((target / "index.json").read_text())["entries"][0]
    assert sorted((entry["h"], entry["w"])) == [1, 384]


def test_a_complete_pack_is_reused_and_another_is_not(pairs: Path, tmp_path: Path) -> None:
    other = write_pairs(tmp_path / "other", 3, seed=9)
    packed = pack([pairs], tmp_path / "packed")
    stamp = (packed / "images.u8").stat().st_mtime_ns
    assert pack([pairs], packed) == packed
    assert (packed / "images.u8").stat().st_mtime_ns == stamp
    pack([pairs, other], packed)
    assert [e["source"] for e, _, _ in stored(packed)] == [0] * 8 + [1] * 3


def test_a_pack_that_fails_leaves_the_old_one(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = pack([pairs], tmp_path / "out")
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    assert sorted(before) == ["images.u8", "index.json", "labels.u16", "objects.npz"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(OSError, match="space"):
            pack([pairs], target, max_side=40)
    broken = write_pairs(tmp_path / "broken", 3)
    (broken / "images" / "002.png").write_bytes(b"no image")
    with pytest.raises(DatasetError):
        pack([pairs, broken], target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    pack([pairs], target, max_side=40)
    assert sorted(p.name for p in target.iterdir()) == sorted(before)
    assert (target / "images.u8").stat().st_size < len(before["images.u8"])


def test_small_objects_are_dropped(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 2, kind="labels")
    path = folder / "labels" / "000.png"
    labels = cv2.imread(str(path), -1)
    labels[:1, : MIN_AREA - 1] = 3
    cv2.imwrite(str(path), labels)
    cv2.imwrite(str(folder / "labels" / "001.png"), np.where(np.arange(labels.size) < 5, 4, 0).astype(np.uint8))
    second = cv2.imread(str(folder / "images" / "001.png"))
    cv2.imwrite(str(folder / "labels" / "001.png"), np.zeros(second.shape[:2], np.uint8))
    ((e, _, _),) = stored(pack([folder], tmp_path / "packed"))
    assert e["objects"] == [[1], [7]]


def test_a_folder_without_an_object_is_named(pairs: Path, tmp_path: Path) -> None:
    """The run would be without it, and its share would go to the others."""
    empty = write_pairs(tmp_path / "empty", 2)
    for path in (empty / "masks").iterdir():
        cv2.imwrite(str(path), 0 * cv2.imread(str(path), -1))
    with pytest.raises(DatasetError, match=r"no object of at least 16 pixels in .*empty; look at its masks"):
        pack([pairs, empty], tmp_path / "packed")
    other = Source(write_pairs(tmp_path / "other", 2, kind="labels"), 0.5, ((1,),))
    pack([Source(pairs, 0.5), other], tmp_path / "packed")
    with pytest.raises(DatasetError, match=r"made of the label values \[\[9\], \[9, 12\]\] in .*other"):
        pack([Source(pairs, 0.5), replace(other, objects=((9,), (9, 12)))], tmp_path / "packed")


def damage(folder: Path, how: str) -> None:
    image, mask = folder / "images" / "001.png", folder / "masks" / "001.png"
    if how == "no mask":
        mask.unlink()
    elif how == "other size":
        cv2.imwrite(str(mask), np.full((20, 30), 255, np.uint8))
    elif how == "unreadable mask":
        mask.write_bytes(b"x")
    elif how == "unreadable image":
        image.write_bytes(mask.read_bytes()[:40])
    elif how == "no folder":
        (folder / "masks").rename(folder / "truth")
    elif how == "several values":
        values = np.zeros_like(cv2.imread(str(mask), 0))
        values[:2], values[2:4] = 1, 3
        cv2.imwrite(str(mask), values)
    elif how == "a colour":
        cv2.imwrite(str(mask), np.dstack([cv2.imread(str(mask), 0)] + [np.zeros_like(cv2.imread(str(mask), 0))] * 2))
    elif how == "masks and labels":
        (folder / "labels").mkdir()
    elif how == "no images":
        for p in (folder / "images").iterdir():
            p.unlink()
    else:
        for p in (folder / "masks").iterdir():
            cv2.imwrite(str(p), np.zeros_like(cv2.imread(str(p), 0)))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no mask", ["001.png", "missing", "remove the image"]),
        ("other size", ["001.png", "30 x 20", "must agree"]),
        ("unreadable mask", ["masks/001.png", "not a readable image"]),
        ("unreadable image", ["images/001.png", "not a readable image"]),
        ("no folder", ["masks, labels, instances", "no such folder"]),
        ("several values", ["masks/001.png", "2 non-zero values, [1, 3]", "labels/"]),
        ("a colour", ["masks/001.png", "one channel"]),
        ("masks and labels", ["masks and labels", "keep the one"]),
        ("no images", ["images/", "none"]),
        ("empty masks", ["no object", str(MIN_AREA)]),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, how: str, words: list[str]) -> None:
    folder = write_pairs(tmp_path / "data", 2)
    damage(folder, how)
    with pytest.raises(DatasetError) as e:
        pack([folder], tmp_path / "packed")
    assert all(w in str(e.value) for w in words), str(e.value)


def test_a_colour_picture_is_no_label_map(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 1, kind="labels")
    image = cv2.imread(str(folder / "images" / "000.png"))
    cv2.imwrite(str(folder / "labels" / "000.png"), image)
    with pytest.raises(DatasetError, match="one channel"):
        pack([folder], tmp_path / "packed")


# --- samples ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def packed(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack([pairs], tmp_path_factory.mktemp("packed"))


def test_a_sample_depends_on_seed_index_and_size_alone(packed: Path) -> None:
    first, again, other = PackedDataset(packed, 3), PackedDataset(packed, 3), PackedDataset(packed, 4)
    again[0, 64], again[17, 32]  # what was asked before plays no part
    image, label = first[5, 64]
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    assert label.shape == (1, 64, 64)
    assert label.dtype == torch.int8
    assert set(label.unique().tolist()) <= {-1, 0, 1}
    assert torch.equal(image, again[5, 64][0])
    assert torch.equal(label, again[5, 64][1])
    assert not torch.equal(image, other[5, 64][0])
    assert first[5, 96][0].shape == (3, 96, 96)


def test_every_epoch_shows_every_image_once_in_a_new_order(packed: Path) -> None:
    data = PackedDataset(packed, 1)
    epochs = [[data.pick(8 * e + i) for i in range(8)] for e in range(3)]
    assert all(sorted(e) == list(range(8)) for e in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_source_weights_are_shares_of_the_samples(pairs: Path, tmp_path: Path) -> None:
    folder = pack([pairs, write_pairs(tmp_path / "few", 2)], tmp_path / "packed")
    data = PackedDataset(folder, 0, weights=(0.25, 0.75))
    drawn = np.array([data.entries[data.pick(i)]["source"] for i in range(2000)])
    assert drawn.mean() == pytest.approx(0.75, abs=0.05)
    only = PackedDataset(folder, 0, weights=(0.0, 1.0))
    assert {only.entries[only.pick(i)]["source"] for i in range(50)} == {1}


@pytest.mark.parametrize("world", [1, 3])
def test_ranks_take_disjoint_consecutive_samples(world: int) -> None:
    def sizes(step: int) -> int | None:
        return None if step == 5 else 32 * (step + 1)

    batches = [list(StepSampler(2, 4, rank, world, sizes)) for rank in range(world)]
    for step, at in enumerate(zip(*batches, strict=True), start=2):
        together = [item for batch in at for item in batch]
        first = step * world * 4
        assert together == [(first + i, 32 * (step + 1)) for i in range(world * 4)]
    assert len(batches[0]) == 3


# --- geometry ---------------------------------------------------------------------------------------------------------
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "photometric", lambda image, rng: image)
    monkeypatch.setattr(data_module, "FADED", 0.0)


def test_image_and_label_stay_aligned(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """An image whose colour is its mask: after any crop the colour must still say what the label says."""
    plain(monkeypatch)
    checked = 0
    for trial in range(240):
        h, w = int(rng.integers(90, 250)), int(rng.integers(90, 250))
        mask = disk(h, w, w * rng.uniform(0.2, 0.8), h * rng.uniform(0.2, 0.8), rng.uniform(15, 40)).astype(np.uint8)
        crop = random_crop(np.repeat(mask[..., None] * 255, 3, 2), mask, (64, 128)[trial % 2], rng)
        inside = crop.label >= 0
        colour = crop.image[..., 0].astype(float) / 255
        # the image is smoothed before it shrinks, so pixels on the border may differ; but not to one side
        wrong = (colour > 0.5) != (crop.label == 1)
        assert wrong[inside].mean() < 0.02
        clear = inside & ((colour < 0.05) | (colour > 0.95))
        assert not wrong[clear].any()
        if inside.all() and (crop.label == 1).sum() > 200 and not crop.label[[0, -1]].any():
            rows, columns = np.mgrid[: len(colour), : len(colour)]
            if crop.label[:, [0, -1]].any():
                continue
            for axis in (rows, columns):
                got = (colour * axis).sum() / colour.sum()
                assert got == pytest.approx(axis[crop.label == 1].mean(), abs=0.4)  # half a pixel would show
            checked += 1
    assert checked >= 5


def test_coordinates_map_by_one_similarity(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """An image that holds its own coordinates shows the warp: linear, square up to the stretch, and where it says."""
    plain(monkeypatch)
    h, w, size = 180, 240, 96
    mask = disk(h, w, 110, 90, 25).astype(np.uint8)
    rows, columns = np.mgrid[:h, :w]
    image = np.stack([columns, rows, 255 * mask], 2).astype(np.uint8)
    seen_flip = set()
    for _ in range(40):
        crop = random_crop(image, mask, size, rng)
        inside = cv2.erode((crop.label >= 0).astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=0) > 0
        v, u = np.nonzero(inside)
        basis = np.stack([u, v, np.ones_like(u)], 1).astype(float)
        source = crop.image[v, u, :2].astype(float)
        affine, *_ = np.linalg.lstsq(basis, source, rcond=None)  # [3, 2]
        assert np.abs(basis @ affine - source).max() < 2.0  # 8-bit values, interpolated
        ratios = np.linalg.svd(affine[:2])[1]
        assert ratios[0] / ratios[1] <= np.exp(0.4) * 1.05
        seen_flip.add(bool(np.linalg.det(affine[:2]) > 0))
        # the label at a pixel is the mask at the place that the image shows there
        x, y = np.rint(basis @ affine).astype(int).T
        ok = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        assert (mask[y[ok], x[ok]] == crop.label[v[ok], u[ok]]).mean() > 0.98
    assert seen_flip == {True, False}


def test_beyond_the_image_nothing_counts(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """All-background masks but for a corner: a rim of wrong labels along the image's border would show."""
    plain(monkeypatch)
    mask = np.zeros((70, 40), np.uint8)
    mask[30:40, 15:25] = 1
    image = np.full((70, 40, 3), 90, np.uint8)
    image[30:40, 15:25] = 255
    ignored = 0
    for _ in range(60):
        crop = random_crop(image, mask, 64, rng)
        ignored += int((crop.label == -1).sum())
        near_object = cv2.dilate((crop.image[..., 0] > 90).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not ((crop.label == 1) & ~near_object).any()
    assert ignored > 0  # a crop of a narrow image reaches beyond it


def test_crops_of_objects_at_the_rim_and_of_one_pixel(rng: np.random.Generator) -> None:
    for y, x in ((0, 0), (44, 60), (20, 30)):
        mask = np.zeros((45, 61), np.uint8)
        mask[y, x] = 1
        for _ in range(20):
            assert random_crop(np.zeros((45, 61, 3), np.uint8), mask, 32, rng).label.shape == (32, 32)


def test_photometric_changes_pixels_but_not_their_places(rng: np.random.Generator) -> None:
    image = np.zeros((48, 48, 3), np.uint8)
    image[:, 24:] = 200
    changed = 0
    for _ in range(30):
        before = image.copy()
        out = photometric(image, rng)
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(image, before)  # the packed file is mapped read-only
        assert out[:, 28:].mean() > out[:, :20].mean()
        changed += not np.array_equal(out, image)
    assert changed > 20


def test_hairs_are_drawn_on_a_copy() -> None:
    image = np.full((64, 64, 3), 220, np.uint8)
    image.flags.writeable = False
    out = hairs(image, np.random.default_rng(0))
    assert (out < 150).any()
    assert (out == 220).mean() > 0.3


def test_what_distracts_lies_clear_of_the_object() -> None:
    rng = np.random.default_rng(8)
    changed = 0
    for trial in range(60):
        size = (96, 128)[trial % 2]
        label, mask = np.zeros((size, size), np.int8), np.zeros((size, size), np.uint8)
        cv2.ellipse(mask, (size // 3, size // 2), (size // 6, size // 5), 30.0 * trial, 0, 360, 1, -1)
        label[mask == 1] = 1
        label[:3] = -1
        other_label = np.zeros((size, size), np.int8)
        other_label[20:60, 30:80] = 1
        other = Crop(rng.integers(0, 256, (size, size, 3), np.uint8), other_label, np.eye(2, 3))
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        before = image.copy()
        out = distract(image, label, other, rng)
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(image, before)
        clear = cv2.dilate(mask, np.ones((3, 3), np.uint8)) == 1
        np.testing.assert_array_equal(out[clear], image[clear])
        changed += bool((out != image).any())
    assert changed > 40  # now and then there is no room


def test_an_object_that_fills_the_crop_is_left_alone() -> None:
    image = np.random.default_rng(9).integers(0, 256, (64, 64, 3), np.uint8)
    full = np.ones((64, 64), np.int8)
    out = distract(image, full, Crop(255 - image, full, np.eye(2, 3)), np.random.default_rng(10))
    np.testing.assert_array_equal(out, image)


def test_distraction_changes_images_but_no_label(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "DISTANT", 0.0)
    monkeypatch.setattr(data_module, "DISTRACTED", 0.0)
    plain = [PackedDataset(packed, 5)[i, 64] for i in range(8)]
    monkeypatch.setattr(data_module, "DISTRACTED", 1.0)
    busy = [PackedDataset(packed, 5)[i, 64] for i in range(8)]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, busy, strict=True))
    assert sum(not torch.equal(a[0], b[0]) for a, b in zip(plain, busy, strict=True)) >= 3


def test_a_surrounded_object_keeps_its_look_and_only_its_label() -> None:
    rng = np.random.default_rng(12)
    smaller = []
    for trial in range(80):
        size = (96, 128)[trial % 2]
        mask = np.zeros((size, size), np.uint8)
        cv2.ellipse(mask, (size // 2, size // 2), (size // 3, size // 4), 30.0 * trial, 0, 360, 1, -1)
        label = mask.astype(np.int8)
        label[:2] = -1
        image = np.where(mask[..., None] == 1, np.uint8(200), np.uint8(90)).repeat(3, axis=2)
        other = rng.integers(0, 256, (size, size, 3), np.uint8)
        kept = image.copy(), label.copy(), other.copy()
        out, out_label = surround(image, label, other, rng)
        for array, before in zip((image, label, other), kept, strict=True):
            np.testing.assert_array_equal(array, before)
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        assert out_label.shape == label.shape
        assert out_label.dtype == np.int8
        area = int((out_label == 1).sum())
        assert LEAST_SHOWN * 0.7 < area < 0.65 * mask.sum()
        smaller.append(mask.sum() / area)
        found, _ = cv2.connectedComponents((out_label == 1).astype(np.uint8))
        assert found == 2  # the background and one object, though its mirror images may be in sight
        inner = cv2.erode((out_label == 1).astype(np.uint8), np.ones((3, 3), np.uint8)) == 1
        np.testing.assert_allclose(out[inner].astype(int), 200, atol=1)
        around = (cv2.dilate((out_label == 1).astype(np.uint8), np.ones((7, 7), np.uint8)) == 1) & (out_label != 1)
        assert abs(float(out[around].mean()) - 200) > 10  # the object still stands out from what is around it
    assert min(smaller) < 2
    assert max(smaller) > 20


def test_what_reaches_the_border_or_is_small_already_is_not_surrounded() -> None:
    rng = np.random.default_rng(13)
    image, other = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    wide, tiny = np.zeros((2, 64, 64), np.int8)
    wide[10:40, :30] = 1
    tiny[30:35, 30:35] = 1
    for label in (wide, tiny, np.zeros((64, 64), np.int8)):
        for _ in range(5):
            out, out_label = surround(image, label, other, rng)
            assert out is image
            assert out_label is label


def test_some_samples_show_their_object_small(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "DISTANT", 0.0)
    plain = [PackedDataset(packed, 5)[i, 64] for i in range(16)]
    monkeypatch.setattr(data_module, "DISTANT", 1.0)
    distant = [PackedDataset(packed, 5)[i, 64] for i in range(16)]
    areas = [(int((a[1] == 1).sum()), int((b[1] == 1).sum())) for a, b in zip(plain, distant, strict=True)]
    assert all(b == a or b < 0.75 * a for a, b in areas)
    assert sum(b < a for a, b in areas) >= 3


def ellipse_on_noise(contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse so much brighter than the noise around it (distance in RGB), and its label."""
    mask = np.zeros((96, 96), np.uint8)
    cv2.ellipse(mask, (50, 44), (20, 14), 25, 0, 360, 1, -1)
    image = rng.normal(100, 4, (96, 96, 3)) + contrast / np.sqrt(3) * mask[..., None]
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), mask.astype(np.int8)


def distance(image: np.ndarray, label: np.ndarray) -> float:
    inner = cv2.erode((label == 1).astype(np.uint8), np.ones((9, 9), np.uint8)) == 1
    return float(np.linalg.norm(image[inner].mean(0) - image[label == 0].mean(0)))


def test_a_faded_object_keeps_some_contrast_and_its_place() -> None:
    rng = np.random.default_rng(11)
    for _ in range(40):
        image, label = ellipse_on_noise(rng.uniform(60, 200), rng)
        before = image.copy()
        out = fade(image, label, rng)
        np.testing.assert_array_equal(image, before)
        assert FAINTEST - 4 < distance(out, label) < 0.85 * distance(image, label)
        far = cv2.dilate((label == 1).astype(np.uint8), np.ones((31, 31), np.uint8)) == 0
        np.testing.assert_allclose(out[far].astype(int), image[far].astype(int), atol=1)


def test_what_is_faint_or_alone_is_not_faded() -> None:
    rng = np.random.default_rng(12)
    image, label = ellipse_on_noise(FAINTEST / 2, rng)
    np.testing.assert_array_equal(fade(image, label, rng), image)
    for everywhere in (0, 1, -1):
        np.testing.assert_array_equal(fade(image, np.full_like(label, everywhere), rng), image)
