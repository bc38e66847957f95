"""The definition: queries, scaled dot-product attention, projection, residual, and the next layer's norm."""

import torch.nn.functional as F
from torch import Tensor


def attention(
    xn: Tensor,
    x: Tensor,
    kv: Tensor | None,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int,
    eps: float,
    splits: int,
) -> tuple[Tensor, Tensor]:
    """See `kernels.attention`."""
    b, h, w, c = x.shape
    pixels = xn.flatten(1, 2)
    if q_weight is None or kv is None:
        query, kv = pixels[..., :c], pixels[..., c:]
    else:
        query = F.linear(pixels, q_weight, q_bias)
    q = query.unflatten(-1, (heads, c // heads)).transpose(1, 2)
    k, v = kv.unflatten(-1, (2, heads, c // heads)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c)
    y = F.linear(mixed, proj_weight, proj_bias) + x
    return y, F.layer_norm(y, [c], eps=eps)
