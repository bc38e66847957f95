"""How much longer does the first click on a new region take than the next one, before and after `Session.warmup`?

    python -m bench.speed.first_click     # under a minute; CPU

Each shape of region is looked at in several places of one picture.  What is new before the warm-up is the first place;
after it every place is, but for the shape.  The first click on a place also computes what depends on the image alone.
"""

import argparse
import statistics
from dataclasses import dataclass

import torch

from activefreq_engine import Engine, Session
from bench.speed.host import clock
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
    next: float
    """Median of the clicks after those."""

    def __str__(self) -> str:
        h, w = self.shape
        return (
            f"{h}x{w}: first click {self.cold:.1f} ms before the warm-up; after it {self.first:.1f}, the next one "
            f"{self.next:.1f}, {self.first / self.next:.2f} times"
        )


def two_clicks(session: Session, shape: tuple[int, int], place: int) -> tuple[float, float]:
    """The times of the first and the next click on a region that nobody looked at."""
    height, width = shape
    x, y = 300 + 40 * place, 300 + 30 * place
    session.reset()
    session.look(x, y, x + width, y + height)
    start = clock()
    session.click(x + width // 2, y + height // 2)
    first = clock()
    inside = session.mask[y + height // 4, x + width // 4]
    again = clock()
    session.click(x + width // 4, y + height // 4, not inside)
    return 1e3 * (first - start), 1e3 * (clock() - again)


def measure(shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[First]:
    """One thread, an engine of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        session = Session(engine=Engine(device="cpu"))
        session.set_image(scene(1200, 1200, 180).image, copy=False)
        cold = [two_clicks(session, shape, PLACES)[0] for shape in shapes]
        session.warmup()
        found = []
        for shape, before in zip(shapes, cold, strict=True):
            times = [two_clicks(session, shape, place) for place in range(PLACES)]
            first, after = (statistics.median(t) for t in zip(*times, strict=True))
            found.append(First(shape, before, first, after))
        return found
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(*measure(), sep="\n")


if __name__ == "__main__":
    main()
