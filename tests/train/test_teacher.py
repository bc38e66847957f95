"""A teacher's features must lie where the crop's pixels lie."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from activefreq_engine.errors import DatasetError, ModelLoadError
from activefreq_engine.models.tinyvit import MobileSamEncoder
from activefreq_engine.train import data as data_module
from activefreq_engine.train import loop
from activefreq_engine.train.data import PackedDataset, pack, random_crop
from activefreq_engine.train.distill import load_teacher, make_teacher, padded_square
from activefreq_engine.train.loop import train
from activefreq_engine.train.teacher import Teacher

from .tiny_run import tiny


def write_teacher(folder, features, images):
    folder.mkdir()
    _, channels, grid, _ = features.shape
    features.astype(np.float16).tofile(folder / "features.f16")
    facts = {"images": images, "channels": channels, "grid": grid, "mean": [0.0] * channels, "std": [1.0] * channels}
    (folder / "teacher.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(("height", "width"), [(96, 144), (150, 90)])
def test_features_follow_the_crop(tmp_path, monkeypatch, height, width, rng):
    """With a picture of smooth colours as its own features, a crop's features are the crop scaled down by 16."""
    monkeypatch.setattr(data_module, "photometric", lambda image, rng: image)
    monkeypatch.setattr(data_module, "FADED", 0.0)
    coarse = torch.from_numpy(rng.uniform(30, 225, (1, 3, 5, 5)).astype(np.float32))
    picture = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0, 255)
    side, grid = max(height, width), 48
    padded = F.pad(picture, (0, side - width, 0, side - height), mode="replicate")
    features = F.interpolate(padded, size=(grid, grid), mode="bilinear", antialias=True, align_corners=False)
    teacher = Teacher(write_teacher(tmp_path / "t", features.numpy(), ["a"]))
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 : width // 2] = 1
    checked = 0
    for _ in range(40):
        crop = random_crop(picture[0].byte().permute(1, 2, 0).numpy().copy(), mask, 64, rng)
        inside = F.avg_pool2d(torch.from_numpy(crop.label[None, None] >= 0).float(), 16)[0, 0] == 1
        if not inside.any():  # a crop far out: every cell has ground beyond the picture
            continue
        checked += 1
        wanted = F.avg_pool2d(torch.from_numpy(crop.image).permute(2, 0, 1).float(), 16)
        got = teacher.crop(0, (height, width), crop.affine, 64).float()
        assert (got - wanted).abs()[:, inside].max() < 9  # of 255; the crop blurs, the features are a coarser grid
    assert checked >= 20


def test_features_of_other_images_are_refused(tmp_path, pairs):
    packed = pack([pairs], tmp_path / "packed")
    teacher = Teacher(write_teacher(tmp_path / "t", np.zeros((8, 4, 3, 3)), [f"x{i}" for i in range(8)]))
    with pytest.raises(DatasetError, match="other images"):
        PackedDataset(packed, teacher=teacher)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [float("nan")] * 4},
        {"std": [0.0, 1, 1, 1]},
        {"std": [1.0]},
        {"mean": "abcd"},
        {"mean": 10**400},
        {"channels": -4},
        {"channels": float("inf")},
        {"grid": 10**12},
        {"images": 3},
    ],
    ids=str,
)
def test_features_that_cannot_be_are_refused(tmp_path, change):
    folder = write_teacher(tmp_path / "t", np.zeros((8, 4, 3, 3)), [f"x{i}" for i in range(8)])
    facts = json.loads((folder / "teacher.json").read_text())
    (folder / "teacher.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(DatasetError, match="holds no teacher"):
        Teacher(folder)


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="holds no teacher"):
        Teacher(tmp_path)


