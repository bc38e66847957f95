"""Models and measures that the tests of the runtime share."""

import torch
from torch import Tensor, nn

from activefreq_engine import create_model
from activefreq_engine.models import FreqFormer
from activefreq_engine.models.tinyvit import TinyViTSpec

TINY = TinyViTSpec((8, 12, 8, 16), (1, 1, 2, 1), (2, 2, 2, 4), (7, 7, 14, 7))
"""A guide's trunk that is small enough for tests."""


def relative(got: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def logits_error(got: Tensor, expected: Tensor) -> float:
    """As `relative`, but beside logits of 0.2 at least: random weights have such a bias, and where it cancels what is
    left of the logits is no measure."""
    assert got.shape == expected.shape
    size = max(float(expected.double().norm()), 0.2 * expected.numel() ** 0.5)
    return float((got.double() - expected.double()).norm()) / size


def scramble(module: nn.Module) -> nn.Module:
    """Random values in every parameter and statistic: fresh ones have zero biases and unit norms, which hide errors."""
    with torch.no_grad():
        for name, t in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                t.uniform_(0.5, 2.0)
            elif t.dtype.is_floating_point:
                # small steps around what is there: the network stays in the range of a trained one
                t.add_(torch.randn_like(t) * (0.2 if t.dim() < 2 else 0.02))
    return module


def random_model(name: str = "freqformer_b0", dtype: torch.dtype = torch.float64, **config: object) -> FreqFormer:
    """A model with random weights everywhere."""
    model = create_model(name, **config)
    scramble(model)
    return model.to(dtype).eval()
