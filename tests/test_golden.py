"""The shipped weights still compute what they computed when they were shipped."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from activefreq_engine.models import create_model, list_models, read_metadata
from activefreq_engine.models.registry import WEIGHTS

HERE = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_goldens", HERE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=list_models(pretrained=True))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def golden(name):
    return np.load(HERE / f"{name}.npz", allow_pickle=False)


def test_something_is_shipped():
    assert "freqformer_b0" in list_models(pretrained=True)


def test_goldens_belong_to_the_shipped_weights(name, golden):
    shipped = read_metadata(WEIGHTS / f"{name}.safetensors")["sha256"]
    assert str(golden["sha256"]) == shipped, "the weights have changed: run python tests/golden/make.py"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_outputs_equal_the_goldens(make, name, golden, dtype, tolerance):
    values = make.outputs(create_model(name, pretrained=True), dtype)
    for output in ("first", "third", "refined"):
        error = np.linalg.norm(values[output] - golden[output]) / np.linalg.norm(golden[output])
        assert error <= tolerance, f"{output}: relative error {error:.2e}, allowed {tolerance:.0e}"


OLDER = [("AVX2", "default"), ("AVX512_CORE", "avx2"), ("AVX512_CORE_BF16", "default")]


@pytest.mark.parametrize(("onednn", "aten"), [OLDER[0], *(pytest.param(*o, marks=pytest.mark.slow) for o in OLDER[1:])])
def test_processors_with_fewer_instructions_agree(onednn, aten):
    """As far as oneDNN and torch can be told to leave instructions out; both read it when they are loaded."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "equal_the_goldens"]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert f"{2 * len(list_models(pretrained=True))} passed" in done.stdout


def test_a_click_is_obeyed(make, golden):
    """First, third: the lesion is under the first click, the far corner is not in the mask."""
    height, width = golden["first"].shape
    assert golden["first"][height // 2, width // 2] > 0
    assert golden["third"][-2, 3] < 0
