"""Each rewrite equals what it replaces, in float64, on odd and rectangular maps with random weights everywhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from activefreq_engine.models.freqnet import upsample
from activefreq_engine.runtime.plan import rewrites

from .modules import relative, scramble

TOLERANCE = 1e-10


def made(module):
    return scramble(module).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 6])
def test_fold_batch_norm(bias, groups):
    conv, norm = made(nn.Conv2d(6, 12, 3, 2, 1, groups=groups, bias=bias)), made(nn.BatchNorm2d(12))
    x = torch.randn(2, 6, 9, 7).double()
    before = conv.weight.clone()
    folded = rewrites.fold_batch_norm(conv, norm)
    assert relative(F.conv2d(x, *folded, stride=2, padding=1, groups=groups), norm(conv(x))) <= TOLERANCE
    assert torch.equal(conv.weight, before)
    plain = made(nn.BatchNorm2d(12, affine=False))
    folded = rewrites.fold_batch_norm(conv, plain)
    assert relative(F.conv2d(x, *folded, stride=2, padding=1, groups=groups), plain(conv(x))) <= TOLERANCE
    with pytest.raises(ValueError, match="running statistics"):
        rewrites.fold_batch_norm(conv, nn.BatchNorm2d(12, track_running_stats=False))


@torch.no_grad()
def test_fold_norm_affine():
    norm = made(nn.LayerNorm(10, eps=1e-6))
    x = torch.randn(2, 6, 4, 10).double()
    bare = F.layer_norm(x, (10,), eps=1e-6)
    linear = made(nn.Linear(10, 7))
    assert relative(F.linear(bare, *rewrites.fold_norm_affine(norm, rewrites.affine(linear))), linear(norm(x))) <= 1e-10
    conv = made(nn.Conv2d(10, 5, 2, 2))
    folded = rewrites.fold_norm_affine(norm, rewrites.affine(conv))
    expected = conv(norm(x).permute(0, 3, 1, 2))
    assert relative(F.conv2d(bare.permute(0, 3, 1, 2), *folded, stride=2), expected) <= TOLERANCE


@torch.no_grad()
def test_fold_through():
    first, then = made(nn.Conv2d(5, 8, 1)), torch.randn(3, 8).double()
    x = torch.randn(2, 5, 3, 4).double()
    weight, bias = rewrites.fold_through(rewrites.affine(first), then)
    expected = torch.einsum("po,bohw->bphw", then, first(x))
    assert relative(torch.einsum("pi,bihw->bphw", weight, x) + bias[:, None, None], expected) <= TOLERANCE


@torch.no_grad()
def test_drop_key_value_bias():
    dim, heads = 12, 3
    key_value, out = made(nn.Linear(dim, 2 * dim)), made(nn.Linear(dim, dim))
    x, q = torch.randn(2, 5, dim).double(), torch.randn(2, heads, 7, dim // heads).double()

    def attend(kv):
        k, v = kv.view(2, 5, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 7, dim)

    weight, moved = rewrites.drop_key_value_bias(rewrites.affine(key_value), rewrites.affine(out))
    assert relative(F.linear(attend(x @ weight.T), *moved), out(attend(key_value(x)))) <= TOLERANCE


@torch.no_grad()
def test_fuse_slices():
    channels, width = (3, 5, 7), 6
    mlps = [made(nn.Conv2d(c, width, 1)) for c in channels]
    fuse, norm = made(nn.Conv2d(width * len(mlps), width, 1, bias=False)), made(nn.BatchNorm2d(width))
    maps = [torch.randn(2, c, 12 // 2**i, 20 // 2**i).double() for i, c in enumerate(channels)]
    aligned = [upsample(mlp(x), maps[0].shape[2:]) for mlp, x in zip(mlps, maps, strict=True)]
    expected = norm(fuse(torch.cat(aligned[::-1], dim=1)))
    folded = rewrites.fuse_slices(fuse, norm, mlps)
    parts = [F.conv2d(x, w[:, :, None, None], b) for x, (w, b) in zip(maps, folded, strict=True)]
    assert relative(sum(upsample(p, maps[0].shape[2:]) for p in parts), expected) <= TOLERANCE
    assert all(not f.bias.any() for f in folded[1:])


@torch.no_grad()
def test_values_are_rounded_once_to_the_weights_type():
    conv, norm = scramble(nn.Conv2d(4, 4, 1)), scramble(nn.BatchNorm2d(4)).eval()
    single = rewrites.fold_batch_norm(conv, norm)
    double = rewrites.fold_batch_norm(conv.double(), norm.double())
    assert single.weight.dtype == torch.float32
    assert torch.equal(single.weight, double.weight.float())
