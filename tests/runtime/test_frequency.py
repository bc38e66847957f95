"""Which form a Freq block takes, and the kernel's form in Triton's interpreter."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from activefreq_engine.kernels import triton_support

from activefreq_engine.models.freqnet import FreqBlock
from activefreq_engine.runtime.plan import frequency, layers
from activefreq_engine.runtime.plan.frequency import OneLaunch, frequency_block

FILE = Path(__file__).parent / "on_device" / "test_one_launch.py"


@pytest.mark.slow
@pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1])
def test_kernel_in_the_interpreter():
    # Triton must learn of it before it is imported: a process of its own
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10", str(FILE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout


def made(block, form="auto", dtype=torch.float32):
    norm, ffn = layers.Norm(block.norm1), layers.PointwiseFFN(block)
    return frequency_block(norm, block.freq, ffn, 8, 6, form, dtype, torch.device("cpu"))


def test_torch_operations_on_a_cpu(caplog):
    with caplog.at_level(logging.INFO):
        assert isinstance(made(FreqBlock(16, "multi", "complex", 2)), layers.Frequency)
    assert not caplog.records


class Kernel:
    """Stands in for a prepared kernel: `FreqModulePlan` cannot use Triton in this process."""

    backend, channels, precision = "triton", 16, "fp16"
    input_limit = 30.0
    right = True

    def __init__(self, *parameters, size, precision):
        self.arguments = (*parameters, size, precision)

    def proven(self, x, residual):
        return self.right

    def __call__(self, x, residual):
        return x + residual


@pytest.fixture
def kernel(monkeypatch):
    """A device on which the kernel runs."""
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(frequency, "FreqModulePlan", Kernel)
    monkeypatch.setattr(frequency, "_said", set())
    return Kernel


def test_one_launch_where_the_kernel_runs(kernel):
    block = FreqBlock(16, "multi", "complex", 2)
    got = made(block, dtype=torch.float16)
    assert isinstance(got, OneLaunch)
    hw, cw, ch, weight, bias, size, precision = got.plan.arguments
    assert (hw.shape, cw.shape, ch.shape) == ((4, 8, 4), (4, 4), (4, 5))
    assert (weight.shape, bias.shape, size, precision) == ((4, 1, 3, 3), (4,), (8, 6), "fp16")
    assert made(block, dtype=torch.float32).plan.arguments[-1] == "tf32x3"
    assert isinstance(made(block, form="matmul"), layers.Frequency)


@pytest.mark.parametrize("case", ["axes", "overflow", "no kernel", "large norm", "failed its trial"])
def test_the_other_way_is_logged_once(case, kernel, monkeypatch, caplog):
    block, words = FreqBlock(16, "hw" if case == "axes" else "multi", "complex", 2), "axis pairs"
    if case == "overflow":
        words = "could overflow"

        def refuse(*_, **__):
            raise ValueError("fp16 operands could overflow")

        monkeypatch.setattr(frequency, "FreqModulePlan", refuse)
    elif case == "no kernel":
        words = "16 channels of 8x6"
        monkeypatch.setattr(kernel, "backend", "reference")
    elif case == "failed its trial":
        words = case
        monkeypatch.setattr(kernel, "right", False)
    elif case == "large norm":
        words = "takes 30"
        with torch.no_grad():
            block.norm1.weight[3] = 8.0  # sqrt(16) of it: 32
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert isinstance(made(block), layers.Frequency)
    (record,) = caplog.records
    assert words in record.getMessage()
