"""What a click costs as the work grows; each sweep in a process of its own, so that its memory is its own.

    python -m bench.speed.scaling                 # all sweeps on the CPU; bench/results/scaling_cpu.csv, the pictures
    python -m bench.speed.scaling clicks objects  # some of them
    python -m bench.speed.scaling --plot          # the pictures again, from the CSV

Times are milliseconds of whole calls at the public interface, to the mask in host memory.  `peak_mb` is the most that
was in memory above what there was before the engine (input size) or the session (image size); `growth_mb` is what is
held more than at the start.
"""

import argparse
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from activefreq_engine import Click, Engine, Session, click_batch
from activefreq_engine.models import create_model
from activefreq_engine.runtime.engine import SIZES
from bench.speed import floor
from bench.tools import memory, plots, rows
from bench.tools.clicking import NETWORK, SETTLED, SIZE, ClickTimes, click, clicks, next_clicks, opened
from bench.tools.machine import Machine
from bench.tools.rows import Row
from bench.tools.scene import scene

MEGAPIXELS = (0.3, 1, 3, 12, 25, 50, 100)
FIXED_RADIUS = 100
OBJECTS = (1, 2, 4, 8, 16, 32)
SESSIONS = (1, 2, 4, 8, 16, 32)
LONG = 200  # clicks on one object, for its memory


def row(series: str, x: float, times: ClickTimes, **facts: float) -> Row:
    return {"series": series, "x": x, **{k if k == "n" else f"{k}_ms": v for k, v in asdict(times).items()}, **facts}


def engine(device: str, size: int = SIZE, plan: bool = True) -> Engine:
    made = Engine(NETWORK, device=device, size=size, plan=plan)
    made.warmup()
    return made


