"""A guide as a plan runs it: each BatchNorm of its trunk is folded into its convolution, maps lie channels last."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from activefreq_engine.models.guide import Guide, enlarge
from activefreq_engine.models.tinyvit import ConvNorm, TinyViT
from activefreq_engine.runtime.plan import layers, rewrites


class FrozenTrunk(nn.Module):
    """`models.guide.Guide.look`.

    Args:
        trunk (TinyViT): in evaluation mode; its weights are copied.
        dtype (torch.dtype): that it computes in.
    """

    def __init__(self, trunk: TinyViT, dtype: torch.dtype) -> None:
        super().__init__()
        trunk = copy.deepcopy(trunk)
        _fold(trunk)
        self.dtype = dtype
        self.trunk = trunk.to(dtype).eval().requires_grad_(False)
        for p in self.trunk.parameters():
            if p.dim() == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image `[B, 3, H, W]` -> what `Guide.look` gives, in this dtype."""
        return self.trunk(enlarge(image).to(dtype=self.dtype, memory_format=torch.channels_last))[1:]


def _fold(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, fuse_conv_bn_eval(child.c, child.bn))
        else:
            _fold(child)


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
