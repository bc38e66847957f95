"""Simulated clicks: where they fall, what sign they have, what the network is shown of them."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from activefreq_engine.acselect import AcSelect
from activefreq_engine.models import FreqFormer, FreqFormerConfig
from activefreq_engine.train.simulate import (
    OUTLINED,
    PROMPTS,
    SCRIBBLED,
    SLOTS,
    THRESHOLD,
    ClickBatch,
    add_error_clicks,
    central_pixel,
    first_prompts,
    network_clicks,
    simulate,
)

from .conftest import disk

H, W = 41, 67


def test_central_pixel_is_well_inside(rng: np.random.Generator) -> None:
    region = np.zeros((H, W), bool)
    region[10:31, 5:60] = True  # 21 high: largest distance to the border 11 (pixel centres to the first pixel outside)
    for _ in range(40):
        x, y, depth = central_pixel(region, rng)
        assert depth == pytest.approx(11, abs=0.2)
        assert min(y - 9, 31 - y, x - 4, 60 - x) > depth / 2 - 0.2
    x, y, _ = central_pixel(region, rng, exact=1.0)
    assert y == 20


def test_image_border_counts_as_border(rng: np.random.Generator) -> None:
    _, y, depth = central_pixel(np.ones((H, W), bool), rng, exact=1.0)
    assert depth == pytest.approx(21, abs=0.3)
    assert y == 20


def test_nothing_to_click(rng: np.random.Generator) -> None:
    assert central_pixel(np.zeros((H, W), bool), rng) == (-1, -1, 0.0)


def test_first_prompts(rng: np.random.Generator) -> None:
    labels = np.zeros((3, H, W), np.int8)
    labels[0][disk(H, W, 45, 20, 9)] = 1
    labels[1, :, :40] = -1  # no object: a negative click, on pixels that count
    labels[2] = -1
    clicks = first_prompts(labels, rng).clicks
    (positive, negative) = clicks[0]
    assert len(positive) == 1
    assert not negative
    assert labels[0, positive[0][1], positive[0][0]] == 1
    (positive, negative) = clicks[1]
    assert not positive
    assert labels[1, negative[0][1], negative[0][0]] == 0
    assert clicks[2] == ([], [])


@pytest.mark.parametrize("clicker", ["ritm", "acselect"])
def test_error_clicks_fall_on_errors_and_have_their_sign(clicker: str, rng: np.random.Generator) -> None:
    for _ in range(10):
        labels = np.stack([disk(H, W, 30, 20, r) for r in (14, 14, 3)]).astype(np.int8)
        labels[:, :, -8:] = -1
        probs = rng.random((3, H, W), np.float32) * 0.2
        probs[0][disk(H, W, 36, 20, 13)] = 0.9  # misses the left, takes too much on the right
        probs[1][:, 50:] = 0.95  # surplus that reaches into the ignored part; object missed
        probs[2][disk(H, W, 30, 20, 18)] = 0.7  # only surplus
        clicks = ClickBatch(3)
        add_error_clicks(clicks, probs, labels, rng, clicker)
        for b, (positive, negative) in enumerate(clicks.clicks):
            assert len(positive) + len(negative) == 1
            for x, y in positive:
                assert labels[b, y, x] == 1
                assert probs[b, y, x] <= THRESHOLD
            for x, y in negative:
                assert labels[b, y, x] == 0
                assert probs[b, y, x] > THRESHOLD
        assert clicks.clicks[2][1]


def test_the_larger_error_is_clicked(rng: np.random.Generator) -> None:
    labels = disk(H, W, 15, 20, 12)[None].astype(np.int8)
    probs = np.zeros((1, H, W), np.float32)
    probs[0][disk(H, W, 52, 20, 5)] = 1
    clicks = ClickBatch(1)
    add_error_clicks(clicks, probs, labels, rng)
    assert [len(c) for c in clicks.clicks[0]] == [1, 0]
    probs[0][disk(H, W, 15, 20, 10)] = 1  # now most of the object is there
    add_error_clicks(clicks, probs, labels, rng)
    assert [len(c) for c in clicks.clicks[0]] == [1, 1]


def test_acselect_decides_where_it_is_asked_to(rng: np.random.Generator) -> None:
    """Two missed objects of one size: the plain rule cannot tell them apart, AcSelect takes the uncertain one."""
    labels = (disk(H, W, 16, 20, 9) | disk(H, W, 50, 20, 9))[None].astype(np.int8)
    probs = np.full((1, H, W), 0.01, np.float32)
    probs[0][disk(H, W, 50, 20, 9)] = 0.45
    clicks = ClickBatch(1)
    add_error_clicks(clicks, probs, labels, rng, "acselect")
    best = AcSelect().oracle(probs[0], probs[0] > THRESHOLD, labels[0] == 1)[0]
    assert clicks.clicks[0] == ([(best.x, best.y)], [])
    assert best.x > 40


@pytest.mark.parametrize("clicker", ["ritm", "acselect"])
def test_no_error_no_click(clicker: str, rng: np.random.Generator) -> None:
    labels = disk(H, W, 30, 20, 9)[None].astype(np.int8)
    labels[0, :5] = -1
    probs = (labels == 1).astype(np.float32)
    probs[0, :5] = 1  # wrong or right, it does not count
    clicks = ClickBatch(1)
    add_error_clicks(clicks, probs, labels, rng, clicker)
    assert clicks.clicks == [([], [])]


def test_points_keep_the_newest_of_each_sign() -> None:
    clicks = ClickBatch(2)
    for i in range(SLOTS + 6):
        clicks.add(0, i, 2 * i, True)
    clicks.add(0, 5, 6, False)
    points = clicks.points()
    assert points.shape == (2, 2 * SLOTS, 2)
    assert points[0, :SLOTS].tolist() == [[i, 2 * i] for i in range(6, SLOTS + 6)]
    assert points[0, SLOTS].tolist() == [5, 6]
    assert (points[0, SLOTS + 1 :] == -1).all()
    assert (points[1] == -1).all()


def test_points_are_no_longer_than_needed() -> None:
    clicks = ClickBatch(1)
    assert clicks.points().shape == (1, 0, 2)
    clicks.add(0, 3, 4, False)
    assert clicks.points().tolist() == [[[-1, -1], [3, 4]]]


def test_network_input() -> None:
    clicks = ClickBatch(1)
    clicks.add(0, 10, 20, True)
    clicks.add(0, 50, 5, False)
    previous = torch.rand(1, 1, H, W)
    maps = network_clicks(previous, clicks, 3)
    assert torch.equal(maps[:, :1], previous)
    np.testing.assert_array_equal(maps[0, 1].numpy(), disk(H, W, 10, 20, 3))
    np.testing.assert_array_equal(maps[0, 2].numpy(), disk(H, W, 50, 5, 3))


@pytest.mark.parametrize("iterations", [0, 3])
def test_simulation(iterations: int, rng: np.random.Generator) -> None:
    """No gradient, one click more than answers, each answer shown at the next step, clicks only added."""
    torch.manual_seed(0)
    model = FreqFormer(FreqFormerConfig(embed_dim=8, refiner_width=0)).eval()
    calls = []
    decode = model.decode_clicks

    def spy(features, clicks):
        out = decode(features, clicks)
        calls.append((clicks.clone(), out.logits.sigmoid()))
        return out

    model.decode_clicks = spy
    labels = torch.from_numpy(np.stack([disk(32, 64, 20, 15, r) for r in (9, 5)]))[:, None].to(torch.int8)
    maps, clicks = simulate(model, torch.randn(2, 3, 32, 64), labels, iterations, rng)
    for (positive, negative), last in zip(clicks.clicks, clicks.last, strict=True):
        assert len(positive) + len(negative) == 1 + iterations
        assert last in (positive[-1:] + negative[-1:])
    assert not maps.requires_grad
    assert len(calls) == iterations
    if not iterations:
        assert not maps[:, 0].any()
        return
    torch.testing.assert_close(maps[:, :1], calls[-1][1])
    assert not calls[0][0][:, 0].any()
    for earlier, later in pairwise(calls):
        torch.testing.assert_close(later[0][:, :1], earlier[1])
        assert (later[0][:, 1:] >= earlier[0][:, 1:]).all()


def test_first_prompts_have_their_shares(rng: np.random.Generator) -> None:
    labels = np.stack([disk(H, W, 45, 20, 9), disk(H, W, 20, 20, 15)]).astype(np.int8)
    seen = {"click": 0, "outline": 0, "scribble": 0}
    for _ in range(300):
        clicks = first_prompts(labels, rng, PROMPTS, 1.0)
        for b, (positive, negative) in enumerate(clicks.clicks):
            assert not negative
            seen["outline" if b in clicks.outlined else "click" if len(positive) == 1 else "scribble"] += 1
            assert (b in clicks.outlined) == (not positive)
            assert all(labels[b, y, x] == 1 for x, y in positive)
            assert clicks.last[b] is not None
    shares = dict(PROMPTS)
    assert seen["outline"] / 600 == pytest.approx(shares["box"] + shares["lasso"], abs=0.08)
    # a scribble may be as short as a click
    assert 0.02 < seen["scribble"] / 600 <= shares["scribble"] + 0.06


@pytest.mark.parametrize("kind", ["box", "lasso"])
def test_an_outline_is_the_previous_answer_and_no_click(kind: str, rng: np.random.Generator) -> None:
    labels = np.zeros((3, H, W), np.int8)
    labels[0][disk(H, W, 40, 20, 12)] = 1
    labels[1, 5:9, 3:60] = 1  # thin
    labels[2, :, 10:] = -1  # no object: a negative click
    clicks = first_prompts(labels, rng, ((kind, 1.0),), 2.0)
    start = clicks.start(H, W)
    assert set(np.unique(start)) == {0.0, OUTLINED}
    for b in (0, 1):
        covered = (start[b, 0].numpy() == OUTLINED)[labels[b] == 1].mean()
        assert covered > 0.5
        assert clicks.clicks[b] == ([], [])
    assert not start[2].any()
    assert len(clicks.clicks[2][1]) == 1


def test_corrections_may_be_scribbles(rng: np.random.Generator) -> None:
    """They lie in one piece of the error and have its sign."""
    labels = np.zeros((1, H, W), np.int8)
    labels[0, 10:30, 5:60] = 1
    probs = np.zeros((1, H, W), np.float32)
    most = 0
    for _ in range(20):
        clicks = ClickBatch(1)
        add_error_clicks(clicks, probs, labels, rng, scribbled=1.0, radius=2.0)
        positive, negative = clicks.clicks[0]
        assert positive
        assert not negative
        assert all(labels[0, y, x] == 1 for x, y in positive)
        most = max(most, len(positive))
    assert most > 2
    few, nothing = ClickBatch(400), np.zeros((400, H, W), np.float32)
    add_error_clicks(few, nothing, np.repeat(labels, 400, 0), rng, scribbled=SCRIBBLED, radius=2.0)
    assert 0.02 < np.mean([len(p) > 1 for p, _ in few.clicks]) < 0.2


def test_the_first_pass_sees_the_outline(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the later ones the model's own answer."""
    model = FreqFormer(FreqFormerConfig(embed_dim=8, refiner_width=0)).eval()
    labels = torch.zeros(1, 1, 32, 64, dtype=torch.int8)
    labels[0, 0, 8:24, 10:40] = 1
    given, _ = simulate(model, torch.randn(1, 3, 32, 64), labels, 0, rng, prompts=(("box", 1.0),))
    assert set(np.unique(given[:, 0])) == {0.0, OUTLINED}
    assert not given[:, 1:].any()
    given, clicks = simulate(model, torch.randn(1, 3, 32, 64), labels, 1, rng, prompts=(("box", 1.0),))
    assert len(np.unique(given[:, 0])) > 10
    assert sum(map(len, clicks.clicks[0])) == 1
