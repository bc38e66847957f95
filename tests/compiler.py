"""Whether `torch.compile` can be had here."""

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch


def clash() -> bool:
    """torch 2.6 imports what Triton no longer has from 3.3 on; where Triton is new, its compiler cannot be imported."""
    try:
        triton = tuple(map(int, version("triton").split(".")[:2]))
    except PackageNotFoundError:
        return False
    return tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7) and triton >= (3, 3)


needs_compiler = pytest.mark.skipif(clash(), reason="torch 2.6 cannot import its compiler beside Triton 3.3 or newer")
