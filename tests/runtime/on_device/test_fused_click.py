"""A click by fused kernels equals the network in float64; on a GPU, or in Triton's interpreter (`test_fused.py`)."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from activefreq_engine.kernels import triton_support
from activefreq_engine.kernels.click_maps.reference import click_maps

from activefreq_engine import create_model
from activefreq_engine.models.tinyvit import TINYVIT_SPECS
from activefreq_engine.runtime.graphs.contexts import ClickContext, Shelf
from activefreq_engine.runtime.levels import ONE, Levels
from activefreq_engine.runtime.painting import Easel, PaintRequest
from activefreq_engine.runtime.plan import Folded
from activefreq_engine.runtime.plan.fused import Recorder
from activefreq_engine.runtime.plan.plan import ProjectedFeatures
from activefreq_engine.session.painter import limit

from ..modules import TINY, random_model, relative
from ..runners import Eager

INTERPRETING = triton_support.INTERPRETING
WHERE = torch.device("cpu" if INTERPRETING else "cuda")
MOST_LAUNCHES = 50
EXPECTED = {
    "click_embed": 1,
    "patch_embed": 3,
    "reduce_kv": 4,
    "norm_linear": 8,
    "attention": 6,
    "conv_ffn": 6,
    "freq_module_packed": 3,
    "point_ffn": 3,
    "click_head": 1,
    "mask_bits": 1,
    "copy_": 5,  # points in, levels and bits out, and two for the refiner
}
"""What docs/performance.md says."""
pytestmark = [
    pytest.mark.usefixtures("rng"),
    pytest.mark.skipif(not triton_support.available()[0], reason=triton_support.available()[1]),
]


@pytest.fixture(autouse=True)
def by_name(monkeypatch):
    """In the interpreter nothing is tried before: that takes as long again, and has tests of its own."""
    if INTERPRETING:
        monkeypatch.setenv("ACTIVEFREQ_BACKEND", "triton")
        monkeypatch.setattr(Folded, "_layer_questions", lambda *_: [])


# Without a guide only on a device: in the interpreter it takes a minute, and what differs, `patch_embed` with no maps
# to add, has tests of its own.
@pytest.mark.parametrize(
    "guide", ["tinyvit_tiny", pytest.param(None, marks=pytest.mark.skipif(INTERPRETING, reason="slow"))]
)
@torch.inference_mode()
def test_equals_the_network_in_float64(guide, monkeypatch):
    """The bound is that of half precision; the plan's layers in fp16 miss float64 by as much."""
    height, width = 32, 64
    monkeypatch.setitem(TINYVIT_SPECS, "tinyvit_tiny", TINY)
    exact = random_model(refiner_width=0 if INTERPRETING else 32, guide=guide)
    plan = Folded(copy.deepcopy(exact).float().to(WHERE), WHERE, "fp16").plan(height, width)
    assert plan.fused is not None
    reference = Folded(exact, "cpu", "fp32").plan(height, width, "fft")
    features = reference.prepare(torch.randn(1, 3, height, width).double())
    previous, points = torch.rand(1, height, width), torch.full((1, 48, 2), -1.0)
    points[0, 0], points[0, 24], points[0, 25] = torch.rand(3, 2) * torch.tensor([width, height])
    maps = torch.cat([previous[:, None], click_maps(points, height, width, 5.0)], dim=1).double()
    expected = reference.click(*features, maps)
    out = Levels(torch.full((1, height, width), 77, dtype=torch.uint16), torch.full((1,), float("nan")))
    out = Levels(*(t.to(WHERE) for t in out))
    half = [f.to(WHERE, torch.float16) for f in features]
    got = plan.fused(half, previous.to(WHERE), points.to(WHERE), 5.0, out)
    probs = expected.logits[:, 0].sigmoid()
    error = (out.levels.cpu().to(torch.float64) / ONE - probs).abs().max()
    print("probabilities", error, "of", probs.min(), "to", probs.max())
    assert error <= 1e-3
    assert abs(out.total.cpu() - probs.sum()) <= 1e-3 * probs.sum()
    if plan.fused.keep:
        errors = [relative(a.cpu(), b) for a, b in zip(got, expected, strict=True)]
        print("relative errors of logits and embedding", errors)
        assert max(errors) <= 1e-2


def test_a_click_is_few_launches_and_copies(capsys):
    """As a device would run it: MiT-B0 at 384 x 384, one image, the second click of a region.  Fused ops and
    FreqModules count one each, views nothing."""
    plan = Folded(create_model("freqformer_b0").to(WHERE), WHERE, "fp16").plan(384, 384)
    c1, p1 = (torch.zeros(1, n, 96, 96, dtype=torch.float16, device=WHERE) for n in (32, 128))
    features = ProjectedFeatures(*(t.to(memory_format=torch.channels_last) for t in (c1, p1)))
    context = ClickContext(plan, 1, 5.0, features, Shelf(), Eager(WHERE), Easel(1, WHERE))
    wanted = PaintRequest((5, 6, 405, 106), limit(0.49), None)
    previous: np.ndarray = np.zeros((384, 384), np.float32)
    points = np.full((48, 2), -1, np.float32)
    for _ in range(2):
        with torch.inference_mode(), Recorder() as recorder:
            ((found, _),) = context([features], [previous], [points], [wanted])
        assert found.painted is not None
        previous = found.levels  # as a session hands it on
    names = recorder.names
    with capsys.disabled():
        print("\na click of freqformer_b0 at 384 px, launches and copies:")
        for name, count in Counter(names).most_common():
            print(f"{count:5d}  {name}")
        print(f"{len(names):5d}  in all")
    assert len(names) <= MOST_LAUNCHES
    assert Counter(names) == EXPECTED
