"""The engine with plans answers as it does with the model's own modules."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from activefreq_engine import Engine, Session
from activefreq_engine.models import Coarse
from activefreq_engine.models.refiner import roi_align
from activefreq_engine.runtime.engine import RefineRequest, StepRequest
from activefreq_engine.runtime.levels import probabilities
from activefreq_engine.runtime.plan import planned
from activefreq_engine.runtime.plan.plan import ProjectedFeatures

from .modules import random_model


def request(rng, h, w):
    """A click of random content on a network grid."""
    points = np.full((48, 2), -1, np.float32)
    points[0], points[24] = rng.uniform(0, (w, h)), rng.uniform(0, (w, h))
    return StepRequest(rng.integers(0, 256, (h, w, 3), dtype=np.uint8), None, rng.random((h, w), np.float32), points)


def test_engine_with_plans_equals_engine_without(rng):
    model = random_model(dtype=torch.float32, refine_size=64)
    planned_, plain = Engine(model, precision="fp32"), Engine(model, plan=False)
    requests = [request(rng, *shape) for shape in ((64, 96), (32, 64), (64, 96))]
    got, expected = planned_.run(requests), plain.run(requests)
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a.probs - b.probs).max() <= 1e-4
    crop, points = np.zeros((64, 64, 3), np.uint8), requests[0].points
    boxes = [(3.0, 4.5, 50.0, 30.0), (0.0, 0.0, 64.0, 32.0), (10.0, 10.0, 30.0, 60.0)]
    refined = [
        engine.refine([RefineRequest(a.coarse, box, crop, points) for a, box in zip(answers, boxes, strict=True)])
        for engine, answers in ((planned_, got), (plain, expected))
    ]
    for a, b in zip(*refined, strict=True):
        assert np.abs(probabilities(a) - probabilities(b)).max() <= 1e-4


def test_a_batch_answers_as_each_click_alone(rng):
    for precision, alone in (("fp32", False), ("bf16", True)):
        engine = Engine(random_model(dtype=torch.float32, refine_size=64), device="cpu", precision=precision)
        engine._executor._alone |= alone  # as on a CPU with AMX
        requests = [request(rng, *shape) for shape in ((64, 96), (64, 96), (32, 64), (64, 96))]
        together, apart = engine.run(requests), [engine.run([r])[0] for r in requests]
        boxes = [(3.0, 4.5, 50.0, 30.0), (0.0, 0.0, 64.0, 32.0), (10.0, 10.0, 30.0, 31.5), (1.3, 2.7, 61.1, 60.9)]
        crops = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in boxes]
        wanted = [
            [RefineRequest(a.coarse, *rest, requests[0].points) for a, *rest in zip(answers, boxes, crops, strict=True)]
            for answers in (together, apart)
        ]
        refined = engine.refine(wanted[0]), [engine.refine([r])[0] for r in wanted[1]]
        allowed = 0 if alone else 2  # 65535ths: another maker's fp32 products may differ by the last bit
        for a, b in zip([t.levels for t in together], [t.levels for t in apart], strict=True):
            assert np.abs(a.astype(int) - b).max() <= allowed
        for a, b in zip(*refined, strict=True):
            assert np.abs(a.astype(int) - b).max() <= allowed


def test_a_box_is_refined_from_the_part_of_the_answer_around_it(rng):
    full = Coarse(torch.randn(1, 1, 160, 288, dtype=torch.float64), torch.randn(1, 5, 40, 72, dtype=torch.float64))
    smaller, shapes = 0, set()
    for _ in range(50):
        x, y = np.sort(rng.uniform(-3, 291, 2)), np.sort(rng.uniform(-3, 163, 2))
        boxes = torch.tensor([[x[0], y[0], x[1], y[1]]])
        part, placed = planned.near(full, boxes)
        shapes.add(tuple(part.embedding.shape[2:]))
        smaller += part.embedding.numel() < full.embedding.numel()
        for whole, piece, scale in ((full.logits, part.logits, 1.0), (full.embedding, part.embedding, 0.25)):
            for samples in (7, 32):
                torch.testing.assert_close(
                    roi_align(piece, placed, samples, scale),
                    roi_align(whole, boxes, samples, scale),
                    rtol=0,
                    atol=1e-10,
                )
    assert smaller > 25
    assert shapes <= {(h, w) for h in (16, 32, 40) for w in (16, 32, 48, 64, 72)}  # a kernel is compiled for each


def test_changed_weights_are_seen_with_the_next_image(rng):
    model = random_model(dtype=torch.float32, refiner_width=0)
    engine, r = Engine(model, precision="fp32"), request(rng, 32, 64)
    before = engine.run([r])[0].probs
    with torch.no_grad():
        model.decoder.head.bias += 3
    after = engine.run([r])[0].probs
    assert not np.allclose(before, after)
    assert np.abs(after - Engine(model, plan=False).run([r])[0].probs).max() <= 1e-4


def test_changed_weights_are_seen_after_an_interrupt(rng, monkeypatch):
    model = random_model(dtype=torch.float32, refiner_width=0)
    engine, r = Engine(model, precision="fp32"), request(rng, 32, 64)
    engine.run([r])
    with torch.no_grad():
        model.decoder.head.bias += 3

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(planned, "Folded", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.run([r])
    after = engine.run([r])[0].probs
    assert np.abs(after - Engine(model, plan=False).run([r])[0].probs).max() <= 1e-4


def test_few_plans_are_kept():
    model = planned.Planned(random_model(dtype=torch.float32, refiner_width=0), torch.device("cpu"), "fp32")
    first = model.plan(32, 32)
    for side in range(2, planned.PLANS_KEPT + 1):
        model.plan(32, 32 * side)
    assert model.plan(32, 32) is first
    model.plan(64, 64)  # one too many: 32 x 64 has been unused for longest
    assert model.plan(32, 32) is first
    assert len(model._plans) == planned.PLANS_KEPT
    assert (32, 64) not in model._plans


def test_plans_share_their_weights():
    model = planned.Planned(random_model(dtype=torch.float32), torch.device("cpu"), "fp32")
    a, b = model.plan(32, 32), model.plan(64, 32)
    assert a.prepare.stage is b.prepare.stage
    assert a.refine is b.refine


class Foreign(torch.nn.Module):
    """Not a FreqFormer: says that everything near a positive click is the object."""

    config = SimpleNamespace(click_radius=5.0)
    refiner = None

    def encode_image(self, image):
        return ProjectedFeatures(image, image)

    def decode_clicks(self, features, clicks):
        return Coarse(clicks[:, 1:2] - 0.5, features.p1)


def test_a_foreign_model_runs_as_it_is(caplog):
    with caplog.at_level(logging.INFO, logger="activefreq_engine.runtime.engine"):
        engine = Engine(Foreign())
    assert "Foreign is not a FreqFormer" in caplog.text
    with Session(engine=engine) as s:
        s.set_image(np.zeros((40, 50), np.uint8))
        assert s.click(20, 20).mask.any()
