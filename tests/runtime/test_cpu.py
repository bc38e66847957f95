"""What only a CPU needs."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.click_maps import click_maps as op

from activefreq_engine.models import normalise
from activefreq_engine.runtime import cpu, engine
from activefreq_engine.runtime.cpu import click_maps

PATIENCE = 300  # seconds until a process is taken to hang: a busy machine may be slow


@pytest.mark.parametrize("radius", [5.0, 3.0, 0.5, 7.3])
@pytest.mark.parametrize("shape", [(37, 64), (64, 33), (8, 9)])
def test_click_maps_equal_the_op(radius, shape):
    height, width = shape
    points = torch.rand(3, 14, 2) * torch.tensor([width, height])
    points[:, ::3] = points[:, ::3].round()  # on pixel centres, where a distance can equal the radius
    points[0, 2:9] = -1
    points[1, 0] = torch.tensor([0.0, 0.0])
    points[1, 1] = torch.tensor([width - 1.0, height - 1.0])
    points[2, 3] = torch.tensor([width + 2.0, 1.0])
    maps = click_maps(points, height, width, radius)
    assert torch.equal(maps, op(points, height, width, radius, backend="reference"))
    assert maps.dtype == torch.float32
    assert maps.any()


@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 17, 5)], ids=str)
def test_normalised_crops_are_the_models_own_bit_by_bit(shape, rng):
    crops = list(rng.integers(0, 256, (*shape, 3), np.uint8))
    crops[0][0, :5] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    expected = normalise(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
    got = cpu.normalise(crops)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_no_clicks():
    assert not click_maps(torch.full((1, 4, 2), -1.0), 8, 8, 5.0).any()
    assert click_maps(torch.zeros(2, 0, 2), 8, 4, 5.0).shape == (2, 2, 8, 4)


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A /proc of our own: `proc(running, own)` says how many threads run on the machine, and the states of ours."""

    def write(running, own):
        (tmp_path / "loadavg").write_text(f"0.4 0.3 0.2 {running}/321 4711\n")
        for i, state in enumerate(own):
            task = tmp_path / "self" / "task" / str(i)
            task.mkdir(parents=True)
            (task / "stat").write_text(f"{i} (a name) with ) R) {state} 1 2 3\n")

    monkeypatch.setattr(cpu, "_PROC", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return write


@pytest.mark.parametrize(
    ("running", "own", "free"), [(1, "R", 4), (2, "RS", 3), (3, "RR", 3), (3, "RRR", 4), (9, "RS", 1), (0, "S", 4)]
)
def test_free_cores(proc, running, own, free):
    """Our own threads do not count: torch's wait busily for a while after each step."""
    proc(running, own)
    assert cpu.free_cores() == free


def test_without_proc_all_cores_count_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "_PROC", tmp_path / "none")
    assert cpu.free_cores() == os.cpu_count()


@pytest.mark.parametrize(("set_to", "free", "used"), [(4, 9, 4), (4, 2, 2), (1, 9, 1), (20, 30, cpu.MOST_THREADS)])
def test_threads(monkeypatch, set_to, free, used):
    """The caller's count, while it clicks; a thread that uses torch for the first time meanwhile gets what is set."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "free_cores", lambda: free)
    started = []
    other = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(set_to)
        with cpu.threads():
            assert torch.get_num_threads() == used
            other.start()
            other.join()
        assert torch.get_num_threads() == set_to
        assert started == [set_to]
    finally:
        torch.set_num_threads(before)


def test_threads_are_given_back_after_an_interrupt(monkeypatch):
    """One comes after a call: here, after that which sets them."""
    limit, before = cpu._openmp(), torch.get_num_threads()
    if limit is None:
        pytest.skip("threads cannot be limited here")

    def interrupted(threads):
        limit(threads)
        if threads == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "free_cores", lambda: 2)
    monkeypatch.setattr(cpu, "_openmp", lambda: interrupted)
    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyboardInterrupt), cpu.threads():
            pass
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("work", ["matmul", "conv2d", "sin"])
def test_all_of_torch_keeps_to_the_callers_threads(monkeypatch, work):
    """MKL, oneDNN and torch's own loops: what they do in one thread costs the process that thread's time only."""
    monkeypatch.setattr(cpu, "free_cores", lambda: 1)
    a, x, kernel = torch.randn(1000, 1000), torch.randn(2, 64, 96, 96), torch.randn(64, 64, 3, 3)
    run = {"matmul": lambda: a @ a, "conv2d": lambda: torch.conv2d(x, kernel), "sin": lambda: x.sin()}[work]

    def beside() -> float:
        """Processor time of other threads, as a part of this one's."""
        process, own = time.process_time(), time.thread_time()
        for _ in range(10):
            run()
        own = time.thread_time() - own
        return (time.process_time() - process - own) / own

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with cpu.threads():
            run()
            time.sleep(0.05)  # torch's threads wait busily for a while after their last work
            assert beside() < 0.3
        run()
        assert beside() > 0.3
    finally:
        torch.set_num_threads(before)


