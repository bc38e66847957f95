"""The FreqModule at one fixed map size: its filters are resized once, not at every call.

Three forms of the same function.  "fft" calls `torch.fft`.  "matmul" is four matrix products and one element-wise
product for each axis pair: real numbers and no transform operator, so that it can be exported.  "dense" turns the
(C', W) and (C', H) branches, whose filter all rows or columns share, into one matrix each.
bench/speed/spectral_forms.py measures them on the CPU; "auto" goes by what it recorded in bench/results.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.models.freqnet import PAIR_DIMS, FreqModule, SpectralFilter
from activefreq_engine.runtime import cpu
from activefreq_engine.runtime.plan.layers import Conv
from activefreq_engine.runtime.plan.rewrites import affine

SpectralForm = Literal["auto", "fft", "matmul", "dense"]

FASTEST: SpectralForm = "fft"
"""The fastest form on the CPU, at every map size of B0 to B3, on 1 and 2 threads (bench/results/spectral_forms.csv)."""

ALONE = 25_000
"""Up to so many numbers in a quarter of the maps, MKL transforms them in one thread: with two it took 1.3 to 1.6 times
as long there, and from 37,000 numbers on less (AMD EPYC, 2 cores)."""

# [B, C', H, W] -> batch axes first, then the two axes of the pair
_TO_PLANES = {"hw": (0, 1, 2, 3), "cw": (0, 2, 1, 3), "ch": (0, 3, 1, 2)}
_FROM_PLANES = {"hw": (0, 1, 2, 3), "cw": (0, 2, 1, 3), "ch": (0, 2, 3, 1)}


def spectral_module(
    freq: FreqModule,
    height: int,
    width: int,
    form: SpectralForm = "auto",
    dtype: torch.dtype = torch.float32,
    *,
    pack: bool = False,
) -> nn.Module:
    """A `FreqModule` at one map size, for inference: `[B, C, H, W]` -> the same shape and dtype, equal to `freq(x)`.

    Spectral arithmetic is in float32 (float64 for float64) whatever the dtype: bfloat16 operands would cost two
    decimal digits.  Do not cast the result with `.to(dtype)`: it holds complex tables.

    Args:
        freq (FreqModule): its weights are copied.
        height, width (int): of the maps.
        form (str): "fft", "matmul", "dense", or "auto": the fastest as measured.
        dtype (torch.dtype): of the maps, input and output.
        pack (bool): whether the depth-wise convolution's weights are packed, see `packed`. Default: False.

    Raises:
        InvalidArgumentError: no such form, or a side below 1.
    """
    if form not in get_args(SpectralForm):
        raise InvalidArgumentError(f"form is {form!r}; allowed are {', '.join(get_args(SpectralForm))}")
    if height < 1 or width < 1:
        raise InvalidArgumentError(f"the map is {height}x{width} (HxW); both sides must be positive")
    return _Spectral(freq, height, width, FASTEST if form == "auto" else form, dtype, pack)


class _Spectral(nn.Module):
    def __init__(
        self, freq: FreqModule, height: int, width: int, form: SpectralForm, dtype: torch.dtype, pack: bool
    ) -> None:
        super().__init__()
        branches: list[nn.Module] = []
        for f in freq.filters:
            assert isinstance(f, SpectralFilter)
            spectrum = f.spectrum(height, width).detach().to(torch.complex128)
            if form == "fft":
                branches.append(_Fft(spectrum, f.pair, height, width))
            elif form == "dense" and f.pair != "hw":
                branches.append(_Dense(spectrum, f.pair, height, width))
            else:
                branches.append(_Matmul(spectrum, f.pair, height, width))
        self.branches = nn.ModuleList(branches)
        self._exported = form != "fft"
        self.work = torch.float64 if dtype == torch.float64 else torch.float32
        for branch in branches:
            for name, table in branch.named_buffers():
                branch.register_buffer(name, table.to(self.work.to_complex() if table.is_complex() else self.work))
        self.depthwise = Conv(affine(freq.dwconv), freq.dwconv).to(dtype)
        if pack:
            self.depthwise.pack()
        self._split = (3 * freq.dwconv.out_channels, freq.dwconv.out_channels)
        self._alone = freq.dwconv.out_channels * height * width <= ALONE

    def forward(self, x: Tensor) -> Tensor:
        spectral, local = x.split(self._split, dim=1)
        quarters = spectral.to(self.work, memory_format=torch.contiguous_format).chunk(3, dim=1)  # planes to transform
        local = self.depthwise(local.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self._exported:  # what is exported writes to no part of a tensor
            filtered = (f(q).to(x.dtype) for f, q in zip(self.branches, quarters, strict=True))
            return torch.cat([*filtered, local], dim=1)
        # maps of a plan are channels-last; a plain concatenation would be planes, which the next layer would have to
        # convert
        y = torch.empty_like(x, memory_format=torch.channels_last)
        *parts, last = y.chunk(4, dim=1)
        last.copy_(local)
        with cpu.mkl_threads(1) if self._alone and x.device.type == "cpu" else nullcontext():
            for part, f, q in zip(parts, self.branches, quarters, strict=True):
                part.copy_(f(q))
        return y


class _Fft(nn.Module):
    spectrum: Tensor

    def __init__(self, spectrum: Tensor, pair: str, height: int, width: int) -> None:
        super().__init__()
        self.dims = PAIR_DIMS[pair]
        self.size = [(len(spectrum), height, width)[d - 1] for d in self.dims]
        if pair != "hw":
            spectrum = spectrum.unsqueeze(1 if pair == "cw" else 2)  # shared by all rows, or by all columns
        self.register_buffer("spectrum", spectrum)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 and x.device.type == "cpu":  # MKL's last bits depend on how many transforms it is given at once
            return torch.cat([self(item) for item in x.split(1)])
        y = torch.fft.rfft2(x, dim=self.dims, norm="ortho") * self.spectrum
        return torch.fft.irfft2(y, s=self.size, dim=self.dims, norm="ortho")


class _Dense(nn.Module):
    """One block-circulant matrix over all C'W (or C'H) numbers of a row (or column)."""

    matrix: Tensor

    def __init__(self, spectrum: Tensor, pair: str, height: int, width: int) -> None:
        super().__init__()
        self.pair = pair
        m, n = len(spectrum), width if pair == "cw" else height
        kernel = torch.fft.irfft2(spectrum, s=[m, n])  # circular convolution with it is what the filter does
        rows, columns = torch.arange(m, device=kernel.device), torch.arange(n, device=kernel.device)
        rows, columns = (rows - rows[:, None]) % m, (columns - columns[:, None]) % n
        matrix = kernel[rows[:, None, :, None], columns[None, :, None, :]]
        self.register_buffer("matrix", matrix.reshape(m * n, m * n))

    def forward(self, x: Tensor) -> Tensor:
        planes = x.permute(_TO_PLANES[self.pair])
        return (planes.flatten(2) @ self.matrix).view(planes.shape).permute(_FROM_PLANES[self.pair])


class _Matmul(nn.Module):
    """`inverse_rows @ (filter * (rows @ x @ columns)) @ inverse_columns` on planes `[M, N]`.

    With u, v the frequencies of output minus input position, the filter a + ib adds
    a (cos u cos v - sin u sin v) - b (cos u sin v + sin u cos v).  cos u = cos cos + sin sin of the two positions keeps
    a cosine row a cosine row; sin u = sin cos - cos sin swaps the two.  Taking each row and column twice, once to
    stay and once to be swapped, leaves an element-wise product of real numbers.
    """

    rows: Tensor
    columns: Tensor
    filter: Tensor
    inverse_rows: Tensor
    inverse_columns: Tensor

    def __init__(self, spectrum: Tensor, pair: str, height: int, width: int) -> None:
        super().__init__()
        self.pair = pair
        m = height if pair == "hw" else len(spectrum)
        n = height if pair == "ch" else width
        rows, inverse_rows = _bases(m, spectrum.device)
        columns, inverse_columns = _bases(n, spectrum.device)
        k = torch.arange(m // 2 + 1, device=spectrum.device)
        plus, minus = spectrum[..., k, :], spectrum[..., -k % m, :]
        real = _is_real(m, spectrum.device)[:, None]
        stay, swap = torch.where(real, plus, plus + minus), torch.where(real, 0, plus - minus)
        weight = torch.where(_is_real(n, spectrum.device), 1.0, 2.0)  # the other half of the spectrum
        stay, swap = stay * weight, swap * weight
        top = torch.cat([stay.real, stay.real, -stay.imag, -stay.imag], dim=-1)
        bottom = -torch.cat([swap.imag, swap.imag, swap.real, swap.real], dim=-1)
        table = torch.cat([top, top, bottom, bottom], dim=-2)
        # the sine of DC and of Nyquist is zero, and so are the rows and columns that start or end in it
        row = (rows.abs().amax(1) > 0) & (inverse_rows.abs().amax(1) > 0)
        column = (columns.abs().amax(1) > 0) & (inverse_columns.abs().amax(1) > 0)
        self.register_buffer("rows", rows[row])
        self.register_buffer("columns", columns[column].T.contiguous())
        self.register_buffer("filter", table[..., row, :][..., column].contiguous())
        self.register_buffer("inverse_rows", inverse_rows[row].T.contiguous())
        self.register_buffer("inverse_columns", inverse_columns[column])

    def forward(self, x: Tensor) -> Tensor:
        y = self.filter * (self.rows @ (x.permute(_TO_PLANES[self.pair]) @ self.columns))
        return (self.inverse_rows @ y @ self.inverse_columns).permute(_FROM_PLANES[self.pair])


def _bases(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """float64 `[4K, n]`, K = n//2 + 1: cos, sin, cos, sin of K frequencies, and what each becomes on the way back."""
    k = torch.arange(n // 2 + 1, device=device)
    phase = k[:, None] * torch.arange(n, device=device) % n  # reduced while it is an integer, or digits are lost
    angle = phase.double() * (2 * math.pi / n)
    scale = 1 / math.sqrt(n)
    cos = scale * torch.cos(angle)
    sin = torch.where(_is_real(n, device)[:, None], 0.0, scale * torch.sin(angle))
    return torch.cat([cos, sin, cos, sin]), torch.cat([cos, sin, sin, -cos])


def _is_real(n: int, device: torch.device) -> Tensor:
    """bool `[n//2 + 1]`: which frequencies of n real samples have no sine: DC and, for even n, Nyquist."""
    k = torch.arange(n // 2 + 1, device=device)
    return -k % n == k
