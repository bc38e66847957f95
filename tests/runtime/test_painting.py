"""Masks that the engine paints are those that a session paints, bit by bit; here by the definition, on a CPU."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from activefreq_engine import Engine, Session
from activefreq_engine.runtime.engine import StepAnswer, StepRequest
from activefreq_engine.runtime.graphs import contexts
from activefreq_engine.runtime.graphs.contexts import Contexts
from activefreq_engine.runtime.painting import Easel, PaintRequest
from activefreq_engine.session.painter import Painter

from .clicking import request, slots
from .modules import random_model
from .runners import Eager


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """On a CPU, with contexts and room for 600 words: larger masks are painted in turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "paints", lambda *_: True)
        patch.setattr(contexts, "Easel", lambda batch, device: Easel(batch, device, 600))
        engine = Engine(random_model(dtype=torch.float32), device="cpu", precision="fp32", size=256)
        engine._executor = Contexts(engine._executor.model, Eager(torch.device("cpu")))  # type: ignore[arg-type]
        engine.warmup(32, 64)
        yield engine


def host(answer: StepAnswer, asked: PaintRequest) -> np.ndarray:
    mask = np.zeros((400, 400), bool)
    Painter(asked.region, answer.levels, asked.limit).threshold(mask, blank=True)
    return mask


def middle(engine: Engine, requests: list[StepRequest]) -> list[int]:
    """Limits that half of the levels of each answer are above: a random network's may lie anywhere."""
    return [int(np.median(a.levels)) << 16 for a in engine.run(requests)]


def test_each_of_a_batch_is_the_hosts(engine, rng):
    """Some want none; one is so large that it is painted in turns, and knows of no mask before."""
    regions = [(3, 5, 44, 100), (0, 0, 300, 200), (10, 20, 42, 36), None, (1, 1, 65, 41)]
    for _ in range(2):
        requests = [request(rng, 32, 64) for _ in regions]
        wanted = [r and PaintRequest(r, k, None) for r, k in zip(regions, middle(engine, requests), strict=True)]
        answers = engine.run([replace(r, paint=w) for r, w in zip(requests, wanted, strict=True)])
        for answer, asked in zip(answers, wanted, strict=True):
            if asked is None:
                assert answer.painted is None
                continue
            mask, expected = np.zeros((400, 400), bool), host(answer, asked)
            answer.painted.write(mask, asked.region)
            assert np.array_equal(mask, expected)
            assert 0 < mask.sum() < (asked.region[2] - asked.region[0]) * (asked.region[3] - asked.region[1])
            assert not answer.painted.alike


def test_a_change_is_written_into_the_mask_before(engine, rng):
    region = (7, 9, 107, 69)
    painted, mask, given = None, np.zeros((400, 400), bool), request(rng, 32, 64)
    (limit,) = middle(engine, [given])
    for k in range(4):
        asked = PaintRequest(region, limit, painted)
        points = slots(rng, 32, 64)
        (answer,) = engine.run([replace(given, points=points, paint=asked)])
        painted = answer.painted
        assert painted.alike == (k > 0)
        if painted.changed is not None or not painted.alike:
            painted.write(mask, painted.changed if painted.alike else region)
        assert np.array_equal(mask, host(answer, asked))
    engine.run([replace(given, paint=PaintRequest((0, 0, 90, 70), limit, None))])  # another session's click
    (answer,) = engine.run([replace(given, paint=PaintRequest(region, limit, painted))])
    assert not answer.painted.alike
    elsewhere = PaintRequest((8, 9, 108, 69), limit, answer.painted)  # as large
    (other,) = engine.run([replace(given, paint=elsewhere)])
    assert not other.painted.alike


def test_masks_of_every_turn_of_a_batch_are_known(engine, rng):
    region = (7, 9, 107, 69)
    requests = [request(rng, 32, 64) for _ in range(11)]
    wanted = [PaintRequest(region, limit, None) for limit in middle(engine, requests)]
    masks = [np.zeros((400, 400), bool) for _ in requests]
    for k in range(3):
        asked = [replace(r, points=slots(rng, 32, 64), paint=w) for r, w in zip(requests, wanted, strict=True)]
        answers = engine.run(asked)
        for mask, answer, w in zip(masks, answers, wanted, strict=True):
            assert answer.painted.alike == (k > 0)
            if answer.painted.changed is not None or not answer.painted.alike:
                answer.painted.write(mask, answer.painted.changed if answer.painted.alike else region)
            assert np.array_equal(mask, host(answer, w))
        wanted = [w._replace(before=answer.painted) for w, answer in zip(wanted, answers, strict=True)]


def test_a_session_shows_what_it_would_paint_itself(engine, rng, monkeypatch):
    """Masks, boxes, undo and redo, a restored session; clicks also where they agree, and on another object."""
    image = rng.integers(0, 256, (45, 90, 3), np.uint8)
    taken = []
    (limit,) = middle(engine, [request(rng, 128, 256)])
    threshold = min(max(limit / (65535 * 65536), 0.01), 0.99)
    ours, plain = (Session(engine=engine, threshold=threshold) for _ in range(2))
    for session in (ours, plain):
        session.set_image(image)
    paints = type(engine).paints
    for k in range(14):
        results = []
        x, y, positive = rng.uniform(0, 90), rng.uniform(0, 45), bool(rng.random() < 0.6)
        for session, may in ((ours, True), (plain, False)):
            monkeypatch.setattr(type(engine), "paints", paints if may else property(lambda _: False))
            if k == 9:
                session.undo()
                session.undo()
                session.redo()
            results.append(session.click(x, y, positive))
            if may:
                taken.append(session._scene.picture.shown.painted is not None)
        a, b = results
        assert np.array_equal(a.mask, b.mask)
        assert a.changed_bbox == b.changed_bbox
        steps = [s._scene.history.step for s in (ours, plain)]
        assert steps[0].mask_box == steps[1].mask_box
        assert np.array_equal(ours.probs > ours.threshold, a.mask)
    assert any(taken)
    monkeypatch.setattr(type(engine), "paints", paints)
    again = Session.restore(ours.state_dict(), image, engine=engine, model=None)
    assert np.array_equal(again.mask, plain.mask)
