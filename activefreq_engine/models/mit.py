"""Mix Transformer encoder (MiT-B0 to B5), written from the numbers published with SegFormer (arXiv 2105.15203).

Tokens are `[B, N, C]` inside a stage; stages hand over maps `[B, C, H, W]`.  No position embedding, so any input
whose sides are multiples of 32 is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import DropPath, Encoder, drop_path_rates
from .narrow import Conv2d

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
MLP_RATIO = 4


@dataclass(frozen=True)
class MiTSpec:
    """Widths and depths of the four stages."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


MIT_SPECS = {
    "mit_b0": MiTSpec((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": MiTSpec((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": MiTSpec((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": MiTSpec((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": MiTSpec((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": MiTSpec((64, 128, 320, 512), (3, 6, 40, 3)),
}


def to_tokens(x: Tensor) -> Tensor:
    """`[B, C, H, W]` -> `[B, H*W, C]`."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """`[B, H*W, C]` -> `[B, C, H, W]`."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)


class OverlapPatchEmbed(nn.Module):
    """Overlapping strided convolution followed by LayerNorm: `[B, I, H, W]` -> tokens `[B, H*W/stride^2, O]`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(to_tokens(x)), x.shape[2], x.shape[3]


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from tokens reduced by a strided convolution."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduce: nn.Conv2d | None = None
        if reduction > 1:
            self.reduce = Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
        if self.reduce is not None:
            x = self.norm(to_tokens(self.reduce(to_map(x, height, width))))
        k, v = self.kv(x).view(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class MixFFN(nn.Module):
    """Linear, 3x3 depth-wise convolution, GELU, linear.  Only the convolution tells tokens where they are."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = to_tokens(self.dwconv(to_map(self.fc1(x), height, width)))
        return self.fc2(F.gelu(x))


class MiTBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = EfficientAttention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = MixFFN(dim, MLP_RATIO * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.ffn(self.norm2(x), height, width))


class MiTStage(nn.Module):
    """Patch embedding, blocks and a final LayerNorm: `[B, I, H, W]` -> `[B, O, H/stride, W/stride]`."""

    def __init__(self, embed: OverlapPatchEmbed, blocks: list[MiTBlock], dim: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Run the stage; `added`, `[B, O, H/stride, W/stride]`, is added to the tokens before the blocks."""
        x, height, width = self.embed(x)
        if added is not None:
            x = x + to_tokens(added)
        for block in self.blocks:
            x = block(x, height, width)
        return to_map(self.norm(x), height, width)


class MixTransformer(Encoder):
    """The four-stage encoder: an image `[B, 3, H, W]` -> maps at strides 4, 8, 16, 32."""

    def __init__(self, spec: MiTSpec, drop_path: float = 0.1) -> None:
        rates = drop_path_rates(spec.depths, drop_path)
        stages: list[nn.Module] = []
        previous = 3
        for i, (dim, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            embed = OverlapPatchEmbed(previous, dim, kernel, stride)
            blocks = [MiTBlock(dim, HEADS[i], REDUCTIONS[i], rates.pop(0)) for _ in range(depth)]
            stages.append(MiTStage(embed, blocks, dim))
            previous = dim
        super().__init__(stages, spec.channels)
