"""Prompts that are made from a truth fit it."""

import numpy as np
import pytest

from activefreq_engine import Engine
from activefreq_engine.eval.datasets import Sample
from activefreq_engine.masks.outlines import enclosed
from activefreq_engine.session import Session
from bench.quality import prompts
from tests.session.fakes import SquareModel


def blob(rng: np.random.Generator, height: int = 97, width: int = 131) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    cx, cy, rx, ry = rng.uniform(40, 90), rng.uniform(35, 60), rng.uniform(8, 30), rng.uniform(8, 25)
    truth = (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1).astype(np.int8)
    truth[:3] = -1
    return truth


def test_prompts_fit_the_object(rng: np.random.Generator) -> None:
    for _ in range(10):
        truth = blob(rng)
        made = prompts.made(truth, rng)
        ys, xs = np.nonzero(truth == 1)
        tight, loose = made["box, tight"], made["box, loose"]
        assert (tight.x0, tight.y0, tight.x1, tight.y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert tight.x0 - loose.x0 == pytest.approx(0.1 * (tight.x1 - tight.x0))
        assert loose.y1 - tight.y1 == pytest.approx(0.1 * (tight.y1 - tight.y0))
        assert truth[int(made["click"].y), int(made["click"].x)] == 1
        assert all(truth[int(y), int(x)] == 1 for x, y in made["scribble"].points)
        inside = enclosed(np.array(made["lasso"].points), *truth.shape)
        both = (inside & (truth == 1)).sum() / (inside | (truth == 1)).sum()
        assert both > 0.4


def test_each_prompt_is_answered_from_nothing(rng: np.random.Generator) -> None:
    truth = blob(rng)
    image = rng.integers(0, 256, (*truth.shape, 3), np.uint8)
    sample = Sample("a", 1, "a", lambda: image, lambda: truth)
    with Session(engine=Engine(SquareModel())) as session:
        found = prompts.answered(session, sample, np.random.default_rng(1))
        assert found == prompts.answered(session, sample, np.random.default_rng(1))
        assert list(found) == ["click", "box, tight", "box, loose", "scribble", "lasso"]
        session.reset()
        click = prompts.made(truth, rng)["click"]
        assert found["click"] == prompts.metrics.iou(session.click(click.x, click.y).mask, truth)
        empty = Sample("b", 1, "b", lambda: image, lambda: 0 * truth)
        assert prompts.answered(session, empty, rng) == {}
    rows = prompts.table("made", "weights", [found, {}, found])
    assert [r["objects"] for r in rows] == [2] * 5
    assert rows[0]["miou"] == pytest.approx(100 * found["click"])
