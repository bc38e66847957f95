"""AcSelect: scores against a plain computation, and the promises of its two modes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage

from activefreq_engine import ActiveFreqError, InvalidArgumentError
from activefreq_engine.acselect import RGU_VARIANTS, AcSelect
from activefreq_engine.errors import BackendUnavailableError
from activefreq_engine.types import Suggestion

TOLERANCE = 1e-9
EIGHT = np.ones((3, 3))


def entropy(p):
    p = np.asarray(p, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(-p * np.log2(p)) + np.nan_to_num(-(1 - p) * np.log2(1 - p))


def scene(rng: np.random.Generator, height: int = 61, width: int = 90):
    """Smooth random probabilities, their mask, and another smooth mask as the truth."""

    def smooth():
        noise = ndimage.gaussian_filter(rng.random((height, width)), 4)
        return (noise - noise.min()) / (noise.max() - noise.min())

    probs, truth = smooth(), smooth() > 0.5
    return probs, probs > 0.49, truth


def rectangle(shape, x0, y0, x1, y1):
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask


# Plain definitions of the region scores: one region, one mask at a time.


def rgu_by_hand(variant, region, regions, probs, mask):
    h = entropy(probs)
    if variant == "mean_prob":
        return entropy(probs[region].mean())
    if variant == "entropy_share":
        return h[region].sum() / sum(h[other].sum() for other in regions)
    if variant == "variance":
        return 4 * probs[region].var()
    ys, xs = np.nonzero(region)
    window = mask[max(ys.min() - 1, 0) : ys.max() + 2, max(xs.min() - 1, 0) : xs.max() + 2]
    return entropy(window.mean()) * h[region].mean()


@pytest.mark.parametrize("variant", RGU_VARIANTS)
def test_scores_equal_the_plain_definition(variant, rng):
    probs, mask, truth = scene(rng)
    weights = (0.5, 2.0, 1.5)
    scores = AcSelect(weights, rgu=variant).oracle_scores(probs, mask, truth)
    regions = [
        labels == k
        for labels, n in (ndimage.label(truth & ~mask, EIGHT), ndimage.label(mask & ~truth, EIGHT))
        for k in range(1, n + 1)
    ]
    assert len(scores) == len(regions) > 1
    h = entropy(probs)
    for i in range(len(scores)):
        x, y = scores.point[i]
        (region,) = [r for r in regions if r[y, x]]
        ys, xs = np.nonzero(region)
        distance = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        assert scores.area[i] == region.sum()
        assert scores.bbox[i].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert scores.radius[i] == pytest.approx(distance.max(), abs=TOLERANCE)
        assert distance[y, x] == pytest.approx(distance.max(), abs=TOLERANCE)
        assert scores.positive[i] == truth[y, x]
        mpe, ape = h[region].max(), h[region].mean()
        rgu = rgu_by_hand(variant, region, regions, probs, mask)
        assert scores.mpe[i] == pytest.approx(mpe, abs=TOLERANCE)
        assert scores.ape[i] == pytest.approx(ape, abs=TOLERANCE)
        assert scores.rgu[i] == pytest.approx(rgu, abs=TOLERANCE)
        assert 0 <= scores.rgu[i] <= 1
        assert scores.score[i] == pytest.approx(0.5 * mpe + 2 * ape + 1.5 * rgu, abs=TOLERANCE)


def test_ripu_looks_one_pixel_beyond_the_region():
    mask = rectangle((40, 53), 12, 11, 30, 25)
    truth = mask & ~rectangle(mask.shape, 12, 11, 17, 16)  # a superfluous corner of 5 x 5 pixels
    (suggestion,) = AcSelect(rgu="ripu").oracle(np.full(mask.shape, 0.5), mask, truth)
    assert suggestion.rgu == pytest.approx(entropy(36 / 49), abs=TOLERANCE)  # 6 x 6 mask pixels in a box of 7 x 7


def test_order_and_minimum_sizes(rng):
    for _ in range(10):
        probs, mask, truth = scene(rng)
        acselect = AcSelect(min_area=20, min_radius=2.2, prominence=0.6)
        scores = acselect.oracle_scores(probs, mask, truth)
        small = (scores.area < 20) | (scores.radius < 2.2)
        narrow = scores.radius < 0.6 * scores.radius.max()
        np.testing.assert_array_equal(scores.rank, np.where(small, 2, np.where(narrow, 1, 0)))
        keys = list(zip(scores.rank, -scores.score, -scores.area, strict=True))
        assert keys == sorted(keys)
        suggestions = acselect.oracle(probs, mask, truth)
        kept = [row for row in scores.rows() if row["rank"] < 2]
        assert [(s.x, s.y, s.score) for s in suggestions] == [(row["x"], row["y"], row["score"]) for row in kept]


def test_a_certain_wide_error_goes_before_an_uncertain_sliver():
    truth = rectangle((50, 80), 10, 10, 40, 40)
    sliver = rectangle((50, 80), 60, 5, 61, 45)
    probs = np.where(truth, 0.3, np.where(sliver, 0.5, 0.05))
    default = AcSelect().oracle(probs, sliver, truth)
    assert [(s.x, s.y, s.positive) for s in default] == [(24, 24, True)]
    by_score = AcSelect(rgu="mean_prob", min_area=0, min_radius=0, prominence=0).oracle(probs, sliver, truth)
    assert [s.positive for s in by_score] == [False, True]


def test_prominence_one_is_the_distance_rule(rng):
    for _ in range(10):
        probs, mask, truth = scene(rng)
        if (mask == truth).all():
            continue
        best = AcSelect(prominence=1, min_area=0, min_radius=0).oracle(probs, mask, truth)[0]
        errors = np.stack([truth & ~mask, mask & ~truth])
        distance = np.stack([ndimage.distance_transform_edt(np.pad(e, 1))[1:-1, 1:-1] for e in errors])
        layer = 0 if best.positive else 1
        assert distance[layer, best.y, best.x] == pytest.approx(distance.max(), abs=TOLERANCE)


def test_touching_errors_of_both_signs_are_two_regions():
    truth = rectangle((30, 47), 5, 5, 15, 25)
    prediction = rectangle((30, 47), 15, 5, 25, 25)
    suggestions = AcSelect().oracle(np.full(truth.shape, 0.4), prediction, truth)
    assert sorted((s.positive, s.region_bbox, s.area) for s in suggestions) == [
        (False, (15, 5, 25, 25), 200),
        (True, (5, 5, 15, 25), 200),
    ]


small_masks = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=10))


@given(small_masks, st.data())
@settings(deadline=None, max_examples=80)
def test_oracle_is_empty_only_without_errors_and_always_clicks_an_error(truth, data):
    prediction = data.draw(npst.arrays(bool, truth.shape))
    valid = data.draw(npst.arrays(bool, truth.shape))
    probs = data.draw(npst.arrays(np.float64, truth.shape, elements=st.floats(0, 1)))
    acselect = data.draw(st.builds(AcSelect, min_area=st.integers(0, 30), min_radius=st.floats(0, 4)))
    errors = (truth != prediction) & valid
    suggestions = acselect.oracle(probs, prediction, truth, valid)
    assert bool(suggestions) == errors.any()
    for s in suggestions:
        assert errors[s.y, s.x]
        assert s.positive == truth[s.y, s.x]
        x0, y0, x1, y1 = s.region_bbox
        assert x0 <= s.x < x1
        assert y0 <= s.y < y1


def test_only_small_errors_give_the_largest():
    truth = rectangle((20, 31), 3, 3, 4, 6) | rectangle((20, 31), 20, 10, 21, 17) | rectangle((20, 31), 9, 2, 10, 4)
    probs = np.where(rectangle((20, 31), 20, 10, 21, 17), 0.1, 0.4)  # the largest has the lowest score
    suggestions = AcSelect().oracle(probs, np.zeros_like(truth), truth)
    assert [(s.x, s.y, s.area, s.region_bbox) for s in suggestions] == [(20, 10, 7, (20, 10, 21, 17))]


def test_a_clicked_pixel_that_is_not_valid_is_not_proposed_again():
    truth = rectangle((20, 31), 5, 5, 14, 14)
    probs, empty = np.full(truth.shape, 0.3), np.zeros_like(truth)
    first = AcSelect().oracle(probs, empty, truth)[0]
    assert (first.x, first.y) == (9, 9)
    valid = np.ones_like(truth)
    valid[first.y, first.x] = False
    second = AcSelect().oracle(probs, empty, truth, valid)[0]
    assert truth[second.y, second.x]
    assert (second.x, second.y) != (9, 9)


def test_a_perfect_prediction_needs_no_click(rng):
    probs, mask, _ = scene(rng)
    assert AcSelect().oracle(probs, mask, mask) == []
    assert len(AcSelect().oracle_scores(probs, mask, mask)) == 0


@pytest.mark.parametrize("variant", RGU_VARIANTS)
def test_certain_errors_have_no_uncertainty(variant):
    truth = rectangle((20, 31), 5, 5, 14, 14)
    (suggestion,) = AcSelect(rgu=variant).oracle(np.zeros(truth.shape), np.zeros_like(truth), truth)
    assert (suggestion.mpe, suggestion.ape, suggestion.rgu, suggestion.score) == (0, 0, 0, 0)


def test_the_place_in_a_large_image_does_not_matter(rng):
    probs, mask, truth = scene(rng, 41, 67)
    small = AcSelect().oracle(probs, mask & truth, truth)
    corner = (slice(130, 171), slice(20, 87))
    big = [np.zeros((300, 201), a.dtype) for a in (probs, mask, truth)]
    for canvas, part in zip(big, (probs, mask & truth, truth), strict=True):
        canvas[corner] = part
    moved = AcSelect().oracle(*big)
    assert [(s.x + 20, s.y + 130, s.positive, s.score) for s in small] == [
        (s.x, s.y, s.positive, s.score) for s in moved
    ]


# Suggest mode


def test_suggest_proposes_the_opposite_of_the_mask_in_uncertain_regions(rng):
    found = 0
    for _ in range(10):
        probs, mask, _ = scene(rng)
        suggestions = AcSelect().suggest(probs, k=5)
        found += len(suggestions)
        for s in suggestions:
            x0, y0, x1, y1 = s.region_bbox
            assert entropy(probs[s.y, s.x]) > 0.9
            assert s.positive != mask[s.y, s.x]
            same = (mask != s.positive) & (entropy(probs) > 0.9)
            labels, _ = ndimage.label(same, EIGHT)
            assert s.area == (labels == labels[s.y, s.x])[y0:y1, x0:x1].sum()
    assert found


def test_suggest_gives_k_best_first():
    probs = np.full((40, 121), 0.02)
    for i, p in enumerate((0.33, 0.45, 0.6, 0.66)):
        probs[10:30, 5 + 30 * i : 25 + 30 * i] = p
    suggestions = AcSelect().suggest(probs)
    assert [(s.x, s.positive) for s in suggestions] == [(44, True), (74, False), (104, False)]
    assert AcSelect().suggest(probs, k=1) == suggestions[:1]
    assert len(AcSelect().suggest(probs, k=10)) == 4
    assert all(isinstance(s, Suggestion) for s in suggestions)


def test_an_uncertain_band_along_the_contour_is_two_suggestions():
    block, inner = rectangle((60, 91), 20, 10, 70, 50), rectangle((60, 91), 27, 17, 63, 43)
    around = rectangle((60, 91), 15, 5, 75, 55)
    probs = np.where(inner, 0.99, np.where(block, 0.6, np.where(around, 0.4, 0.01)))  # 7 pixels inside, 5 outside
    suggestions = AcSelect().suggest(probs)
    areas = [int((block & ~inner).sum()), int((around & ~block).sum())]
    assert sorted((s.positive, s.area) for s in suggestions) == [(False, areas[0]), (True, areas[1])]
    assert all((block if not s.positive else around & ~block)[s.y, s.x] for s in suggestions)


def test_suggest_says_nothing_where_the_model_is_certain():
    probs = np.where(rectangle((50, 71), 10, 10, 40, 40), 0.99, 0.01)
    assert AcSelect().suggest(probs) == []
    assert AcSelect().suggest(probs, np.zeros(probs.shape)) == [], "the object that a first click has just found"


def test_suggest_offers_what_flipped_and_stayed_doubtful():
    block = rectangle((50, 71), 10, 10, 40, 40)
    probs = np.where(block, 0.85, 0.01)  # H = 0.61
    assert AcSelect().suggest(probs) == []
    assert AcSelect().suggest(probs, probs) == []
    (suggestion,) = AcSelect().suggest(probs, np.where(block, 0.2, 0.01))
    assert (suggestion.x, suggestion.y, suggestion.positive) == (24, 24, False)
    assert suggestion.region_bbox == (10, 10, 40, 40)
    assert AcSelect().suggest(probs, np.zeros(probs.shape), tau_flipped=0.7) == []


def test_suggest_respects_valid_pixels():
    probs = np.full((40, 61), 0.02)
    probs[10:30, 5:25] = probs[10:30, 35:55] = 0.45
    valid = ~rectangle(probs.shape, 0, 0, 30, 40)
    assert [s.x for s in AcSelect().suggest(probs, valid=valid)] == [44]


def test_suggest_on_one_pixel_and_on_a_line():
    assert AcSelect().suggest(np.full((1, 1), 0.45)) == []
    (suggestion,) = AcSelect(min_radius=0, min_area=0).suggest(np.full((1, 37), 0.45))
    assert (suggestion.x, suggestion.y, suggestion.area) == (0, 0, 37)


# Inputs and settings


def test_arrays_and_tensors_of_any_float_type_are_the_same(rng):
    probs, mask, truth = scene(rng)
    probs = probs.astype(np.float16)
    expected = AcSelect().oracle(probs, mask, truth)
    assert expected
    for kind in (np.float32, np.float64, ">f4"):
        assert AcSelect().oracle(probs.astype(kind), mask, truth) == expected
    tensors = torch.from_numpy(probs), torch.from_numpy(mask), torch.from_numpy(truth)
    assert AcSelect().oracle(*tensors) == expected
    flipped = AcSelect().oracle(probs[::-1, ::-1], mask[::-1, ::-1], truth[::-1, ::-1])
    assert sorted(s.area for s in flipped) == sorted(s.area for s in expected)
    probs.setflags(write=False)
    assert AcSelect().oracle(probs, mask, truth) == expected


P, M = np.full((4, 7), 0.5), np.zeros((4, 7), bool)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((P[0], M, M), r"probs has shape \(7,\)"),
        ((P[:0], M, M), r"\(0, 7\)"),
        ((M, M, M), "torch.bool"),
        ((P.tolist(), M, M), "a list"),
        ((P.astype(object), M, M), "dtype object"),
        ((np.where(P > 0, np.nan, 0), M, M), "nan at x=0, y=0"),
        ((P + 1, M, M), "1.5 at x=0, y=0"),
        ((P, M.T, M), r"prediction has shape \(7, 4\), probs \(4, 7\)"),
        ((P, M, M.astype(np.uint8)), "truth has dtype torch.uint8"),
        ((P, M, M, M[:1]), "valid has shape"),
    ],
)
def test_wrong_oracle_inputs(arguments, words):
    with pytest.raises(InvalidArgumentError, match=words) as error:
        AcSelect().oracle(*arguments)
    assert isinstance(error.value, ActiveFreqError)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tau": 1.5}, "tau is 1.5"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"tau": 0.3}, "tau_flipped is 0.4; pass a finite number, 0 to 0.3"),
        ({"k": 0}, "k is 0"),
        ({"k": 2.0}, "k is 2.0"),
        ({"previous_probs": P.T}, "previous_probs has shape"),
        ({"previous_probs": P - 1}, "-0.5 at x=0, y=0"),
    ],
)
def test_wrong_suggest_inputs(settings, words):
    with pytest.raises(InvalidArgumentError, match=words):
        AcSelect().suggest(P, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": (1, 1)}, "three numbers"),
        ({"weights": (1, -1, 1)}, "-1"),
        ({"weights": (1, float("inf"), 1)}, "inf"),
        ({"weights": (0, 0, 0)}, "at least one"),
        ({"weights": "abc"}, "'a'"),
        ({"rgu": "entropy"}, "allowed are mean_prob, entropy_share, ripu, variance"),
        ({"min_area": -1}, "min_area is -1"),
        ({"min_radius": None}, "min_radius is None"),
        ({"prominence": 1.01}, "0 to 1"),
        ({"threshold": "0.5"}, "threshold is '0.5'"),
        ({"backend": "gpu"}, "'gpu'"),
        ({"backend": "triton"}, "allowed are auto, reference, cupy"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(InvalidArgumentError, match=words):
        AcSelect(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_backend_that_cannot_run_is_an_error_of_the_engine():
    with pytest.raises(BackendUnavailableError, match="cupy") as error:
        AcSelect(backend="cupy").suggest(P)
    assert isinstance(error.value, ActiveFreqError)
    assert "torch sees no CUDA device" in str(error.value)


@pytest.mark.gpu
def test_cupy_ranks_as_the_reference_does(rng):
    for rgu in RGU_VARIANTS:
        probs, mask, truth = scene(rng, 131, 170)
        ours, plain = (AcSelect(rgu=rgu, backend=name) for name in ("cupy", "reference"))
        for a, b in (
            (ours.oracle_scores(probs, mask, truth), plain.oracle_scores(probs, mask, truth)),
            (ours.suggest_scores(probs, tau=0.5), plain.suggest_scores(probs, tau=0.5)),
        ):
            assert len(a) == len(b) > 0
            for name in ("point", "positive", "bbox", "area", "rank"):
                assert np.array_equal(getattr(a, name), getattr(b, name)), name
            for name in ("radius", "mpe", "ape", "rgu", "score"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=TOLERANCE)


def test_the_table_prints(rng):
    probs, mask, truth = scene(rng)
    scores = AcSelect().oracle_scores(probs, mask, truth)
    lines = str(scores).splitlines()
    assert lines[0].split() == ["x", "y", "sign", "area", "radius", "mpe", "ape", "rgu", "score", "rank"]
    assert len(lines) == len(scores) + 1
    first = scores.rows()[0]
    assert lines[1].split()[:4] == [str(first["x"]), str(first["y"]), first["sign"], str(first["area"])]
    assert first["sign"] == ("+" if truth[first["y"], first["x"]] else "-")


def test_repr_shows_the_settings():
    assert repr(AcSelect(rgu="ripu", min_area=4)).startswith(
        "AcSelect(weights=(1.0, 1.0, 1.0), rgu='ripu', min_area=4,"
    )
