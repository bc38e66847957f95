"""The network's layers as a plan runs them: maps are `[B, H, W, C]` in memory from end to end, so linear layers, norms
and convolutions follow one another without a copy, and every weight that can be folded is.

Each class equals the class of `models/` named in its docstring, which is what tests compare it with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activefreq_engine.models.freqnet import FreqBlock
from activefreq_engine.models.mit import EfficientAttention, MiTBlock, MiTStage, MixFFN, OverlapPatchEmbed
from activefreq_engine.models.narrow import convolve
from activefreq_engine.runtime.plan import packed, rewrites
from activefreq_engine.runtime.plan.packed import Activation
from activefreq_engine.runtime.plan.rewrites import Affine


class PlanLayer(nn.Module):
    """A module that is called without the hooks of `nn.Module`, which nobody sets here: 200 calls a click add up."""

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)

    def settle(self) -> None:
        """Make what belongs to the module plain attributes too, once it no longer changes: `nn.Module` looks for them
        in Python, some 400 times a click."""
        self.__dict__.update(self._parameters, **self._buffers, **self._modules)


def activated(x: Tensor, then: Activation) -> Tensor:
    """Apply an activation in place."""
    if then == "relu":
        return x.relu_()
    return x if then == "none" else torch.ops.aten.gelu_(x)


class Linear(PlanLayer):
    """`[..., I]` -> `[..., O]`, then an activation, or plus `residual` if there is one."""

    def __init__(self, affine: Affine | Tensor, then: Activation = "none") -> None:
        super().__init__()
        self.then: Activation = then
        weight, bias = affine if isinstance(affine, Affine) else (affine, None)
        self.weight = nn.Parameter(weight.flatten(1).clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.weight.is_mkldnn:
            return packed.linear(x, self.weight, self.bias, residual, self.then)
        y = F.linear(x, self.weight, self.bias)
        return activated(y, self.then) if residual is None else y.add_(residual)

    def pack(self) -> None:
        """Bring the weight into the order in which the CPU's kernels read it."""
        self.weight = nn.Parameter(packed.linear_weight(self.weight), requires_grad=False)


