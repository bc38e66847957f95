"""Argument checks that several ops share."""

import torch
from torch import Tensor


def check_no_gradient(op: str, **tensors: Tensor | None) -> None:
    """Raise RuntimeError if autograd would want `op` to pass a gradient to one of the named tensors."""
    if torch.is_grad_enabled():
        for name, t in tensors.items():
            if t is not None and t.requires_grad:
                raise RuntimeError(
                    f"{name} requires a gradient, and {op} is for inference only; call it under "
                    "torch.inference_mode() or torch.no_grad(), or detach the tensor"
                )
