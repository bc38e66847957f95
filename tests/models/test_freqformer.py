"""The whole network: what depends on the clicks, what does not, and what is refused."""

import pytest
import torch

from activefreq_engine.models import IMAGE_MEAN, IMAGE_STD, FreqFormer, FreqFormerConfig, normalise

H, W = 64, 96


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, H, W), (torch.rand(batch, 3, H, W) > 0.8).float()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32)], ids=lambda v: str(v))
def test_shapes(model: FreqFormer, height: int, width: int) -> None:
    image, clicks = torch.randn(1, 3, height, width), torch.zeros(1, 3, height, width)
    assert model(image, clicks).shape == (1, 1, height, width)
    features = model.encode_image(image)
    assert features.c1.shape == features.f1.shape == (1, 32, height // 4, width // 4)
    assert model.decode_clicks(features, clicks).embedding.shape == (1, 8, height // 4, width // 4)


@torch.no_grad()
def test_forward_is_encode_then_decode(model: FreqFormer) -> None:
    image, clicks = inputs()
    assert torch.equal(model(image, clicks), model.decode_clicks(model.encode_image(image), clicks).logits)


@torch.no_grad()
def test_samples_do_not_mix(model: FreqFormer) -> None:
    image, clicks = inputs(3)
    whole = model(image, clicks)
    for i in range(3):
        torch.testing.assert_close(model(image[i : i + 1], clicks[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)


def test_stage_1_and_its_freq_layer_see_no_clicks(model: FreqFormer) -> None:
    """Every click channel reaches the logits, and none reaches what is kept for the next click."""
    image, clicks = inputs(1)
    clicks.requires_grad_(True)
    seen: list[str] = []
    model.encoder.stages[0].register_forward_hook(lambda *_: seen.append("stage 1"))
    model.decoder.freq_layers[0].register_forward_hook(lambda *_: seen.append("Freq layer 1"))
    features = model.encode_image(image)
    assert seen == ["stage 1", "Freq layer 1"]
    model.decode_clicks(features, clicks).logits.sum().backward()
    assert len(seen) == 2  # neither ran for the click
    assert clicks.grad is not None
    assert (clicks.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_every_parameter_of_the_network_learns(model: FreqFormer) -> None:
    image, clicks = inputs()
    model.train()(image, clicks).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("refiner.")]
    assert without == []


@torch.no_grad()
def test_equal_up_to_rounding_in_float64(model: FreqFormer) -> None:
    image, clicks = inputs(1)
    single = model(image, clicks)
    torch.testing.assert_close(model.double()(image.double(), clicks.double()).float(), single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "clicks", "words"),
    [
        ((1, 3, 64, 96), (1, 2, 64, 96), ["clicks", "(1, 2, 64, 96)", "[B, 3, H, W]"]),
        ((3, 64, 96), (1, 3, 64, 96), ["image", "(3, 64, 96)"]),
        ((1, 3, 64, 80), (1, 3, 64, 80), ["image", "64x80", "multiples of 32"]),
        ((1, 3, 0, 32), (1, 3, 0, 32), ["image", "0x32"]),
        ((1, 3, 64, 96), (1, 3, 96, 64), ["(1, 3, 64, 96)", "(1, 3, 96, 64)", "differ"]),
        ((2, 3, 32, 32), (1, 3, 32, 32), ["(2, 3, 32, 32)", "differ"]),
    ],
)
def test_errors_say_what_was_got_and_what_is_allowed(
    model: FreqFormer, image: tuple[int, ...], clicks: tuple[int, ...], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"expected|must|differ") as e:
        model(torch.zeros(image), torch.zeros(clicks))
    assert all(word in str(e.value) for word in words), str(e.value)


def test_unknown_encoder() -> None:
    with pytest.raises(ValueError, match=r"'mit_b9'.*mit_b0"):
        FreqFormer(FreqFormerConfig(encoder="mit_b9"))


@torch.no_grad()
def test_refine_without_a_refiner(model: FreqFormer) -> None:
    plain = FreqFormer(FreqFormerConfig(embed_dim=8, refiner_width=0)).eval()
    assert plain.refiner is None
    coarse = model.decode_clicks(model.encode_image(torch.zeros(1, 3, 32, 32)), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="no refiner"):
        plain.refine(coarse, torch.zeros(1, 4), torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 32, 32))


def test_normalise() -> None:
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    out = normalise(image)
    assert out.dtype == torch.float32
    for c in range(3):
        wanted = (image[:, c].double() / 255 - IMAGE_MEAN[c]) / IMAGE_STD[c]
        torch.testing.assert_close(out[:, c].double(), wanted, rtol=0, atol=1e-5)