def test_a_run_learns_from_a_teacher_and_resumes(tmp_path, pairs):
    """The head that tells the teacher's features is trained, saved and restored with the rest, and is not exported."""
    packed = pack([pairs], tmp_path / "packed")
    features = np.random.default_rng(0).normal(size=(8, 4, 3, 3))
    folder = write_teacher(tmp_path / "t", features, [f"{i:03}" for i in range(8)])
    config = tiny(pairs, teacher=str(folder), teacher_weight=2.0)
    whole = train(config, tmp_path / "whole", device="cpu", packed=packed)
    state = load_file(tmp_path / "whole" / "state.safetensors")
    assert state["teacher_head.weight"].shape == (4, 36, 1, 1)
    assert not any("teacher" in name for name in load_file(whole))
    plain = train(tiny(pairs), tmp_path / "plain", device="cpu", packed=packed)
    assert any((a != b).any() for a, b in zip(load_file(whole).values(), load_file(plain).values(), strict=True))
    # a run that is cut in two ends alike
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._TrainRun, "_update", interrupted_after(5, loop._TrainRun._update))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", device="cpu", packed=packed, save_every=0)
    train(config, tmp_path / "cut", device="cpu", packed=packed)
    again = load_file(tmp_path / "cut" / "state.safetensors")
    assert all(torch.equal(again[name], state[name]) for name in state)


def interrupted_after(steps, update):
    def counted(run, loss):
        if run.step == steps:
            raise KeyboardInterrupt
        update(run, loss)

    return counted


class BreaksDown(torch.nn.Module):
    """An encoder that is interrupted after so many images."""

    def __init__(self, encoder: MobileSamEncoder, images: int) -> None:
        super().__init__()
        self.encoder, self.left = encoder, images

    def forward(self, x):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.encoder(x)


def test_features_are_made_and_an_interrupted_making_goes_on(tmp_path, pairs):
    encoder = MobileSamEncoder().eval()
    whole = make_teacher([pairs], encoder, tmp_path / "whole", side=64)
    teacher = Teacher(whole)
    assert teacher.features.shape == (8, 256, 4, 4)
    PackedDataset(tmp_path / "whole" / "data", teacher=teacher)  # knows its images
    # by hand, from the image files
    image = cv2.imread(str(pairs / "images" / "003.png"))[..., ::-1].copy()
    x = padded_square(torch.from_numpy(image).permute(2, 0, 1)[None], 64)
    rows = round(image.shape[0] * 64 / image.shape[1])
    assert (x[:, :, rows:] == 0).all()
    assert (x[:, :, :rows] != 0).float().mean() > 0.99
    with torch.inference_mode():
        by_hand = encoder(x)[1][0]
    # bf16 is off by 1 to 4 % of random weights' features as a whole, single values by more
    assert (torch.from_numpy(np.array(teacher.features[3])).float() - by_hand).norm() < 0.15 * by_hand.norm()
    make_teacher([pairs], BreaksDown(encoder, 0), whole, side=64)  # what is whole is kept: nobody is asked
    # cut short, in the middle of a map
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        make_teacher([pairs], BreaksDown(encoder, 6), cut, side=64)
    (partial,) = cut.glob("features.*")
    with partial.open("r+b") as f:
        f.truncate(5 * 256 * 16 * 2 + 100)
    with pytest.raises(DatasetError):
        Teacher(cut)
    make_teacher([pairs], BreaksDown(encoder, 3), cut, side=64)  # the other three
    for name in ("features.f16", "teacher.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    # of another size, nothing is taken over; what is whole stays until then
    with pytest.raises(KeyboardInterrupt):
        make_teacher([pairs], BreaksDown(encoder, 7), cut, side=32)
    assert Teacher(cut).grid == 4
    make_teacher([pairs], encoder, cut, side=32)
    assert Teacher(cut).grid == 2
    assert sorted(p.name for p in cut.iterdir()) == ["data", "features.f16", "teacher.json"]


def test_a_foreign_teacher_is_refused_unread(tmp_path):
    (tmp_path / "mobile_sam.pt").write_bytes(b"pickle")
    with pytest.raises(ModelLoadError, match="SHA-256"):
        load_teacher(tmp_path / "mobile_sam.pt")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_teacher(tmp_path / "nothing.pt")
