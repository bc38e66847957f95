"""The engine with contexts answers as it does without, whatever their buffers held before."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.click_maps import click_maps

from activefreq_engine import ActiveFreqError, Engine
from activefreq_engine.models import FreqFormer
from activefreq_engine.runtime import levels
from activefreq_engine.runtime.engine import RefineRequest, StepRequest
from activefreq_engine.runtime.graphs import contexts
from activefreq_engine.runtime.graphs.contexts import BATCHES, Contexts, Transfer
from activefreq_engine.runtime.levels import probabilities
from activefreq_engine.runtime.plan import Folded

from .clicking import box, play, poison, request, slots
from .modules import random_model
from .runners import Eager, FakeGraphs

SHAPES = [(64, 96), (32, 64)]
TOLERANCE = 2.6e-5  # of probabilities: other batch sizes sum in another order; their steps are of 1.5e-5


@pytest.fixture(scope="module")
def model() -> FreqFormer:
    return random_model(dtype=torch.float32, refine_size=64)


def engine_on(model: FreqFormer, runner: contexts.Replayer) -> Engine:
    engine = Engine(model, device="cpu", precision="fp32", size=256)
    engine._executor = Contexts(engine._executor.model, runner)
    return engine


@pytest.mark.parametrize("make", [FakeGraphs, lambda: Eager(torch.device("cpu"))], ids=["graphs", "eager"])
def test_equal_to_the_engine_without_contexts(make, model, rng):
    ours, plain = engine_on(model, make()), Engine(model, precision="fp32")
    known: list[tuple[Any, Any]] = []  # features of earlier requests, of both engines
    for n in (1, 3, 1, 10, 2):
        fresh = [request(rng, *SHAPES[rng.integers(2)]) for _ in range(n)]
        again = [(request(rng, *shape(a), a), b) for a, b in known]
        mine = [*fresh, *(r for r, _ in again)]
        theirs = [*fresh, *(StepRequest(None, b, r.previous, r.points) for r, b in again)]
        order = rng.permutation(len(mine))
        got, expected = ours.run([mine[i] for i in order]), plain.run([theirs[i] for i in order])
        poison(ours)
        for a, b in zip(got, expected, strict=True):
            assert a.probs.dtype == np.float32
            assert np.abs(a.probs - b.probs).max() <= TOLERANCE
        boxes = [box(rng, *a.probs.shape) for a in got]
        crops = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in got]
        points = [slots(rng, 64, 64) for _ in got]
        chosen = rng.permutation(len(got))[: rng.integers(1, len(got) + 1)]
        refined = [
            engine.refine([RefineRequest(answers[i].coarse, boxes[i], crops[i], points[i]) for i in chosen])
            for engine, answers in ((ours, got), (plain, expected))
        ]
        poison(ours)
        for x, y in zip(*refined, strict=True):
            assert np.abs(probabilities(x) - probabilities(y)).max() <= TOLERANCE
        known = [(a.features, b.features) for a, b in zip(got, expected, strict=True)][:3]


def shape(features: Any) -> tuple[int, int]:
    h, w = features.c1.shape[2:]
    return 4 * h, 4 * w


def test_a_coarse_answer_outlives_other_clicks(model, rng):
    ours, plain = engine_on(model, FakeGraphs()), Engine(model, precision="fp32")
    requests = [request(rng, 64, 96) for _ in range(4)]
    kept, expected = [ours.run([r])[0] for r in requests], [plain.run([r])[0] for r in requests]
    for a, b in zip(reversed(kept), reversed(expected), strict=True):
        focus = (box(rng, 64, 96), rng.integers(0, 256, (64, 64, 3), np.uint8), slots(rng, 64, 64))
        x, y = ours.refine([RefineRequest(a.coarse, *focus)]), plain.refine([RefineRequest(b.coarse, *focus)])
        assert np.abs(probabilities(x[0]) - probabilities(y[0])).max() <= TOLERANCE


def test_memory_of_coarse_answers_is_used_again(model, rng):
    engine = engine_on(model, FakeGraphs())
    seen = {engine.run([request(rng, 32, 64)])[0].coarse.embedding.data_ptr() for _ in range(5)}
    assert len(seen) == 1
    held = [engine.run([request(rng, 32, 64)])[0].coarse for _ in range(3)]
    assert len({c.embedding.data_ptr() for c in held}) == 3
    addresses = {c.embedding.data_ptr() for c in held}
    del held
    assert {engine.run([request(rng, 32, 64)])[0].coarse.embedding.data_ptr() for _ in range(4)} <= addresses


def test_one_capture_for_each_shape_and_batch_size(model, rng):
    runner = FakeGraphs()
    engine = engine_on(model, runner)
    engine.warmup(64, 96)
    assert (runner.captures, runner.replays, runner.waits) == (3, 3, 3)  # each of prepare, click, refine
    answer = engine.run([request(rng, 64, 96)])[0]
    for _ in range(4):
        answer = engine.run([request(rng, 64, 96, answer.features)])[0]
    assert (runner.captures, runner.replays, runner.waits) == (3, 9, 9)
    engine.run([request(rng, 32, 64)])
    assert runner.captures == 5
    features = [answer.features] * (BATCHES[-1] + 3)
    for n, captures in ((2, 1), (3, 1), (4, 0), (5, 1), (8, 0), (11, 1), (11, 0)):
        before = runner.captures
        engine.run([request(rng, 64, 96, f) for f in features[:n]])
        assert runner.captures - before == captures, n
    assert runner.waits == 9 + 2 + 5 + 2 + 2


class StandInFused:
    """For a click by fused kernels, which read the answer before where they write the next one."""

    def __init__(self, plan):
        self.plan = plan

    def __call__(self, features, previous, points, radius, out):
        before = previous.int().float() / levels.ONE
        disks = click_maps(points, *before.shape[1:], radius=radius)
        answer = self.plan.click(*features, torch.cat([before[:, None], disks], dim=1))
        levels.write(answer.logits, out)
        return answer


def test_the_answer_before_stays_on_the_device(model, rng, monkeypatch):
    """What the last click of a row gave is not sent again; anything else is, and no row is taken for another."""
    plan, sent, send = Folded.plan, [], torch.from_numpy

    def planned(*arguments):
        made = plan(*arguments)
        return replace(made, fused=StandInFused(made))

    monkeypatch.setattr(Folded, "plan", planned)
    ours, plain, known = engine_on(model, FakeGraphs()), Engine(model, precision="fp32"), []

    def click(*which: int) -> int:
        """How many answers before were sent."""
        asked = [replace(known[i][0], points=slots(rng, 32, 64)) for i in which]
        plainly = zip(asked, which, strict=True)
        theirs = [replace(r, features=known[i][1], previous=probabilities(r.previous)) for r, i in plainly]
        with monkeypatch.context() as m:
            m.setattr(torch, "from_numpy", lambda array: sent.append(array) or send(array))
            sent.clear()
            got = ours.run(asked)
        count = len(sent)
        for i, r, a, b in zip(which, asked, got, plain.run(theirs), strict=True):
            assert np.abs(a.probs - b.probs).max() <= TOLERANCE
            known[i] = replace(r, previous=a.levels), known[i][1]
        return count

    def begin(count: int) -> None:
        for _ in range(count):
            first = request(rng, 32, 64)
            a, b = ours.run([first])[0], plain.run([first])[0]
            known.append((StepRequest(None, a.features, a.levels, first.points), b.features))

    begin(4)
    assert [click(3), click(3), click(0), click(0), click(3)] == [0, 0, 1, 0, 1]
    assert [click(0, 1), click(0, 1), click(1, 0)] == [2, 0, 2]
    assert [click(2, 1, 0), click(2, 1, 0), click(2, 1), click(2, 1, 0)] == [3, 0, 2, 2]
    # a large batch takes several turns, each in a context of its own, as long as there are not too many of these
    begin(20)
    assert [click(*range(24)), click(*range(24)), click(*range(24))] == [24, 0, 0]
    assert [click(*range(8)), click(*range(24))] == [0, 0]
    monkeypatch.setattr(contexts, "TURNS", 2)
    assert [click(*range(24)), click(*range(24)), click(*range(8, 16))] == [8, 16, 8]
    monkeypatch.undo()


@pytest.mark.parametrize("most", [0, 1, 2])
def test_turns_have_few_contexts_of_their_own(model, rng, monkeypatch, most):
    monkeypatch.setattr(contexts, "TURNS_KEPT", most)
    runner = FakeGraphs()
    engine = engine_on(model, runner)
    for h, w in ((32, 64), (64, 32)):
        features = engine.run([request(rng, h, w)])[0].features
        for _ in range(2):
            engine.run([request(rng, h, w, features) for _ in range(24)])
    assert runner.captures == 2 * 3 + most  # of each shape: prepare, a click, eight clicks


def test_few_shapes_are_kept(model, rng, monkeypatch):
    monkeypatch.setattr(contexts, "SHAPES_KEPT", 2)
    runner = FakeGraphs()
    engine = engine_on(model, runner)
    first = [engine.run([request(rng, *s)])[0] for s in ((32, 32), (32, 64))]
    engine.run([request(rng, 32, 32, first[0].features)])
    engine.run([request(rng, 64, 32)])  # 32 x 64 has been unused for longest
    assert runner.captures == 6
    engine.run([request(rng, 32, 32, first[0].features)])
    assert runner.captures == 6
    engine.run([request(rng, 32, 64, first[1].features)])
    assert runner.captures == 7


def test_changed_weights_are_seen_with_the_next_image(rng):
    model = random_model(dtype=torch.float32, refiner_width=0)
    engine, r = engine_on(model, FakeGraphs()), request(rng, 32, 64)
    before = engine.run([r])[0]
    assert before.coarse is None
    with torch.no_grad():
        model.decoder.head.bias += 3
    after = engine.run([r])[0].probs
    assert not np.allclose(before.probs, after)
    assert np.abs(after - Engine(model, plan=False).run([r])[0].probs).max() <= 1e-4


def test_nan_is_an_error(rng):
    model = random_model(dtype=torch.float32, refiner_width=0)
    with torch.no_grad():
        model.decoder.head.bias.fill_(float("nan"))
    with pytest.raises(ActiveFreqError, match="NaN"):
        engine_on(model, FakeGraphs()).run([request(rng, 32, 64)])


def test_a_failed_capture_is_tried_again(model, rng):
    class Failing(FakeGraphs):
        def capture(self, work):
            if not self.captures:
                self.captures = 1
                raise RuntimeError("the capture failed")
            return super().capture(work)

    runner, r = Failing(), request(rng, 32, 64)
    engine = engine_on(model, runner)
    with pytest.raises(RuntimeError, match="the capture failed"):
        engine.run([r])
    assert np.abs(engine.run([r])[0].probs - Engine(model, precision="fp32").run([r])[0].probs).max() <= TOLERANCE


def test_eight_threads_do_not_mix_masks(model, rng):
    """Sessions of their own, images and clicks of their own, one engine; expected: each session alone."""
    jobs = []
    for _ in range(8):
        h, w = (int(n) for n in rng.integers(60, 200, 2))
        clicks = [(int(rng.integers(w)), int(rng.integers(h)), bool(i == 0 or rng.integers(2))) for i in range(3)]
        jobs.append((rng.integers(0, 256, (h, w, 3), np.uint8), clicks))
    plain = Engine(model, precision="fp32")
    expected = [play(plain, *job) for job in jobs]
    shared, found, start = engine_on(model, FakeGraphs()), [None] * len(jobs), threading.Barrier(len(jobs))

    def work(i: int) -> None:
        start.wait()
        found[i] = play(shared, *jobs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for got, probs in zip(found, expected, strict=True):
        assert got is not None
        for a, b in zip(got, probs, strict=True):
            assert np.abs(a - b).max() <= 1e-3  # a focus box may round to another pixel


def test_the_imitation_finds_out_what_a_graph_cannot_do():
    runner, x = FakeGraphs(), torch.ones(3)
    with runner.active():
        with pytest.raises(AssertionError, match="waits for the device"):
            runner.capture(lambda: (x * x.sum().item(),))
        numbers = iter((1.0, 2.0, 3.0))  # Python runs in the warm-up and in the capture, not in the replay
        replay = runner.capture(lambda: (x + next(numbers),))
        x.fill_(5)
        assert replay()[0].tolist() == [7, 7, 7]


def test_transfer_keeps_its_parts_apart(rng):
    parts = {"a": ((3, 5), torch.uint8), "b": ((2, 7), torch.float32), "c": ((1,), torch.float64)}
    transfer = Transfer(torch.device("cpu"), **parts)
    values = {
        "a": rng.integers(0, 256, (3, 5), np.uint8),
        "b": rng.random((2, 7), np.float32),
        "c": rng.random(1),
    }
    for name, value in values.items():
        transfer.write(name, value)
    assert not any(t.any() for t in transfer.tensors.values())
    transfer.send()
    for name, value in values.items():
        assert np.array_equal(transfer.tensors[name].numpy(), value)
        assert transfer.tensors[name].data_ptr() % Transfer.ALIGNMENT == 0
        transfer.tensors[name].fill_(3)
        assert np.array_equal(transfer.arrays[name], value)
    transfer.fetch()
    assert all((a == 3).all() for a in transfer.arrays.values())


def test_clicks_go_on_while_kernels_of_another_shape_are_tried(model, rng, monkeypatch):
    """Compiling them takes seconds."""
    engine = engine_on(model, Eager(torch.device("cpu")))
    engine.get_ready(*SHAPES[0])
    begun, free = threading.Event(), threading.Event()
    judge = contexts.verification.judge

    def slow(questions):
        if threading.current_thread() is trying:
            begun.set()
            assert free.wait(60)
        return judge(questions)

    trying = threading.Thread(target=engine.get_ready, args=SHAPES[1])
    monkeypatch.setattr(contexts.verification, "judge", slow)
    trying.start()
    assert begun.wait(60)
    engine.run([request(rng, *SHAPES[0])])
    assert trying.is_alive()
    free.set()
    trying.join(60)
    assert SHAPES[1] in engine._executor._buckets


def test_a_shape_is_made_ready_once(model, rng):
    graphs = FakeGraphs()
    engine = engine_on(model, graphs)
    engine.get_ready(*SHAPES[0])
    made = graphs.captures
    assert made > 0
    engine.get_ready(*SHAPES[0])
    engine.run([request(rng, *SHAPES[0])])
    assert graphs.captures == made
    engine.warmup(*SHAPES[1])
    replays = graphs.replays
    engine.get_ready(*SHAPES[1])
    assert graphs.replays == replays
