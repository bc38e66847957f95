"""Tests of the Triton kernels.  They run on a GPU (``--device cuda``) or in Triton's interpreter, which has to be
chosen before Triton is imported: `tests/kernels/test_interpreter.py` runs this folder in a process of its own."""

import os

import pytest
import torch


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    if os.environ.get("TRITON_INTERPRET") == "1" or config.getoption("--device").startswith("cuda"):
        return None
    return True


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN or an odd number, so that an output that was never written cannot pass by luck."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))


def _poisoned(make):
    def poisoned(*args, **kwargs):
        t = make(*args, **kwargs)
        if t.device.type == "meta" or torch.compiler.is_compiling():
            return t
        return t.fill_(float("nan") if t.is_floating_point() else 77 if t.dtype != torch.bool else True)

    return poisoned
