"""Clicks on a GPU: beside what else could be done there, for every model and size, and where the time goes.

    python -m bench.gpu.clicks              # writes clicks.csv, models.csv and launches.csv to bench/results/cuda
    python -m bench.gpu.clicks --dry-run    # on the CPU, tiny; times mean nothing

clicks.csv: `Session.click` at 384 px by the plain modules, by torch.compile (reduce-overhead) of the plain modules, by
ours, by ours with the mask painted by the session on the host, and by ours with the plan's layers in place of the fused
kernels; masks must agree.  The compiler takes its time, so "clicks" leaves it out, and "compiled" measures it anew with
the plain modules and ours.  models.csv: the engine alone, from arrays
of the host to arrays of the host, with random weights, since what it costs does not depend on them.  launches.csv: what
runs on the device in one of our clicks.  suggestions.csv: `Session.suggest` with regions found on the device and on the
host, which must be the same, and a click with suggestions after it.  sessions.csv: clicks of many sessions, one for
each of them in a batch.  first.csv: how long a new engine takes to warm up, and the first click on a shape of region
that nobody looked at beside the next one.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from activefreq_engine import Click, Engine, Session, click_batch, create_model
from activefreq_engine.conventions import SLOTS
from activefreq_engine.runtime.engine import SIZES, RefineRequest, StepRequest
from activefreq_engine.runtime.plan.fused import OPS
from bench.speed import ladder
from bench.speed.ladder import Rung
from bench.tools import rows
from bench.tools.clicking import NETWORK, SETTLED, SIZE, ClickTimes, clicks, opened, telling
from bench.tools.machine import Machine
from bench.tools.scene import Spot, scene

PLAIN = "plain modules"
OURS = "ours"
PAINTS = "ours painted on the host"
LAYERS = "ours without fused kernels"
COMPILED = "torch.compile"


@dataclass(frozen=True)
class Kept(Rung):
    """Its engine is made once: what it captured for one climb is there for the next."""

    def engine(self, device: str, size: int) -> Engine:
        if self.name not in _engines:
            _engines[self.name] = self.made(device, size)
        return _engines[self.name]

    def made(self, device: str, size: int) -> Engine:
        return super().engine(device, size)


@dataclass(frozen=True)
class Compiled(Kept):
    """torch.compile of the click's half of the plain modules, in float32: torch.fft in fp16 wants powers of two."""

    compiler: str = "inductor"

    def made(self, device: str, size: int) -> Engine:
        model: Any = create_model(NETWORK, pretrained=True)
        how = {"mode": "reduce-overhead"} if self.compiler == "inductor" else {"backend": self.compiler}
        model.decode_clicks = torch.compile(model.decode_clicks, **how)
        engine = Engine(model, device=device, size=size, plan=False)
        engine.warmup()
        return engine


_engines: dict[str, Engine] = {}


def scaled(dry: bool) -> tuple[Spot, int]:
    """The picture that is clicked, and how many clicks each object gets."""
    return (scene(210, 230, radius=40), SETTLED + 1) if dry else (ladder.picture(), ladder.CLICKS)


