import numpy as np
import pytest

from activefreq_engine import Engine

from .fakes import SquareModel


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh inputs each run; the seed is in the failure report."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture
def engine() -> Engine:
    """A fast engine with foreseeable masks."""
    return Engine(SquareModel(refine_size=64))
