"""A Freq block of a plan.  Its FreqModule is one kernel launch where that kernel can run, else torch's operations."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from activefreq_engine.kernels import dispatch, triton_support
from activefreq_engine.kernels.freq_module import FreqModulePlan, trial
from activefreq_engine.kernels.verification import Question
from activefreq_engine.models.freqnet import FreqModule, SpectralFilter
from activefreq_engine.runtime.plan import layers
from activefreq_engine.runtime.plan.spectral import SpectralForm, spectral_module

KERNEL_PAIRS = ("hw", "cw", "ch")
KERNEL_SIDES = (3, 5, 7)  # of the depth-wise convolution
_log = logging.getLogger("activefreq_engine.runtime.frequency")
_said: set[str] = set()


class OneLaunch(nn.Module):
    """`layers.Frequency` with the FreqModule and the sum after it in one launch.

    The kernel multiplies in fp16 and adds in float32; where maps are in float32 its products stay close to that.
    """

    def __init__(self, norm: layers.Norm, plan: FreqModulePlan, ffn: nn.Module) -> None:
        super().__init__()
        self.norm, self.plan, self.ffn = norm, plan, ffn

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.mix(self.norm(x), x))

    def mix(self, xn: Tensor, x: Tensor) -> Tensor:
        """As `layers.Frequency.mix`."""
        return self.plan(xn.permute(0, 3, 1, 2), residual=x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def frequency_block(
    norm: layers.Norm,
    freq: FreqModule,
    ffn: nn.Module,
    height: int,
    width: int,
    form: SpectralForm,
    dtype: torch.dtype,
    device: torch.device,
    *,
    pack: bool = False,
) -> nn.Module:
    """A Freq block for inference at one map size: `[B, H, W, C]` -> the same shape.

    Args:
        norm, ffn: of the block, on the device.
        freq (FreqModule): its weights are copied.
        height, width (int): of the maps.
        form (str): of torch's operations, see `spectral`; the kernel is considered only with "auto".
        dtype (torch.dtype): of the maps.
        device (torch.device): where the block runs.
        pack (bool): see `spectral_module`.
    """
    if form == "auto" and device.type in triton_support.DEVICES:
        plan, reason = _kernel(norm, freq, height, width, dtype, device)
        if plan is not None:
            return OneLaunch(norm, plan, ffn)
        if reason not in _said:
            _said.add(reason)
            _log.info("a FreqModule runs as torch's operations: %s", reason)
    return layers.Frequency(norm, spectral_module(freq, height, width, form, dtype, pack=pack).to(device), ffn)


def _kernel(
    norm: layers.Norm, freq: FreqModule, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[FreqModulePlan | None, str]:
    """The prepared kernel, or None and the reason."""
    filters = [f for f in freq.filters if isinstance(f, SpectralFilter)]
    pairs, side = tuple(f.pair for f in filters), freq.dwconv.kernel_size[0]
    if pairs != KERNEL_PAIRS or side not in KERNEL_SIDES:
        return None, f"the kernel is for axis pairs {KERNEL_PAIRS} and sides {KERNEL_SIDES}, not {pairs} and {side}"
    bias = freq.dwconv.bias
    hw, cw, ch = (f.spectrum(height, width).detach().to(device) for f in filters)
    try:
        plan = FreqModulePlan(
            hw,
            cw,
            ch,
            freq.dwconv.weight.detach().to(device),
            None if bias is None else bias.detach().to(device),
            size=(height, width),
            precision=_precision(dtype),
        )
    except ValueError as error:  # filters so large that fp16 could overflow
        return None, str(error)
    if plan.backend == "reference":
        return None, f"no kernel for {plan.channels} channels of {height}x{width} in {plan.precision} (see the log)"
    largest = _largest(norm)
    if largest > plan.input_limit:
        return None, f"normalised maps may reach {largest:.3g}, in fp16 the kernel takes {plan.input_limit:.3g}"
    like = _like(plan.channels, height, width, dtype)
    if not plan.proven(like, residual=like):
        return None, f"the kernel for {plan.channels} channels of {height}x{width} has failed its trial (see the log)"
    return plan, ""


def question(freq: FreqModule, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Question | None:
    """The question that `frequency_block` asks `kernels.verification` before it uses the kernel; None if it asks
    nothing."""
    if device.type not in triton_support.DEVICES or not triton_support.available()[0]:
        return None
    if dispatch.is_named("freq_module", device.type, "auto"):  # what is asked for by name is not tried
        return None
    like = _like(4 * freq.dwconv.out_channels, height, width, dtype)
    form = trial.form(like, None, like, freq.dwconv.kernel_size[0], _precision(dtype))
    return dispatch.question("freq_module", "triton", device, form)


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "fp16"


def _like(channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """An empty tensor with the layout of what `OneLaunch` hands to the kernel."""
    return torch.empty(2, height, width, channels, dtype=dtype, device="meta").permute(0, 3, 1, 2)


def _largest(norm: layers.Norm) -> float:
    """An upper limit for values that leave the norm: of C numbers of unit variance none exceeds sqrt(C)."""
    return float(norm.shape[-1]) ** 0.5 * float(norm.weight.abs().max()) + float(norm.bias.abs().max())
