"""Packed weights compute what torch's own layers compute, and are done without where they cannot be had."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from activefreq_engine.runtime.plan import Folded, packed

from .modules import logits_error, random_model, relative

needs_packing = pytest.mark.skipif(not packed.available(torch.float32), reason="this torch has no packed layers")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
TYPES = [  # oneDNN has no bfloat16 on processors without AVX-512
    pytest.param(t, marks=pytest.mark.skipif(not packed.available(t), reason=f"no packed layers of {t} here"))
    for t in sorted(TOLERANCE, key=str)
]


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_linear(dtype):
    x, residual = torch.randn(2, 7, 5, 24).to(dtype), torch.randn(2, 7, 5, 33).to(dtype)
    weight, bias = torch.randn(33, 24).to(dtype), torch.randn(33).to(dtype)
    for b in (bias, None):
        for r in (residual, None):
            expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
            expected = expected if r is None else expected + r.double()
            assert relative(packed.linear(x, packed.linear_weight(weight), b, r), expected) <= TOLERANCE[dtype]
        for then in ACTIVATIONS:
            expected = ACTIVATIONS[then](F.linear(x.double(), weight.double(), None if b is None else b.double()))
            assert relative(packed.linear(x, packed.linear_weight(weight), b, then=then), expected) <= TOLERANCE[dtype]


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_convolution(dtype):
    x = torch.randn(2, 9, 13, 6).to(dtype).permute(0, 3, 1, 2)
    weight, bias = torch.randn(11, 6, 3, 3).to(dtype), torch.randn(11).to(dtype)
    got = packed.convolution(x, packed.convolution_weight(weight, (2, 2), (1, 1)), bias, (2, 2), (1, 1))
    assert relative(got, F.conv2d(x.double(), weight.double(), bias.double(), 2, 1)) <= TOLERANCE[dtype]
    assert got.is_contiguous(memory_format=torch.channels_last)


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("then", ["none", "relu", "gelu"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_depthwise_convolution(dtype, then):
    x = torch.randn(2, 9, 13, 24).to(dtype).permute(0, 3, 1, 2)
    weight, bias = torch.randn(24, 1, 3, 3).to(dtype), torch.randn(24).to(dtype)
    got = packed.convolution(x, packed.convolution_weight(weight, (1, 1), (1, 1), 24), bias, (1, 1), (1, 1), 24, then)
    expected = ACTIVATIONS[then](F.conv2d(x.double(), weight.double(), bias.double(), 1, 1, groups=24))
    assert relative(got, expected) <= TOLERANCE[dtype]


def outputs(folded, image, clicks):
    plan = folded.plan(*image.shape[2:])
    with torch.inference_mode():
        answer = plan.click(*plan.prepare(image), clicks)
        boxes = torch.tensor([[3.0, 5.0, 60.0, 40.0]]).expand(len(image), 4)
        torch.manual_seed(0)
        crop, disks = torch.randn(len(image), 3, 64, 64), torch.rand(len(image), 2, 64, 64)
        return answer.logits, plan.refine(answer.embedding, answer.logits, boxes, crop, disks)


@needs_packing
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-2)])
def test_a_packed_plan_equals_a_plan(precision, tolerance):
    model = random_model(dtype=torch.float32, refine_size=64)
    image, clicks = torch.randn(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    plain, fast = (outputs(Folded(model, precision=precision, pack=pack), image, clicks) for pack in (False, True))
    for got, expected in zip(fast, plain, strict=True):
        assert logits_error(got, expected) <= tolerance


def test_without_the_operators_weights_stay_as_they_are(monkeypatch, caplog):
    packed.available.cache_clear()
    monkeypatch.setattr(packed, "_ops", object())
    with caplog.at_level(logging.INFO, logger="activefreq_engine.runtime.packed"):
        folded = Folded(random_model(dtype=torch.float32, refine_size=64), precision="fp32", pack=True)
        Folded(random_model(dtype=torch.float32, refine_size=64), precision="fp32", pack=True)
    packed.available.cache_clear()
    assert caplog.text.count("not packed") == 1
    image, clicks = torch.randn(1, 3, 64, 96), torch.rand(1, 3, 64, 96)
    assert all(torch.isfinite(t).all() for t in outputs(folded, image, clicks))


def test_float64_is_not_packed():
    assert not packed.available(torch.float64)
    Folded(random_model(refine_size=64), precision="fp32", pack=True)


SHAPES = """
import ctypes, gc
from pathlib import Path
from activefreq_engine import Engine

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) / 1e3

engine = Engine("freqformer_b0", device="cpu", precision="fp32", size=256)
engine.warmup()
before = resident()
for height in range(96, 449, 32):
    engine.warmup(height, 256)
print(resident() - before)
"""


@needs_packing
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and malloc_trim")
def test_compiled_kernels_stay_within_a_bound():
    """Twelve network shapes take less memory than they do when every kernel is kept, as is torch's habit."""
    environment = {k: v for k, v in os.environ.items() if k not in packed._LIMITS} | {"OMP_NUM_THREADS": "1"}
    grown = []
    for limits in ({}, dict.fromkeys(packed._LIMITS, "1024")):
        command = [sys.executable, "-c", SHAPES]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command, cwd=root, env=environment | limits, capture_output=True, text=True, check=True, timeout=900
        )
        grown.append(float(done.stdout))
    print(f"{grown[0]:.0f} MB, {grown[1]:.0f} where every kernel is kept")
    assert grown[0] < 0.6 * grown[1]
