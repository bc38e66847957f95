"""FreqNet, the decoder of FreqFormer (ActiveFreq, Figures 3 and 4).

A FreqModule splits its channels into quarters.  One goes through a depth-wise convolution; each of the other three goes
through a 2-D DFT over its own pair of axes, a learned filter and the inverse DFT.  docs/reconstruction.md says what the
paper states and what is inferred.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ChannelNorm, init_weights
from .narrow import Conv2d

BASE = 16  # side of the grid on which spectral filters are learned
Axes = Literal["multi", "hw"]
Filter = Literal["complex", "magnitude", "none"]

# axis pair -> dimensions of [B, C', H, W] that its DFT runs over; the half spectrum lies on the last one
PAIR_DIMS = {"hw": (2, 3), "cw": (1, 3), "ch": (1, 2)}


def resample_axis(filters: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Linear interpolation of `filters` along `dim` at fractional `positions` (clamped to the axis)."""
    positions = positions.clamp(0, filters.shape[dim] - 1)
    low = positions.floor().long()
    high = (low + 1).clamp(max=filters.shape[dim] - 1)
    shape = [1] * filters.dim()
    shape[dim] = -1
    t = (positions - low).to(filters.dtype).view(shape)
    return torch.lerp(filters.index_select(dim, low), filters.index_select(dim, high), t)


