import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, cast

import numpy as np
import pytest
import torch

from activefreq_engine import (
    ActiveFreqError,
    BackendUnavailableError,
    Click,
    Engine,
    InvalidArgumentError,
    MemoryShortageError,
    ModelLoadError,
    Session,
    click_batch,
    create_model,
)
from activefreq_engine.models import save_checkpoint
from activefreq_engine.runtime import shortage
from activefreq_engine.runtime.engine import StepRequest, resolve_device

from .fakes import SquareModel, random_image


def request(rng, h, w, features=None):
    points = np.full((48, 2), -1, np.float32)
    points[0], points[24] = rng.uniform(0, (w, h)), rng.uniform(0, (w, h))
    return StepRequest(random_image(rng, h, w), features, rng.random((h, w), np.float32), points)


def test_batch_equals_one_by_one(rng):
    engine = Engine(SquareModel())
    requests = [request(rng, *shape) for shape in ((64, 96), (96, 64), (64, 96), (32, 32), (64, 96))]
    together = engine.run(requests)
    for r, answer in zip(requests, together, strict=True):
        alone = engine.run([r])[0]
        assert answer.probs.shape == r.previous.shape
        assert answer.probs.dtype == np.float32
        assert np.allclose(answer.probs, alone.probs, atol=1e-6)
    assert engine.run([]) == engine.refine([]) == []


def test_features_are_reused(rng):
    engine = Engine(SquareModel())
    requests = [request(rng, 64, 96) for _ in range(3)]
    first = engine.run(requests)
    assert engine._executor.model.count == {"encode": 3, "encode batches": 1, "decode": 3, "decode batches": 1}
    again = [StepRequest(None, a.features, r.previous, r.points) for r, a in zip(requests, first, strict=True)]
    second = engine.run([again[0], requests[1], again[2]])
    assert engine._executor.model.count["encode"] == 4
    for a, b in zip(first, second, strict=True):
        assert np.allclose(a.probs, b.probs, atol=1e-6)
    with pytest.raises(InvalidArgumentError, match="neither"):
        engine.run([StepRequest(None, None, requests[0].previous, requests[0].points)])


def test_real_model_steps(rng):
    """The interface of FreqFormer itself: batch, refiner, rectangular input."""
    engine = Engine(create_model("freqformer_b0"))
    engine.warmup(64, 96)
    sessions = [Session(engine=engine) for _ in range(2)]
    clicks = [Click(20, 11, True), Click(30, 5, True)]
    images = [random_image(rng, 40, 57) for _ in sessions]
    for s, image in zip(sessions, images, strict=True):
        s.set_image(image)
    click_batch(sessions, clicks)
    for s, image, c in zip(sessions, images, clicks, strict=True):
        with Session(engine=engine) as alone:
            alone.set_image(image)
            alone.click(c.x, c.y)
            assert np.abs(s.probs - alone.probs).max() < 1e-3


def test_nan_from_a_model_is_an_error():
    class Broken(SquareModel):
        def answer(self, image, clicks):
            return image[:, :1] * float("nan")

    with Session(Broken()) as s:
        s.set_image(np.zeros((20, 30), np.uint8))
        with pytest.raises(ActiveFreqError, match="NaN"):
            s.click(3, 4)
        assert s.clicks == ()
        assert not s.undo()


def test_arguments():
    model = SquareModel()
    assert Engine(model, device="cpu", precision="fp32", size=512).size == 512
    for bad in ({"size": 300}, {"size": "256"}, {"precision": "fp8"}, {"device": "gpu please"}):
        with pytest.raises(InvalidArgumentError):
            Engine(model, **bad)
    with pytest.raises(BackendUnavailableError, match="not available"):
        Engine(model, device="cuda:99")
    with pytest.raises(BackendUnavailableError, match="not supported"):
        Engine(model, device="meta")
    for bad in ("freqformer_b9", "/no/such/file.safetensors", 7):
        with pytest.raises(ModelLoadError):
            Engine(bad)


