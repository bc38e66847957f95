"""What a click costs the host: Python, NumPy and OpenCV, with the network's work replaced by answers made beforehand.

    python -m bench.speed.host            # seconds; --write adds a row to bench/results/host_cpu.csv

Next clicks on a settled region of a 1200 x 1200 picture at 384 px.  The engine is the real one, its executor a stand-in
that returns at once.  Its answers are those of a network in that the whole outline moves a little from click to click
("moved everywhere"), or only near one place ("moved nearby"); "refined" has an object so large that the refiner would
run; "painted on the device" has its masks as packed bits from the engine, in the others the session paints;
"suggest" is no click but `Session.suggest` after each one, with the buffers of an engine that finds the regions on a
device: nothing is sent, and what comes back is one table made beforehand.  Beside each click a fixed piece of Python
work is timed, so that machines can be compared by the ratio.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from activefreq_engine import Engine, Session
from activefreq_engine.runtime.graphs.contexts import Recordable
from activefreq_engine.runtime.graphs.regions import Regions
from activefreq_engine.runtime.levels import ONE, Found
from activefreq_engine.runtime.painting import Painted, PaintRequest
from activefreq_engine.session.boxes import mask_bbox
from activefreq_engine.session.history import AT_HAND
from activefreq_engine.session.painter import Painter
from activefreq_engine.session.zoom import EXPANSION
from activefreq_engine.types import Box
from bench.tools import rows
from bench.tools.clicking import SETTLED, ClickTimes, telling
from bench.tools.machine import Machine
from bench.tools.scene import Spot, scene

SIDE, SIZE = 1200, 384
SMALL, LARGE = 180, 300
"""Radius of the object, image pixels: of the first the network sees enough, the second is refined."""
ANSWERS = 8
# the time that the thread had a core, where that is known: other programs' turns on it are nobody's share
clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter


@dataclass(frozen=True)
class Case:
    """What the stand-in engine answers."""

    name: str
    radius: int
    everywhere: bool
    """Whether the whole outline moves from one answer to the next, or only a quarter of it."""
    refine: bool = False
    paints: bool = False
    """Whether masks come painted, as they do from a device."""
    suggest: bool = False
    """Whether suggestions are timed, not clicks."""


CASES = (
    Case("painted on the device", SMALL, everywhere=True, paints=True),
    Case("suggest", SMALL, everywhere=True, paints=True, suggest=True),
    Case("moved everywhere", SMALL, everywhere=True),
    Case("moved nearby", SMALL, everywhere=False),
    Case("refined", LARGE, everywhere=True, refine=True),
)


class StandInExecutor:
    """An executor without a model: a disk, a little different each time."""

    precision = "fp32"
    compiles, unclear, replayer = False, False, None

    def __init__(self, case: Case) -> None:
        self._case, self.paints = case, case.paints
        side = 192 if case.refine else None
        config = SimpleNamespace(refine_size=side, click_radius=5.0)
        self.model: Any = SimpleNamespace(config=config, refiner=side)
        self._features = (torch.zeros(1, 64, SIZE // 4, SIZE // 4, dtype=torch.bfloat16),) * 2
        self._coarse = SimpleNamespace(logits=torch.zeros(1, 1, SIZE, SIZE))
        self._disks: dict[tuple[tuple[int, ...], float], list[NDArray[np.uint16]]] = {}
        self._made: dict[tuple[tuple[int, ...], float], Iterator[NDArray[np.uint16]]] = {}
        self._masks: dict[tuple[int, int, Box], tuple[NDArray[np.uint8], Box | None, Box | None]] = {}
        self._last: tuple[NDArray[np.uint16], Painted] | None = None

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def prepare(self, crops: Sequence[NDArray[np.uint8]]) -> list[Any]:
        return [self._features for _ in crops]

    def click(
        self,
        features: Any,
        previous: Sequence[NDArray[Any]],
        points: Any,
        wanted: Sequence[PaintRequest | None] = (None,),
    ) -> list[tuple[Found, Any]]:
        found = next(self._answers(previous[0].shape, self._part(previous[0])))
        painted = None if wanted[0] is None else self._painted(found, wanted[0])
        return [(Found(found, 0.0, painted), self._coarse)]

    def _painted(self, levels: NDArray[np.uint16], request: PaintRequest) -> Painted:
        """What a device would have painted; the work is done once for each pair of answers and region."""
        last, (x0, y0, x1, y1) = self._last, request.region
        alike = last is not None and request.before is last[1] and last[1].region == request.region
        key = id(levels), id(last[0]) if alike and last else 0, request.region
        if key not in self._masks:
            masks = []
            for values in (levels, last[0] if alike and last else None):
                mask = np.zeros((y1 - y0, x1 - x0), np.bool_)
                if values is not None:
                    Painter((0, 0, x1 - x0, y1 - y0), values, request.limit).threshold(mask, blank=True)
                masks.append(mask)
            wide = np.pad(masks[0], ((0, 0), (0, -masks[0].shape[1] % 32)))
            found = (mask_bbox(m) for m in (masks[0], masks[0] ^ masks[1]))
            inside, changed = ((b[0] + x0, b[1] + y0, b[2] + x0, b[3] + y0) if b else None for b in found)
            self._masks[key] = np.packbits(wide, axis=1, bitorder="little"), inside, changed
        bits, inside, changed = self._masks[key]
        painted = Painted(request, bits, inside, changed, alike)
        self._last = levels, painted
        return painted

    def _part(self, previous: NDArray[Any]) -> float:
        """The object's share of the region: at the first click of the whole picture, later of a region that fits it."""
        first = previous.dtype != np.uint16 and not previous.any()
        return 2 * self._case.radius / SIDE if first else 1 / EXPANSION

    def refine(self, coarse: Any, boxes: Any, crops: Sequence[NDArray[np.uint8]], points: Any) -> list[Found]:
        return [Found(next(self._answers(c.shape[:2], 1 / EXPANSION)), 0.0) for c in crops]

    def verify(self, height: int, width: int) -> None:
        pass

    def holding(self, values: NDArray[np.uint16]) -> None:
        return None

    def wait(self) -> None:
        pass

    def _answers(self, shape: tuple[int, ...], part: float) -> Iterator[NDArray[np.uint16]]:
        """Endless; none is written to again while somebody has it, since a cycle is longer than what is compared."""
        if (shape, part) not in self._disks:
            self._disks[shape, part] = [disk(shape, part, k, self._case.everywhere) for k in range(ANSWERS)]
        if (shape, part) not in self._made:
            self._made[shape, part] = cycle(self._disks[shape, part])
        return self._made[shape, part]

    def begin_again(self) -> None:
        """Give the same answers in the same order."""
        self._made.clear()


