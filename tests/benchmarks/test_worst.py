"""The sheet of failure cases: which samples, whether the masks are the report's, and where things are drawn."""

from dataclasses import replace

import numpy as np
import pytest

from activefreq_engine import Click
from activefreq_engine.eval import Dataset, Report, Sample, SampleResult, Settings
from bench.quality import worst

H, W = 67, 91


class Square:
    """Answers click k with a square of k times ten pixels a side."""

    def set_image(self, image):
        self.side = 0

    def click(self, x, y, positive=True):
        self.side += 10
        mask = np.zeros((H, W), bool)
        mask[: self.side, : self.side] = True
        return type("Step", (), {"mask": mask})()


def report(curves, clicks=()):
    settings = Settings("m", "ritm", len(curves[0]), None, 0, 1, {}, "d", "masks", len(curves), "0", {})
    results = [SampleResult(i, f"s{i}", 1, tuple(c), clicks, (1.0,) * len(clicks)) for i, c in enumerate(curves)]
    return Report(settings, tuple(results), 1.0)


def squares(rng):
    """One sample: a square of 40 pixels, clicked five times, and the report of `Square` on it."""
    image = rng.integers(0, 255, (H, W, 3), np.uint8)
    truth = np.zeros((H, W), np.int8)
    truth[:40, :40] = 1
    data = Dataset("d", "masks", (Sample("s0", 1, "s0", lambda: image, lambda: truth),))
    ious = [100 * k * k / 1600 for k in (1, 2, 3, 4)] + [1600 / 2500] * 16
    return data, report([ious], tuple(Click(k, 2 * k, k < 3) for k in range(5)))


def test_the_worst_come_first():
    curves = [[0.5, 0.95, 0.95], [0.2, 0.3, 0.4], [0.2, 0.6, 0.4], [0.9, 0.9, 0.9], [0.1, 0.2, 0.91]]
    # three clicks each: 4, 1, 2 (of them the lowest IoU after two clicks first), then two clicks, then one
    assert worst.worst(report(curves), 5) == [4, 1, 2, 0, 3]
    assert worst.worst(report(curves), 2) == [4, 1]


def test_replay_gives_the_masks_of_the_report(rng):
    data, found = squares(rng)
    case = worst.replay(Square(), data, found, 0)
    assert [int(m.sum()) for m in case.masks] == [100, 400, 2500]
    assert case.title == "s0: 4 clicks"


def test_replay_refuses_another_model(rng):
    data, found = squares(rng)
    other = replace(found.samples[0], ious=(0.5, *found.samples[0].ious[1:]))
    with pytest.raises(ValueError, match=r"after click 1 is 0\.062, in the report 0\.500"):
        worst.replay(Square(), data, replace(found, samples=(other,)), 0)


def test_a_sample_with_one_click_shows_its_last_mask(rng):
    data, found = squares(rng)
    one = replace(found.samples[0], clicks=found.samples[0].clicks[:1], milliseconds=(1.0,))
    case = worst.replay(Square(), data, replace(found, samples=(one,)), 0)
    assert [int(m.sum()) for m in case.masks] == [100, 100, 100]
    assert len(worst.panels(case)) == 4


@pytest.mark.parametrize(
    ("box", "expected"),
    [((30, 20, 50, 30), (26, 11, 54, 39)), ((0, 0, 20, 10), (0, 0, 28, 28)), ((0, 0, W, H), (0, 0, W, H))],
)
def test_the_window_surrounds_all_pixels(box, expected):
    pixels = np.zeros((H, W), bool)
    pixels[box[1] : box[3], box[0] : box[2]] = True
    assert worst.window(pixels) == expected


def test_clicks_are_drawn_where_they_fall():
    truth = np.zeros((H, W), np.int8)
    truth[20:50, 40:80] = 1
    case = worst.HardCase("", np.full((H, W, 3), 128, np.uint8), truth, (Click(45, 25),), (truth == 1,) * 3)
    whole, near = worst.panels(case)[:2]
    assert whole.shape == (round(H * worst.PANEL / W), worst.PANEL, 3)
    left, top, right, _ = worst.window(truth == 1)
    scale = worst.PANEL / (right - left)
    blue = np.argwhere((near == (0, 114, 178)).all(axis=2))
    assert blue.mean(axis=0) == pytest.approx(((25.5 - top) * scale, (45.5 - left) * scale), abs=1.5)
    assert not (whole == (0, 114, 178)).all(axis=2).any()


def test_the_sheet_has_room_for_all(rng):
    data, found = squares(rng)
    case = worst.replay(Square(), data, found, 0)
    three = worst.sheet([case] * 3, [found.samples[0].ious] * 3)
    four = worst.sheet([case] * 4, [found.samples[0].ious] * 4)
    assert three.size == four.size
    assert four.height - worst.sheet([case], [found.samples[0].ious]).height == worst.TITLE + worst.PANEL + worst.GAP


def test_traits():
    truth = np.zeros((H, W), np.int8)
    truth[20:40, 30:60] = 1
    image = np.full((H, W, 3), 200, np.uint8)
    assert worst.traits(image, truth)["area"] == pytest.approx(100 * 600 / (H * W))
    assert worst.traits(image, truth)["contrast"] == pytest.approx(0, abs=0.01)
    image[truth == 1] = 0
    black_to_grey = worst.traits(image, truth)["contrast"]
    assert black_to_grey == pytest.approx(80.6, abs=0.5)  # lightness of sRGB 200
    image[:3] = 0  # beyond the ring
    assert worst.traits(image, truth)["contrast"] == pytest.approx(black_to_grey)
