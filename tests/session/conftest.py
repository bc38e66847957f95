import pytest

from activefreq_engine import Engine

from .fakes import SquareModel


@pytest.fixture
def engine() -> Engine:
    """A fast engine with foreseeable masks."""
    return Engine(SquareModel(refine_size=64))