def beside_others(device: str, dry: bool, sequences: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Session clicks.  In a first pass, which does not count, graphs are captured for every region that occurs."""
    every = (
        Kept(PLAIN, plan=False, cached=False),
        Compiled(COMPILED, compiler="eager" if dry else "inductor"),
        Kept(OURS, precision="auto", backend="auto", graph=True),
        Kept(PAINTS, precision="auto", backend="mask_bits=reference", graph=True),
        Kept(LAYERS, precision="auto", backend=",".join(f"{name}=reference" for name in OPS), graph=True),
    )
    ways = [way for way in every if way.name in names]
    size = 256 if dry else SIZE
    if not dry:
        ladder.climb(ways, device, size, sequences)
    return ladder.climb(ways, device, size, sequences, *scaled(dry))


def stages(device: str, dry: bool) -> dict[str, float]:
    """Median milliseconds of each stage of the next click; measuring them waits for the device more often."""
    on, _ = scaled(dry)
    session = opened(Engine(NETWORK, device=device, size=256 if dry else SIZE), on)
    clicks(session, on, SETTLED + 1)
    taken = []
    for c, _ in zip(on.clicks(1), range(1 if dry else 100), strict=False):
        c = telling(session, c)
        timings = session.click(c.x, c.y, c.positive, profile=True).timings
        assert timings is not None
        taken.append(timings)
    names = dict.fromkeys(name for t in taken for name in t)
    return {name: statistics.median(t[name] for t in taken if name in t) for name in names}


def requests(engine: Engine, side: int, batch: int) -> tuple[list[StepRequest], list[RefineRequest]]:
    """Next clicks on known images, and focus boxes of their answers."""
    rng = np.random.default_rng(0)
    points = np.full((2 * SLOTS, 2), -1, np.float32)
    points[0], points[SLOTS] = (0.4 * side, 0.5 * side), (0.9 * side, 0.1 * side)
    fresh = [
        StepRequest(rng.integers(0, 256, (side, side, 3), np.uint8), None, rng.random((side, side), np.float32), points)
        for _ in range(batch)
    ]
    answers = engine.run(fresh)
    known = [StepRequest(None, a.features, r.previous, points) for a, r in zip(answers, fresh, strict=True)]
    s = engine.refine_size
    assert s is not None
    crop, box = np.zeros((s, s, 3), np.uint8), (0.1 * side, 0.2 * side, 0.8 * side, 0.7 * side)
    return known, [RefineRequest(a.coarse, box, crop, points) for a in answers]


def timed(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """The times of a call that waits for the device itself, in milliseconds."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - start))
    return in_ms(ClickTimes.of(taken))


def in_ms(times: ClickTimes) -> dict[str, Any]:
    return {k if k == "n" else f"{k}_ms": v for k, v in asdict(times).items()}


def every_model(device: str, dry: bool, deadline: float) -> Iterator[dict[str, Any]]:
    """Rows of models.csv: the default first, and none that begins after the deadline."""
    names = ["freqformer_b0", "freqformer_b0_guided", "freqformer_b1", "freqformer_b2", "freqformer_b3"]
    sizes = [64] if dry else sorted(SIZES, key=lambda size: size != SIZE)
    cases = [(name, size) for size in sizes for name in (names[:1] if dry else names)]
    for name, size in tqdm(cases, desc="models", unit="case"):
        if time.monotonic() > deadline:
            print(f"no time was left for {name} at {size}; raise --seconds")
            continue
        engine = Engine(create_model(name), device=device, size=256 if dry else size)
        for batch in (1, 2 if dry else 8):
            known, boxes = requests(engine, size, batch)
            calls = {"next click": partial(engine.run, known), "refine": partial(engine.refine, boxes)}
            for call, run in calls.items():
                about = {"key": f"{name} {size} B{batch} {call}", "model": name, "size": size, "batch": batch}
                yield {**about, "call": call, **timed(run, 3 if dry else 300)}


def launches(device: str, dry: bool) -> list[dict[str, Any]]:
    """Each kernel and copy of one click of ours on the device: how often, and its time."""
    side = 64 if dry else SIZE
    engine = Engine(NETWORK, device=device, size=256 if dry else SIZE)
    known, _ = requests(engine, side, 1)
    return [{"size": side, **row} for row in on_device(lambda: engine.run(known), device, 2 if dry else 50)]


def on_device(run: Callable[[], Any], device: str, repeats: int) -> list[dict[str, Any]]:
    """Each kernel and copy that a call starts: how often, and the microseconds of all together."""
    kind = device.upper()
    time_of = "self_cpu_time_total" if kind == "CPU" else "self_device_time_total"
    run()
    with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, kind)]) as profile:
        for _ in range(repeats):
            run()
    found = [e for e in profile.key_averages() if e.device_type.name == kind]
    found.sort(key=lambda e: -getattr(e, time_of))
    return [
        {"name": e.key[:160], "per_click": e.count / repeats, "us_per_click": getattr(e, time_of) / repeats}
        for e in found
    ]


def suggestions(device: str, dry: bool) -> list[dict[str, Any]]:
    """`Session.suggest` after a click, regions found on the device and on the host."""
    on, count = scaled(dry)
    engine = Engine(NETWORK, device=device, size=256 if dry else SIZE)
    session = opened(engine, on)
    clicks(session, on, SETTLED)
    by_device, by_host = engine.uncertain_regions, lambda *_: None
    found, out = [], []
    for where, find in (("device", by_device), ("host", by_host)):
        engine.uncertain_regions = find  # type: ignore[method-assign]
        found.append([(s.x, s.y, s.positive, s.region_bbox, s.area) for s in session.suggest(5)])
        out.append({"where": where, **timed(lambda: session.suggest(5), 2 if dry else 50)})
    engine.uncertain_regions = by_device  # type: ignore[method-assign]
    work = on_device(lambda: session.suggest(5), device, 2 if dry else 20)
    number_of, busy = (sum(row[k] for row in work) for k in ("per_click", "us_per_click"))
    print(f"on the device, suggestions are {number_of:.0f} launches and copies of {busy:.0f} us together", flush=True)
    taken = []
    for seed in range(1 if dry else 6):
        session.reset()
        for number, c in enumerate(islice(on.clicks(seed), count)):
            c = telling(session, c)
            start = time.perf_counter()
            session.click(c.x, c.y, c.positive)
            session.suggest(5)
            if number >= SETTLED + (0 if dry else 1):  # until then the step before lies elsewhere
                taken.append(1e3 * (time.perf_counter() - start))
    out.append({"where": BOTH, **in_ms(ClickTimes.of(taken))})
    note = "" if found[0] == found[1] else f"no time: {found[0]} on the device, {found[1]} on the host"
    return [{**row, "note": note} for row in out]


