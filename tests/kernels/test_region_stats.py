"""region_stats against SciPy.  Tolerances are those of kernels/region_stats/README.md."""

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.region_stats import RegionStats, binary_entropy, region_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage

MEAN, PIXELS = 1e-12, 1e-9
STRUCTURE = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}


def entropy(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(-p * np.log2(p)) + np.nan_to_num(-(1 - p) * np.log2(1 - p))


def stats_of(mask: np.ndarray, probs: np.ndarray, connectivity: int = 8) -> RegionStats:
    return region_stats(torch.from_numpy(mask[None]), torch.from_numpy(probs[None]), connectivity=connectivity)


def check_against_scipy(mask: np.ndarray, probs: np.ndarray, connectivity: int) -> None:
    """`probs` are multiples of 1/16, so that equal entropies are equal in floating point too."""
    stats = stats_of(mask, probs, connectivity)
    labels, n = ndimage.label(mask, STRUCTURE[connectivity])  # SciPy numbers by first pixel as well
    index = np.arange(1, n + 1)
    assert stats.labels.dtype == torch.int32
    np.testing.assert_array_equal(stats.labels[0], labels)
    assert stats.counts.tolist() == [n]
    assert len(stats) == n
    np.testing.assert_array_equal(stats.label, index)
    np.testing.assert_array_equal(stats.image, np.zeros(n))
    if n == 0:
        assert stats.bbox.shape == (0, 4)
        assert stats.peak.shape == stats.centroid.shape == (0, 2)
        return
    h = entropy(probs.astype(np.float64))
    np.testing.assert_array_equal(stats.area, ndimage.sum(mask, labels, index))
    np.testing.assert_allclose(stats.max_entropy, ndimage.maximum(h, labels, index), rtol=0, atol=MEAN)
    np.testing.assert_allclose(stats.mean_entropy, ndimage.mean(h, labels, index), rtol=0, atol=MEAN)
    np.testing.assert_allclose(stats.mean_prob, ndimage.mean(probs, labels, index), rtol=0, atol=MEAN)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    np.testing.assert_array_equal(stats.bbox, boxes)
    centres = np.array(ndimage.center_of_mass(mask, labels, index))[:, ::-1]
    np.testing.assert_allclose(stats.centroid, centres, rtol=0, atol=PIXELS)
    # Entropy falls with the distance from 1/2.  SciPy leaves open which of several equal maxima it returns.
    closeness = -np.abs(probs.astype(np.float64) - 0.5)
    best = ndimage.maximum(closeness, labels, index)
    reached = mask & (closeness == np.concatenate([[1], best])[labels])
    first = [np.flatnonzero(reached & (labels == k))[0] for k in index]
    np.testing.assert_array_equal(stats.peak, np.stack(np.unravel_index(first, mask.shape)[::-1], axis=1))


def sixteenths(rng: np.random.Generator, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return (rng.integers(0, 17, shape) / 16).astype(dtype)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_equals_scipy(mask, connectivity, rng):
    check_against_scipy(mask, sixteenths(rng, mask.shape), connectivity)


@given(npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=12)), st.sampled_from([4, 8]), st.data())
@settings(deadline=None, max_examples=80)
def test_equals_scipy_on_any_small_mask(mask, connectivity, data):
    probs = data.draw(npst.arrays(np.int64, mask.shape, elements=st.integers(0, 16))) / 16
    check_against_scipy(mask, probs, connectivity)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_means_of_arbitrary_probabilities(dtype, rng):
    mask, probs = rng.random((45, 70)) < 0.5, rng.random((45, 70)).astype(dtype)
    stats = stats_of(mask, probs)
    labels, index = stats.labels[0].numpy(), stats.label.numpy()
    h = entropy(probs.astype(np.float64))
    np.testing.assert_allclose(stats.mean_entropy, ndimage.mean(h, labels, index), rtol=0, atol=MEAN)
    np.testing.assert_allclose(stats.max_entropy, ndimage.maximum(h, labels, index), rtol=0, atol=MEAN)
    x, y = stats.peak.numpy().T
    np.testing.assert_array_equal(labels[y, x], index)
    np.testing.assert_allclose(h[y, x], stats.max_entropy, rtol=0, atol=MEAN)
    for name in ("max_entropy", "mean_entropy", "mean_prob", "centroid"):
        assert getattr(stats, name).dtype == torch.float64


def test_bfloat16_probabilities():
    probs = torch.full((1, 3, 5), 0.25, dtype=torch.bfloat16)
    stats = region_stats(torch.ones(1, 3, 5, dtype=torch.bool), probs)
    assert stats.mean_prob.tolist() == [0.25]


