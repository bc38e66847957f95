"""Freq blocks with the kernel equal those without; on a GPU, or in Triton's interpreter (`test_frequency.py`)."""

import copy

import pytest
import torch
from activefreq_engine.kernels import triton_support

from activefreq_engine.models.freqnet import FreqBlock
from activefreq_engine.runtime.plan import Folded, layers
from activefreq_engine.runtime.plan.frequency import OneLaunch, frequency_block

from ..measures import disagreement
from ..modules import random_model, relative, scramble

INTERPRETING = triton_support.INTERPRETING
pytestmark = [
    pytest.mark.usefixtures("rng"),
    pytest.mark.skipif(not triton_support.available()[0], reason=triton_support.available()[1]),
]
WHERE = torch.device("cpu" if INTERPRETING else "cuda")
TOLERANCE = {torch.float16: 3e-3, torch.float32: 1e-5}  # relative, of the block's share in the sum


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 12)], ids=str)
@torch.inference_mode()
def test_block(size, dtype):
    block = scramble(FreqBlock(32, "multi", "complex", 2)).eval()
    exact, x = copy.deepcopy(block).double(), torch.randn(2, 32, *size)
    expected = exact(x.double())
    norm, ffn = (m.to(WHERE, dtype) for m in (layers.Norm(block.norm1), layers.PointwiseFFN(block)))
    ours = frequency_block(norm, block.freq, ffn, *size, "auto", dtype, WHERE)
    assert isinstance(ours, OneLaunch)
    got = ours(x.permute(0, 2, 3, 1).contiguous().to(WHERE, dtype))
    assert (got.dtype, got.is_contiguous()) == (dtype, True)
    error = relative(got.permute(0, 3, 1, 2).cpu() - x, expected - x)
    print("relative error", error)
    assert error <= TOLERANCE[dtype]


@pytest.mark.parametrize("precision", ["fp16"] if INTERPRETING else ["fp16", "fp32"])
@torch.inference_mode()
def test_plan(precision):
    """The whole network with the kernel at every level."""
    exact = random_model(refiner_width=0)
    plan = Folded(copy.deepcopy(exact).float().to(WHERE), WHERE, precision).plan(32, 64)
    assert sum(isinstance(m, OneLaunch) for half in (plan.prepare, plan.click) for m in half.modules()) == 4
    image, clicks = torch.randn(1, 3, 32, 64), torch.rand(1, 3, 32, 64)
    expected = exact.decode_clicks(exact.encode_image(image.double()), clicks.double()).logits
    got = plan.click(*plan.prepare(image.to(WHERE)), clicks.to(WHERE)).logits.cpu()
    error = relative(got, expected)
    print("relative error", error)
    assert error <= (2e-2 if precision == "fp16" else 1e-4)
    masks = [(t[0, 0] > t.median()).numpy() for t in (got.double(), expected)]
    assert disagreement(*masks, band=1) <= 1e-2
