"""What only a GPU can show about replayed clicks."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from activefreq_engine import Engine
from activefreq_engine.models import FreqFormer
from activefreq_engine.runtime.engine import RefineRequest, StepAnswer, StepRequest
from activefreq_engine.runtime.graphs.contexts import Contexts
from activefreq_engine.runtime.graphs.cuda import Graphs
from activefreq_engine.runtime.levels import probabilities
from activefreq_engine.runtime.plan.frequency import OneLaunch

from ..clicking import box, play, poison, request, slots
from ..measures import disagreement
from ..modules import random_model
from ..runners import Eager

pytestmark = pytest.mark.gpu

TOLERANCE = {"fp16": 2e-2, "fp32": 1e-4}  # of probabilities: eager and captured work may pick other algorithms
IMAGES = sorted((Path(__file__).parents[3] / "examples" / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def model() -> FreqFormer:
    return random_model(dtype=torch.float32, refine_size=64)


def focus(rng: np.random.Generator, answer: StepAnswer, side: int) -> RefineRequest:
    crop = rng.integers(0, 256, (side, side, 3), np.uint8)
    return RefineRequest(answer.coarse, box(rng, *answer.probs.shape), crop, slots(rng, side, side))


@pytest.mark.parametrize("precision", TOLERANCE)
def test_replay_equals_eager(model, device, rng, precision):
    """Buffers and results are poisoned between requests: a graph that recorded nothing cannot pass."""
    captured, eager = (Engine(model, str(device), precision, 256) for _ in range(2))
    assert isinstance(captured._executor, Contexts)
    eager._executor = Contexts(eager._executor.model, Eager(device))
    for n in (1, 3, 1, 10):
        requests = [request(rng, *((64, 96), (32, 64))[rng.integers(2)]) for _ in range(n)]
        got, expected = captured.run(requests), eager.run(requests)
        poison(captured)
        for a, b in zip(got, expected, strict=True):
            assert np.abs(a.probs - b.probs).max() <= TOLERANCE[precision]
        boxes = [focus(rng, a, 64) for a in got]
        theirs = [RefineRequest(b.coarse, r.box, r.crop, r.points) for b, r in zip(expected, boxes, strict=True)]
        for x, y in zip(captured.refine(boxes), eager.refine(theirs), strict=True):
            assert np.abs(probabilities(x) - probabilities(y)).max() <= TOLERANCE[precision]
        poison(captured)


def test_half_precision_and_the_kernel_by_default(model, device):
    engine = Engine(model, str(device))
    plan = engine._executor.model.folded().plan(64, 96)
    assert engine.precision == "fp16"
    assert sum(isinstance(m, OneLaunch) for half in (plan.prepare, plan.click) for m in half.modules()) == 4


class Clicking:
    """An engine that has been warmed up, and the next click on a known image."""

    def __init__(self, model: FreqFormer, device: torch.device, rng: np.random.Generator) -> None:
        self.engine, self.rng = Engine(model, str(device), size=256), rng
        self.engine.warmup(64, 96)
        self.features: Any = self.engine.run([request(rng, 64, 96)])[0].features
        for _ in range(3):
            self()

    def __call__(self) -> None:
        answer = self.engine.run([request(self.rng, 64, 96, self.features)])[0]
        self.engine.refine([focus(self.rng, answer, 64)])


def test_clicks_allocate_nothing(model, device, rng):
    click = Clicking(model, device, rng)
    before = torch.cuda.memory_stats(device)
    for _ in range(100):
        click()
    after = torch.cuda.memory_stats(device)
    for name in ("allocation.all.allocated", "segment.all.allocated", "allocated_bytes.all.current"):
        assert after[name] == before[name], name


def test_clicks_wait_once(model, device, rng, monkeypatch):
    """Any other synchronisation that torch knows of raises."""
    click, wait, waits = Clicking(model, device, rng), Graphs.wait, 0

    def allowed(self: Graphs) -> None:
        nonlocal waits
        waits += 1
        torch.cuda.set_sync_debug_mode("default")
        wait(self)
        torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Graphs, "wait", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            click()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits == 20  # a click, and its focus box


def test_ten_thousand_clicks_need_no_more_memory(model, device, rng):
    click = Clicking(model, device, rng)
    for _ in range(100):
        click()
    before, resident = torch.cuda.memory_reserved(device), rss()
    for _ in range(10_000):
        click()
    assert torch.cuda.memory_reserved(device) == before
    assert rss() - resident < 50e6


def rss() -> int:
    """Resident memory of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_eight_threads_do_not_mix_masks(model, device, rng):
    """Graphs are captured while other threads wait for theirs, and while another uses the device."""
    jobs = []
    for _ in range(8):
        h, w = (int(n) for n in rng.integers(60, 200, 2))
        clicks = [(int(rng.integers(w)), int(rng.integers(h)), bool(i == 0 or rng.integers(2))) for i in range(6)]
        jobs.append((rng.integers(0, 256, (h, w, 3), np.uint8), clicks))
    alone = Engine(model, str(device), size=256)
    expected = [play(alone, *job) for job in jobs]
    shared, found, start = Engine(model, str(device), size=256), [None] * len(jobs), threading.Barrier(len(jobs))
    done = threading.Event()
    # here, since random numbers must not be drawn on a device while one of its streams is captured
    a = torch.randn(512, 512, device=device)

    def work(i: int) -> None:
        start.wait()
        found[i] = play(shared, *jobs[i])

    def other() -> None:
        b = a
        while not done.is_set():
            b = (b @ a).tanh()
            torch.cuda.current_stream(device).synchronize()

    background = threading.Thread(target=other)
    background.start()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    done.set()
    background.join()
    for got, probs in zip(found, expected, strict=True):
        assert got is not None
        for a, b in zip(got, probs, strict=True):
            assert np.abs(a - b).max() <= 1e-3


@pytest.mark.parametrize("size", [256, 384])
def test_masks_agree_with_the_cpu_in_float32(device, rng, size):
    """Shipped weights, real images, two clicks; the second starts from the CPU's answer to the first on both."""
    on_gpu, on_cpu = Engine(device=str(device), size=size), Engine(device="cpu", precision="fp32", size=size)
    for path in IMAGES:
        crop = np.array(Image.open(path).convert("RGB").resize((size, size - 64)))
        h, w = crop.shape[:2]
        previous, points = np.zeros((h, w), np.float32), np.full((48, 2), -1, np.float32)
        for step in range(2):
            points[24 * step] = rng.uniform(0, (w, h))
            r = StepRequest(crop, None, previous, points)
            (a,), (b,) = on_gpu.run([r]), on_cpu.run([r])
            far = disagreement(a.probs > 0.49, b.probs > 0.49)
            print(path.name, step, "largest difference", np.abs(a.probs - b.probs).max(), "pixels", far)
            assert far < 1e-3
            previous = b.probs