FORKED = """
import os, sys, time
import numpy as np, torch
from activefreq_engine import Engine, Session
from activefreq_engine.runtime import cpu
from activefreq_engine.session import history

cpu.free_cores, history.AT_HAND = lambda: 2, 2
torch.set_num_threads(2)
session = Session(engine=Engine("freqformer_b0", size=256))
session.set_image(np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8))

def clicks(y):
    for i in range(history.AT_HAND + 4):
        session.click(10 + 8 * i, y, i % 2 == 0)

clicks(50)
child = os.fork()
if child == 0:
    clicks(100)
    print("clicked", flush=True)
    while session._scene.history.waiting:
        time.sleep(0.01)
    print("packed", flush=True)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


FORKED_BESIDE = """
import os, signal, sys, threading
import numpy as np
from activefreq_engine import Engine, Session
from activefreq_engine.runtime import cpu

if "busy" in sys.argv:
    cpu.free_cores = lambda: 1
engine = Engine("freqformer_b0", size=256)
mine, *others = (Session(engine=engine) for _ in range(3))
for session in (mine, *others):
    session.set_image(np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8))

def work(other):
    while True:
        other.click(10, 10, not other.mask[10, 10])

for other in others:  # mostly one of them clicks and one waits for the engine
    threading.Thread(target=work, args=(other,), daemon=True).start()
for k in range(4):
    mine.click(100, 20 + k, not mine.mask[20 + k, 100])
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        for session in (mine, *others):
            session.click(50, 50, not session.mask[50, 50])
        Engine.shared("freqformer_b0", size=256)  # the registry of engines is free
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("machine", ["free", "busy"])
def test_a_process_forked_while_another_thread_clicks(machine):
    """On a busy machine clicks use one thread; loading the weights uses all of torch's nevertheless."""
    command = [sys.executable, "-c", FORKED_BESIDE, machine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout.split()) == (0, ["0"] * 4), done.stderr


FORKED_DURING_WORK = """
import os, sys, threading
from activefreq_engine import Engine
from activefreq_engine.session import features, packing

engine, at_work = Engine("freqformer_b0", size=256), threading.Event()

def work():
    with engine._lock:
        at_work.set()
        os.read(reader, 1)  # until the fork waits for the engine
        for lock in (features.SHARED.lock, packing._changing):
            with lock:
                pass

reader, writer = os.pipe()
for _ in range(2):  # the second finds everything free
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    at_work.wait()
    at_work.clear()
    threading.Timer(0.2, os.write, (writer, b".")).start()
    child = os.fork()
    if child == 0:
        free = [lock.acquire(timeout=10) for lock in (engine._lock, features.SHARED.lock, packing._changing)]
        os._exit(not all(free))
    print(os.waitpid(child, 0)[1], flush=True)
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_work_that_takes_further_locks():
    """Each of the two would wait for the other, if a fork took those locks before the engine's."""
    done = subprocess.run([sys.executable, "-c", FORKED_DURING_WORK], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["0"] * 2), done.stderr


