"""A model small enough to be built and run anywhere."""

import pytest
import torch

from activefreq_engine.models import FreqFormer, FreqFormerConfig


def tiny_config(**overrides) -> FreqFormerConfig:
    return FreqFormerConfig(**{"embed_dim": 8, "refiner_width": 4, "refine_size": 32, **overrides})


@pytest.fixture
def config() -> FreqFormerConfig:
    return tiny_config()


@pytest.fixture
def model() -> FreqFormer:
    """Random weights everywhere, running statistics included; evaluation mode."""
    made = FreqFormer(tiny_config())
    with torch.no_grad():
        for name, v in made.state_dict().items():
            if "running_var" in name:
                v.uniform_(0.5, 2)
            elif "running_mean" in name or name.endswith("bias"):
                v.normal_(0, 0.1)
    return made.eval()
