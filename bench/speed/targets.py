"""The speeds and sizes that must be reached on two CPU cores; prints each figure, its target and whether it is met.

    python -m bench.speed.targets                  # three minutes; writes bench/results/targets_cpu.csv

Every ratio is of medians of one run.  The exit status is 1 when a target is missed.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from activefreq_engine import Engine
from bench.speed.ladder import CPU, picture
from bench.speed.scaling import FIXED_RADIUS, engine, memory_growth, shape_of
from bench.tools import rows
from bench.tools.clicking import SETTLED, SIZE, clicks, close_in, next_clicks, opened, profiled
from bench.tools.machine import Machine
from bench.tools.scene import scene
from bench.tools.verify import sessions_agree


@dataclass(frozen=True)
class Target:
    """One thing that must be reached."""

    name: str
    figure: float
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)

    def __str__(self) -> str:
        asked = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return f"{'met' if self.met else 'MISSED':7s}{self.name}: {self.figure:.3g}, required {asked}{self.note}"


def faster(sequences: int) -> list[Target]:
    """The next click beside the plain modules: those that compute everything at every click, and those that keep what
    does not depend on the clicks."""
    on = picture()
    engines: list[Engine] = [engine("cpu"), engine("cpu", plan=False), CPU[0].engine("cpu", SIZE)]
    sessions = [opened(e, on) for e in engines]
    next_clicks(sessions, on, SETTLED + 2)
    times: list[list[float]] = [[] for _ in sessions]
    name = f"next click at {SIZE} px, times faster than the plain modules"
    for seed in tqdm(range(sequences), desc="plan and plain modules", unit="object"):
        for own, more in zip(times, next_clicks(sessions, on, 20, seed), strict=True):
            own += more
        try:
            for session in sessions[1:]:
                sessions_agree(sessions[0], session)
        except AssertionError as problem:
            return [Target(name, math.nan, least=2.5, note=f" (no speed-up of wrong masks: {problem})")]
    plan, kept, plain = (statistics.median(t) for t in times)
    return [
        Target(name, plain / plan, least=2.5, note=f" ({plan:.1f} and {plain:.1f} ms)"),
        Target(f"{name} with image features kept", kept / plan, least=2.5, note=f" ({plan:.1f} and {kept:.1f} ms)"),
    ]


def flat_in_clicks(sequences: int) -> list[Target]:
    """The last ten of 50 clicks beside the first ten whose region has settled."""
    on = picture()
    session = opened(engine("cpu"), on)
    clicks(session, on, SETTLED + 2)
    early, late = [], []
    for seed in tqdm(range(sequences), desc="clicks made", unit="object"):
        session.reset()
        times = clicks(session, on, 50, seed)
        early += times[SETTLED : SETTLED + 10]
        late += times[-10:]
    ratio = statistics.median(late) / statistics.median(early)
    return [Target("clicks 41 to 50 over clicks 3 to 12", ratio, most=1.15)]


def flat_in_megapixels(sequences: int) -> list[Target]:
    """The next click on an object of 200 pixels in images of 0.3, 12 and 100 megapixels, in turn.

    The first ten clicks do not count: in a large image it takes several until the region fits so small an object.
    Where it still does not, the refiner runs, which in 0.3 megapixels it never does: the same stages are compared by
    `flat_in_megapixels_by_stages`.
    """
    shared = engine("cpu")
    scenes = {mp: scene(*shape_of(mp), FIXED_RADIUS) for mp in (0.3, 12, 100)}
    sessions = {mp: opened(shared, s) for mp, s in scenes.items()}
    runs: dict[float, list[tuple[float, set[str]]]] = {mp: [] for mp in scenes}
    for seed in tqdm(range(sequences), desc="megapixels", unit="object"):
        for mp, session in sessions.items():
            session.reset()
            runs[mp] += profiled(session, scenes[mp], 30, seed)[10:]
    small, *large = (statistics.median(t for t, _ in own) for own in runs.values())
    refined = {mp: f"{sum('refine' in stages for _, stages in own)} of {len(own)}" for mp, own in runs.items()}
    return [
        Target(
            f"next click in {mp} megapixels over that in 0.3",
            t / small,
            most=1.15,
            note=f" (the refiner ran in {refined[mp]} clicks; in 0.3 megapixels in {refined[0.3]})",
        )
        for mp, t in zip((12, 100), large, strict=True)
    ]


def flat_in_megapixels_by_stages(sequences: int) -> list[Target]:
    """The same with the same region in all images, so that each click has the same stages.

    Without the refiner: an object of 200 pixels, which the network sees enlarged.  With it: one of 600 pixels, where a
    network pixel covers more than `zoom.SHARP` of the image's.
    """
    shared = engine("cpu")
    targets = []
    for radius, sizes, refiner in ((FIXED_RADIUS, (0.3, 12, 100), False), (300, (2, 12, 100), True)):
        scenes = {mp: scene(*shape_of(mp), radius) for mp in sizes}
        sessions = {mp: opened(shared, s) for mp, s in scenes.items()}
        runs: dict[float, list[tuple[float, set[str]]]] = {mp: [] for mp in sizes}
        for seed in tqdm(range(sequences), desc=f"megapixels, object of {2 * radius} pixels", unit="object"):
            for mp, session in sessions.items():
                session.reset()
                close_in(session, scenes[mp])
                runs[mp] += profiled(session, scenes[mp], 20, seed)[SETTLED:]
        kinds = {frozenset(stages) for own in runs.values() for _, stages in own}
        alike = len(kinds) == 1 and all(("refine" in k) == refiner for k in kinds)
        small, *large = (statistics.median(t for t, _ in own) for own in runs.values())
        for mp, t in zip(sizes[1:], large, strict=True):
            name = f"the same region {'with' if refiner else 'without'} the refiner: {mp} megapixels over {sizes[0]}"
            note = f" ({t:.1f} and {small:.1f} ms)" if alike else f" (not compared: the stages differ, {kinds})"
            targets.append(Target(name, t / small if alike else math.nan, most=1.15, note=note))
    return targets


def beside_a_busy_process(sequences: int) -> list[Target]:
    """The next click while another program keeps a core busy, beside the same with nothing else to do, in turn."""
    on = picture()
    session = opened(engine("cpu"), on)
    clicks(session, on, SETTLED + 2)
    idle, busy = [], []
    for seed in tqdm(range(sequences), desc="a busy process", unit="object"):
        idle += next_clicks([session], on, 20, seed)[0]
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.3)  # until it runs
            busy += next_clicks([session], on, 20, seed)[0]
        finally:
            other.kill()
            other.wait()
    most, least = statistics.median(busy), statistics.median(idle)
    note = f" ({most:.1f} and {least:.1f} ms)"
    return [Target("next click beside a busy process over that on an idle machine", most / least, most=3, note=note)]


def growth() -> list[Target]:
    """How memory grows, in a process of its own, so that nothing else is in the figure."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        megabytes = alone.submit(_growth).result()
    return [Target("MB more after 200 clicks on 12 megapixels", megabytes, most=50)]


def _growth() -> float:
    return max(float(r["growth_mb"]) for r in memory_growth("cpu", 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=5, help="of clicks, for each figure")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder of the CSV file")
    arguments = parser.parse_args()
    n = arguments.sequences
    targets = [
        *growth(),
        *faster(n),
        *flat_in_clicks(n),
        *flat_in_megapixels(n),
        *flat_in_megapixels_by_stages(n),
        *beside_a_busy_process(n),
    ]
    measured = [{**asdict(t), "met": t.met} for t in targets]
    rows.write(arguments.out / "targets_cpu.csv", measured, Machine("cpu").describe(), replace="name")
    print(*targets, sep="\n")
    sys.exit(0 if all(t.met for t in targets) else 1)


if __name__ == "__main__":
    main()
