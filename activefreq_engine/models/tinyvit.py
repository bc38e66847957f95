"""TinyViT-5M as MobileSAM uses it, written from the published structure (arXiv 2207.10666, arXiv 2306.14289).

Maps are `[B, C, H, W]` between stages and `[B, H, W, C]` inside a block.  No position embedding: any input whose sides
are multiples of 16 is accepted; windows that reach over a map's border are padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ChannelNorm, DropPath, Encoder, drop_path_rates


@dataclass(frozen=True)
class TinyViTSpec:
    """Widths, depths, attention heads and window sides of the four stages; stage 1 is convolutional."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]


TINYVIT_SPECS = {"tinyvit_5m": TinyViTSpec((64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7))}
EXPANSION = 4
STRIDES = (2, 2, 1)  # of the three transitions between stages; a SAM encoder ends at stride 16, a classifier at 32
EMBEDDING = 256  # width of SAM's image embedding


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm; it is padded so that only the stride shrinks the sides."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)


class Bottleneck(nn.Module):
    """The inverted bottleneck of stage 1: expand, depth-wise 3x3, project, with the last GELU after the sum."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        hidden = EXPANSION * dim
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.drop_path(self.conv3(y)))


class Transition(nn.Module):
    """The transition between two stages: 1x1 to the new width, depth-wise 3x3 with the stride, 1x1."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Self-attention inside square windows, with a learned bias for each head and distance (|dy|, |dx|).

    The zeros that complete a window at the right or lower border take part as tokens of their own, as they did when
    MobileSAM was trained.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.distance: Tensor
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.qkv = nn.Linear(dim, 3 * dim)  # for each head its queries, keys and values
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        # in NumPy: on the meta device torch would import its compiler for it
        row, column = np.divmod(np.arange(window * window), window)
        dy, dx = (np.abs(at[:, None] - at) for at in (row, column))
        self.register_buffer("distance", torch.tensor(dy * window + dx), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.view(b, rows, side, columns, side, c).transpose(2, 3).reshape(-1, side * side, c)
        qkv = self.qkv(self.norm(x)).view(len(x), side * side, self.heads, 3, c // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.distance]  # PyTorch's fast kernels need a mask with a batch axis
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        y = self.proj(y.transpose(1, 2).reshape(-1, side * side, c))
        y = y.view(b, rows, columns, side, side, c).transpose(2, 3).reshape(b, rows * side, columns * side, c)
        return y[:, :h, :w]


class MLP(nn.Module):
    """LayerNorm, linear, GELU, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.fc1 = nn.Linear(dim, EXPANSION * dim)
        self.fc2 = nn.Linear(EXPANSION * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Window attention, a depth-wise 3x3 convolution that joins the windows (no residual around it), MLP."""

    def __init__(self, dim: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = MLP(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(tokens)).permute(0, 3, 1, 2)
        x = self.local_conv(x)
        return x + self.drop_path(self.mlp(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class TinyViTStage(nn.Module):
    """Embedding (the stem or a transition) and blocks: `[B, I, H, W]` -> `[B, O, H/stride, W/stride]`."""

    def __init__(self, embed: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.embed(x))


class TinyViT(Encoder):
    """The four-stage encoder: an image `[B, 3, H, W]` -> maps at strides 4, 8, 16 and 16.

    Stage 4 has the stride of stage 3, as in MobileSAM, whose weights were trained so: at stride 32 they would see
    objects at half the size.
    """

    def __init__(self, spec: TinyViTSpec, drop_path: float = 0.0) -> None:
        rates = drop_path_rates(spec.depths, drop_path)
        stages: list[nn.Module] = []
        for i, (dim, depth) in enumerate(zip(spec.channels, spec.depths, strict=True)):
            blocks: list[nn.Module] = []
            for _ in range(depth):
                rate = rates.pop(0)
                blocks.append(
                    Bottleneck(dim, rate) if i == 0 else TinyViTBlock(dim, spec.heads[i], spec.windows[i], rate)
                )
            embed: nn.Module
            if i == 0:
                embed = nn.Sequential(ConvNorm(3, dim // 2, 3, 2), nn.GELU(), ConvNorm(dim // 2, dim, 3, 2))
            else:
                embed = Transition(spec.channels[i - 1], dim, STRIDES[i - 1])
            stages.append(TinyViTStage(embed, blocks))
        super().__init__(stages, spec.channels)


class MobileSamEncoder(nn.Module):
    """TinyViT-5M with SAM's neck, which makes the image embedding that SAM's mask decoder reads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = TinyViT(TINYVIT_SPECS["tinyvit_5m"])
        self.neck = nn.Sequential(
            nn.Conv2d(self.trunk.channels[-1], EMBEDDING, 1, bias=False),
            ChannelNorm(EMBEDDING, eps=1e-6),
            nn.Conv2d(EMBEDDING, EMBEDDING, 3, padding=1, bias=False),
            ChannelNorm(EMBEDDING, eps=1e-6),
        )

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encode an image.

        Args:
            image (Tensor): `[B, 3, H, W]` float32, RGB normalised by IMAGE_MEAN and IMAGE_STD; H and W multiples of
                16.  MobileSAM was trained at 1024 x 1024, with zeros right of or below the normalised image.

        Returns:
            (list, Tensor): the trunk's four maps at strides 4, 8, 16, 16, and the embedding `[B, 256, H/16, W/16]`.
        """
        maps = self.trunk(image)
        return maps, self.neck(maps[-1])


def from_mobile_sam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a MobileSAM checkpoint's `image_encoder.*` tensors for `MobileSamEncoder.load_state_dict`.

    ========================================  ===========================
    MobileSAM (behind `image_encoder.`)       here
    ========================================  ===========================
    ``patch_embed.seq.*``                     ``trunk.stages.0.embed.*``
    ``layers.<i>.blocks.*``                   ``trunk.stages.<i>.blocks.*``
    ``layers.<i>.downsample.*``               ``trunk.stages.<i+1>.embed.*``
    ``neck.*``                                ``neck.*``
    ``norm_head.*``, ``head.*``               (a classifier that nothing uses: left out)
    ========================================  ===========================

    For the encoder of a FreqFormer take the names that begin with ``trunk.``, and remove this prefix.
    """
    prefix = "image_encoder."
    renamed = {}
    for name, tensor in state.items():
        first, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or first in ("norm_head", "head"):
            continue
        if first == "patch_embed":
            renamed["trunk.stages.0.embed." + rest.removeprefix("seq.")] = tensor
        elif first == "layers":
            index, part, rest = rest.split(".", 2)
            stage, part = (int(index) + 1, "embed") if part == "downsample" else (int(index), part)
            renamed[f"trunk.stages.{stage}.{part}.{rest}"] = tensor
        else:
            renamed[f"{first}.{rest}"] = tensor
    return renamed
