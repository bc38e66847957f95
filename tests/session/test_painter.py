"""Masks of small maps: the rule in whole numbers, whatever the size, and however little is painted anew."""

import threading

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activefreq_engine.session import painter
from activefreq_engine.session.boxes import mask_bbox
from activefreq_engine.session.painter import Painter, limit
from activefreq_engine.types import Click

ONE = 65535


def shares(pixels, values):
    """int64 `[pixels, values]`: what each pixel takes of each level, in 256ths, by the rule, in Python's integers."""
    out = np.zeros((pixels, values), np.int64)
    for i in range(pixels):
        if values <= pixels:
            place = min(max((2 * i + 1) * values - pixels, 0), 2 * pixels * (values - 1))
            low = min(place // (2 * pixels), values - 1)
            after = ((place - 2 * pixels * low) * 256 + pixels) // (2 * pixels)
            out[i, low] += 256 - after
            out[i, min(low + 1, values - 1)] += after
            continue
        covered = [min(max(k * pixels - i * values, 0), values) for k in range(values + 1)]
        part = [(2 * 256 * c + values) // (2 * values) for c in covered]
        out[i] = np.diff(part)
    assert (out.sum(1) == 256).all()
    return out


def sums(levels, height, width):
    """The rule: int64 `[height, width]`."""
    return shares(height, levels.shape[0]) @ levels.astype(np.int64) @ shares(width, levels.shape[1]).T


def smooth(rng, shape):
    """Levels with large regions on either side of one half, and some at the limit of 0.49."""
    values = cv2.GaussianBlur(rng.random(shape, np.float32), (0, 0), 5).reshape(shape)
    levels = np.rint(np.clip((values - values.mean()) * 12 + 0.5, 0, 1) * ONE).astype(np.uint16)
    levels[rng.random(shape) < 0.1] = limit(0.49) >> 16
    return levels


def noise(rng, shape):
    return rng.integers(0, ONE + 1, shape).astype(np.uint16)


sides = st.integers(1, 40)
pixels = st.integers(1, 130)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(sides, sides),
    size=st.tuples(pixels, pixels),
    at=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    kind=st.sampled_from([smooth, noise]),
    threshold=st.sampled_from([0.49, 0.5, 0.02, 0.97]),
    at_once=st.sampled_from([16, 1 << 15]),
    seed=st.integers(0, 2**32 - 1),
)
def test_all_ways_of_painting_follow_the_rule_bit_by_bit(shape, size, at, kind, threshold, at_once, seed):
    rng = np.random.default_rng(seed)
    (height, width), (x0, y0) = size, at
    box = x0, y0, x0 + width, y0 + height
    inside = np.s_[y0 : y0 + height, x0 : x0 + width]
    whole = (y0 + height + 2, x0 + width + 3)
    before, levels = kind(rng, shape), kind(rng, shape)
    if kind is smooth:  # a small change, as from one click to the next
        levels = np.where(rng.random(shape) < 0.1, levels, before)
    old, new = (Painter(box, x, limit(threshold)) for x in (before, levels))
    expected = np.zeros(whole, bool)
    expected[inside] = sums(levels, *size) > limit(threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painter, "_AT_ONCE", at_once)
        patch.setattr(painter, "_STRIP", 300)

        mask = np.zeros(whole, bool)
        new.threshold(mask, blank=True)
        assert np.array_equal(mask, expected)

        dirty = rng.random(whole) < 0.5
        outside = dirty.copy()
        new.threshold(dirty)
        outside[inside] = expected[inside]
        assert np.array_equal(dirty, outside)

        probs = np.zeros(whole, np.float32)
        y = int(rng.integers(0, whole[0] + 1))
        new.paint(probs[:y], 0, y)
        new.paint(probs[y:], y, whole[0])
        assert np.array_equal(probs > threshold, expected)
        assert np.array_equal(probs[inside], (sums(levels, *size) / (ONE * 65536)).astype(np.float32))

        mask = np.zeros(whole, bool)
        old.threshold(mask, blank=True)
        first = mask.copy()
        if not new.fits(old):  # more levels than pixels
            assert max(shape[0] - height, shape[1] - width) > 0
            return
        clicks = [
            Click(x0 + rng.uniform(0, width), y0 + rng.uniform(0, height), bool(rng.random() < 0.5)) for _ in range(3)
        ]
        at = np.array([int(c.y) * whole[1] + int(c.x) for c in clicks])
        found = new.repaint(mask, old, at, np.array([c.positive for c in clicks]))
    if found is None:  # too much has changed
        assert np.array_equal(mask, first)
        return
    clicked = np.zeros(whole, bool)
    for c in clicks:
        expected[int(c.y), int(c.x)] = c.positive
        clicked[int(c.y), int(c.x)] = True
    assert np.array_equal(mask, expected)
    _, changed = found
    free = np.argwhere((mask != first) & ~clicked)
    for y, x in free:
        assert changed is not None
        assert changed[0] <= x < changed[2]
        assert changed[1] <= y < changed[3]


def test_outlines_and_changes_are_boxed_exactly(rng):
    """Small changes of a disk in the middle, no clicks: what `repaint` returns is what reading the masks would."""
    y, x = np.mgrid[:64, :96]
    box = (10, 20, 10 + 301, 20 + 203)
    shown = None
    mask = np.zeros((300, 400), bool)
    for _ in range(30):
        radius, u, v = rng.uniform(19.5, 20.5), rng.uniform(47.5, 48.5), rng.uniform(31.5, 32.5)
        disk = 1 / (1 + np.exp(np.clip(np.hypot(x - u, y - v) - radius, -50, 50)))
        new = Painter(box, np.rint(disk * ONE).astype(np.uint16), limit(0.49))
        before = mask.copy()
        if shown is None:
            new.threshold(mask, blank=True)
        else:
            assert new.outlined
            found = new.repaint(mask, shown, np.empty(0, np.intp), np.empty(0, bool))
            assert found is not None
            assert found == (mask_bbox(mask), mask_bbox(mask != before))
        shown = new


@pytest.mark.parametrize("threshold", [0.49, 0.5, 0.3, 1e-6, 1 - 1e-7, 0.1])
def test_the_limit_says_what_the_threshold_says(threshold):
    whole = float(ONE * 65536)
    at = limit(threshold)
    assert 0 <= at < whole
    assert not np.float32(at / whole) > np.float32(threshold)
    assert np.float32((at + 1) / whole) > np.float32(threshold)


def test_a_level_is_its_own_probability():
    """A map as large as its box is painted as it is: what the network sees again is what the mask was painted from."""
    levels = np.arange(ONE + 1, dtype=np.uint16).reshape(256, 256)
    probs = np.zeros((256, 256), np.float32)
    Painter((0, 0, 256, 256), levels, limit(0.49)).paint(probs, 0, 256)
    assert np.array_equal(probs, levels.astype(np.float32) / np.float32(ONE))


CASES = [((24, 32), (150, 400)), ((64, 96), (64, 96)), ((96, 64), (700, 65)), ((1, 7), (5, 90)), ((9, 1), (300, 1))]
CASES += [((33, 50), (901, 800))]


@pytest.mark.parametrize(("small", "large"), CASES)
def test_bilinear(rng, small, large):
    """OpenCV's interpolation, but for the 256ths."""
    levels = noise(rng, small)
    height, width = large
    strip = np.zeros((height + 3, width + 5), np.float32)
    Painter((4, 2, 4 + width, 2 + height), levels, limit(0.49)).paint(strip, 0, height + 3)
    expected = cv2.resize(levels.astype(np.float32) / ONE, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(strip[2 : 2 + height, 4 : 4 + width] - expected).max() <= 1 / 256
    strip[2 : 2 + height, 4 : 4 + width] = 0
    assert not strip.any()


def test_a_mask_costs_its_outline(monkeypatch):
    """Cells that lie on one side are not computed."""
    levels = np.zeros((256, 256), np.uint16)
    cv2.circle(levels, (128, 128), 60, ONE, -1)
    computed = 0
    sums = Painter._sums

    def counted(self, cells, i, j):
        nonlocal computed
        found = sums(self, cells, i, j)
        computed += found.size
        return found

    monkeypatch.setattr(Painter, "_sums", counted)
    mask = np.zeros((2560, 2560), bool)
    Painter((0, 0, 2560, 2560), levels, limit(0.5)).threshold(mask, blank=True)
    assert abs(mask.mean() - (levels > ONE / 2).mean()) < 0.001
    assert 0 < computed < mask.size / 50


def test_a_map_is_painted_over_another():
    """The second one's False counts."""
    mask = np.zeros((300, 300), bool)
    Painter((0, 0, 300, 300), np.full((30, 30), ONE, np.uint16), limit(0.5)).threshold(mask, blank=True)
    Painter((50, 60, 250, 220), np.zeros((16, 20), np.uint16), limit(0.5)).threshold(mask)
    expected = np.ones((300, 300), bool)
    expected[60:220, 50:250] = False
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("hidden", [(60, 40, 500, 400), (0, 0, 600, 600), (-5, 100, 300, 900), (0, 0, 1, 1)])
def test_what_will_be_painted_over_may_be_left_out(rng, hidden):
    new = Painter((20, 30, 920, 730), smooth(rng, (48, 64)), limit(0.5))
    whole, part = (np.zeros((760, 940), bool) for _ in range(2))
    new.threshold(whole, blank=True)
    new.threshold(part, blank=True, hidden=hidden)
    outside = np.ones(whole.shape, bool)
    outside[max(0, hidden[1]) : hidden[3], max(0, hidden[0]) : hidden[2]] = False
    assert np.array_equal(whole[outside], part[outside])


def test_painters_do_not_wait_for_each_other(monkeypatch):
    """A process forked while another thread paints has that thread's locks, and nobody who would free them."""
    counted, begun, end = Painter._counted, threading.Event(), threading.Event()

    def slowly(self, levels):
        if threading.current_thread() is first:
            begun.set()
            assert end.wait(60)
        return counted(self, levels)

    def paint():
        levels = np.full((8, 8), ONE, np.uint16)
        Painter((0, 0, 32, 32), levels, limit(0.5)).threshold(np.zeros((32, 32), bool), blank=True)

    monkeypatch.setattr(Painter, "_counted", slowly)
    first, second = (threading.Thread(target=paint, daemon=True) for _ in range(2))
    first.start()
    assert begun.wait(60)
    second.start()
    second.join(20)
    finished = not second.is_alive()
    end.set()
    first.join(60)
    assert finished
