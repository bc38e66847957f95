"""How much longer does the first click on a new region take than the next one: before `Session.warmup`, after it, and
after `Session.prepare` as well?

    python -m bench.speed.first_click     # a minute for each of two networks; CPU

Each shape of region is looked at in several places of one picture.  What is new before the warm-up is the first place;
after it every place is, but for the shape.  The first click on a place also computes what depends on the image alone,
unless it was prepared; with a guide that is most of it.
"""

import argparse
import statistics
from dataclasses import dataclass

import torch

from activefreq_engine import Engine, Session
from activefreq_engine.conventions import DEFAULT_MODEL
from bench.speed.host import clock
from bench.tools.clicking import NETWORK
from bench.tools.scene import scene

SHAPES = ((256, 160), (192, 256), (256, 96))
"""Height and width of regions, image pixels; each is a network shape at 256 px."""
PLACES = 7


@dataclass(frozen=True)
class First:
    """Milliseconds of the thread's own."""

    shape: tuple[int, int]
    cold: float
    """The first click on the shape before the warm-up."""
    first: float
    """Median of the first clicks on places after it."""
    prepared: float
    """The same where each was prepared."""
    next: float
    """Median of the clicks after those."""

    def __str__(self) -> str:
        h, w = self.shape
        return (
            f"{h}x{w}: first click {self.cold:.1f} ms before the warm-up; after it {self.first:.1f}, prepared "
            f"{self.prepared:.1f}, the next one {self.next:.1f}: {self.first / self.next:.2f} and "
            f"{self.prepared / self.next:.2f} times"
        )


def two_clicks(session: Session, shape: tuple[int, int], place: int, prepare: bool = False) -> tuple[float, float]:
    """The times of the first and the next click on a region that nobody looked at."""
    height, width = shape
    x, y = 300 + 40 * place, 300 + 30 * place
    session.reset()
    session.look(x, y, x + width, y + height)
    if prepare:
        session.prepare()
    start = clock()
    session.click(x + width // 2, y + height // 2)
    first = clock()
    inside = session.mask[y + height // 4, x + width // 4]
    again = clock()
    session.click(x + width // 4, y + height // 4, not inside)
    return 1e3 * (first - start), 1e3 * (clock() - again)


def measure(model: str, shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[First]:
    """One thread, an engine of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        session = Session(engine=Engine(model, device="cpu"))
        session.set_image(scene(1200, 1200, 180).image, copy=False)
        cold = [two_clicks(session, shape, PLACES)[0] for shape in shapes]
        session.warmup()
        found = []
        for shape, before in zip(shapes, cold, strict=True):
            plain = [two_clicks(session, shape, place) for place in range(PLACES)]
            ready = [two_clicks(session, shape, place, prepare=True) for place in range(PLACES + 1, 2 * PLACES + 1)]
            first, prepared = (statistics.median(t for t, _ in times) for times in (plain, ready))
            found.append(First(shape, before, first, prepared, statistics.median(t for _, t in plain + ready)))
        return found
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for model in (NETWORK, DEFAULT_MODEL):
        print(model, *measure(model), sep="\n")


if __name__ == "__main__":
    main()
