"""Samples made on the device: the same as the loader's in geometry and in distribution, alike in every batch."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from activefreq_engine.train import sampler as sampler_module
from activefreq_engine.train.data import FAINTEST, LEAST_SHOWN, PackedDataset, pack
from activefreq_engine.train.sampler import Sampler, _median, _runs, blur, boxed, chance, hashed, looked_up, widened

from .conftest import disk, write_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampler")
    write_pairs(folder / "a", 6)
    write_pairs(folder / "b", 4, seed=5, kind="labels")
    return pack([folder / "a", folder / "b"], folder / "packed")


@pytest.fixture(scope="module")
def sampler(packed):
    return Sampler(packed, 3, None, CPU)


def splitmix(x: int) -> int:
    """The finaliser by its definition, on whole numbers of 64 bits."""
    full = (1 << 64) - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & full
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & full
    return x ^ (x >> 31)


def test_hashes_are_those_of_the_definition(rng):
    values = rng.integers(-(2**63), 2**63 - 1, 50)
    got = hashed(torch.from_numpy(values)).tolist()
    assert [g % (1 << 64) for g in got] == [splitmix(int(v) % (1 << 64)) for v in values]


def test_chance_is_even_and_depends_on_seed_stream_and_number_alone():
    index = torch.arange(4000)
    u = chance(1, 2, index, 5)
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.03
    assert (torch.corrcoef(u.T) - torch.eye(5)).abs().max() < 0.08
    assert torch.equal(chance(1, 2, index[70:90], 3), u[70:90, :3])
    assert 0.4 < chance(2**63 - 1, 2, index, 1).mean() < 0.6
    for other in (chance(2, 2, index, 5), chance(1, 3, index, 5)):
        assert abs(np.corrcoef(other.flatten(), u.flatten())[0, 1]) < 0.03


def test_a_sample_is_the_same_in_every_batch(sampler):
    image, label = sampler(torch.arange(20, 32), 64)
    assert (image.shape, image.dtype, label.shape, label.dtype) == (
        (12, 3, 64, 64),
        torch.uint8,
        (12, 1, 64, 64),
        torch.int8,
    )
    assert set(label.unique().tolist()) <= {-1, 0, 1}
    again, label_again = sampler(torch.tensor([27, 22, 4]), 64)
    assert (again[:2].int() - image[[7, 2]].int()).abs().max() <= 1  # sums in other orders
    assert torch.equal(label_again[:2], label[[7, 2]])


def test_the_form_that_never_waits_gives_the_same(sampler, monkeypatch):
    """A GPU changes all samples and keeps the chosen ones; a CPU changes the chosen ones."""
    image, label = sampler(torch.arange(48), 64)
    monkeypatch.setattr(sampler_module, "may_wait", lambda tensor: False)
    all_image, all_label = sampler(torch.arange(48), 64)
    assert (image.int() - all_image.int()).abs().max() <= 1
    assert torch.equal(label, all_label)


def mirrored(position: np.ndarray, length: int) -> np.ndarray:
    position = np.abs(position) % (2 * (length - 1))
    return np.where(position > length - 1, 2 * (length - 1) - position, position)


def test_warps_are_bilinear_in_float64(packed, sampler, rng):
    """Against sums over the four nearest pixels, one pixel at a time in double precision."""
    data = PackedDataset(packed)
    for entry in (1, 7):
        e = data.entries[entry]
        h, w, o = e["h"], e["w"], e["offset"]
        image = data.images[3 * o : 3 * (o + h * w)].reshape(h, w, 3).astype(np.float64)
        labels = data.labels[o : o + h * w].reshape(h, w)
        x, y = rng.uniform(-0.4 * w, 1.4 * w, (9, 13)), rng.uniform(-0.4 * h, 1.4 * h, (9, 13))
        picked = int(sampler.own[entry, 0])
        held = (labels == int(sampler.values[picked, 0])).astype(np.float64)
        got, member = sampler.read(
            torch.tensor([entry]), torch.tensor([picked]), *(torch.from_numpy(p).float()[None] for p in (x, y))
        )
        mx, my = mirrored(x, w), mirrored(y, h)
        x0, y0 = np.floor(mx).astype(int), np.floor(my).astype(int)
        wanted, wanted_member = np.zeros((9, 13, 3)), np.zeros((9, 13))
        for i, across in ((0, 1 - (mx - x0)), (1, mx - x0)):
            for j, along in ((0, 1 - (my - y0)), (1, my - y0)):
                at = np.minimum(y0 + j, h - 1), np.minimum(x0 + i, w - 1)
                wanted += (across * along)[..., None] * image[at]
                wanted_member += across * along * held[at]
        np.testing.assert_allclose(got[0].permute(1, 2, 0), wanted, atol=0.02)
        np.testing.assert_allclose(member[0], wanted_member, atol=1e-4)


def test_crops_show_the_object_where_the_warp_says(packed, sampler, monkeypatch):
    monkeypatch.setattr(Sampler, "photometric", lambda self, index, image: image)
    monkeypatch.setattr(sampler_module, "FADED", 0.0)
    index = torch.arange(40)
    entry = index % 10
    image, label = sampler.crop(index, entry, 64, 1)
    bright = image.mean(1, keepdim=True) > 105  # ellipses are 150 brighter than noise of up to 60
    valid = label >= 0
    wrong = (bright != (label == 1)) & valid
    # a label map's other object is bright and not the object
    assert wrong[(entry < 6)].float().mean() < 0.02
    assert ((label == 1) & ~bright).float().mean() < 0.01
    assert ((label == 1).flatten(1).sum(1) > 0).float().mean() > 0.9


def test_pixels_of_borders_lie_on_borders(packed):
    with np.load(packed / "objects.npz") as objects:
        values, entry, box, edges = (objects[k] for k in ("values", "entry", "box", "edges"))
    data = PackedDataset(packed)
    assert len(values) == 6 + 2 * 4
    for value, at, (x0, y0, x1, y1), points in zip(values[:, 0], entry, box, edges, strict=True):
        e = data.entries[at]
        mask = data.labels[e["offset"] : e["offset"] + e["h"] * e["w"]].reshape(e["h"], e["w"]) == value
        ys, xs = np.nonzero(mask)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
        assert all(mask[y, x] and not inner[y, x] for x, y in points)
        assert len({tuple(p) for p in points}) > 5


def test_an_object_of_several_values_is_one(tmp_path):
    from activefreq_engine.train.mix import Source

    folder = write_pairs(tmp_path / "d", 2, kind="labels")
    whole = Source(folder, 1.0, ((1,), (1, 7)))
    made = pack([whole], tmp_path / "packed")
    sampler = Sampler(made, 0, None, CPU)
    assert sampler.values.tolist() == [[1, 1], [1, 7]] * 2
    x0, _, x1, _ = sampler.box[1]
    assert x1 - x0 > sampler.box[0, 2] - sampler.box[0, 0]
    labels = cv2.imread(str(folder / "labels" / "000.png"), -1)
    y, x = (torch.from_numpy(p).float()[None, None] for p in np.nonzero(labels == 7))
    assert (sampler.read(torch.tensor([0]), torch.tensor([1]), x, y)[1] == 1).all()
    assert (sampler.read(torch.tensor([0]), torch.tensor([0]), x, y)[1] == 0).all()
    assert PackedDataset(made).entries[0]["objects"] == [[1], [1, 7]]
    areas = [(PackedDataset(made, s)._crop(0, 64, np.random.default_rng(s)).label == 1).sum() for s in range(12)]
    assert max(areas) > 0


def test_weights_are_shares_of_the_samples(packed):
    u = torch.zeros(4000, 1)
    for weights, share in ((None, 0.4), ((0.25, 0.75), 0.75), ((1.0, 0.0), 0.0)):
        sampler = Sampler(packed, 0, weights, CPU)
        u = chance(0, sampler_module.PICK, torch.arange(4000), 1)[:, 0].contiguous()
        entry = torch.searchsorted(sampler.upto, u)
        assert (entry >= 6).float().mean() == pytest.approx(share, abs=0.04)


def test_samples_are_distributed_as_the_loaders(packed):
    """Colours, contrast, area and place of the object and what lies beyond the image: 4 standard errors."""
    count = 160
    host = PackedDataset(packed, 11)
    theirs = [host[i, 64] for i in range(count)]
    image, label = (torch.stack(list(t)) for t in zip(*theirs, strict=True))
    ours, our_label = Sampler(packed, 11, None, CPU)(torch.arange(count), 64)

    def facts(image, label):
        image, held = image.float(), label == 1
        rim = held[:, :, [0, 1, -2, -1]].flatten(1).any(1)
        shifted = (image[..., 1:] - image[..., :-1]).abs()
        return {
            "mean": image.mean((1, 2, 3)),
            "deviation": image.std((1, 2, 3)),
            "colour": (image[:, 0] - image[:, 2]).abs().mean((1, 2)),
            "detail": shifted.mean((1, 2, 3)),
            "area": held.float().mean((1, 2, 3)).sqrt(),
            "small": (held.float().mean((1, 2, 3)) < 0.03).float(),
            "rim": rim.float(),
            "beyond": (label < 0).float().mean((1, 2, 3)),
        }

    a, b = facts(image, label), facts(ours, our_label)
    for name in a:
        error = ((a[name].var() + b[name].var()) / count).sqrt().item()
        assert a[name].mean().item() == pytest.approx(b[name].mean().item(), abs=4 * error + 1e-6), name


def ellipses(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ellipses of 200 on 90, clear of the border, and their labels."""
    labels = torch.zeros(count, 1, size, size, dtype=torch.int8)
    for k in range(count):
        mask = np.zeros((size, size), np.uint8)
        cv2.ellipse(mask, (size // 2, size // 2), (size // 3, size // 4), 30.0 * k, 0, 360, 1, -1)
        labels[k, 0] = torch.from_numpy(mask)
    return torch.where(labels == 1, 200.0, 90.0).repeat(1, 3, 1, 1), labels


def test_what_distracts_lies_clear_of_the_object(sampler):
    image, label = ellipses(40, 96)
    other = torch.rand(40, 3, 96, 96) * 255
    other_label = torch.zeros_like(label)
    other_label[:, :, 20:60, 30:80] = 1
    (out,) = sampler.distract(torch.arange(40), image, label, other, other_label)
    near = widened((label == 1).float(), 1) > 0
    assert torch.equal(out.masked_select(near), image.masked_select(near))
    changed = (out != image).flatten(1).any(1)
    assert changed.float().mean() > 0.6
    full = torch.ones_like(label)
    assert torch.equal(sampler.distract(torch.arange(40), image, full, other, full)[0], image)


def test_a_surrounded_object_keeps_its_look_and_only_its_label(sampler):
    image, label = ellipses(60, 128)
    other = torch.rand(60, 3, 128, 128) * 255
    out, out_label = sampler.surround(torch.arange(60), image, label, other)
    area, before = ((t == 1).flatten(1).sum(1) for t in (out_label, label))
    assert (area < 0.65 * before).all()
    assert (area > LEAST_SHOWN * 0.7).all()
    assert (before / area).min() < 2.5
    assert (before / area).max() > 20
    inner = boxed((out_label != 1).float(), torch.full((60,), 1.0), 1) == 0
    np.testing.assert_allclose(out.masked_select(inner & (out_label == 1)).numpy(), 200, atol=12)
    for one in out_label[:, 0]:
        assert cv2.connectedComponents((one == 1).numpy().astype(np.uint8))[0] == 2
    # what reaches the border, or is small already, stays
    wide = label.clone()
    wide[:, :, 40:60, :50] = 1
    tiny = torch.zeros_like(label)
    tiny[:, :, 30:35, 30:35] = 1
    for kept in (wide, tiny, torch.zeros_like(label)):
        same, same_label = sampler.surround(torch.arange(60), image, kept, other)
        assert torch.equal(same, image)
        assert torch.equal(same_label, kept)


def test_a_faded_object_keeps_some_contrast_and_its_place(sampler):
    image, label = ellipses(30, 96)
    (out,) = sampler.fade(torch.arange(30), image, label)
    inner = boxed((label != 1).float(), torch.full((30,), 4.0), 4) == 0
    far = widened((label == 1).float(), 15) == 0
    for a, b, middle, beyond in zip(out, image, inner, far, strict=True):
        contrast = (a.masked_select(middle).mean() - 90) * np.sqrt(3)
        assert FAINTEST - 2 < contrast < 0.8 * 110 * np.sqrt(3)
        assert (a - b).masked_select(beyond).abs().max() < 1.0
    for everywhere in (0, 1, -1):
        (same,) = sampler.fade(torch.arange(30), image, torch.full_like(label, everywhere))
        assert torch.equal(same, image)


def test_colours_change_and_places_do_not(sampler):
    image = torch.zeros(40, 3, 48, 48)
    image[..., 24:] = 200
    before = image.clone()
    out = sampler.photometric(torch.arange(40), image)
    assert torch.equal(image, before)
    assert (out[..., 30:].mean((1, 2, 3)) > out[..., :18].mean((1, 2, 3))).all()
    assert 0 <= out.min() <= out.max() <= 255
    assert (out != before).flatten(1).any(1).float().mean() > 0.9


def test_helpers_against_opencv_and_numpy(rng):
    image = rng.uniform(0, 255, (2, 1, 40, 52)).astype(np.float32)
    sigma = [0.8, 2.5]
    got = blur(torch.from_numpy(image), torch.tensor(sigma), 8)
    for k in range(2):
        wanted = cv2.GaussianBlur(image[k, 0], (17, 17), sigma[k], borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(got[k, 0], wanted, atol=0.01)
    mask = disk(40, 52, 20, 18, 5).astype(np.uint8)
    wide = cv2.dilate(mask, np.ones((7, 7), np.uint8))
    np.testing.assert_array_equal(widened(torch.from_numpy(mask)[None, None].float(), 3)[0, 0], wide)
    got = boxed(torch.from_numpy(mask)[None, None].float().repeat(2, 1, 1, 1), torch.tensor([3.0, 0.0]), 6) > 0
    np.testing.assert_array_equal(got[0, 0], wide)
    np.testing.assert_array_equal(got[1, 0], mask)
    pixels = torch.from_numpy(rng.uniform(0, 255, (3, 3, 21)).astype(np.float32))
    counted = torch.rand(3, 1, 21) > 0.5
    counted[2] = False
    median = _median(pixels, counted)[..., 0, 0]
    for k in range(2):
        values = pixels[k][:, counted[k, 0]].sort(1)[0]
        assert torch.equal(median[k], values[:, (values.shape[1] - 1) // 2])
    assert torch.equal(median[2], pixels[2].median(1)[0])
    square = torch.from_numpy(rng.uniform(0, 1, (1, 2, 16, 16)).astype(np.float32))
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    torch.testing.assert_close(looked_up(square, x[None], y[None]), square, atol=1e-5, rtol=0)
    assert _runs(np.array([0, 0, 2]), 3).tolist() == [[0, 2], [2, 0], [2, 1]]
