"""No time without a right output: every benchmark is taken through `measure`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from activefreq_engine import Session

BAND = 0.02
"""Pixels whose probability is this close to the threshold may fall on either side of it."""
SHARE = 1e-3
"""Of the other pixels, so many (relative to the area of the reference's mask) may differ."""
PROBABILITY = 0.05
"""No probability may differ by more."""


def measure(
    benchmark: Any,
    *,
    group: str,
    implementation: str,
    run: Callable[[], Any],
    check: Callable[[], float],
    device: torch.device,
    reference: bool = False,
    setup: Callable[[], Any] | None = None,
    rounds: int = 25,
    **facts: Any,
) -> None:
    """Check, then time.

    Args:
        benchmark: the fixture of pytest-benchmark.
        group: what is compared with one another; the device is added to it.
        implementation: this one's name within the group.
        run: what is timed.
        check: compares outputs; returns the error and raises AssertionError where it is too large.
        device: synchronised before the clock is read.
        reference: whether the others of the group are compared with this one.
        setup: done before each round, outside of the time; without it pytest-benchmark chooses the rounds.
        rounds: with `setup`, how many.
        facts: anything else to record.
    """
    error = check()
    benchmark.group = f"{group}, {device.type}"
    benchmark.extra_info.update(
        implementation=implementation, reference=reference, device=device.type, error=error, **facts
    )

    def timed() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def prepared() -> None:
        assert setup is not None
        setup()

    if setup is None:
        benchmark(timed)
    else:
        benchmark.pedantic(timed, setup=prepared, rounds=rounds, warmup_rounds=2)


def probabilities_agree(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference; AssertionError above `PROBABILITY`."""
    assert ours.shape == reference.shape, f"the shape is {ours.shape}, expected {reference.shape}"
    error = float(np.abs(ours - reference).max())
    assert error <= PROBABILITY, f"probabilities differ by {error:.3f}, more than {PROBABILITY}"
    return error


def sessions_agree(ours: Session, reference: Session) -> float:
    """The largest difference in probability; AssertionError where probabilities or masks differ too much."""
    expected = reference.probs
    error = probabilities_agree(ours.probs, expected)
    clear = np.abs(expected - reference.threshold) > BAND
    wrong = int(((ours.mask != reference.mask) & clear).sum())
    area = int(reference.mask.sum())
    assert wrong <= SHARE * area, f"{wrong} pixels differ clearly from a mask of {area} pixels"
    return error
