"""The definition: LayerNorm, linear layer, GELU and residual, one after the other."""

import torch.nn.functional as F
from torch import Tensor


def norm_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float | None, gelu: bool
) -> tuple[Tensor]:
    """See `kernels.norm_linear`."""
    if eps is not None:
        x = F.layer_norm(x, [x.shape[-1]], eps=eps)
    y = F.linear(x, weight, bias)
    if gelu:
        y = F.gelu(y)
    return (y if residual is None else y + residual,)