def best(device: str) -> floor.Peak:
    """The machine at its best, in the precision that the plan multiplies in."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[engine(device).precision]
    return floor.peak(torch.device(device), dtype)


def input_size(device: str, effort: float) -> Iterator[Row]:
    """The next click against the long side of the network input, beside the plain modules and the floor."""
    peak, model = best(device), create_model()
    on = scene(1200, 1200, radius=180)
    for size in tqdm(SIZES, desc="input size", unit="size"):
        before = memory.resident()
        memory.reset_peak(torch.device(device))
        sessions = [opened(engine(device, size), on)]
        next_clicks(sessions, on, SETTLED + 1)
        grown = memory.peak() - before
        sessions.append(opened(engine(device, size, plan=False), on))
        next_clicks(sessions, on, SETTLED + 1)
        times: list[list[float]] = [[], []]
        for seed in range(repeats(3, effort)):
            for own, more in zip(times, next_clicks(sessions, on, 20, seed), strict=True):
                own += more
        lowest = 1e3 * floor.click_gmac(model, size, size) / peak.gmac_per_s
        yield row("plan", size, ClickTimes.of(times[0]), floor_ms=lowest, peak_mb=grown)
        yield row("plain modules", size, ClickTimes.of(times[1]), floor_ms=lowest)


def image_size(device: str, effort: float) -> Iterator[Row]:
    """set_image and clicks against megapixels, for an object that grows with the image and one that does not."""
    shared = engine(device)
    for megapixels in tqdm(MEGAPIXELS, desc="image size", unit="image"):
        height, width = shape_of(megapixels)
        for kind, radius in (("object of 200 pixels", FIXED_RADIUS), ("object half as high as the image", None)):
            on = scene(height, width, radius)
            before = memory.resident()
            memory.reset_peak(torch.device(device))
            session = Session(engine=shared)
            named: dict[str, list[float]] = {"set_image": [], "first click": [], "second click": [], "next click": []}
            for seed in range(repeats(4, effort)):
                start = perf_counter()
                session.set_image(on.image)
                named["set_image"].append(1e3 * (perf_counter() - start))
                times = clicks(session, on, 10, seed)
                named["first click"].append(times[0])
                named["second click"].append(times[1])
                named["next click"] += times[SETTLED:]
            for call, own in named.items():
                yield row(f"{call}, {kind}", height * width / 1e6, ClickTimes.of(own), peak_mb=memory.peak() - before)


def clicks_made(device: str, effort: float) -> Iterator[Row]:
    """Each click of sequences of 50."""
    on = scene(1200, 1200, radius=180)
    session = opened(engine(device), on)
    clicks(session, on, 5)
    sequences = []
    for seed in tqdm(range(repeats(9, effort)), desc="clicks made", unit="object"):
        session.set_image(on.image, copy=False)
        sequences.append(clicks(session, on, 50, seed))
    for number, times in enumerate(zip(*sequences, strict=True), 1):
        yield row("click", number, ClickTimes.of(times))


def memory_growth(device: str, effort: float) -> Iterator[Row]:
    """Memory after every tenth of many clicks on an object in 12 megapixels, above that after the second click.

    An object before it pays for what is made once, such as thread pools.
    """
    on = scene(3000, 4000, radius=500)
    session = opened(engine(device), on)
    clicks(session, on, min(LONG, 20))
    session.reset()
    start = math.nan
    for number, c in enumerate(tqdm(islice(on.clicks(), LONG), total=LONG, desc="memory", unit="click"), 1):
        t = click(session, c)
        if number == SETTLED:
            start = memory.resident()
        if number >= SETTLED and (number == SETTLED or number % 10 == 0):
            yield row("12 megapixels", number, ClickTimes.of([t]), growth_mb=memory.resident() - start)


def objects(device: str, effort: float) -> Iterator[Row]:
    """The next click on one object, and clicks on all objects in turn, against the objects on the image."""
    on = scene(3000, 4000, radius=200)
    session = opened(engine(device), on)
    places = [(400 + 450 * (i % 8), 500 + 650 * (i // 8)) for i in range(max(OBJECTS))]
    clicks(session, on, 2 * SETTLED)
    session.reset()
    before, made = memory.resident(), 0
    for count in tqdm(OBJECTS, desc="objects", unit="number"):
        for x, y in places[made:count]:
            session.next_object()
            for dx in (0, 30, -30):
                click(session, Click(x + dx, y))
        grown, made = memory.resident() - before, count
        x, y = places[count - 1]
        same = [click(session, Click(x + 3 * i - 30, y + 20)) for i in range(repeats(20, effort))]
        turns = []
        for i in range(repeats(20, effort)):
            session.select_object(1 + i % count)
            x, y = places[i % count]
            turns.append(click(session, Click(x + 3 * i - 30, y - 20)))
        yield row("the same object", count, ClickTimes.of(same), growth_mb=grown)
        yield row("each object in turn", count, ClickTimes.of(turns), growth_mb=grown)


def sessions(device: str, effort: float) -> Iterator[Row]:
    """Throughput and latency of sessions that share an engine: a thread each, and one batched call for all."""
    on, shared = scene(1200, 1200, radius=180), engine(device)
    peak = best(device)
    most = peak.gmac_per_s / floor.click_gmac(create_model(), SIZE, SIZE)
    clicks(opened(shared, on), on, 2 * SETTLED)
    before = memory.resident()
    many: list[Session] = []
    for count in tqdm(SESSIONS, desc="sessions", unit="number"):
        while len(many) < count:
            many.append(opened(shared, on))
            clicks(many[-1], on, SETTLED + 1, seed=len(many))
        grown = memory.resident() - before
        each = max(repeats(4, effort), repeats(256, effort) // count)  # enough in all for a 99th percentile
        lists = [list(islice(on.clicks(seed=100 + i), 1, 1 + each)) for i in range(count)]
        times, seconds = at_once(many, lists)
        facts = {"per_s": count * each / seconds, "floor_per_s": most, "growth_mb": grown}
        yield row("threads", count, ClickTimes.of(times), **facts)
        times = []
        for turn in islice(zip(*lists, strict=True), max(repeats(4, effort), each // 2)):
            begin = perf_counter()
            click_batch(many, turn)
            times.append(1e3 * (perf_counter() - begin))
        yield row(
            "one batch", count, ClickTimes.of(times), per_s=1e3 * count * len(times) / sum(times), floor_per_s=most
        )


def at_once(many: list[Session], lists: list[list[Click]]) -> tuple[list[float], float]:
    """A thread a session makes its clicks; the time of each click, milliseconds, and of all, seconds."""
    times: list[list[float]] = [[] for _ in many]
    problems: list[BaseException] = []
    ready = threading.Barrier(len(many) + 1)

    def work(i: int) -> None:
        ready.wait()
        try:
            for c in lists[i]:
                times[i].append(click(many[i], c))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(many))]
    for thread in threads:
        thread.start()
    ready.wait()
    start = perf_counter()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return [t for own in times for t in own], perf_counter() - start


def repeats(usual: int, effort: float) -> int:
    return max(2, round(usual * effort))


def shape_of(megapixels: float) -> tuple[int, int]:
    """(height, width) of a 3:4 image."""
    width = round(math.sqrt(megapixels * 1e6 * 4 / 3))
    return round(width * 3 / 4), width


SWEEPS: dict[str, Callable[[str, float], Iterator[Row]]] = {
    "input_size": input_size,
    "image_size": image_size,
    "clicks": clicks_made,
    "memory": memory_growth,
    "objects": objects,
    "sessions": sessions,
}


def sweep(name: str, device: str, effort: float) -> list[Row]:
    """All rows of one sweep."""
    return [{"sweep": name, **r} for r in SWEEPS[name](device, effort)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"{', '.join(SWEEPS)}. Default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies how often each thing is repeated")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder of the CSV file")
    parser.add_argument("--pictures", type=Path, default=plots.PICTURES, help="folder of the pictures")
    parser.add_argument("--plot", action="store_true", help="measure nothing, draw what was measured before")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sweeps if name not in SWEEPS]
    if unknown:
        parser.error(f"unknown sweep {', '.join(unknown)}; allowed are {', '.join(SWEEPS)}")
    file = arguments.out / f"scaling_{arguments.device}.csv"
    if not arguments.plot:
        about = Machine(arguments.device).describe()
        for name in arguments.sweeps or SWEEPS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                measured = alone.submit(sweep, name, arguments.device, arguments.effort).result()
            rows.write(file, measured, about, replace="sweep")
    plots.scaling(rows.read(file), arguments.pictures, arguments.device)


if __name__ == "__main__":
    main()
