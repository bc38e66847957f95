"""Models by name."""

from pathlib import Path

import pytest
import torch

from activefreq_engine.errors import ModelLoadError
from activefreq_engine.models import FreqFormer, create_model, list_models, registry, save_checkpoint

TINY = {"embed_dim": 8, "refiner_width": 4, "refine_size": 32}


def test_names() -> None:
    assert list_models() == ["freqformer_b0", "freqformer_b1", "freqformer_b2", "freqformer_b3"]
    assert set(list_models(pretrained=True)) <= set(list_models())


def test_overrides_and_mode() -> None:
    model = create_model("freqformer_b0", axes="hw", **TINY)
    assert not model.training
    assert (model.config.encoder, model.config.axes, model.config.embed_dim) == ("mit_b0", "hw", 8)


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