def resize_half_axis(filters: Tensor, dim: int, size: int) -> Tensor:
    """Resize a half spectrum from BASE to `size` samples: to bins 0..size//2, at the same relative frequencies."""
    k = torch.arange(size // 2 + 1, device=filters.device, dtype=torch.float64)
    return resample_axis(filters, dim, k * BASE / size)


def resize_full_axis(filters: Tensor, dim: int, size: int) -> Tensor:
    """As `resize_half_axis`, for a full axis in FFT order.

    The axis is put into centred order first: in FFT order the highest positive and the highest negative frequency are
    neighbours, and interpolation would blend them.  DC stays DC.
    """
    centred = torch.fft.fftshift(filters, dim)
    k = torch.fft.fftshift(torch.fft.fftfreq(size, d=1.0 / size, device=filters.device, dtype=torch.float64))
    resized = resample_axis(centred, dim, k * BASE / size + BASE // 2)
    return torch.fft.ifftshift(resized, dim)


class SpectralFilter(nn.Module):
    """A learned filter for one axis pair, stored on a BASE grid as real pairs and initialised to 1+0j.

    Real pairs, because complex parameters hinder export, optimisers and half precision.
    """

    def __init__(self, channels: int, pair: str, kind: Filter) -> None:
        super().__init__()
        self.pair = pair
        self.kind = kind
        grid = (channels, BASE, BASE // 2 + 1) if pair == "hw" else (channels, BASE // 2 + 1)
        weight = torch.zeros(*grid, 2)
        weight[..., 0] = 1.0
        if kind == "none":
            self.register_buffer("weight", weight, persistent=False)
        else:
            self.weight = nn.Parameter(weight)

    def spectrum(self, height: int, width: int) -> Tensor:
        """The filter, resized for a map of H x W, complex64 (complex128 for a float64 module).

        `[C', H, W//2+1]` for "hw", `[C', W//2+1]` for "cw", `[C', H//2+1]` for "ch": what
        `activefreq_engine.kernels.freq_module` takes.
        """
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        if self.kind == "magnitude":
            weight = torch.stack([weight[..., 0], torch.zeros_like(weight[..., 0])], dim=-1)
        if self.pair == "hw":
            weight = resize_half_axis(resize_full_axis(weight, 1, height), 2, width)
        else:
            weight = resize_half_axis(weight, 1, width if self.pair == "cw" else height)
        return torch.view_as_complex(weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C', H, W]` -> the same shape: rfft2, filter, irfft2 over this pair's axes, in at least float32."""
        spectrum = self.spectrum(x.shape[2], x.shape[3])
        if self.pair == "cw":
            spectrum = spectrum[:, None, :]  # shared by all rows
        elif self.pair == "ch":
            spectrum = spectrum[:, :, None]  # shared by all columns
        dims = PAIR_DIMS[self.pair]
        real = x if x.dtype == torch.float64 else x.float()  # PyTorch has half-precision FFTs for powers of two only
        y = torch.fft.rfft2(real, dim=dims, norm="ortho") * spectrum
        return torch.fft.irfft2(y, s=[x.shape[d] for d in dims], dim=dims, norm="ortho").to(x.dtype)


class FreqModule(nn.Module):
    """The Fourier module (Figure 4): `[B, C, H, W]` -> the same shape, C a multiple of 4.

    The quarters of the channels are in the order of `pairs`, the depth-wise one last.
    """

    def __init__(self, channels: int, axes: Axes = "multi", kind: Filter = "complex", kernel: int = 3) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"FreqModule splits its channels in four: got {channels}, use a multiple of 4")
        if axes not in ("multi", "hw"):
            raise ValueError(f"axes is {axes!r}; allowed: 'multi', 'hw'")
        if kind not in ("complex", "magnitude", "none"):
            raise ValueError(f"filter is {kind!r}; allowed: 'complex', 'magnitude', 'none'")
        quarter = channels // 4
        pairs = ("hw", "cw", "ch") if axes == "multi" else ("hw", "hw", "hw")
        self.filters = nn.ModuleList(SpectralFilter(quarter, pair, kind) for pair in pairs)
        self.dwconv = Conv2d(quarter, quarter, kernel, padding=kernel // 2, groups=quarter)

    def forward(self, x: Tensor) -> Tensor:
        quarters = x.chunk(4, dim=1)
        spectral = [f(q) for f, q in zip(self.filters, quarters[:3], strict=True)]
        return torch.cat([*spectral, self.dwconv(quarters[3])], dim=1)


class FreqBlock(nn.Module):
    """`x + FreqModule(norm(x))`, then `x + FFN(norm(x))` with a point-wise FFN."""

    def __init__(self, channels: int, axes: Axes, kind: Filter, ffn_ratio: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, eps=1e-6)
        self.freq = FreqModule(channels, axes, kind)
        self.norm2 = ChannelNorm(channels, eps=1e-6)
        self.fc1 = nn.Conv2d(channels, ffn_ratio * channels, 1)
        self.fc2 = nn.Conv2d(ffn_ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.freq(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DecoderOutput(NamedTuple):
    """Maps that the decoder returns."""

    logits: Tensor  # [B, 1, H/4, W/4]
    embedding: Tensor  # [B, E, H/4, W/4], the fused map that the refiner reads


class FreqNet(nn.Module):
    """Four Freq layers in parallel, one per encoder stage, MLP layers to a common width, fusion and mask head."""

    def __init__(
        self,
        channels: tuple[int, ...],
        embed_dim: int,
        depth: int = 1,
        axes: Axes = "multi",
        kind: Filter = "complex",
        ffn_ratio: int = 2,
    ) -> None:
        super().__init__()
        self.freq_layers = nn.ModuleList(
            nn.Sequential(*(FreqBlock(c, axes, kind, ffn_ratio) for _ in range(depth))) for c in channels
        )
        self.mlp_layers = nn.ModuleList(nn.Conv2d(c, embed_dim, 1) for c in channels)
        self.fuse = nn.Conv2d(len(channels) * embed_dim, embed_dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.head = nn.Conv2d(embed_dim, 1, 1)
        self.compose_fuse = False  # set by training: computes the same, several times cheaper
        self.apply(init_weights)

    def forward(self, maps: list[Tensor], *, first_is_filtered: bool = False) -> DecoderOutput:
        """Run the decoder.

        Args:
            maps: the outputs of the stages, `[B, C_i, H/2^(i+2), W/2^(i+2)]`, i = 0..3.
            first_is_filtered (bool): `maps[0]` has been through its Freq layer already; it does not depend on the
                clicks, so callers keep it.
        """
        filtered = [
            x if i == 0 and first_is_filtered else layer(x)
            for i, (layer, x) in enumerate(zip(self.freq_layers, maps, strict=True))
        ]
        size = filtered[0].shape[2:]
        if self.compose_fuse:
            fused = self._composed(filtered, size)
        else:
            aligned = [upsample(mlp(x), size) for mlp, x in zip(self.mlp_layers, filtered, strict=True)]
            fused = self.fuse(torch.cat(aligned[::-1], dim=1))  # order c4, c3, c2, c1
        embedding = F.relu(self.norm(fused))
        return DecoderOutput(self.head(embedding), embedding)

    def _composed(self, filtered: list[Tensor], size: torch.Size) -> Tensor:
        """`fuse(cat(upsample(mlp(x))))` with each MLP layer multiplied into its slice of the fuse convolution.

        Exact: a 1x1 convolution commutes with bilinear upsampling, whose weights sum to one.
        """
        slices = torch.chunk(self.fuse.weight, len(filtered), dim=1)[::-1]
        out: Tensor | None = None
        for x, mlp, part in zip(filtered, self.mlp_layers, slices, strict=True):
            assert isinstance(mlp, nn.Conv2d)
            weight = part.flatten(1) @ mlp.weight.flatten(1)
            bias = part.flatten(1) @ mlp.bias if mlp.bias is not None else None
            y = upsample(F.conv2d(x, weight[:, :, None, None], bias), size)
            out = y if out is None else out + y
        assert out is not None
        return out


def upsample(x: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, pixel centres aligned (`align_corners=False`)."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
