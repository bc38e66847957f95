"""What a click costs does not grow with the image or the number of clicks.

Times are processor time of one thread, so that other programs on the machine do not count.
"""

import gc
import os
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from activefreq_engine import Engine, Session, create_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

FLAT = 1.15
MEMORY = 50e6  # bytes


@pytest.fixture
def one_thread():
    """One thread for torch and OpenCV."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture(scope="module")
def model():
    return create_model("freqformer_b0", pretrained=True)


def scene(megapixels: float) -> np.ndarray:
    """A bright ellipse on a dark ground, 4:3."""
    height = round((megapixels * 0.75e6) ** 0.5)
    image = np.full((height, height * 4 // 3, 3), 60, np.uint8)
    centre, axes = (image.shape[1] // 2, height // 2), (image.shape[1] // 4, height // 4)
    cv2.ellipse(image, centre, axes, 0, 0, 360, (200, 150, 140), -1)
    return image


def place(i: int) -> tuple[float, float, bool]:
    """The i-th click, (x, y) as parts of the image: on the object, and every third one beside it."""
    angle = 2.4 * i
    radius = 0.4 if i % 3 == 2 else 0.15 * (i % 5) / 5
    return 0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle), i % 3 != 2


def click(session: Session, i: int, *, against: bool = False) -> float:
    """Make the i-th click, perhaps with the sign that the mask does not have there; milliseconds of processor time."""
    height, width = session.shape
    x, y, positive = place(i)
    if against:
        positive = not session.mask[int(y * height), int(x * width)]
    start = time.thread_time()
    session.click(float(x * width), float(y * height), positive)
    return (time.thread_time() - start) * 1e3


@pytest.mark.parametrize("refine", [False, True])
def test_click_time_is_flat_in_megapixels(model, refine):
    """0.3 against 12 megapixels, turn by turn; the object grows with the image."""
    sessions = [Session(engine=Engine(model, size=384), refine=refine) for _ in range(2)]
    for s, megapixels in zip(sessions, (0.3, 12), strict=True):
        s.set_image(scene(megapixels))
    times: list[list[float]] = [[], []]
    for i in range(25):
        for s, own in zip(sessions, times, strict=True):
            own.append(click(s, i))
    small, large = (statistics.median(t[4:]) for t in times)
    print(f"0.3 megapixels {small:.1f} ms, 12 megapixels {large:.1f} ms")
    assert large <= FLAT * small


def test_click_time_is_flat_in_clicks(model):
    """A session with 40 clicks against one with 3, turn by turn."""
    engine = Engine(model)
    image = scene(0.3)
    old, young = Session(engine=engine), Session(engine=engine)
    for s in (old, young):
        s.set_image(image)
    for i in range(40):
        click(old, i)
    for i in range(3):
        click(young, i)
    times: list[list[float]] = [[], []]
    for _ in range(25):
        for s, own in ((old, times[0]), (young, times[1])):
            own.append(click(s, 3, against=True))  # a click that agrees is answered without the network
            s.undo()
    many, few = (statistics.median(t) for t in times)
    print(f"4th click {few:.1f} ms, 41st click {many:.1f} ms")
    assert many <= FLAT * few


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_200_clicks_on_12_megapixels_stay_in_memory(model):
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with Session(engine=Engine(model)) as s:
        s.set_image(scene(12))
        for i in range(10):
            click(s, i)
        before = resident()
        for i in range(10, 210):
            click(s, i)
        grown = resident() - before
    print(f"grown by {grown / 1e6:.1f} MB")
    assert grown < MEMORY
