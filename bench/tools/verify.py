"""No time without a right output: every benchmark is taken through `measure`."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from activefreq_engine import Session

BAND = 2
"""Pixels this close to the outline of a mask may fall on either side of it."""
SHARE = 1e-3
"""So many of the other pixels may differ, as a share of the mask's area."""
PROBABILITY = 0.01
"""The mean difference in probability, over the area of the mask; bfloat16 reaches 0.002."""


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


def probabilities_agree(ours: np.ndarray, reference: np.ndarray, area: int | None = None) -> float:
    """The mean difference, over `area` pixels if given; AssertionError above `PROBABILITY`."""
    assert ours.shape == reference.shape, f"the shape is {ours.shape}, expected {reference.shape}"
    error = float(np.abs(ours - reference).sum()) / (area or reference.size)
    assert error <= PROBABILITY, f"probabilities differ by {error:.3f} in the mean, more than {PROBABILITY}"
    return error


def sessions_agree(ours: Session, reference: Session) -> float:
    """The mean difference in probability; AssertionError where probabilities or masks differ too much."""
    mask = reference.mask.astype(np.uint8)
    area = max(1, int(mask.sum()))
    around = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    outline = cv2.dilate(mask, around) != cv2.erode(mask, around)
    wrong = int(((ours.mask != reference.mask) & ~outline).sum())
    assert wrong <= SHARE * area, f"{wrong} pixels off the outline differ from a mask of {area} pixels"
    return probabilities_agree(ours.probs, reference.probs, area)
