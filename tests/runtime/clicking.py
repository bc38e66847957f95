"""Clicks of random content for an engine, and what its contexts keep between them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from activefreq_engine import Engine, Session
from activefreq_engine.runtime.engine import StepRequest
from activefreq_engine.runtime.graphs.contexts import ClickContext, Contexts, Transfer


def slots(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Any number of clicks of each sign."""
    points = np.full((48, 2), -1, np.float32)
    for first in (0, 24):
        n = rng.integers(0, 25)
        points[first : first + n] = rng.uniform(0, (w, h), (n, 2))
    return points


def request(rng: np.random.Generator, h: int, w: int, features: Any = None) -> StepRequest:
    crop = None if features is not None else rng.integers(0, 256, (h, w, 3), np.uint8)
    return StepRequest(crop, features, rng.random((h, w), np.float32), slots(rng, h, w))


def buffers(engine: Engine) -> Iterator[Any]:
    """Everything that a context keeps between requests: arrays of the host and tensors."""
    assert isinstance(engine._executor, Contexts)
    for bucket in engine._executor._buckets.values():
        for context in bucket._made.values():
            outbox = vars(context).get("_outbox")
            for value in (*vars(context).values(), *(vars(outbox).values() if outbox else ())):
                if isinstance(value, Transfer):
                    yield from value.arrays.values()
                    yield from value.tensors.values()
                elif isinstance(value, tuple):
                    yield from value
                elif isinstance(value, torch.Tensor):
                    yield value


@torch.inference_mode()
def poison(engine: Engine) -> None:
    assert isinstance(engine._executor, Contexts)
    count = 0
    for buffer in buffers(engine):
        buffer[...] = float("nan") if buffer.dtype in (np.float32, torch.float32, torch.float16) else 77
        count += 1
    assert count
    for bucket in engine._executor._buckets.values():
        for context in bucket._made.values():
            if isinstance(context, ClickContext):
                context.held[:] = [None] * len(context.held)  # the features too
                context._outbox.given[:] = [None] * len(context.held)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # this was another stream than the engine's


def box(rng: np.random.Generator, h: int, w: int) -> tuple[float, float, float, float]:
    x, y = rng.uniform(0, (w - 20, h - 20))
    return float(x), float(y), float(rng.uniform(x + 16, w)), float(rng.uniform(y + 16, h))


def play(engine: Engine, image: np.ndarray, clicks: list[tuple[int, int, bool]]) -> list[np.ndarray]:
    """Probabilities after each click."""
    out = []
    with Session(engine=engine) as s:
        s.set_image(image)
        for c in clicks:
            s.click(*c)
            out.append(s.probs)
    return out
