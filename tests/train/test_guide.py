"""Training with a guide, and several samples of one crop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from activefreq_engine.errors import InvalidArgumentError, ModelLoadError
from activefreq_engine.models import create_model, load_checkpoint, save_checkpoint
from activefreq_engine.models.tinyvit import TINYVIT_SPECS, MobileSamEncoder, TinyViTSpec
from activefreq_engine.train import loop, steps
from activefreq_engine.train.config import TrainConfig
from activefreq_engine.train.data import PackedDataset, pack
from activefreq_engine.train.loop import train
from activefreq_engine.train.steps import CoarseStep, with_guide

from .conftest import write_pairs
from .tiny_run import OVERRIDES, tiny


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MobileSAM that takes no time, read from no file."""
    spec = TinyViTSpec((8, 12, 8, 16), (1, 1, 2, 1), (2, 2, 2, 4), (7, 7, 14, 7))
    monkeypatch.setitem(TINYVIT_SPECS, "tinyvit_5m", spec)
    encoder = MobileSamEncoder().eval()
    monkeypatch.setattr(loop, "load_teacher", lambda path: encoder)


@pytest.mark.usefixtures("small")
def test_a_run_gives_a_network_a_guide_and_resumes(pairs: Path, tmp_path: Path) -> None:
    init = tmp_path / "init.safetensors"
    save_checkpoint(create_model("freqformer_b0", **OVERRIDES), init)
    trunk = loop.load_teacher(init).trunk.state_dict()
    kwargs = {"init": str(init), "guide": "mobile_sam.pt", "per_crop": 2, "batch": 2}
    ended = load_file(train(tiny(pairs, steps=6, **kwargs), tmp_path / "whole", device="cpu"))
    for name, value in trunk.items():  # stored in half precision
        assert torch.equal(ended[f"guide.trunk.{name}"], value.half() if value.is_floating_point() else value)
    assert all(ended[f"guide.projections.{i}.weight"].any() for i in range(4))

    def killed(self, loss):
        update(self, loss)
        if self.step == 3:
            raise KeyboardInterrupt

    update = loop._TrainRun._update
    with pytest.MonkeyPatch.context() as m:
        m.setattr(loop._TrainRun, "_update", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(pairs, steps=6, **kwargs), tmp_path / "cut", device="cpu", save_every=0)
    again = load_file(train(tiny(pairs, steps=6, **kwargs), tmp_path / "cut", device="cpu"))
    assert all(torch.equal(v, again[k]) for k, v in ended.items())
    # and another run goes on from it
    path = tmp_path / "whole" / "model.safetensors"
    assert load_checkpoint(path).config.guide == "tinyvit_5m"
    more = tiny(pairs, steps=1, init=str(path), overrides={**OVERRIDES, "guide": "tinyvit_5m"})
    assert train(more, tmp_path / "more", device="cpu").exists()


@pytest.mark.usefixtures("small")
def test_on_the_device_as_in_the_loop(pairs: Path, tmp_path: Path) -> None:
    config = tiny(pairs, steps=3, guide="mobile_sam.pt", on_device=True, iterations=((1, 1.0),))
    ended = load_file(train(config, tmp_path, device="cpu"))
    assert all(ended[f"guide.projections.{i}.weight"].any() for i in range(4))
    trunk = loop.load_teacher(tmp_path).trunk.state_dict()
    assert all(torch.equal(ended[f"guide.trunk.{k}"], v.half()) for k, v in trunk.items() if v.is_floating_point())


@pytest.mark.usefixtures("small")
def test_what_cannot_have_a_guide() -> None:
    guided = with_guide(create_model("freqformer_b0", **OVERRIDES), None)
    with pytest.raises(ModelLoadError, match="has a guide already"):
        with_guide(guided, None)
    with pytest.raises(ModelLoadError, match="needs a Mix Transformer"):
        with_guide(create_model("freqformer_tinyvit", **{**OVERRIDES, "encoder": "tinyvit_5m"}), None)


def test_the_answers_to_several_samples_of_a_crop(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Those of a batch which holds the crop once for each of them."""
    step = CoarseStep(create_model("freqformer_b0", **{**OVERRIDES, "drop_path": 0.0}))
    step.frozen = True
    with torch.no_grad():
        for p in step.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    answered: list[torch.Tensor] = []
    loss = steps.coarse_loss
    monkeypatch.setattr(steps, "coarse_loss", lambda logits, truth: answered.append(logits) or loss(logits, truth))
    image = torch.randn(2, 3, 32, 64)
    labels = torch.zeros(2, 3, 32, 64, dtype=torch.int8)
    for k in range(3):
        labels[:, k, 4:16, 4 + 8 * k : 20 + 8 * k] = 1
    repeated, single = image.repeat_interleave(3, 0), labels.flatten(0, 1)[:, None]
    seed = int(rng.integers(1000))
    for images, truth in ((image, labels), (repeated, single), (repeated.flip(0), single)):
        step(images, truth, 1, np.random.default_rng(seed))
    ours, theirs, crossed = (a.detach() for a in answered)
    assert (ours - theirs).norm() < 1e-3 * (crossed - theirs).norm()


def test_samples_of_a_crop_are_its_objects(tmp_path: Path) -> None:
    packed = pack([write_pairs(tmp_path / "data", 4, kind="labels")], tmp_path / "packed")
    several, one = PackedDataset(packed, per_crop=3), PackedDataset(packed)
    different = 0
    for index in range(24):
        image, labels = several[index, 64]
        assert image.shape == (3, 64, 64)
        assert labels.shape == (3, 64, 64)
        first = one[index, 64][1][0]
        if (labels[1] != labels[0]).any():
            different += 1
            assert not ((labels[1] == 1) & (labels[0] == 1)).any()  # the two objects lie apart
            assert ((labels[1] == -1) == (labels[0] == -1)).all()
            assert torch.equal(labels[0], first) or (first == 1).sum() < (labels[0] == 1).sum()  # or shown smaller
            # bright as the objects are: the label lies where its object does
            brightness = image.float().mean(0)
            inside, ground = labels[1] == 1, (labels == 0).all(0)
            if int(ground.sum()) > 20:
                assert brightness[inside].mean() > brightness[ground].mean()
        else:
            assert torch.equal(labels[2], labels[0])
    assert 3 <= different < 24
    alone = PackedDataset(pack([write_pairs(tmp_path / "single", 2)], tmp_path / "p2"), per_crop=2)
    assert torch.equal(*alone[0, 64][1])


def test_one_sample_of_a_crop_is_as_it_was(pairs: Path, tmp_path: Path) -> None:
    packed = pack([pairs], tmp_path / "packed")
    for index in range(8):
        one, two = PackedDataset(packed)[index, 32], PackedDataset(packed, per_crop=2)[index, 32]
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1][0], two[1][1])


def test_several_samples_of_a_crop_are_refused_where_they_are_not_served(pairs: Path) -> None:
    for changes in ({"teacher": "t"}, {"stage": "refiner", "init": "i"}):
        with pytest.raises(InvalidArgumentError, match="per_crop"):
            TrainConfig(**{**json.loads(json.dumps({"data": [str(pairs)], "steps": 1})), "per_crop": 2, **changes})
