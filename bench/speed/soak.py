"""Does anything grow?  Clicks without end on pictures of changing size, many sessions and threads beside each other.

    python -m bench.speed.soak --clicks 1000000 --answered 100000

Threads share an engine and a stand-in for it that draws disks, so that a million clicks with undo, redo, objects,
views, lists, saved and restored states take an hour of one core and not days.  Now and then all threads rest, and
memory, open files, threads and the times of clicks are written down.  After the first tenth they must stay within 5 %.
Exit code 1 says that something grew.

Clicks are timed in seconds of their own thread's work.  What passes on the clock, also written down, is mostly waiting
for the other seven threads and for whatever else the machine has to do, which grows and shrinks by itself.  A thread's
work also takes longer while neighbours use the same core and its caches, so a fixed piece of Python work is timed
between clicks; what may not grow is their ratio.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from activefreq_engine import Engine, Session
from activefreq_engine.conventions import SLOTS
from activefreq_engine.runtime.engine import StepAnswer, StepRequest
from activefreq_engine.runtime.timing import Stopwatch
from bench.speed.host import piece
from bench.tools import memory, plots, rows
from bench.tools.clicking import NETWORK
from bench.tools.machine import Machine

FILE, PICTURE = rows.RESULTS / "soak_cpu.csv", plots.PICTURES / "soak_cpu.png"
SESSIONS, THREADS, SAMPLES = 32, 8, 500
KINDS = {True: "answered", False: "stand-in"}
GROWTH = 0.05
SMALL = 64
"""Long side of the network's input.  A quarter of the least that people are offered, so that a run takes two hours and
not a day; what is looked for, memory and threads that are not given back, is the same at each size."""
STEPS = 60
"""A session that has so many steps on its picture goes on to another picture."""


class StandIn(Engine):
    """Answers like an engine, by the clicks alone and in microseconds: a disk for each of them, older answers fade."""

    def run(
        self, requests: Sequence[StepRequest], watch: Stopwatch | None = None, go_on: Callable[[], None] | None = None
    ) -> list[StepAnswer]:
        return [StepAnswer(_drawn(r), _FEATURES, None) for r in requests]

    @property
    def refine_size(self) -> int | None:
        return None

    def get_ready(self, height: int, width: int) -> None:
        pass  # nothing is compiled


_FEATURES = torch.zeros(1, 4, 4)


def _drawn(request: StepRequest) -> NDArray[np.uint16]:
    before = request.previous if request.previous.dtype == np.uint16 else request.previous * 65535
    found = (before * 0.9).astype(np.uint16)
    radius = max(found.shape) // 9
    for slot, (u, v) in enumerate(request.points.astype(int).tolist()):
        if u >= 0:
            cv2.circle(found, (u, v), radius, 60_000 if slot < SLOTS else 2_000, -1)
    return found


class Worker:
    """Some sessions, used in turn by one thread."""

    def __init__(self, number: int, engine: Engine, stand_in: Engine, share: float, sessions: int) -> None:
        self._rng = np.random.default_rng(number)
        self._engines, self._share = (engine, stand_in), share
        self._sessions = [self._opened(e) for e in self._engines for _ in range(sessions // 2)]
        self.times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        """Milliseconds of clicks: of the thread's own work, and on the clock."""
        self.pieces: list[float] = []
        """Milliseconds of `piece`, of the thread's own work."""

    def _opened(self, engine: Engine) -> tuple[Session, Engine, np.ndarray]:
        """A new session on a new picture, and both of what it was made from."""
        height, width = self._rng.integers(64, 900, 2)
        image = self._rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        session = Session(engine=engine)
        session.set_image(image, copy=False)
        return session, engine, image

    def work(self, clicks: int) -> None:
        """So many clicks, and what people do between them."""
        half = len(self._sessions) // 2
        for _ in range(clicks):
            answered = self._rng.random() < self._share
            index = int(self._rng.integers(half)) + (0 if answered else half)
            session, _, _ = self._sessions[index]
            height, width = session.shape
            x, y = int(self._rng.integers(width)), int(self._rng.integers(height))
            positive = not session.mask[y, x]  # a click that agrees is not answered by the network
            start, own = perf_counter(), thread_time()
            session.click(x, y, positive)
            self.times[answered].append((1e3 * (thread_time() - own), 1e3 * (perf_counter() - start)))
            if self._rng.random() < 0.1:
                own = thread_time()
                piece()
                self.pieces.append(1e3 * (thread_time() - own))
            self._between(index)

    def _between(self, index: int) -> None:
        session, engine, image = self._sessions[index]
        height, width = session.shape
        what = self._rng.random()
        if what < 0.1:
            session.undo()
        elif what < 0.15:
            session.redo()
        elif what < 0.18:
            session.next_object()
        elif what < 0.2:
            session.select_object(int(self._rng.integers(session.object_count)) + 1)
        elif what < 0.21:
            session.delete_object(int(self._rng.integers(session.object_count)) + 1)
        elif what < 0.23:
            session.look(0, 0, width / 2, height / 2)
        elif what < 0.26:
            session.look(None)
        elif what < 0.27:
            points = self._rng.uniform((0, 0), (width, height), (3, 2))
            session.predict(points, self._rng.integers(0, 2, 3))
        elif what < 0.28:
            session.suggest(1)
        steps = sum(len(o["steps"]) for o in session.state_dict()["objects"]) if what > 0.98 else 0
        if steps > STEPS:
            session.close()
            self._sessions[index] = self._opened(engine)
        elif what > 0.999 and steps < 20:
            state = json.loads(json.dumps(session.state_dict()))
            self._sessions[index] = Session.restore(state, image, engine=engine), engine, image


