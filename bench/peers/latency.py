"""Times of several click segmenters on the same images and the same clicks, image by image in turn."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from activefreq_engine import Click, Session
from activefreq_engine.eval import Dataset, Sample, make_clicker
from bench.tools.clicking import ClickTimes

CLICKS = 6
"""So many clicks are made on every image."""
SLOW = {"sam_vit_b": 2}
"""Methods that see only the first images, and how many."""


def measure(data: Dataset, methods: Mapping[str, Any], recorder: Session) -> list[dict[str, Any]]:
    """Time `set_image` and every click of all methods.

    A robot places the clicks (`ritm`, on the masks of `recorder`, not timed) and all methods are given the same ones.
    All have the first image once before, untimed.

    Args:
        data: the images and their truth.
        methods: name -> a predictor as `activefreq_engine.eval.evaluate` takes it.  One that has `prepare` is told to
            after `set_image`, whose time this counts to, and after each click, as tools do.
        recorder: finds the clicks; a session on an engine of its own, so that no method knows an image beforehand.

    Returns:
        One row for each method and call: ``set_image``, ``first click``, ``first mask`` (both together) and ``next
        click``; where a method has it, ``prepare`` (after a click); and where it tells it, ``decoder`` (the network
        alone, of the next clicks); milliseconds.
    """
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    clicks = [record(recorder, sample) for sample in tqdm(data.samples, desc="clicks", unit="image", disable=None)]
    first = data.samples[0].load_image()
    for method in tqdm(methods.values(), desc="warm-up", unit="method", disable=None):
        method.set_image(first)
        for c in clicks[0][:2]:
            method.click(c.x, c.y, positive=c.positive)
    for number, sample in enumerate(tqdm(data.samples, desc="latency", unit="image", disable=None)):
        image = sample.load_image()
        for name, method in methods.items():
            if number < SLOW.get(name, len(data.samples)):
                _one_image(times, name, method, image, clicks[number])
    return [
        {"method": name, "call": call, "threads": torch.get_num_threads(), **_columns(values)}
        for (name, call), values in times.items()
    ]


def record(session: Session, sample: Sample) -> list[Click]:
    """The robot's clicks on the masks of this session; fewer than `CLICKS` where a mask becomes perfect."""
    truth = sample.load_mask()
    robot = make_clicker("ritm", truth)
    session.set_image(sample.load_image())
    mask = np.zeros(truth.shape, dtype=bool)
    clicks: list[Click] = []
    while len(clicks) < CLICKS and (click := robot.next_click(mask)) is not None:
        clicks.append(click)
        mask = session.click(click.x, click.y, click.positive).mask
    return clicks


def _one_image(
    times: dict[tuple[str, str], list[float]], name: str, method: Any, image: np.ndarray, clicks: list[Click]
) -> None:
    prepare = getattr(method, "prepare", None)
    start = time.perf_counter()
    method.set_image(image)
    if prepare is not None:
        prepare()
    encoded = _since(start)
    times[name, "set_image"].append(encoded)
    for number, c in enumerate(clicks):
        start = time.perf_counter()
        method.click(c.x, c.y, positive=c.positive)
        took = _since(start)
        if number == 0:
            times[name, "first click"].append(took)
            times[name, "first mask"].append(encoded + took)
        else:
            times[name, "next click"].append(took)
            if hasattr(method, "decode_ms"):
                times[name, "decoder"].append(method.decode_ms)
        if prepare is not None:
            start = time.perf_counter()
            prepare()
            times[name, "prepare"].append(_since(start))


def _since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)


def _columns(values: list[float]) -> dict[str, Any]:
    return {k if k == "n" else f"{k}_ms": v for k, v in asdict(ClickTimes.of(values)).items()}
