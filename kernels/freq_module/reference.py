"""The definition of the FreqModule (ActiveFreq, Figure 4), with `torch.fft`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def freq_module(
    x: Tensor,  # [B, 4C', H, W]
    filter_hw: Tensor,  # complex [C', H, W//2+1]
    filter_cw: Tensor,  # complex [C', W//2+1]
    filter_ch: Tensor,  # complex [C', H//2+1]
    dw_weight: Tensor,  # [C', 1, k, k]
    dw_bias: Tensor | None,  # [C']
    out: Tensor | None = None,
    residual: Tensor | None = None,  # [B, 4C', H, W]
) -> Tensor:
    """See `kernels.freq_module`.  Computes in float32; in float64 when `x` is float64."""
    real = x if x.dtype == torch.float64 else x.float()  # half-precision FFTs exist for powers of two only
    hw, cw, ch, depthwise = real.chunk(4, dim=1)
    bias = None if dw_bias is None else dw_bias.to(real.dtype)
    quarters = [
        spectral_filter(hw, filter_hw, (2, 3)),
        spectral_filter(cw, filter_cw[:, None, :], (1, 3)),  # shared by all rows
        spectral_filter(ch, filter_ch[:, :, None], (1, 2)),  # shared by all columns
        F.conv2d(depthwise, dw_weight.to(real.dtype), bias, padding=dw_weight.shape[-1] // 2, groups=hw.shape[1]),
    ]
    y = torch.cat(quarters, dim=1)
    if residual is not None:
        y = y + residual
    if out is None:
        out = torch.empty_like(x)
    return out.copy_(y)


def spectral_filter(x: Tensor, spectrum: Tensor, dims: tuple[int, int]) -> Tensor:
    """Real 2-D DFT over `dims` of `[B, C', H, W]`, times `spectrum`, inverse DFT; the half spectrum is on the last."""
    y = torch.fft.rfft2(x, dim=dims, norm="ortho") * spectrum
    return torch.fft.irfft2(y, s=[x.shape[d] for d in dims], dim=dims, norm="ortho")