def disk(shape: tuple[int, ...], part: float, seed: int, everywhere: bool) -> NDArray[np.uint16]:
    """Levels `[h, w]` of a ragged disk, its diameter `part` of the sides."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[: shape[0], : shape[1]] + 0.5) / np.array(shape)[:, None, None] - 0.5
    angle = np.arctan2(y, x)
    rim = part / 2 * (1 + sum(0.05 / k * np.sin(k * angle + 2 * k) for k in (3, 5, 7)))
    moved = 0.0025 * part * rng.uniform(-1, 1)  # as far as the network moves it at most clicks
    rim = rim + (moved if everywhere else moved * np.clip(np.cos(angle - seed), 0, None) ** 8)
    return np.rint(ONE / (1 + np.exp(-(rim - np.hypot(y, x)) * max(shape) / 2))).astype(np.uint16)


class Still:
    """A `contexts.Replayer` that does the work once, and later leaves buffers and results as they are."""

    device = torch.device("cpu")

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, work: Recordable) -> Recordable:
        results = work()
        return lambda: results

    def wait(self) -> None:
        pass


class StandInEngine(Engine):
    """An engine whose work is done before it is asked."""

    def __init__(self, case: Case) -> None:
        super().__init__(torch.nn.Identity(), "cpu", size=SIZE, plan=False)
        self._executor = self.answers = StandInExecutor(case)
        self._found = Regions(Still(), self._holding)
        self._somewhere = False

    def uncertain_regions(self, *given: Any) -> NDArray[np.float64]:
        found: list[NDArray[np.float64]] = []
        self._alone(lambda: found.append(self._found(*given)), None)
        for context in self._found.made.values():
            if context.levels is not None:  # what is copied there costs a call and no time, as on a device
                slots = context.levels.slots.tensors
                slots["levels"] = slots["levels"].to("meta")
                self._somewhere = True
        return found[0]

    def _holding(self, levels: NDArray[np.uint16]) -> torch.Tensor | None:
        """The answer on the device."""
        return torch.empty(levels.shape, dtype=torch.uint16, device="meta") if self._somewhere else None


def piece() -> int:
    """A fixed piece of Python work."""
    total = 0
    seen: dict[int, tuple[int, int]] = {}
    for i in range(600):
        seen[i & 31] = (i, total)
        total += len(seen) + i // 3
    return total


@dataclass(frozen=True)
class Share:
    """What was measured of one case."""

    case: str
    times: ClickTimes
    piece_ms: float
    stages: dict[str, float]
    """Median milliseconds; those of the engine are the stand-in's."""

    @property
    def ratio(self) -> float:
        """Median click over median piece of Python work."""
        return self.times.p50 / self.piece_ms

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {t:.3f}" for name, t in self.stages.items())
        return (
            f"{self.case:17s} median {self.times.p50:.3f} ms ({self.times.q1:.3f} to {self.times.q3:.3f}), "
            f"p99 {self.times.p99:.3f}, {self.ratio:.2f} pieces of Python work of {self.piece_ms:.3f} ms; {stages}"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV's others wait for a core wherever something else runs."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@one_thread()
def measure(case: Case, objects: int) -> Share:
    """Each object gets `AT_HAND` clicks, of which the first do not count.  One thread: older steps would be packed by
    another one, beside clicks that follow each other so closely."""
    on: Spot = scene(SIDE, SIDE, case.radius)
    engine = StandInEngine(case)
    session = Session(engine=engine)
    session.set_image(on.image, copy=False)
    times: list[float] = []
    pieces: list[float] = []
    stages: dict[str, list[float]] = {}
    settled = 6 if case.refine else SETTLED  # a large object is zoomed in on at the fifth click
    for seed in range(objects) if case.paints else ():  # the same clicks once before: the stand-in paints them now
        session.reset()
        for c in islice(on.clicks(seed), AT_HAND):
            c = telling(session, c)
            session.click(c.x, c.y, c.positive)
    engine.answers.begin_again()
    for seed in range(0 if case.paints else -2, objects):  # in the first two the stand-in makes its answers
        session.reset()
        for k, c in zip(range(AT_HAND), on.clicks(abs(seed)), strict=False):
            c = telling(session, c)
            start = clock()
            session.click(c.x, c.y, c.positive)
            if case.suggest:
                start = clock()
                assert session.suggest(5)
            done = clock()
            piece()
            if seed >= 0 and k >= settled + case.suggest:  # the step before the first settled one lies elsewhere
                pieces.append(1e3 * (clock() - done))
                times.append(1e3 * (done - start))
    for seed in range(3):
        session.reset()
        for k, c in zip(range(0 if case.suggest else AT_HAND), on.clicks(seed), strict=False):
            c = telling(session, c)
            laps = session.click(c.x, c.y, c.positive, profile=True).timings or {}
            for name, t in laps.items() if k >= settled else ():
                stages.setdefault(name, []).append(t)
    medians = {name: statistics.median(t) for name, t in stages.items()}
    return Share(case.name, ClickTimes.of(times), statistics.median(pieces), medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=30, help=f"for each case; {AT_HAND} clicks each")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results/host_cpu.csv")
    arguments = parser.parse_args()
    shares = [measure(case, arguments.objects) for case in CASES]
    print(*shares, sep="\n")
    if arguments.write:
        measured: list[dict[str, Any]] = [
            {"case": s.case, "n": s.times.n, "p50_ms": s.times.p50, "q1_ms": s.times.q1, "q3_ms": s.times.q3}
            | {"p99_ms": s.times.p99, "piece_ms": s.piece_ms, "ratio": s.ratio}
            | {f"{name}_ms": t for name, t in s.stages.items()}
            for s in shares
        ]
        rows.write(rows.RESULTS / "host_cpu.csv", measured, Machine("cpu").describe(), replace="case")


if __name__ == "__main__":
    main()
