"""The next mask and its boxes are those of painting anew, whoever painted and wherever clicks lie."""

import numpy as np
import pytest

from activefreq_engine import Click
from activefreq_engine.runtime.painting import Painted, PaintRequest
from activefreq_engine.session import click_tally, shown
from activefreq_engine.session.boxes import mask_bbox
from activefreq_engine.session.canvas import Canvas, Layer
from activefreq_engine.session.click_tally import ClickTally
from activefreq_engine.session.shown import Shown

HEIGHT, WIDTH = 20, 45


@pytest.fixture(autouse=True, params=[click_tally.FEW, 0], ids=["in turn", "at once"])
def few(request, monkeypatch):
    """Clicks are looked at one by one where there are few."""
    for module in (click_tally, shown):
        monkeypatch.setattr(module, "FEW", request.param)


def placed(mask, region):
    box = mask_bbox(mask)
    return box and (box[0] + region[0], box[1] + region[1], box[2] + region[0], box[3] + region[1])


def packed(rows):
    return np.packbits(np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32))), axis=1, bitorder="little")


@pytest.mark.parametrize("kept", [True, False], ids=["masks are kept", "memory is used again"])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
def test_what_the_engine_painted_is_taken_over(rng, density, kept):
    """Few pixels, so that clicks are often the only ones on a side; regions change, and so does what is known."""
    masks = []
    for _ in range(8):
        clicked = ClickTally()
        shown, mask_box, last = Shown.of(Canvas(HEIGHT, WIDTH, 0.5)), None, None
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for k in range(12):
            if k % 4 == 0:
                x0, y0 = int(rng.integers(0, 9)), int(rng.integers(0, 9))
                region = x0, y0, int(rng.integers(x0 + 1, WIDTH + 1)), int(rng.integers(y0 + 1, HEIGHT + 1))
                rows = np.zeros((region[3] - y0, region[2] - x0), bool)
            before = rows
            rows = before ^ (rng.random(before.shape) < density / 2) if k % 4 else rng.random(before.shape) < density
            alike = last is not None and last.region == region and bool(rng.random() < 0.8)
            request = PaintRequest(region, 7, last)
            changed = placed(rows ^ before if alike else rows, region)
            last = Painted(request, packed(rows), placed(rows, region), changed, alike)
            new = Click(float(rng.integers(0, WIDTH)), float(rng.integers(0, HEIGHT)), bool(rng.random() < 0.5))
            clicked = clicked.then([new])
            canvas = Canvas(HEIGHT, WIDTH, 0.5, (), clicked.marks)
            expected = np.zeros((HEIGHT, WIDTH), bool)
            expected[y0 : region[3], x0 : region[2]] = rows
            for c in clicked.marks:
                expected[int(c.y), int(c.x)] = c.positive
            shown, box, differs = shown.then(canvas, mask_box, clicked, last)
            assert np.array_equal(shown.mask, expected)
            assert box == mask_bbox(expected)
            assert differs == mask_bbox(mask ^ expected)
            if kept:
                masks.append((shown.mask, expected))
            mask, mask_box = expected, box
    assert all(np.array_equal(a, b) for a, b in masks)


@pytest.mark.parametrize("kept", [True, False], ids=["masks are kept", "memory is used again"])
def test_layers_are_painted_over_what_stays(rng, kept):
    """A click may replace all layers, or lay one or two over a part, and the others may be hidden by them or not."""
    masks, over = [], 0
    for _ in range(12):
        clicked, layers = ClickTally(), ()
        last = Canvas(HEIGHT, WIDTH, 0.5)
        shown, mask_box = Shown.of(last), None
        for _ in range(10):
            boxes = []
            for _ in range(int(rng.integers(1, 3))):
                x0, y0 = int(rng.integers(0, WIDTH - 1)), int(rng.integers(0, HEIGHT - 1))
                boxes.append((x0, y0, int(rng.integers(x0 + 1, WIDTH + 1)), int(rng.integers(y0 + 1, HEIGHT + 1))))
            own = tuple(
                Layer.of(b, rng.random(rng.integers(1, 9, 2).tolist(), np.float32) ** (rng.random() < 0.5))
                for b in boxes
            )
            layers = (*last.beside(boxes[0]), *own) if rng.random() < 0.8 else own
            new = Click(float(rng.integers(0, WIDTH)), float(rng.integers(0, HEIGHT)), bool(rng.random() < 0.5))
            clicked = clicked.then([new])
            canvas = Canvas(HEIGHT, WIDTH, 0.5, layers, clicked.marks)
            over += canvas.laid_over(last) > 0
            before = shown.mask.copy()
            expected = Shown.of(Canvas(HEIGHT, WIDTH, 0.5, layers, clicked.marks)).mask
            shown, box, differs = shown.then(canvas, mask_box, clicked)
            assert np.array_equal(shown.mask, expected)
            assert box == mask_bbox(expected)
            assert differs == mask_bbox(before ^ expected)
            if kept:
                masks.append((shown.mask, expected))
            last, mask_box = canvas, box
    assert over > 10
    assert all(np.array_equal(a, b) for a, b in masks)


def test_a_canvas_knows_what_lies_under_its_new_layers(rng):
    def layer(*box):
        return Layer.of(box, rng.random((4, 4), np.float32))

    a, b, c, d = layer(0, 0, 20, 20), layer(20, 0, 30, 10), layer(2, 2, 8, 8), layer(1, 1, 9, 9)
    whole = Canvas(HEIGHT, WIDTH, 0.5, (a, b, c))
    assert Canvas(HEIGHT, WIDTH, 0.5, (a, b, d)).laid_over(whole) == 2  # c is hidden
    assert Canvas(HEIGHT, WIDTH, 0.5, (a, b, c, d)).laid_over(whole) == 3
    assert Canvas(HEIGHT, WIDTH, 0.5, (a, d)).laid_over(whole) == 0  # b was to be seen
    assert Canvas(HEIGHT, WIDTH, 0.5, (d,)).laid_over(whole) == 0
    assert whole.laid_over(whole) == 0
