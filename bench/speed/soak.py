"""Does anything grow?  Clicks without end on pictures of changing size, many sessions and threads beside each other.

    python -m bench.speed.soak --clicks 1000000 --answered 100000

Threads share an engine and a stand-in for it, whose network costs next to nothing, so that a million clicks with undo,
redo, objects, views, lists, saved and restored states take hours and not days.  Now and then all threads rest, and
memory, open files, threads and the times of clicks are written down.  After the first tenth they must stay within 5 %.
Exit code 1 says that something grew.
"""

import argparse
import json
import math
import sys
import threading
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from activefreq_engine import Engine, Session
from bench.tools import memory, rows
from bench.tools.machine import Machine

FILE = rows.RESULTS / "soak_cpu.csv"
SESSIONS, THREADS, SAMPLES = 32, 8, 50
GROWTH = 0.05
STEPS = 60
"""A session that has so many steps on its picture goes on to another picture."""


class _Features(NamedTuple):
    image: Tensor


class _Coarse(NamedTuple):
    logits: Tensor
    embedding: Tensor


class StandInNetwork(nn.Module):
    """Answers like a network, by the clicks alone: bright where positive disks are near, dark at negative ones."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(refine_size=64, click_radius=5.0)
        self.refiner = nn.Identity()

    def encode_image(self, image: Tensor) -> _Features:
        return _Features(image[:, :1])

    def decode_clicks(self, features: _Features, clicks: Tensor) -> _Coarse:
        logits = _near(clicks[:, 1:2] - clicks[:, 2:3]) + 2 * clicks[:, :1] - 2
        return _Coarse(logits, logits)

    def refine(self, coarse: _Coarse, boxes: Tensor, image_crop: Tensor, disks: Tensor) -> Tensor:
        return _near(disks[:, :1] - disks[:, 1:])


def _near(maps: Tensor) -> Tensor:
    """Averages over squares of 31 pixels, an axis at a time."""
    return 60 * nn.functional.avg_pool2d(nn.functional.avg_pool2d(maps, (1, 31), 1, (0, 15)), (31, 1), 1, (15, 0))


class Worker:
    """Some sessions, used in turn by one thread."""

    def __init__(self, number: int, engine: Engine, stand_in: Engine, share: float, sessions: int) -> None:
        self._rng = np.random.default_rng(number)
        self._engines, self._share = (engine, stand_in), share
        self._sessions = [self._opened(e) for e in self._engines for _ in range(sessions // 2)]
        self.times: dict[bool, list[float]] = {True: [], False: []}

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
            start = perf_counter()
            session.click(x, y, not session.mask[y, x])  # a click that agrees is not answered by the network
            self.times[answered].append(1e3 * (perf_counter() - start))
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


def soak(clicks: int, answered: int, samples: int) -> list[dict[str, Any]]:
    """One row for each sample."""
    torch.set_num_threads(1)
    engine, stand_in = Engine(device="cpu"), Engine(StandInNetwork(), device="cpu")
    share = answered / clicks
    workers = [Worker(n, engine, stand_in, share, SESSIONS // THREADS) for n in range(THREADS)]
    found = []
    for sample in tqdm(range(1, samples + 1), "soak", disable=None):
        threads = [threading.Thread(target=w.work, args=(clicks // samples // THREADS,)) for w in workers]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        times = {kind: np.array([t for w in workers for t in w.times[kind]]) for kind in (True, False)}
        for w in workers:
            w.times = {True: [], False: []}
        found.append(
            {
                "clicks": clicks * sample // samples,
                "memory MB": memory.resident(),
                "handles": len(list(Path("/proc/self/fd").iterdir())),
                "threads": len(list(Path("/proc/self/task").iterdir())),
                **{
                    f"{name} p{p} ms": float(np.percentile(times[kind], p)) if len(times[kind]) else math.nan
                    for kind, name in ((True, "answered"), (False, "stand-in"))
                    for p in (50, 99)
                },
            }
        )
    return found


def grown(found: list[dict[str, Any]], name: str) -> float:
    """How much larger the last third of what follows the first tenth is than its first third; medians."""
    values = [row[name] for row in found[max(1, len(found) // 10) :]]
    third = max(1, len(values) // 3)
    return float(np.median(values[-third:]) / np.median(values[:third]) - 1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=1_000_000)
    parser.add_argument("--answered", type=int, default=100_000, help="so many of them by the network")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    options = parser.parse_args(arguments)
    found = soak(options.clicks, options.answered, options.samples)
    names = ("memory MB", "handles", "threads", "answered p50 ms", "stand-in p50 ms")
    growth = {name: grown(found, name) for name in names}
    for name, value in growth.items():
        print(f"{name}: {found[0][name]:.1f} at first, {found[-1][name]:.1f} at last, grown by {100 * value:+.1f} %")
    if options.write:
        rows.write(FILE, found, Machine("cpu").describe(), replace="clicks")
    worse = [name for name, value in growth.items() if value > GROWTH]
    print(f"grew: {', '.join(worse)}" if worse else "flat")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