class Conv(PlanLayer):
    """A convolution on `[B, H, W, C]`, then an activation."""

    def __init__(self, affine: Affine, conv: nn.Conv2d, then: Activation = "none") -> None:
        super().__init__()
        weight = affine.weight.clone(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(affine.bias.clone(), requires_grad=False)
        self.kernel, self.stride, self.groups, self.then = conv.kernel_size, conv.stride, conv.groups, then
        self.padding: Any = conv.padding

    def forward(self, x: Tensor) -> Tensor:
        maps = convolve(self._run, x.permute(0, 3, 1, 2), self.kernel, self.stride, self.padding)
        return maps.permute(0, 2, 3, 1)

    def _run(self, x: Tensor) -> Tensor:
        if self.weight.is_mkldnn:
            return packed.convolution(x, self.weight, self.bias, self.stride, self.padding, self.groups, self.then)
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return activated(y, self.then)

    def pack(self) -> None:
        """Bring the weight into the order in which the CPU's kernels read it."""
        weight = packed.convolution_weight(self.weight, self.stride, self.padding, self.groups)
        self.weight = nn.Parameter(weight, requires_grad=False)


class NarrowConv(PlanLayer):
    """A 3x3 convolution, padded by one pixel, to a few channels: `[B, H, W, I]` -> `[B, O, H, W]`.

    One product with all taps, which are then moved to their places and added up.  torch's convolution to two channels
    takes three times as long on a CPU.
    """

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        if affine.weight.shape[2:] != (3, 3):
            raise ValueError(f"the kernel is {tuple(affine.weight.shape[2:])}; expected (3, 3)")
        # turned round: what a tap takes from above, `fold` hands down
        taps = affine.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2).contiguous()
        self.taps = nn.Parameter(taps, requires_grad=False)
        self.bias = nn.Parameter(affine.bias[:, None, None].clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        return F.fold(self.taps @ x.view(b, h * w, c).mT, (h, w), 3, padding=1).add_(self.bias)


class Norm(PlanLayer):
    """LayerNorm over the last axis; `bare`: its scale is 1 and its shift 0, which the next layer has taken over."""

    def __init__(self, norm: nn.LayerNorm, *, bare: bool = False) -> None:
        super().__init__()
        self.eps = norm.eps
        self.shape = list(norm.normalized_shape)
        self.bare = bare
        weight, bias = norm.weight.detach(), norm.bias.detach()
        self.weight = nn.Parameter(torch.ones_like(weight) if bare else weight.clone(), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros_like(bias) if bare else bias.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.bare and x.dtype != torch.float32:
            return torch.layer_norm(x, self.shape, None, None, self.eps)
        # the same without a scale of 1, but torch's norm in float32 takes up to 1.9 times as long on a CPU then
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class Embed(PlanLayer):
    """`mit.OverlapPatchEmbed`: `[B, H, W, I]` -> `[B, H / stride, W / stride, O]`."""

    def __init__(self, embed: OverlapPatchEmbed) -> None:
        super().__init__()
        self.proj = Conv(rewrites.affine(embed.proj), embed.proj)
        self.norm = Norm(embed.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class Attention(PlanLayer):
    """`norm`, `mit.EfficientAttention` and the residual."""

    def __init__(self, norm: nn.LayerNorm, attention: EfficientAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.norm = Norm(norm, bare=True)
        key_value = rewrites.affine(attention.kv)
        self.reduce: Conv | None = None
        if attention.reduce is not None:
            reduce = rewrites.fold_norm_affine(norm, rewrites.affine(attention.reduce))
            self.reduce = Conv(reduce, attention.reduce)
            self.reduced_norm = Norm(attention.norm, bare=True)
            key_value = rewrites.fold_norm_affine(attention.norm, key_value)
        else:
            key_value = rewrites.fold_norm_affine(norm, key_value)
        weight, out = rewrites.drop_key_value_bias(key_value, rewrites.affine(attention.proj))
        self.q = Linear(rewrites.fold_norm_affine(norm, rewrites.affine(attention.q)))
        self.kv = Linear(weight)
        self.proj = Linear(out)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        b, h, w, c = x.shape
        x = self.norm(x)
        q = self.q(x).view(b, h * w, self.heads, c // self.heads).transpose(1, 2)
        if self.reduce is not None:
            x = self.reduced_norm(self.reduce(x))
        k, v = self.kv(x).view(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, h, w, c), residual)


class FFN(PlanLayer):
    """`norm`, `mit.MixFFN` and the residual."""

    def __init__(self, norm: nn.LayerNorm, ffn: MixFFN) -> None:
        super().__init__()
        self.norm = Norm(norm, bare=True)
        self.fc1 = Linear(rewrites.fold_norm_affine(norm, rewrites.affine(ffn.fc1)))
        self.dwconv = Conv(rewrites.affine(ffn.dwconv), ffn.dwconv, then="gelu")
        self.fc2 = Linear(rewrites.affine(ffn.fc2))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dwconv(self.fc1(self.norm(x))), x)


class Block(PlanLayer):
    """`mit.MiTBlock` in evaluation mode."""

    def __init__(self, block: MiTBlock) -> None:
        super().__init__()
        self.attention = Attention(block.norm1, block.attn)
        self.ffn = FFN(block.norm2, block.ffn)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.attention(x))


class Stage(PlanLayer):
    """`mit.MiTStage`: `[B, H, W, I]` -> `[B, H / stride, W / stride, O]`."""

    def __init__(self, stage: MiTStage) -> None:
        super().__init__()
        self.embed = Embed(stage.embed)
        blocks: Any = stage.blocks
        self.blocks = nn.Sequential(*(Block(b) for b in blocks))
        self.norm = Norm(stage.norm)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        tokens = self.embed(x)
        return self.norm(self.blocks(tokens if added is None else tokens.add_(added)))


class OnMaps(PlanLayer):
    """A module that works on `[B, C, H, W]`, for use on `[B, H, W, C]`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AsItIs(PlanLayer):
    """A module that computes in the precision of its own weights; its result has the dtype of its input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.dtype = next(module.parameters()).dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.to(self.dtype)).to(x.dtype)


class PointwiseFFN(PlanLayer):
    """`norm2`, the FFN and the second residual of a `freqnet.FreqBlock`."""

    def __init__(self, block: FreqBlock) -> None:
        super().__init__()
        self.norm = Norm(block.norm2, bare=True)
        self.fc1 = Linear(rewrites.fold_norm_affine(block.norm2, rewrites.affine(block.fc1)), then="gelu")
        self.fc2 = Linear(rewrites.affine(block.fc2))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.norm(x)), x)


class Frequency(PlanLayer):
    """`freqnet.FreqBlock`, put together from what all map sizes share and the FreqModule of one map size."""

    def __init__(self, norm: nn.Module, spectral: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.norm, self.spectral, self.ffn = norm, OnMaps(spectral), ffn

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.mix(self.norm(x), x))

    def mix(self, xn: Tensor, x: Tensor) -> Tensor:
        """The block up to its FFN, from a map's norm and the map."""
        return self.spectral(xn).add_(x)
