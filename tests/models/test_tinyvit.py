"""TinyViT against the published numbers, a plain attention, and what its structure implies."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activefreq_engine.models.tinyvit import (
    TINYVIT_SPECS,
    ConvNorm,
    MobileSamEncoder,
    TinyViT,
    TinyViTSpec,
    TinyViTStage,
    WindowAttention,
    from_mobile_sam,
)

TINY = TinyViTSpec((8, 12, 8, 16), (1, 1, 2, 1), (2, 2, 2, 4), (7, 7, 14, 7))


def randomise(model: nn.Module) -> nn.Module:
    """Values for which no norm, bias or running statistic is neutral."""
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            nn.init.uniform_(t, 0.5, 2.0)
        elif t.is_floating_point() and t.dim() == 1:
            nn.init.normal_(t, 0.7 if name.endswith("weight") else 0.0, 0.3)
        elif name.endswith("attention_biases"):
            nn.init.normal_(t)
    return model.eval()


def test_parameter_count() -> None:
    """MobileSAM's encoder has 6.08 M values in all; 322 k of them a classifier, 10 k BatchNorm statistics."""
    model = MobileSamEncoder()
    assert sum(p.numel() for p in model.parameters()) == 5_743_892
    statistics = sum(b.numel() for name, b in model.named_buffers() if not name.endswith("distance"))
    classifier = 320 * 1000 + 1000 + 2 * 320
    assert (5_743_892 + statistics + classifier) / 1e6 == pytest.approx(6.08, abs=0.005)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (240, 32), (224, 448)], ids=str)
def test_map_sizes(height: int, width: int) -> None:
    maps = TinyViT(TINY).eval()(torch.rand(2, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, height // s, width // s) for c, s in zip(TINY.channels, (4, 8, 16, 16), strict=True)
    ]


def test_embedding_size() -> None:
    maps, embedding = MobileSamEncoder().eval()(torch.rand(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == [64, 128, 160, 320]
    assert embedding.shape == (1, 256, 4, 6)
    assert torch.isfinite(embedding).all()


def plain_window(attn: WindowAttention, x: Tensor) -> Tensor:
    """One window `[side, side, C]`, token by token."""
    side, c = attn.window, x.shape[-1]
    dim = c // attn.heads
    tokens = attn.qkv(attn.norm(x)).reshape(side * side, attn.heads, 3 * dim)
    places = [(y, x) for y in range(side) for x in range(side)]
    out = torch.zeros(side * side, attn.heads, dim, dtype=x.dtype)
    for head in range(attn.heads):
        q, k, v = tokens[:, head].split(dim, dim=1)
        for i, (yi, xi) in enumerate(places):
            bias = torch.stack([attn.attention_biases[head, abs(yi - yj) * side + abs(xi - xj)] for yj, xj in places])
            out[i, head] = ((k @ q[i]) / dim**0.5 + bias).softmax(0) @ v
    return attn.proj(out.reshape(side, side, c))


def test_attention_equals_the_plain_one_window_by_window() -> None:
    """Odd map, H != W: windows at the right and at the bottom are completed by zeros that take part."""
    side = 4
    attn = randomise(WindowAttention(8, 2, side)).double()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 3, 0, 2))
    expected = torch.zeros_like(padded)
    for b in range(2):
        for top in range(0, 8, side):
            for left in range(0, 12, side):
                window = padded[b, top : top + side, left : left + side]
                expected[b, top : top + side, left : left + side] = plain_window(attn, window)
    assert torch.allclose(attn(x), expected[:, :6, :9], rtol=0, atol=1e-12)


def test_padding_ends_at_the_map() -> None:
    """A map that fills its windows is not padded: explicit zeros below and to the right change nothing inside."""
    attn = randomise(WindowAttention(8, 2, 7)).double()
    x = torch.randn(1, 5, 12, 8, dtype=torch.float64)
    whole = attn(F.pad(x, (0, 0, 0, 2, 0, 2)))
    assert torch.allclose(attn(x), whole[:, :5, :12], rtol=0, atol=1e-12)


def test_shifting_by_a_window_shifts_the_answer() -> None:
    """Attention sees whole windows only: what moves by one window stays the same, by less it does not."""
    attn = randomise(WindowAttention(8, 2, 7)).double()
    x = torch.randn(1, 14, 21, 8, dtype=torch.float64)
    y = attn(x)
    assert torch.allclose(attn(x.roll((7, 14), (1, 2))), y.roll((7, 14), (1, 2)), rtol=0, atol=1e-12)
    assert not torch.allclose(attn(x.roll(3, 1)), y.roll(3, 1), rtol=0, atol=1e-3)


def test_transposing_the_image_transposes_the_maps() -> None:
    """Biases depend on |dy| and |dx|: with both made symmetric the encoder knows no rows from columns."""
    model = randomise(TinyViT(TINY)).double()
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            m.weight.data = 0.5 * (m.weight.data + m.weight.data.transpose(2, 3))
        elif isinstance(m, WindowAttention):
            bias = m.attention_biases.data.view(m.heads, m.window, m.window)
            m.attention_biases.data = (0.5 * (bias + bias.transpose(1, 2))).reshape(m.heads, -1)
    x = torch.rand(1, 3, 64, 160, dtype=torch.float64)
    for a, b in zip(model(x), model(x.transpose(2, 3)), strict=True):
        assert torch.allclose(a, b.transpose(2, 3), rtol=0, atol=1e-10)


def test_every_norm_has_its_published_eps() -> None:
    model = MobileSamEncoder()
    for name, m in model.named_modules():
        if isinstance(m, nn.LayerNorm | nn.BatchNorm2d):
            assert m.eps == (1e-6 if name.startswith("neck") else 1e-5), name


def test_gradients_reach_every_parameter() -> None:
    model = randomise(TinyViT(TINY, drop_path=0.0)).train()
    sum(m.square().sum() for m in model(torch.randn(2, 3, 64, 96))).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_drop_path_grows_with_depth() -> None:
    stages = TinyViT(TINYVIT_SPECS["tinyvit_5m"], drop_path=0.11).stages
    rates = [b.drop_path.rate for s in stages if isinstance(s, TinyViTStage) for b in s.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(12)])


