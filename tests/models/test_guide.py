"""A guide sees the image alone, stays as it is, and adds nothing before it is trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from activefreq_engine.models import FreqFormer, load_checkpoint, save_checkpoint
from activefreq_engine.models.guide import Guide
from activefreq_engine.models.tinyvit import TINYVIT_SPECS, TinyViTSpec

from .conftest import tiny_config

H, W = 64, 96


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TinyViT that takes no time, under a name of its own."""
    spec = TinyViTSpec((8, 12, 8, 16), (1, 1, 2, 1), (2, 2, 2, 4), (7, 7, 14, 7))
    monkeypatch.setitem(TINYVIT_SPECS, "tinyvit_tiny", spec)


def guided_like(model: FreqFormer, *, trained: bool) -> FreqFormer:
    """The same network with a guide; `trained`: one that adds something."""
    guided = FreqFormer(replace(model.config, guide="tinyvit_tiny"))
    guided.load_state_dict(model.state_dict(), strict=False)
    assert guided.guide is not None
    if trained:
        for projection in guided.guide.projections:
            torch.nn.init.normal_(projection.weight, std=0.3)
    return guided.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, H, W), (torch.rand(2, 3, H, W) > 0.8).float()


@torch.no_grad()
def test_an_untrained_guide_changes_nothing(model: FreqFormer) -> None:
    image, clicks = inputs()
    assert torch.equal(guided_like(model, trained=False)(image, clicks), model(image, clicks))
    assert not torch.equal(guided_like(model, trained=True)(image, clicks), model(image, clicks))


@torch.no_grad()
def test_maps_by_hand(model: FreqFormer) -> None:
    """The trunk's maps of the image at twice its size, normalised over channels, as means of the stages' cells."""
    guide = guided_like(model, trained=True).guide
    assert guide is not None
    image, _ = inputs()
    seen = guide.look(image)
    maps = guide.trunk(F.interpolate(image, size=(2 * H, 2 * W), mode="bilinear"))
    assert all(torch.equal(a, b) for a, b in zip(seen, maps[1:], strict=True))
    normed = [F.layer_norm(m.permute(0, 2, 3, 1), m.shape[1:2], eps=1e-6).permute(0, 3, 1, 2) for m in maps[1:]]
    for i, (got, project) in enumerate(zip(guide(seen), guide.projections, strict=True)):
        assert got.shape == (2, (32, 64, 160, 256)[i], H >> (i + 2), W >> (i + 2))
        inner = normed[0] if i == 0 else torch.cat(normed[1:], 1)
        pooled = F.interpolate(inner, size=got.shape[2:], mode="area")
        torch.testing.assert_close(got, project(pooled), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_click_does_not_ask_the_guide(model: FreqFormer) -> None:
    guided = guided_like(model, trained=True)
    assert guided.guide is not None
    asked: list[str] = []
    guided.guide.register_forward_hook(lambda *_: asked.append("projections"))
    guided.guide.trunk.register_forward_hook(lambda *_: asked.append("trunk"))
    image, clicks = inputs()
    features = guided.encode_image(image)
    assert asked == ["trunk", "projections"]
    assert torch.equal(guided.decode_clicks(features, clicks).logits, guided(image, clicks))
    asked.clear()
    guided.decode_clicks(features, clicks)
    assert asked == []
    again = guided.encode_image(image, guided.guide.look(image))
    assert all(torch.equal(a, b) for a, b in zip(again, features, strict=True))


def test_the_trunk_stays_as_it_is_and_the_rest_learns(model: FreqFormer) -> None:
    guided = guided_like(model, trained=True).train()
    assert guided.guide is not None
    trunk = {k: v.clone() for k, v in guided.guide.trunk.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in guided.parameters() if p.requires_grad], lr=1e-3)
    guided(*inputs()).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(v, trunk[k]) for k, v in guided.guide.trunk.state_dict().items())
    own = [*guided.guide.norms.parameters(), *guided.guide.projections.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in own)
    assert all(p.grad is None for p in guided.guide.trunk.parameters())


def test_checkpoints_of_both_kinds(model: FreqFormer, tmp_path: Path) -> None:
    """A model without a guide is stored as before there were guides, so that older versions read it."""
    for made in (model, guided_like(model, trained=True)):
        path = tmp_path / "m.safetensors"
        save_checkpoint(made, path, dtype=torch.float32)
        with safe_open(str(path), framework="pt") as f:
            stored = json.loads(f.metadata()["config"])
        assert stored.get("guide", "not there") == (made.config.guide or "not there")
        loaded = load_checkpoint(path)
        assert loaded.config == made.config
        image, clicks = inputs()
        with torch.no_grad():
            assert torch.equal(loaded(image, clicks), made(image, clicks))
        assert all(not p.requires_grad for k, p in loaded.named_parameters() if k.startswith("guide.trunk."))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"guide is 'vit_h'; allowed: tinyvit_5m"):
        Guide("vit_h", (8, 8, 8, 8))
    with pytest.raises(ValueError, match=r"needs a Mix Transformer.*'tinyvit_tiny'"):
        FreqFormer(tiny_config(encoder="tinyvit_tiny", guide="tinyvit_tiny"))
