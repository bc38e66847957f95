"""A FreqModule prepared for one map size."""

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_no_gradient
from . import trial

PRECISIONS = ("fp16", "tf32x3", "tf32")
"""Operand precisions of the matrix products; sums are always in float32."""


def input_dtypes(filter_hw: Tensor) -> tuple[torch.dtype, ...]:
    """The dtypes that `x` may have with these filters."""
    if filter_hw.dtype == torch.complex128:
        return (torch.float64,)
    return (torch.float16, torch.bfloat16, torch.float32)


class FreqModulePlan:
    """Everything about a FreqModule that does not depend on its input: tables and packed filters, made once.

    ``plan(x)`` equals ``freq_module(x, filters, ...)`` and costs one launch on the Triton backend, with nothing that a
    CUDA graph could not capture.  Making a plan on the GPU waits for the device: make it before capture.

    A kernel that "auto" has chosen is tried on the device before it first answers for a layout and dtype of `x`; where
    it fails the reference answers (`kernels.verification`).  Call a plan once before you compile or capture it.

    A plan is a snapshot: the tensors are copied and detached, later changes to them are not seen, and no gradient
    reaches them.

    Args:
        filter_hw (Tensor): complex64 `[C', H, W//2+1]`, over (H, W), one filter a channel.
        filter_cw (Tensor): complex64 `[C', W//2+1]`, over (C', W), shared by all rows.
        filter_ch (Tensor): complex64 `[C', H//2+1]`, over (C', H), shared by all columns.
        dw_weight (Tensor): `[C', 1, k, k]`, floating, k one of 3, 5, 7.
        dw_bias (Tensor, optional): `[C']`, floating. Default: none.
        size (tuple): (H, W) of the map; the filters alone do not tell an even width from an odd one.
        precision (str): one of `PRECISIONS`; the reference computes in float32 whatever it says. Default: "fp16".
        backend (str): see `kernels.dispatch`. Default: "auto".

    Attributes:
        backend (str): name of the implementation that runs.
        input_limit (float): inputs up to this magnitude cannot overflow an fp16 operand; beyond it the output may
            hold infinities or NaN.  Infinite where there is no such limit.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: shapes or devices do not fit together, a filter is not finite, or filters so large that fp16
            operands could overflow for common inputs.
        BackendUnavailableError: the backend asked for by name cannot run.
    """

    def __init__(
        self,
        filter_hw: Tensor,
        filter_cw: Tensor,
        filter_ch: Tensor,
        dw_weight: Tensor,
        dw_bias: Tensor | None = None,
        *,
        size: tuple[int, int],
        precision: str = "fp16",
        backend: str = "auto",
    ) -> None:
        check_parameters(filter_hw, filter_cw, filter_ch, dw_weight, dw_bias, size, precision)
        parameters = [None if t is None else t.detach() for t in (filter_hw, filter_cw, filter_ch, dw_weight, dw_bias)]
        self.size = (int(size[0]), int(size[1]))
        self.channels = 4 * filter_hw.shape[0]
        self.precision = precision
        self.device = filter_hw.device
        self.dtypes = input_dtypes(filter_hw)
        implementation = dispatch.select(
            "freq_module", self.device.type, backend, *parameters, size=self.size, precision=precision
        )
        self.backend = implementation.name
        self._runner = implementation.run(*parameters, size=self.size, precision=precision)
        self.input_limit: float = self._runner.input_limit
        self._side = int(dw_weight.shape[-1])
        self._reference: Any = None  # answers where the kernel has failed its trial
        if self.backend != "reference" and not dispatch.is_named(
            "freq_module", self.device.type, backend, *parameters, size=self.size, precision=precision
        ):
            reference = dispatch.select("freq_module", self.device.type, "reference", *parameters, size=self.size)
            self._reference = reference.run(*parameters, size=self.size, precision=precision)
        self._proven: set[Any] = set()

    def proven(self, x: Tensor, out: Tensor | None = None, residual: Tensor | None = None) -> bool:
        """Whether the implementation that `backend` names runs for these tensors.  If its kernel has failed the trial
        (`kernels.verification`) the reference runs instead.  The first call may take seconds: ask before clicks come.

        Args:
            x, out, residual: as for a call; meta tensors stand for tensors of the same layout.
        """
        if self._reference is None:
            return True
        key = (x.dtype, x.stride(), out is None or out.stride(), residual is None or residual.stride())
        if key in self._proven:
            return True
        form = trial.form(x, out, residual, self._side, self.precision)
        ok = dispatch.proven("freq_module", self.backend, self.device, form)[0]
        if ok:
            self._proven.add(key)
        return ok

    def __call__(self, x: Tensor, out: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Apply the FreqModule.

        Args:
            x (Tensor): `[B, 4C', H, W]`, float16, bfloat16 or float32 (float64 for complex128 filters), any strides.
            out (Tensor, optional): where to write; like `x` in shape, dtype and device, any strides, not overlapping
                `x` or `residual`. Default: a new tensor laid out like `x`.
            residual (Tensor, optional): added to the result in float32, before it is rounded to `x`'s dtype; like `x`
                in shape, dtype and device, any strides.  `plan(norm(x), residual=x)` is the first half of a Freq
                block. Default: none.

        Returns:
            Tensor: `out`, or the new tensor.

        Raises:
            TypeError: `x`, `out` or `residual` is not a tensor, or of the wrong dtype.
            ValueError: wrong shape or device, or `out` overlaps `x`, `residual` or itself.
            RuntimeError: a tensor requires a gradient.
        """
        check_input(x, (self.channels, *self.size), self.dtypes, self.device)
        check_like(x, out, residual)
        if x.shape[0] == 0:  # some FFT libraries refuse an empty batch
            return torch.empty_like(x) if out is None else out
        if torch.compiler.is_compiling() or self.proven(x, out, residual):
            return self._runner(x, out, residual)
        return self._reference(x, out, residual)

    def __repr__(self) -> str:
        c, (h, w) = self.channels, self.size
        return f"FreqModulePlan({c}x{h}x{w}, precision={self.precision!r}, backend={self.backend!r})"


def check_parameters(
    filter_hw: Tensor,
    filter_cw: Tensor,
    filter_ch: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    size: tuple[int, int],
    precision: str,
) -> None:
    """Raise TypeError or ValueError unless the arguments are what `FreqModulePlan` documents."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}")
    h, w = size
    filters = {"filter_hw": filter_hw, "filter_cw": filter_cw, "filter_ch": filter_ch}
    weights = {"dw_weight": dw_weight} if dw_bias is None else {"dw_weight": dw_weight, "dw_bias": dw_bias}
    for name, t in {**filters, **weights}.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is a {type(t).__name__}; pass a torch.Tensor")
    for name, t in filters.items():
        if t.dtype not in (torch.complex64, torch.complex128) or t.dtype != filter_hw.dtype:
            raise TypeError(f"{name} has dtype {t.dtype}; pass complex64 filters (all complex128 for float64 inputs)")
    for name, t in weights.items():
        if not t.dtype.is_floating_point:
            raise TypeError(f"{name} has dtype {t.dtype}; pass a floating-point tensor")
    if filter_hw.dim() != 3 or dw_weight.dim() != 4:
        raise ValueError(
            f"filter_hw has shape {tuple(filter_hw.shape)} and dw_weight {tuple(dw_weight.shape)}; pass "
            "[C', H, W//2+1] and [C', 1, k, k]"
        )
    c, k = filter_hw.shape[0], dw_weight.shape[-1]
    if min(c, h, w) < 1:
        raise ValueError(f"C' is {c} and the map is {h}x{w} (HxW); all must be 1 or more")
    if k not in (3, 5, 7):
        raise ValueError(f"dw_weight is {dw_weight.shape[2]}x{k}; allowed are 3x3, 5x5 and 7x7")
    expected = {
        "filter_hw": (c, h, w // 2 + 1),
        "filter_cw": (c, w // 2 + 1),
        "filter_ch": (c, h // 2 + 1),
        "dw_weight": (c, 1, k, k),
        "dw_bias": (c,),
    }
    for name, t in {**filters, **weights}.items():
        if tuple(t.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}; for C' = {c} on {h}x{w} (HxW) maps pass {expected[name]}"
            )
        if t.device != filter_hw.device:
            raise ValueError(f"{name} is on {t.device}, filter_hw on {filter_hw.device}; move them to one device")


def check_input(x: Tensor, shape: tuple[int, int, int], dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    """Raise unless `x` is `[B, *shape]` of one of the dtypes on the device, and needs no gradient."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; pass a torch.Tensor")
    if x.dtype not in dtypes:
        raise TypeError(f"x has dtype {x.dtype}; with these filters pass {', '.join(map(str, dtypes))}")
    if x.dim() != 4 or tuple(x.shape[1:]) != shape:
        raise ValueError(f"x has shape {tuple(x.shape)}; with these filters pass [B, {', '.join(map(str, shape))}]")
    if x.device != device:
        raise ValueError(f"x is on {x.device}, the filters on {device}; move them to one device")
    check_no_gradient("freq_module", x=x)


def check_like(x: Tensor, out: Tensor | None, residual: Tensor | None) -> None:
    """Raise unless `residual` can be added to the result for `x`, and `out` can take it."""
    for name, t in (("out", out), ("residual", residual)):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is a {type(t).__name__}; pass a torch.Tensor")
        if t.dtype != x.dtype:
            raise TypeError(f"{name} has dtype {t.dtype}; pass {x.dtype}, the dtype of x")
        if t.shape != x.shape or t.device != x.device:
            raise ValueError(
                f"{name} is {tuple(t.shape)} on {t.device}; pass {tuple(x.shape)} on {x.device}, the same as x"
            )
        check_no_gradient("freq_module", **{name: t})
    if out is None:
        return
    if any(stride == 0 and n > 1 for stride, n in zip(out.stride(), out.shape, strict=True)):
        raise ValueError(f"out has strides {out.stride()}: several elements share one place; pass a tensor of its own")
    if torch.compiler.is_compiling():
        return
    for name, t in (("x", x), ("residual", residual)):
        if t is not None and _overlap(t, out):
            raise ValueError(f"out overlaps {name}, which is still being read while out is written; pass other memory")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors meet."""
    if not a.numel() or not b.numel():
        return False
    (a0, a1), (b0, b1) = _extent(a), _extent(b)
    return a0 < b1 and b0 < a1


def _extent(t: Tensor) -> tuple[int, int]:
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()