def test_a_fork_waits_for_an_engine_that_is_being_made(monkeypatch):
    """What a fork does before and after, without the fork."""
    made_by, begun, end, done = engine.executor_for, threading.Event(), threading.Event(), []

    def slowly(*args, **kwargs):
        begun.set()
        assert end.wait(60)
        return made_by(*args, **kwargs)

    def fork():
        engine._before_fork()
        done.append(True)
        engine._after_fork()

    monkeypatch.setattr(engine, "executor_for", slowly)
    model = torch.nn.Identity()
    threads = [threading.Thread(target=target) for target in (lambda: engine.Engine(model), fork)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[1].join(0.3)
    early = list(done)
    end.set()
    for thread in threads:
        thread.join(60)
    assert (early, done) == ([], [True])


FORKED_BESIDE_OPENCV = """
import _thread, os, sys, threading
import cv2
from activefreq_engine.runtime import cpu

def threads_of_a_child():
    child = os.fork()
    if child == 0:
        os._exit(cv2.getNumThreads())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

cv2.setNumThreads(3)
alone = threads_of_a_child()
begun = threading.Event()
_thread.start_new_thread(lambda: (begun.set(), threading.Event().wait()), ())  # unknown to `threading`, as Qt's
begun.wait()
print(alone, threads_of_a_child(), cv2.getNumThreads(), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_beside_other_threads_uses_none_of_opencv():
    """One of them may have had the lock of OpenCV's threads, for which the child would wait forever."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED_BESIDE_OPENCV], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout.split()) == (0, ["3", "1", "3"]), done.stderr


def test_two_threads_may_fork_at_once(monkeypatch):
    """What a fork does before and after, without the fork.  The second one begins the moment the registry is free."""
    begun, end, done = threading.Event(), threading.Event(), []

    def second():
        engine._before_fork()
        begun.set()
        end.wait(60)
        engine._after_fork()
        done.append(True)

    thread = threading.Thread(target=second, daemon=True)

    class Registry:
        lock = threading.RLock()

        def acquire(self):
            return self.lock.acquire()

        def release(self):
            self.lock.release()
            if not begun.is_set():
                thread.start()
                assert begun.wait(60)

        __enter__ = acquire

        def __exit__(self, *_):
            self.release()

    monkeypatch.setattr(engine.Engine, "_registry_lock", Registry())
    engine._before_fork()
    engine._after_fork()
    end.set()
    thread.join(60)
    assert done == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_clicks_and_packs():
    """The child of a process that has clicked in two threads, and forks while steps wait to be packed."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout.split()) == (0, ["clicked", "packed"]), done.stderr


ENDING = """
import _thread, atexit, os, sys, threading, time
import numpy as np
from activefreq_engine import Engine, Session, ending

session = Session("freqformer_b0", device="cpu", precision="fp32")
session.set_image(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8))
session.click(400, 300)
said, kept = [], []
calls = {
    "click": lambda: session.click(10, 10, not session.mask[10, 10]),
    "suggest": lambda: session.suggest(),
    "uncertainty": lambda: session.uncertainty,
    "engine": lambda: kept.append(Engine("freqformer_b0", device="cpu", precision="fp32")),
}

def work(call, begun):
    try:
        while True:
            begun.set()
            call()
    except Exception as error:
        said.append(str(error))
    joined.set()
    time.sleep(600)  # a thread that ends while the process does is another matter

def end():
    joined.wait(600)
    print(*said, flush=True)

for k, kind in enumerate(sys.argv[1].split()):
    child = os.fork()
    if child == 0:
        begun, joined, ending._PATIENCE = threading.Event(), threading.Event(), 600.0
        if k == 0:  # a handler that runs after ours
            atexit.unregister(ending._before_exit)
            atexit.register(end)
            atexit.register(ending._before_exit)
            ending._PATIENCE = 0.5
        _thread.start_new_thread(work, (calls[kind], begun))  # which `threading` does not know
        begun.wait()
        time.sleep(0.05)
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_program_ends_as_it_wants_to_while_another_thread_is_in_a_call():
    """The interpreter would stop such a thread within torch's code or OpenCV's, and the process would abort."""
    kinds = "click suggest uncertainty engine"
    done = subprocess.run([sys.executable, "-c", ENDING, kinds], capture_output=True, text=True, timeout=PATIENCE)
    said = ["the program is ending, and answers no more calls", *"3333"]
    assert (done.returncode, done.stdout.splitlines()) == (0, said), done.stderr


CONTENTION = """
import subprocess, sys, time, os
import numpy as np
from activefreq_engine import Session

with Session("freqformer_b0", size=384) as s:
    s.set_image(np.random.default_rng(0).integers(0, 256, (384, 384, 3), np.uint8))
    def median():
        times = []
        for i in range(12):
            start = time.perf_counter()
            s.click(100 + 10 * i, 200)
            times.append(time.perf_counter() - start)
            time.sleep(0.02)
            s.undo()
        return sorted(times)[6]
    median()
    idle = median()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        busy = median()
    finally:
        other.kill()
print(idle * 1e3, busy * 1e3)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_busy_program_beside_us_costs_a_click_at_most_three_times_its_time():
    """In a process of its own: other tests may have set torch's threads."""
    done = subprocess.run([sys.executable, "-c", CONTENTION], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    idle, busy = map(float, done.stdout.split())
    print(f"idle {idle:.1f} ms, beside a busy program {busy:.1f} ms")
    assert busy <= 3 * idle
