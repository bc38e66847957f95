"""A network with a guide through plans, contexts and an engine."""

import numpy as np
import pytest
import torch

from activefreq_engine import Engine, Session
from activefreq_engine.models.tinyvit import TINYVIT_SPECS
from activefreq_engine.runtime.graphs.contexts import Contexts
from activefreq_engine.runtime.plan import Folded

from .clicking import poison, request
from .modules import TINY, logits_error, random_model, relative
from .runners import FakeGraphs


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(TINYVIT_SPECS, "tinyvit_tiny", TINY)


def guided(dtype):
    return random_model(dtype=dtype, refine_size=64, guide="tinyvit_tiny")


@torch.inference_mode()
@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [
        ("fp32", torch.float64, 1e-10),
        ("fp32", torch.float32, 2e-5),
        ("bf16", torch.float32, 6e-2),
        ("fp16", torch.float32, 1e-2),
    ],
    ids=["fp64", "fp32", "bf16", "fp16"],
)
def test_the_plan_equals_the_model(precision, dtype, tolerance):
    model = guided(dtype)
    plan = Folded(model, precision=precision).plan(64, 96)
    image, clicks = torch.randn(2, 3, 64, 96, dtype=dtype), torch.rand(2, 3, 64, 96, dtype=dtype)
    features, prepared = model.encode_image(image), plan.prepare(image)
    coarse, answer = model.decode_clicks(features, clicks), plan.click(*prepared, clicks)
    for name in ("g2", "g3", "g4"):
        assert relative(getattr(prepared, name), getattr(features, name)) <= tolerance, name
    assert logits_error(answer.logits, coarse.logits) <= tolerance
    assert relative(answer.embedding, coarse.embedding) <= tolerance


def test_contexts_answer_as_the_plan_does(rng):
    model = guided(torch.float32)
    plain, ours = (Engine(model, device="cpu", precision="fp32") for _ in range(2))
    ours._executor = Contexts(ours._executor.model, FakeGraphs())
    requests = [request(rng, 64, 96) for _ in range(3)]
    expected = plain.run(requests)
    got = ours.run(requests)
    poison(ours)
    again = ours.run([request(rng, 64, 96, a.features) for a in got])
    assert len(again) == 3
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a.probs - b.probs).max() <= 2.6e-5


def test_a_region_is_looked_at_once(rng):
    """Further clicks on it cost the guide nothing."""
    model = guided(torch.float32)
    engine = Engine(model, device="cpu", precision="fp32", plan=False)
    assert model.guide is not None
    looks: list[int] = []
    model.guide.trunk.register_forward_hook(lambda *_: looks.append(1))
    with Session(engine=engine, zoom=False) as s:
        s.set_image(rng.integers(0, 256, (90, 130, 3), np.uint8))
        for k in range(3):
            s.click(20 + 30 * k, 50, positive=k != 1)
    assert len(looks) == 1


@torch.inference_mode()
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (32, 224), (224, 32)], ids=str)
@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [("fp32", torch.float64, 1e-10), ("fp32", torch.float32, 1e-5), ("bf16", torch.float32, 6e-2)],
    ids=["fp64", "fp32", "bf16"],
)
def test_the_trunk_sees_what_the_model_does(precision, dtype, tolerance, size, pack):
    """Windows are cut off by the border at each of these sizes; packed layers apply their activations themselves."""
    model = guided(torch.float64)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    assert model.guide is not None
    expected = model.guide.look(image)
    trunk = Folded(model.to(dtype), precision=precision, pack=pack)._guide[0]
    for got, wanted in zip(trunk(image.to(dtype)), expected, strict=True):
        assert got.dtype == (torch.bfloat16 if precision == "bf16" else dtype)
        assert relative(got, wanted) <= tolerance
