"""The half of a click that is wrong is the one that is blamed."""

import pytest
import torch

from activefreq_engine import Engine
from bench.gpu.blame import errors, turns
from tests.runtime.modules import random_model


@pytest.fixture
def engines():
    model = random_model(dtype=torch.float32)
    return [Engine(model, device="cpu", precision="fp32") for _ in range(2)]


def test_nothing_is_blamed_where_all_is_right(engines, rng):
    judge, here = engines
    clicked = turns(judge, rng.integers(0, 256, (64, 96, 3), "uint8"))
    assert errors(here, judge, clicked) == {"all": 0, "click": 0, "image": 0}


def test_a_wrong_image_half(engines, rng, monkeypatch):
    judge, here = engines
    clicked = turns(judge, rng.integers(0, 256, (64, 96, 3), "uint8"))
    prepare = here._executor.prepare
    monkeypatch.setattr(
        here._executor, "prepare", lambda crops: [type(f)(*(1.1 * t for t in f)) for f in prepare(crops)]
    )
    found = errors(here, judge, clicked)
    assert found["click"] == 0 < min(found["all"], found["image"])


def test_a_wrong_click(engines, rng, monkeypatch):
    judge, here = engines
    clicked = turns(judge, rng.integers(0, 256, (64, 96, 3), "uint8"))
    click = here._executor.click
    monkeypatch.setattr(here._executor, "click", lambda f, previous, *rest: click(f, [p * 0 for p in previous], *rest))
    found = errors(here, judge, clicked)
    assert found["image"] == 0 < min(found["all"], found["click"])
