"""Models by name."""

from pathlib import Path

import pytest
import torch

from activefreq_engine.errors import ModelLoadError
from activefreq_engine.models import FreqFormer, create_model, list_models, registry, save_checkpoint
from activefreq_engine.models.tinyvit import MobileSamEncoder

TINY = {"embed_dim": 8, "refiner_width": 4, "refine_size": 32}


def test_names() -> None:
    sizes = [
        "freqformer_b0",
        "freqformer_b0_general",
        "freqformer_b0_guided",
        "freqformer_b1",
        "freqformer_b2",
        "freqformer_b3",
    ]
    assert list_models() == [*sizes, "freqformer_tinyvit"]
    assert set(list_models(pretrained=True)) <= set(list_models())


def test_overrides_and_mode() -> None:
    model = create_model("freqformer_b0", axes="hw", **TINY)
    assert not model.training
    assert (model.config.encoder, model.config.axes, model.config.embed_dim) == ("mit_b0", "hw", 8)


def test_tinyvit() -> None:
    """Made like the others; its last two maps have stride 16, and MobileSAM's trunk fits its encoder."""
    model = create_model("freqformer_tinyvit", **TINY)
    image, clicks = torch.randn(1, 3, 64, 96), torch.zeros(1, 3, 64, 96)
    assert [m.shape[2:] for m in model.encoder(image)] == [(16, 24), (8, 12), (4, 6), (4, 6)]
    assert model(image, clicks).shape == (1, 1, 64, 96)
    trunk = {k.removeprefix("trunk."): v for k, v in MobileSamEncoder().state_dict().items() if k.startswith("trunk.")}
    assert model.encoder.load_state_dict(trunk)


def test_tinyvit_learns(tmp_path: Path) -> None:
    """Gradients reach every parameter, clicks included, and what was learnt survives a checkpoint."""
    # without stochastic depth: by that a block is left out of both samples once in a hundred runs, and learns nothing
    model = create_model("freqformer_tinyvit", drop_path=0.0, **TINY).train()
    image, clicks = torch.randn(2, 3, 64, 96), torch.rand(2, 3, 64, 96, requires_grad=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(image, clicks).square().sum().backward()
    still = [
        k for k, p in model.named_parameters() if not k.startswith("refiner.") and (p.grad is None or not p.grad.any())
    ]
    assert still == []
    assert clicks.grad is not None
    assert (clicks.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
    optimiser.step()
    path = tmp_path / "m.safetensors"
    save_checkpoint(model, path, dtype=torch.float32)
    loaded = create_model("freqformer_tinyvit", checkpoint=path, drop_path=0.0, **TINY)
    assert torch.equal(loaded(image, clicks), model.eval()(image, clicks))


def test_unknown_name_and_field() -> None:
    with pytest.raises(ModelLoadError, match=r"'freqformer_b9'.*freqformer_b0"):
        create_model("freqformer_b9")
    with pytest.raises(ModelLoadError, match=r"width.*embed_dim"):
        create_model("freqformer_b0", width=3)


def test_bad_value_of_a_field() -> None:
    with pytest.raises(ModelLoadError, match="'both'"):
        create_model("freqformer_b0", **{**TINY, "axes": "both"})


def test_checkpoint_must_be_of_this_model(model: FreqFormer, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(model, path)
    loaded = create_model("freqformer_b0", checkpoint=path, **TINY)
    assert torch.equal(loaded.decoder.head.weight, model.decoder.head.weight.half().float())
    with pytest.raises(ModelLoadError, match="embed_dim: 8 in the file, 128 wanted"):
        create_model("freqformer_b0", checkpoint=path)


def test_pretrained(model: FreqFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    with pytest.raises(ModelLoadError, match=r"no weights are shipped for freqformer_b1; shipped: none"):
        create_model("freqformer_b1", pretrained=True)
    save_checkpoint(model, tmp_path / "freqformer_b0.safetensors")
    assert list_models(pretrained=True) == ["freqformer_b0"]
    assert create_model("freqformer_b0", pretrained=True, **TINY).config == model.config
