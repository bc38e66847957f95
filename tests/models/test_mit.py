"""The encoder against the published numbers and a plain, slow attention."""

import math

import pytest
import torch
from torch import nn

from activefreq_engine.models.layers import DropPath
from activefreq_engine.models.mit import (
    MIT_SPECS,
    EfficientAttention,
    MiTSpec,
    MixTransformer,
    to_map,
    to_tokens,
)

TINY = MiTSpec((8, 8, 10, 16), (1, 2, 1, 1))  # widths that the heads 1, 2, 5, 8 divide


@pytest.mark.parametrize(
    ("name", "millions"), [("mit_b0", 3.32), ("mit_b1", 13.15), ("mit_b2", 24.20), ("mit_b3", 44.07)]
)
def test_parameter_count(name: str, millions: float) -> None:
    model = MixTransformer(MIT_SPECS[name])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_eps_of_every_norm() -> None:
    model = MixTransformer(TINY)
    found = {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    for name, eps in found.items():
        inside = name.endswith(("embed.norm", "attn.norm"))  # patch embeddings and reduced keys; else blocks and stages
        assert eps == (1e-5 if inside else 1e-6), name
    assert sum(e == 1e-5 for e in found.values()) == 4 + 4  # stages; blocks with a reduction (stage 4 has none)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32)], ids=lambda v: str(v))
def test_map_sizes(height: int, width: int) -> None:
    maps = MixTransformer(TINY).eval()(torch.rand(2, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, height // s, width // s) for c, s in zip(TINY.channels, (4, 8, 16, 32), strict=True)
    ]


def test_rows_and_columns_are_not_mixed_up() -> None:
    """Each token must come back to its own place, also where H != W."""
    x = torch.rand(2, 5, 3, 7)
    assert torch.equal(to_map(to_tokens(x), 3, 7), x)
    assert torch.equal(to_tokens(x)[1, 2 * 7 + 4], x[1, :, 2, 4])


def test_transposing_the_image_transposes_the_maps() -> None:
    """With kernels that are symmetric, the encoder knows no difference between rows and columns."""
    model = MixTransformer(TINY).eval().double()
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            m.weight.data = 0.5 * (m.weight.data + m.weight.data.transpose(2, 3))
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    for a, b in zip(model(x), model(x.transpose(2, 3)), strict=True):
        torch.testing.assert_close(a.transpose(2, 3), b, rtol=0, atol=1e-10)


def slow_attention(attn: EfficientAttention, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Softmax attention, one image, one head and one query at a time.  Keys are means over the reduction's patches."""
    b, n, c = x.shape
    size = c // attn.heads
    out = torch.zeros_like(x)
    for i in range(b):
        source = x[i]
        if attn.reduce is not None:
            r = attn.reduce.kernel_size[0]
            rows = []
            for y0 in range(0, height, r):
                for x0 in range(0, width, r):
                    patch = torch.stack(
                        [x[i, (y0 + dy) * width + x0 + dx] for dy in range(r) for dx in range(r)]
                    )  # [r*r, C]
                    kernel = attn.reduce.weight.reshape(c, c, r * r)
                    rows.append(torch.einsum("oik,ki->o", kernel, patch) + attn.reduce.bias)
            source = torch.stack(rows)
            mean, variance = source.mean(1, keepdim=True), source.var(1, keepdim=True, unbiased=False)
            source = (source - mean) / torch.sqrt(variance + 1e-5) * attn.norm.weight + attn.norm.bias
        keys = source @ attn.kv.weight[:c].T + attn.kv.bias[:c]
        values = source @ attn.kv.weight[c:].T + attn.kv.bias[c:]
        queries = x[i] @ attn.q.weight.T + attn.q.bias
        for h in range(attn.heads):
            part = slice(h * size, (h + 1) * size)
            for q in range(n):
                scores = keys[:, part] @ queries[q, part] / math.sqrt(size)
                weights = (scores - scores.max()).exp()
                out[i, q, part] = weights / weights.sum() @ values[:, part]
    return out @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize(
    ("heads", "reduction", "height", "width"), [(1, 2, 4, 6), (2, 1, 3, 5), (5, 4, 8, 4)], ids=lambda v: str(v)
)
@torch.no_grad()
def test_attention_equals_the_slow_one(heads: int, reduction: int, height: int, width: int) -> None:
    attn = EfficientAttention(2 * heads, heads, reduction).double()
    for p in attn.parameters():
        p.copy_(torch.randn_like(p))
    x = torch.randn(2, height * width, 2 * heads, dtype=torch.float64)
    torch.testing.assert_close(attn(x, height, width), slow_attention(attn, x, height, width), rtol=1e-9, atol=1e-10)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 3, 2))
    values = y.flatten(1)
    assert torch.equal(values, values[:, :1].expand_as(values))  # a sample is dropped as a whole
    assert sorted(set(values[:, 0].tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert float(y.mean()) == pytest.approx(1.0, abs=0.06)
    assert torch.equal(drop.eval()(torch.ones(5, 1)), torch.ones(5, 1))


def test_drop_path_rate_grows_with_depth() -> None:
    rates = [m.rate for m in MixTransformer(TINY, drop_path=0.2).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.2 * i / 4 for i in range(5)])
