"""Timed clicks at the public interface, and how their times are summed up."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import numpy as np

from activefreq_engine import Click, Engine, Session
from activefreq_engine.session import zoom
from activefreq_engine.session.canvas import Canvas, Layer
from activefreq_engine.session.history import Step
from activefreq_engine.session.session import push_step
from bench.tools.scene import Spot


@dataclass(frozen=True)
class ClickTimes:
    """Milliseconds.  A percentile that so few samples cannot tell is NaN."""

    n: int
    p50: float
    q1: float
    q3: float
    p95: float
    p99: float

    @classmethod
    def of(cls, times: Iterable[float]) -> "ClickTimes":
        t = np.array(list(times))
        q1, p50, q3, p95, p99 = np.percentile(t, (25, 50, 75, 95, 99)).tolist() if len(t) else [math.nan] * 5
        return cls(len(t), p50, q1, q3, p95 if len(t) >= 20 else math.nan, p99 if len(t) >= 100 else math.nan)


def opened(engine: Engine, scene: Spot) -> Session:
    """A new session on the scene's image."""
    session = Session(engine=engine)
    session.set_image(scene.image, copy=False)
    return session


def telling(session: Session, c: Click) -> Click:
    """The click with the sign that disagrees with the mask: one that agrees is answered without the network."""
    height, width = session.shape
    inside = 0 <= c.x < width and 0 <= c.y < height  # any other is for the session to refuse
    return Click(c.x, c.y, not session.mask[int(c.y), int(c.x)]) if inside else c


def click(session: Session, c: Click) -> float:
    """One click that the network answers, from the call to the mask in host memory, milliseconds."""
    c = telling(session, c)
    start = perf_counter()
    session.click(c.x, c.y, c.positive)
    return 1e3 * (perf_counter() - start)


def clicks(session: Session, scene: Spot, count: int, seed: int = 0) -> list[float]:
    """The time of each of so many clicks on the current object."""
    return [click(session, c) for c in islice(scene.clicks(seed), count)]


NETWORK = "freqformer_b0"
"""What is timed where nothing else is said: the network without a guide, which is what every next click costs.  A guide
adds to the first look at a region alone."""

SIZE = 384
"""Long side of the network's input at which clicks are timed; an engine takes 256 unless told otherwise."""

SETTLED = 2
"""After so many clicks the network has zoomed in on a small object: the next ones find their image features known."""


def next_clicks(sessions: Sequence[Session], scene: Spot, count: int, seed: int = 0) -> list[list[float]]:
    """Each session makes so many clicks on a blank object; the times of those after the first `SETTLED`.

    The sessions take turns, so that a machine that slows down slows all of them; a whole sequence each, so that each
    finds in the processor's caches what a click before has left there, as in use.
    """
    for session in sessions:
        session.reset()
    return [clicks(session, scene, count, seed)[SETTLED:] for session in sessions]


def profiled(session: Session, scene: Spot, count: int, seed: int = 0) -> list[tuple[float, set[str]]]:
    """As `clicks`, and the stages that each click went through, see `ClickResult.timings`."""
    result = []
    for c in islice(scene.clicks(seed), count):
        c = telling(session, c)
        start = perf_counter()
        timings = session.click(c.x, c.y, c.positive, profile=True).timings
        result.append((1e3 * (perf_counter() - start), set(timings or ())))
    return result


def close_in(session: Session, scene: Spot) -> None:
    """Put a blank object where good clicks would bring it: its mask is the scene's, the region fits it.

    How many clicks the network takes for that, in a large image, then plays no part.
    """
    side = round(zoom.EXPANSION * 2 * scene.radius)
    left, top = scene.x - side // 2, scene.y - side // 2
    region = left, top, left + side, top + side
    row, column = (np.mgrid[:256, :256] + 0.5) * (side / 256) - side / 2
    disk = (np.hypot(row, column) < scene.radius).astype(np.float32)
    centre = Click(scene.x, scene.y, True)
    canvas = Canvas(*session.shape, session.threshold, (Layer.of(region, disk),), (centre,))
    push_step(session, Step(centre, canvas, region, canvas.reach()))