def test_a_cuda_device_has_a_number(monkeypatch):
    """Each thread has a current device of its own, and "cuda" would mean that one."""
    for name, value in (("is_available", True), ("device_count", 4), ("current_device", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name, number in (("auto", 2), ("cuda", 2), ("cuda:0", 0)):
        assert resolve_device(name) == torch.device("cuda", number)


def test_checkpoint_is_loaded_once_until_it_changes(tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(create_model("freqformer_b0", refiner_width=0), path, {})
    engine = Engine.shared(path)
    assert Engine.shared(str(path)) is engine
    assert Engine.shared(path, size=384) is not engine
    assert engine.refine_size is None
    save_checkpoint(create_model("freqformer_b0"), path, {})
    assert Engine.shared(path) is not engine
    assert Engine.shared(path).refine_size == 192


def test_checkpoints_that_look_alike_are_told_apart(tmp_path, monkeypatch):
    """Unpacked archives and synchronised folders give files of one size the same time."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        save_checkpoint(create_model("freqformer_b0", embed_dim=8, refiner_width=0), tmp_path / name / "m.safetensors")
        os.utime(tmp_path / name / "m.safetensors", (1, 1))
    weights = []
    for name in ("a", "b"):
        monkeypatch.chdir(tmp_path / name)
        weights.append(Engine.shared("m.safetensors").weights)
    assert Engine.shared(tmp_path / "b" / "m.safetensors") is Engine.shared("m.safetensors")
    (tmp_path / "c" / "m.safetensors").replace("m.safetensors")
    weights.append(Engine.shared("m.safetensors").weights)
    assert len(set(weights)) == 3


def test_shared_engine_of_a_model_object_goes_with_its_users():
    model = SquareModel()
    a, b = Session(model), Session(model)
    assert a._engine is b._engine is Engine.shared(model)
    gone = weakref.ref(a._engine)
    a.close()
    b.close()
    gc.collect()
    assert gone() is None


def test_sessions_in_threads_share_an_engine(rng):
    """Each thread's masks are those of a session that works alone."""
    engine = Engine(SquareModel(refine_size=64))
    images = [random_image(rng, 30 + 9 * i, 70) for i in range(4)]
    clicks = [[(int(rng.integers(70)), int(rng.integers(30)), bool(rng.integers(2))) for _ in range(4)] for _ in images]

    def work(i: int) -> list[np.ndarray]:
        with Session(engine=engine) as s:
            s.set_image(images[i])
            return [s.click(*c).mask for c in clicks[i]]

    alone = [work(i) for i in range(4)]
    results: dict[int, list[np.ndarray]] = {}
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, work(i))) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(4):
        assert all(np.array_equal(a, b) for a, b in zip(alone[i], results[i], strict=True))


def test_threads_have_the_engine_in_the_order_of_coming():
    engine, order = Engine(SquareModel()), []

    def work(i: int) -> None:
        engine._alone(lambda: order.append(i), None)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    with engine._lock:
        for i, thread in enumerate(threads):
            thread.start()
            while len(engine._line) <= i:
                time.sleep(0.001)
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    assert not engine._line


def test_a_thread_that_waits_for_the_engine_does_not_wait_for_itself():
    """A signal's handler may click, wherever it interrupts its thread; here it is what asks whether to go on."""
    engine, order = Engine(SquareModel()), []
    asked: list[bool] = []

    def go_on() -> None:
        if not asked:
            asked.append(True)
            engine._alone(lambda: order.append("handler"), None)

    thread = threading.Thread(target=lambda: engine._alone(lambda: order.append("click"), go_on), daemon=True)
    with engine._lock:
        thread.start()
        while not asked:
            time.sleep(0.001)
        time.sleep(0.1)
    thread.join(20)
    assert order == ["handler", "click"]
    assert not engine._line


def test_an_interrupt_at_any_moment_leaves_the_engine_free():
    """Python deals with one after a call: here, after each call of the lock."""

    class Interrupting:
        def __init__(self, calls: int) -> None:
            self.calls = calls

        def __getattr__(self, name: str) -> Any:
            method = getattr(lock, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                found = method(*args, **kwargs)
                self.calls -= 1
                if self.calls == 0:
                    raise KeyboardInterrupt
                return found

            return call

    engine = Engine(SquareModel())
    lock = engine._lock
    free: list[bool] = []
    for number in range(1, 10):
        engine._lock = cast(Any, Interrupting(number))
        try:
            engine._alone(lambda: None, None)
        except KeyboardInterrupt:
            other = threading.Thread(target=lambda: free.append(lock.acquire(timeout=0) and not lock.release()))
            other.start()
            other.join()
        else:
            break
    assert len(free) > 1
    assert all(free)


def test_engine_keeps_no_gradients(rng):
    engine = Engine(SquareModel())
    answer = engine.run([request(rng, 32, 64)])[0]
    assert not answer.features.image.requires_grad
    assert isinstance(answer.coarse.logits, torch.Tensor)


@pytest.mark.parametrize("value", ["triton", "cupy", "reference", "cupy,region_stats=reference"])
def test_clicks_and_suggestions_work_whatever_backend_the_environment_names(engine, rng, monkeypatch, value):
    """A bare name is for the ops that have such an implementation for the device; here all inputs are on the CPU."""
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", value)
    with Session(engine=engine) as s:
        s.set_image(random_image(rng, 60, 80))
        s.click(40, 30)
        assert s.mask[30, 40]
        s.suggest()


SHORTAGE_SCRIPT = """
import resource
import numpy as np, torch
torch.set_num_threads(1)
from activefreq_engine import Engine, MemoryShortageError, Session

used = lambda: int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
free = resource.RLIM_INFINITY
rng = np.random.default_rng(0)
engine = Engine("freqformer_b0", device="cpu")
first = Session(engine=engine)
first.set_image(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8))
first.click(80, 60)
image = rng.integers(0, 255, (160, 100, 3), dtype=np.uint8)
session = Session(engine=engine)
session.set_image(image)
session.look(10, 40, 90, 60)  # a shape that opening the image has not made ready
for _ in range(2):
    resource.setrlimit(resource.RLIMIT_AS, (used() + (1 << 20), free))
    try:
        session.click(50, 50)
        print("worked")
        session.undo()
    except MemoryShortageError:
        print("typed")
    resource.setrlimit(resource.RLIMIT_AS, (free, free))
    assert session.clicks == ()
for again in (session, Session(engine=engine), Session(engine=Engine("freqformer_b0", device="cpu"))):
    again.set_image(image)
    again.look(10, 40, 90, 60)
    assert again.click(50, 50).mask[50, 50]
print("works")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_click_that_runs_out_of_memory_spoils_no_later_one():
    done = subprocess.run([sys.executable, "-c", SHORTAGE_SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() in (["typed", "typed", "works"], ["typed", "worked", "works"])


def test_a_shortage_is_told_from_other_errors():
    def fail(error):
        def work():
            raise error

        return work

    for error in (MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory")):
        with pytest.raises(MemoryShortageError):
            shortage.guarded(fail(error))
    with pytest.raises(RuntimeError, match="shapes"):
        shortage.guarded(fail(RuntimeError("shapes differ")))


@pytest.mark.parametrize("size", [256.0, np.int64(256), np.float32(256), None])
def test_any_number_that_is_a_size_will_do(size):
    engine = Engine(SquareModel(), size=size)
    assert engine.size == 256
    assert type(engine.size) is int


@pytest.mark.parametrize("size", [True, "256", 256.5, 0, [256], 10**400, np.nan])
def test_other_sizes_are_refused(size):
    for make in (Engine, Engine.shared):
        with pytest.raises(InvalidArgumentError, match="size"):
            make(SquareModel(), size=size)


def test_an_image_of_a_new_shape_has_the_engine_made_ready(monkeypatch):
    engine = Engine("freqformer_b0", device="cpu")
    session = Session(engine=engine)
    session.set_image(np.zeros((100, 300), np.uint8))
    assert engine._ready == {(96, 256)}
    warmed = []
    monkeypatch.setattr(engine, "warmup", lambda *shape: warmed.append(shape))
    session.set_image(np.zeros((99, 299), np.uint8))
    assert warmed == []
    session.warmup()
    assert len(warmed) == len(set(warmed)) == 15
    assert (256, 256) in warmed
    assert warmed[0] == (96, 256)  # the image's own


def test_a_warm_up_in_the_background(monkeypatch, caplog):
    engine = Engine(SquareModel())
    session = Session(engine=engine)
    session.set_image(np.zeros((100, 300), np.uint8))
    warmed, first, go_on = [], threading.Event(), threading.Event()

    def warmup(*shape):
        warmed.append(shape)
        first.set()
        assert go_on.wait(60)
        if len(warmed) == 3:
            raise MemoryShortageError("there is not enough memory")

    def wait():
        for thread in threading.enumerate():
            if thread.name == "activefreq-warmup":
                thread.join(60)

    monkeypatch.setattr(engine, "warmup", warmup)
    session.warmup(background=True)
    assert first.wait(60)
    session.click(50, 50)  # meanwhile
    go_on.set()
    wait()
    assert len(warmed) == 3  # and no more after one that failed
    assert "first clicks may take longer: there is not enough memory" in caplog.text

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        session.warmup(background=True)
    assert "first clicks may take longer: can't start new thread" in caplog.text
    warmed.clear()
    go_on.clear()
    first.clear()
    session.warmup(background=True)
    assert first.wait(60)
    session.close()
    go_on.set()
    wait()
    assert len(warmed) == 1
