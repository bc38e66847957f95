"""Boxes, lassos and scribbles as people draw them."""

import numpy as np
import pytest

from activefreq_engine.train.prompts import INWARD, OUTWARD, SCRIBBLE, lasso, loose_box, scribble

from .conftest import disk

H, W = 61, 97


def bent() -> np.ndarray:
    """An L, and a small piece beside it."""
    region = np.zeros((H, W), bool)
    region[5:55, 10:24] = True
    region[41:55, 10:80] = True
    region[8:12, 85:90] = True
    return region


def test_boxes_are_exact_or_off_by_a_little(rng: np.random.Generator) -> None:
    region = disk(H, W, 50, 30, 20)
    boxes = np.array([loose_box(region, rng) for _ in range(200)])
    exact = (30, 10, 71, 51)
    assert 0.3 < np.mean([tuple(b) == exact for b in boxes.tolist()]) < 0.75
    outward = (boxes - exact) * (-1, -1, 1, 1)
    assert -round(INWARD * 41) <= outward.min() < 0
    assert round(OUTWARD * 41) // 2 < outward.max() <= round(OUTWARD * 41)


def test_boxes_stay_in_the_image_and_hold_something(rng: np.random.Generator) -> None:
    for region in (np.ones((H, W), bool), disk(H, W, 0, 0, 1), disk(H, W, W - 1, H - 1, 0)):
        for _ in range(30):
            x0, y0, x1, y1 = loose_box(region, rng, outward=0.6)
            assert 0 <= x0 < x1 <= W
            assert 0 <= y0 < y1 <= H
    assert loose_box(np.zeros((H, W), bool), rng) is None


def test_a_lasso_is_roughly_the_region(rng: np.random.Generator) -> None:
    for region in (disk(H, W, 50, 30, 20), bent()):
        found = [lasso(region, rng) for _ in range(40)]
        overlap = [(m & region).sum() / (m | region).sum() for m in found]
        assert min(overlap) > 0.3  # a hull holds more
        assert max(overlap) > 0.9
        assert len({int(m.sum()) for m in found}) > 10
    assert not lasso(np.zeros((H, W), bool), rng).any()
    one = np.zeros((H, W), bool)
    one[3, 4] = True
    assert all(lasso(one, rng).any() for _ in range(20))


def test_a_scribble_stays_in_its_piece(rng: np.random.Generator) -> None:
    region = bent()
    lengths = []
    for _ in range(100):
        points = scribble(region, rng, 6.0)
        assert 1 <= len(points) <= SCRIBBLE
        assert region[points[:, 1], points[:, 0]].all()
        assert (points[:, 0] < 84).all()  # not in the small piece
        lengths.append(len(points))
    assert max(lengths) > 4
    assert scribble(np.zeros((H, W), bool), rng, 6.0).shape == (0, 2)
    assert scribble(disk(H, W, 5, 5, 0), rng, 6.0).tolist() == [[5, 5]]


@pytest.mark.parametrize("spacing", [0.0, 3.0, 50.0])
def test_points_of_a_scribble_keep_apart(spacing: float, rng: np.random.Generator) -> None:
    """Along the line: it may come back to where it was."""
    region = np.zeros((H, W), bool)
    region[20:40] = True
    counts = [len(scribble(region, rng, spacing)) for _ in range(50)]
    assert max(counts) == SCRIBBLE if spacing < 10 else max(counts) < 6