def soak(clicks: int, answered: int, samples: int) -> Iterator[dict[str, Any]]:
    """One row after each sample."""
    torch.set_num_threads(1)
    engine, stand_in = Engine(NETWORK, device="cpu"), StandIn(nn.Identity(), device="cpu")
    engine.size = stand_in.size = SMALL
    share = answered / clicks
    workers = [Worker(n, engine, stand_in, share, SESSIONS // THREADS) for n in range(THREADS)]
    each = max(1, clicks // samples // THREADS)
    by_network = 0
    for sample in range(1, samples + 1):
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda w: w.work(each), workers))  # the list raises what a thread raised
        times = {kind: np.array([t for w in workers for t in w.times[kind]]).reshape(-1, 2) for kind in KINDS}
        by_network += len(times[True])
        taken = float(np.median([t for w in workers for t in w.pieces] or [math.nan]))
        for w in workers:
            w.times, w.pieces = {True: [], False: []}, []
        row = {
            "clicks": each * THREADS * sample,
            "answered": by_network,
            "memory MB": memory.resident(),
            "handles": len(list(Path("/proc/self/fd").iterdir())),
            "open threads": len(list(Path("/proc/self/task").iterdir())),
            "piece p50 ms": taken,
        }
        for kind, name in KINDS.items():
            for column, clock in enumerate(("work", "clock")):
                for p in (50, 99):
                    values = times[kind][:, column]
                    row[f"{name} {clock} p{p} ms"] = float(np.percentile(values, p)) if len(values) else math.nan
            row[f"{name} in pieces"] = row[f"{name} work p50 ms"] / taken
        yield row


def grown(found: list[dict[str, Any]], name: str) -> float:
    """How much larger the last third of what follows the first tenth is than its first third; medians."""
    values = [row[name] for row in found[max(1, len(found) // 10) :]]
    third = max(1, len(values) // 3)
    return float(np.nanmedian(values[-third:]) / np.nanmedian(values[:third]) - 1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=1_000_000)
    parser.add_argument("--answered", type=int, default=100_000, help="so many of them by the network")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, whatever is missing then")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}, after each sample, and its picture")
    options = parser.parse_args(arguments)
    start, found, about = perf_counter(), [], Machine("cpu").describe()
    for row in tqdm(soak(options.clicks, options.answered, options.samples), "soak", options.samples, disable=None):
        found.append(row)
        if options.write:
            rows.write(FILE, found, about)
        if perf_counter() - start > 60 * options.minutes:
            break
    if options.write:
        plots.soak(rows.read(FILE), PICTURE)
    if len(found) < 4:
        print(f"{len(found)} samples are too few to see whether anything grows; 4 are the fewest")
        return 1
    names = ("memory MB", "handles", "open threads", *(f"{name} in pieces" for name in KINDS.values()))
    growth = {name: grown(found, name) for name in names}
    print(f"{found[-1]['clicks']} clicks, {found[-1]['answered']} of them answered by the network")
    for name, value in growth.items():
        print(f"{name}: {found[0][name]:.1f} at first, {found[-1][name]:.1f} at last, grown by {100 * value:+.1f} %")
    worse = [name for name, value in growth.items() if value > GROWTH]
    print(f"grew: {', '.join(worse)}" if worse else "flat")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
