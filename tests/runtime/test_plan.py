"""A compiled plan equals the modules of the model."""

import pytest
import torch

from activefreq_engine import InvalidArgumentError
from activefreq_engine.runtime.plan import Folded

from .modules import random_model, relative

SHAPES = [(64, 96), (160, 32)]


@torch.inference_mode()
def errors(model, height, width, batch, precision="fp32"):
    """Relative errors of c1, logits, embedding and refined logits against the model's own modules."""
    dtype = next(model.parameters()).dtype
    plan = Folded(model, precision=precision).plan(height, width)
    image, clicks = torch.randn(batch, 3, height, width, dtype=dtype), torch.rand(batch, 3, height, width, dtype=dtype)
    features = model.encode_image(image)
    coarse = model.decode_clicks(features, clicks)
    prepared = plan.prepare(image)
    answer = plan.click(*prepared, clicks)
    out = {
        "c1": relative(prepared.c1, features.c1),
        "logits": relative(answer.logits, coarse.logits),
        "embedding": relative(answer.embedding, coarse.embedding),
    }
    if plan.refine is not None:
        side = model.config.refine_size
        boxes = torch.tensor([[3.3, 5.0, width - 7.0, height / 2]] * batch, dtype=dtype)
        boxes += torch.rand(batch, 4, dtype=dtype)
        crop, disks = torch.randn(batch, 3, side, side, dtype=dtype), torch.rand(batch, 2, side, side, dtype=dtype)
        refined = plan.refine(answer.embedding, answer.logits, boxes, crop, disks)
        out["refined"] = relative(refined, model.refine(coarse, boxes, crop, disks))
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_plan_equals_model_in_float64(shape):
    for name, error in errors(random_model(refine_size=64), *shape, batch=2).items():
        assert error <= 1e-10, name


def test_plan_equals_model_in_float32():
    for name, error in errors(random_model(dtype=torch.float32, refine_size=64), 96, 64, batch=1).items():
        assert error <= 2e-5, name


@pytest.mark.parametrize(
    "config",
    [{"refiner_width": 0}, {"axes": "hw", "refine_size": 64}, {"freq_depth": 2, "filter": "magnitude"}],
    ids=["no refiner", "hw", "deep"],
)
def test_other_configurations(config):
    for name, error in errors(random_model(**config), 32, 96, batch=1).items():
        assert error <= 1e-10, name


@pytest.mark.parametrize("name", ["freqformer_b1", "freqformer_b2", "freqformer_b3"])
def test_other_encoders(name):
    for part, error in errors(random_model(name, refine_size=64), 64, 32, batch=1).items():
        assert error <= 1e-10, part


def test_the_model_is_left_alone():
    model = random_model(dtype=torch.float32, refine_size=64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = Folded(model).plan(32, 64)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        prepared = plan.prepare(x)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert torch.equal(plan.prepare(x).p1, prepared.p1)


def test_arguments():
    model = random_model(dtype=torch.float32, refiner_width=0)
    with pytest.raises(InvalidArgumentError, match="height is 40"):
        Folded(model).plan(40, 64)
    with pytest.raises(InvalidArgumentError, match="precision"):
        Folded(model, precision="fp8")
