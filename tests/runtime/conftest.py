import numpy as np
import pytest
import torch


@pytest.fixture
def seed() -> int:
    """Fresh inputs each run; the seed is in the failure report."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return seed