def together(device: str, dry: bool) -> Iterator[dict[str, Any]]:
    """Clicks on settled regions by `click_batch`, one of each session; a first pass, which does not count, captures."""
    (on, count), engine = scaled(dry), Engine(NETWORK, device=device, size=256 if dry else SIZE)
    many: list[Session] = []
    for sessions in (1, 2) if dry else (1, 2, 4, 8, 16, 32, 64):
        while len(many) < sessions:
            many.append(opened(engine, on))
        taken: list[float] = []
        turns = 1 if dry else max(2, 20 // sessions)
        for turn in range(turns + 1):
            took = turn_of_clicks(many, on, count, seed=100 * turn)
            taken += took if turn or dry else []
        yield {"sessions": sessions, "per_s": 1e3 * sessions * len(taken) / sum(taken), **in_ms(ClickTimes.of(taken))}


def turn_of_clicks(many: Sequence[Session], on: Spot, count: int, seed: int) -> list[float]:
    """Each session makes `count` clicks on a blank object, all sessions at once; the times of those on settled
    regions, in milliseconds."""
    for session in many:
        session.reset()
    taken = []
    for clicked in islice(zip(*(on.clicks(seed + i) for i in range(len(many))), strict=True), count):
        asked = [telling(session, c) for session, c in zip(many, clicked, strict=True)]
        start = time.perf_counter()
        click_batch(many, asked)
        taken.append(1e3 * (time.perf_counter() - start))
    return taken[SETTLED:]


SHAPES = ((600, 380), (420, 560), (560, 220))
"""Height and width of regions, image pixels."""


def first_clicks(device: str, dry: bool) -> Iterator[dict[str, Any]]:
    """A new engine's warm-up, then the first and the next click on regions of shapes that nobody looked at."""
    on = ladder.picture() if not dry else scene(900, 900, radius=150)
    session = opened(Engine(NETWORK, device=device, size=256 if dry else SIZE), on)
    start = time.perf_counter()
    session.warmup()
    warmup = time.perf_counter() - start
    for height, width in SHAPES[:1] if dry else SHAPES:
        session.reset()
        session.look(100, 120, 100 + width, 120 + height)
        taken = []
        for x, y in ((100 + width // 2, 120 + height // 2), (100 + width // 4, 120 + height // 4)):
            c = telling(session, Click(x, y, True))
            start = time.perf_counter()
            session.click(c.x, c.y, c.positive)
            taken.append(1e3 * (time.perf_counter() - start))
        yield {"region": f"{height}x{width}", "warmup_s": warmup, "first_ms": taken[0], "next_ms": taken[1]}


BOTH = "click, then device"
PARTS = ("first", "clicks", "launches", "suggestions", "sessions", "compiled", "models")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny; times mean nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="not all of it; see above")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of the CSV files")
    parser.add_argument("--seconds", type=float, default=600, help="no model is begun later")
    parser.add_argument("--sequences", type=int, default=30, help=f"of {ladder.CLICKS} clicks")
    arguments = parser.parse_args()
    dry, out, only = arguments.dry_run, arguments.out, arguments.only
    deadline, device = time.monotonic() + arguments.seconds, "cpu" if dry else "cuda"
    about = Machine(device).describe()
    if "first" in only:
        began = list(first_clicks(device, dry))
        rows.write(out / "first.csv", began, about, replace="region")
        print(*began, sep="\n", flush=True)
    for part, ways in (("clicks", (PLAIN, OURS, PAINTS, LAYERS)), ("compiled", (PLAIN, COMPILED, OURS))):
        if part in only:
            measured = beside_others(device, dry, 1 if dry else arguments.sequences, ways)
            rows.write(out / "clicks.csv", measured, about, replace="rung")
            for row in measured:
                times = "  ".join(f"{name} {row[f'{name}_ms']:.2f}" for name in ("p50", "p95", "p99"))
                print(f"{row['rung']:16s} {times} ms  {row['note']}", flush=True)
        if part == "clicks" and "launches" in only:
            there = launches(device, dry)
            rows.write(out / "launches.csv", there, about, replace="size")
            count, busy = (sum(row[k] for row in there) for k in ("per_click", "us_per_click"))
            print("stages of a click, ms:", {k: round(v, 3) for k, v in stages(device, dry).items()})
            print(f"on the device, a click is {count:.0f} launches and copies of {busy:.0f} us together", flush=True)
    if "suggestions" in only:
        asked = suggestions(device, dry)
        rows.write(out / "suggestions.csv", asked, about, replace="where")
        print(
            "suggestions, ms:", {row["where"]: round(row["p50_ms"], 3) for row in asked}, asked[0]["note"], flush=True
        )
    if "sessions" in only:
        shared: list[dict[str, Any]] = []
        for row in together(device, dry):
            shared.append(row)
            rows.write(out / "sessions.csv", shared, about, replace="sessions")
            print(f"{row['sessions']} sessions: {row['per_s']:.0f} clicks/s, p50 {row['p50_ms']:.2f} ms", flush=True)
    found: list[dict[str, Any]] = []
    for row in every_model(device, dry, deadline) if "models" in only else ():
        found.append(row)
        rows.write(out / "models.csv", found, about, replace="key")
        print(f"{row['key']:40s} p50 {row['p50_ms']:.2f}  p99 {row['p99_ms']:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