def published_name(name: str) -> str:
    """The inverse of the key map in `from_mobile_sam`, for the test below."""
    part, _, rest = name.partition(".")
    if part == "neck":
        return f"image_encoder.{name}"
    _, stage, kind, rest = rest.split(".", 3)
    if kind == "blocks":
        return f"image_encoder.layers.{stage}.blocks.{rest}"
    if stage == "0":
        return f"image_encoder.patch_embed.seq.{rest}"
    return f"image_encoder.layers.{int(stage) - 1}.downsample.{rest}"


def test_key_map() -> None:
    """All tensors of a MobileSAM file but the classifier's and the decoder's find their place, each its own."""
    ours = MobileSamEncoder().state_dict()
    theirs = {published_name(k): torch.full_like(v, i) for i, (k, v) in enumerate(ours.items())}
    assert "image_encoder.layers.2.downsample.conv3.bn.running_var" in theirs
    extra = ["image_encoder.head.weight", "image_encoder.norm_head.bias", "mask_decoder.iou_token.weight"]
    renamed = from_mobile_sam({**theirs, **{k: torch.zeros(1) for k in extra}})
    assert MobileSamEncoder().load_state_dict(renamed)
    for i, name in enumerate(ours):
        assert (renamed[name] == i).all(), name


def test_conv_norm_keeps_the_side() -> None:
    x = torch.rand(1, 4, 9, 14)
    assert ConvNorm(4, 6, 3)(x).shape == (1, 6, 9, 14)
    assert ConvNorm(4, 6, 3, 2)(x).shape == (1, 6, 5, 7)
