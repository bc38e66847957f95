"""A guide as a plan runs it, on `[B, H, W, C]`: norms are folded into the layers beside them, and activations are
applied by the layers before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activefreq_engine.models.guide import Guide, enlarge
from activefreq_engine.models.tinyvit import Bottleneck, ConvNorm, TinyViT, TinyViTBlock, Transition, WindowAttention
from activefreq_engine.runtime.plan import layers, rewrites
from activefreq_engine.runtime.plan.packed import Activation


class FrozenTrunk(layers.PlanLayer):
    """`models.guide.Guide.look` on a normalised image `[B, 3, H, W]`; its maps are in the precision of the weights."""

    def __init__(self, trunk: TinyViT) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stage(s) for s in trunk.stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = enlarge(image).permute(0, 2, 3, 1).contiguous().to(next(self.parameters()).dtype)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps[1:]


def _stage(stage: Any) -> nn.Module:
    """`tinyvit.TinyViTStage` on `[B, H, W, C]`."""
    embed = _transition(stage.embed) if isinstance(stage.embed, Transition) else _stem(stage.embed)
    return nn.Sequential(
        *embed, *(TrunkBottleneck(b) if isinstance(b, Bottleneck) else TrunkBlock(b) for b in stage.blocks)
    )


def _stem(embed: Any) -> list[nn.Module]:
    first, _, second = embed
    return [_convolution(first, "gelu"), _convolution(second)]


def _transition(embed: Transition) -> list[nn.Module]:
    return [_pointwise(embed.conv1, "gelu"), _convolution(embed.conv2, "gelu"), _pointwise(embed.conv3)]


def _convolution(layer: ConvNorm, then: Activation = "none") -> layers.Conv:
    return layers.Conv(rewrites.fold_batch_norm(layer.c, layer.bn), layer.c, then)


def _pointwise(layer: ConvNorm, then: Activation = "none") -> layers.Linear:
    """A convolution of 1x1; as a product it is faster."""
    return layers.Linear(rewrites.fold_batch_norm(layer.c, layer.bn), then)


class TrunkBottleneck(layers.PlanLayer):
    """`tinyvit.Bottleneck`."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = _pointwise(block.conv1, "gelu")
        self.conv2 = _convolution(block.conv2, "gelu")
        self.conv3 = _pointwise(block.conv3)

    def forward(self, x: Tensor) -> Tensor:
        return layers.activated(self.conv3(self.conv2(self.conv1(x)), x), "gelu")


class TrunkAttention(layers.PlanLayer):
    """`tinyvit.WindowAttention` and the residual.  The bias of each head is looked up once."""

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.heads, self.window = attention.heads, attention.window
        self.norm = layers.Norm(attention.norm, bare=True)
        self.qkv = layers.Linear(rewrites.fold_norm_affine(attention.norm, rewrites.affine(attention.qkv)))
        self.proj = layers.Linear(rewrites.affine(attention.proj))
        # with a batch axis, which torch's fast kernels need
        bias = attention.attention_biases.detach()[:, attention.distance][None]
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        side, heads = self.window, self.heads
        # zeros beyond the border are what the norm makes of zeros
        tokens = F.pad(self.norm(x), (0, 0, 0, -w % side, 0, -h % side))
        rows, columns = tokens.shape[1] // side, tokens.shape[2] // side
        tokens = tokens.view(b, rows, side, columns, side, c).transpose(2, 3).reshape(-1, side * side, c)
        qkv = self.qkv(tokens).view(-1, side * side, heads, 3, c // heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        y = y.transpose(1, 2).reshape(b, rows, columns, side, side, c).transpose(2, 3)
        return self.proj(y.reshape(b, rows * side, columns * side, c)[:, :h, :w].contiguous(), x)


class TrunkBlock(layers.PlanLayer):
    """`tinyvit.TinyViTBlock`."""

    def __init__(self, block: TinyViTBlock) -> None:
        super().__init__()
        self.attention = TrunkAttention(block.attn)
        self.local_conv = _convolution(block.local_conv)
        self.norm = layers.Norm(block.mlp.norm, bare=True)
        self.fc1 = layers.Linear(rewrites.fold_norm_affine(block.mlp.norm, rewrites.affine(block.mlp.fc1)), "gelu")
        self.fc2 = layers.Linear(rewrites.affine(block.mlp.fc2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(self.attention(x))
        return self.fc2(self.fc1(self.norm(x)), x)


class Projections(layers.PlanLayer):
    """`models.guide.Guide.forward` on `[B, H, W, C]`.  The projections take over the LayerNorms' scale and shift, which
    commute with the averaging between them."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        norms: Any = guide.norms
        fine, *coarse = norms
        self.norms = nn.ModuleList(layers.Norm(n, bare=True) for n in norms)
        first, *others = (rewrites.affine(p) for p in guide.projections)  # type: ignore[arg-type]  # convolutions
        joined = nn.LayerNorm(sum(n.weight.numel() for n in coarse), device=fine.weight.device, dtype=fine.weight.dtype)
        joined.load_state_dict({k: torch.cat([getattr(n, k).detach() for n in coarse]) for k in ("weight", "bias")})
        folded = [rewrites.fold_norm_affine(fine, first), *(rewrites.fold_norm_affine(joined, o) for o in others)]
        self.projections = nn.ModuleList(layers.Linear(f) for f in folded)

    def forward(self, seen: Sequence[Tensor]) -> list[Tensor]:
        first: Any = self.projections[0]
        fine, *coarse = (
            norm(x.permute(0, 2, 3, 1).to(first.weight.dtype)) for norm, x in zip(self.norms, seen, strict=True)
        )
        maps = [fine, torch.cat(coarse, dim=-1)]
        maps += [_pooled(maps[1], 2), _pooled(maps[1], 4)]
        return [project(x) for project, x in zip(self.projections, maps, strict=True)]


def _pooled(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(x.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