def test_batch_is_the_images_one_by_one(rng):
    masks = rng.random((4, 23, 40)) < np.array([0.4, 0.0, 1.0, 0.6])[:, None, None]
    probs = rng.random(masks.shape)
    together = region_stats(torch.from_numpy(masks), torch.from_numpy(probs))
    assert together.counts[1:3].tolist() == [0, 1]
    start = 0
    for b in range(4):
        alone = stats_of(masks[b], probs[b])
        rows = slice(start, start + len(alone))
        assert together.image[rows].tolist() == [b] * len(alone)
        assert torch.equal(together.labels[b], alone.labels[0])
        for name in ("label", "area", "max_entropy", "mean_entropy", "mean_prob", "bbox", "peak", "centroid"):
            assert torch.equal(getattr(together, name)[rows], getattr(alone, name)), name
        start = rows.stop
    assert start == len(together)


def test_checkerboard_is_one_region_or_one_a_pixel():
    mask = np.add.outer(np.arange(7), np.arange(10)) % 2 == 0
    probs = np.full(mask.shape, 0.5)
    assert stats_of(mask, probs, 8).counts.tolist() == [1]
    assert stats_of(mask, probs, 4).counts.tolist() == [35]


def test_one_pixel():
    mask = np.zeros((5, 9), bool)
    mask[2, 7] = True
    probs = np.full(mask.shape, 0.5)
    probs[2, 7] = 0.25
    stats = stats_of(mask, probs)
    h = 2 - 0.75 * np.log2(3)  # H(1/4)
    assert stats.area.tolist() == [1]
    assert stats.bbox.tolist() == [[7, 2, 8, 3]]
    assert stats.peak.tolist() == [[7, 2]]
    assert stats.centroid.tolist() == [[7, 2]]
    assert stats.mean_prob.tolist() == [0.25]
    assert stats.max_entropy.item() == pytest.approx(h, abs=MEAN)
    assert stats.mean_entropy.item() == pytest.approx(h, abs=MEAN)


def test_strided_inputs_and_inputs_that_need_gradients(rng):
    mask = torch.from_numpy(rng.random((1, 40, 30)) < 0.5)
    probs = torch.from_numpy(rng.random((1, 40, 30)))
    plain = region_stats(mask.transpose(1, 2).contiguous(), probs.transpose(1, 2).contiguous())
    strided = region_stats(mask.transpose(1, 2), probs.transpose(1, 2).requires_grad_())
    assert torch.equal(strided.labels, plain.labels)
    assert torch.equal(strided.mean_entropy, plain.mean_entropy)


def test_inputs_are_left_alone():
    mask, probs = torch.ones(1, 4, 6, dtype=torch.bool), torch.rand(1, 4, 6)
    before = mask.clone(), probs.clone()
    stats = region_stats(mask, probs)
    stats.labels.zero_()
    assert torch.equal(mask, before[0])
    assert torch.equal(probs, before[1])


@pytest.mark.parametrize(
    ("candidates", "probs", "error", "words"),
    [
        (np.ones((1, 2, 3), bool), torch.rand(1, 2, 3), TypeError, "ndarray"),
        (torch.ones(1, 2, 3), torch.rand(1, 2, 3), TypeError, "torch.float32"),
        (torch.ones(1, 2, 3, dtype=torch.bool), torch.ones(1, 2, 3, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.ones(2, 3, dtype=torch.bool), torch.rand(2, 3), ValueError, r"\(2, 3\)"),
        (torch.ones(1, 0, 3, dtype=torch.bool), torch.rand(1, 0, 3), ValueError, r"\(1, 0, 3\)"),
        (torch.ones(1, 2, 3, dtype=torch.bool), torch.rand(1, 3, 2), ValueError, r"\(1, 3, 2\)"),
    ],
)
def test_wrong_inputs(candidates, probs, error, words):
    with pytest.raises(error, match=words):
        region_stats(candidates, probs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.25, 1.25])
def test_wrong_probabilities_even_outside_the_candidates(value):
    probs = torch.rand(2, 5, 8)
    probs[1, 2, 6] = value
    with pytest.raises(ValueError, match=rf"1 values .* {value} at image 1, x=6, y=2"):
        region_stats(torch.zeros(2, 5, 8, dtype=torch.bool), probs)


@pytest.mark.parametrize("connectivity", [0, 6, "8"])
def test_wrong_connectivity(connectivity):
    with pytest.raises(ValueError, match="allowed are 4 and 8"):
        region_stats(torch.ones(1, 2, 3, dtype=torch.bool), torch.rand(1, 2, 3), connectivity=connectivity)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_binary_entropy(dtype):
    p = torch.tensor([0, 0.5, 1, 0.25, 0.75], dtype=dtype)
    h = binary_entropy(p)
    assert h.dtype == dtype
    assert h[:3].tolist() == [0, 1, 0]
    assert h[3] == h[4]
    assert h[3].item() == pytest.approx(0.811278, abs=2 * torch.finfo(dtype).eps + 1e-6)


@given(st.floats(0, 1))
def test_binary_entropy_stays_within_one_bit(p):
    assert 0 <= binary_entropy(torch.tensor(p, dtype=torch.float64)) <= 1


def test_binary_entropy_near_one_half():
    near = 0.5 + torch.linspace(-1e-7, 1e-7, 10001, dtype=torch.float64)
    assert binary_entropy(near).max() <= 1
