"""Distances and inscribed points against SciPy, exactly: both are square roots of integers."""

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.distance import distance_transform, inscribed_points
from activefreq_engine.kernels.region_stats import region_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage


def exact(mask: np.ndarray) -> np.ndarray:
    """float64 `[H, W]`, from the integer offsets of SciPy's nearest false pixels."""
    padded = np.pad(mask, 1)
    nearest = ndimage.distance_transform_edt(padded, return_distances=False, return_indices=True)
    squared = ((nearest - np.indices(padded.shape)) ** 2).sum(0)
    return np.sqrt(squared[1:-1, 1:-1].astype(np.float64))


def naive(labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Each region on its own, in the whole image."""
    points, radius = np.zeros((n, 2), np.int64), np.zeros(n)
    for k in range(n):
        distance = exact(labels == k + 1)
        y, x = np.unravel_index(distance.argmax(), labels.shape)  # argmax: the first in row-major order
        points[k], radius[k] = (x, y), distance[y, x]
    return points, radius


def check_points(labels: np.ndarray, n: int) -> None:
    points, radius = inscribed_points(torch.from_numpy(labels[None]), torch.tensor([n]))
    expected_points, expected_radius = naive(labels, n)
    np.testing.assert_array_equal(radius, expected_radius)
    np.testing.assert_array_equal(points, expected_points)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth regions, wide enough for distances that are not 1."""
    noise = ndimage.gaussian_filter(rng.random((height, width)), 3)
    return noise > np.median(noise)


def test_distance_equals_scipy(mask):
    distance = distance_transform(torch.from_numpy(mask[None]))
    assert distance.dtype == torch.float64
    np.testing.assert_array_equal(distance[0], exact(mask))


def test_distance_of_blobs_and_of_a_batch(rng):
    masks = np.stack([blobs(rng, 67, 90) for _ in range(3)])
    distance = distance_transform(torch.from_numpy(masks))
    for b in range(3):
        np.testing.assert_array_equal(distance[b], exact(masks[b]))
    assert distance.max() > 3


def test_large_distances_are_exact():
    mask = np.ones((1101, 1303), bool)
    mask[-1, -1] = False
    distance = distance_transform(torch.from_numpy(mask[None]))[0].numpy()
    np.testing.assert_array_equal(distance, exact(mask))
    assert distance.max() == 551


def test_border_counts_as_false():
    distance = distance_transform(torch.ones(1, 5, 7, dtype=torch.bool))[0]
    assert distance[0].tolist() == [1] * 7
    assert distance[2].tolist() == [1, 2, 3, 3, 3, 2, 1]


@pytest.mark.parametrize("connectivity", [4, 8])
def test_inscribed_points_of_components(mask, connectivity):
    mask = mask[:24, :30]  # the naive definition transforms the image once a region
    candidates = torch.from_numpy(np.ascontiguousarray(mask)[None])
    stats = region_stats(candidates, torch.zeros(candidates.shape), connectivity=connectivity)
    check_points(stats.labels[0].numpy(), len(stats))


def test_inscribed_points_of_blobs(rng):
    labels, n = ndimage.label(blobs(rng, 71, 95), np.ones((3, 3)))
    check_points(labels.astype(np.int32), n)


@given(npst.arrays(np.int32, npst.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)))
@settings(deadline=None, max_examples=80)
def test_inscribed_points_of_any_label_map(labels):
    """Regions that share edges, lie in several pieces, and surround each other."""
    present = np.unique(labels[labels > 0])
    numbered = np.where(labels > 0, np.searchsorted(present, labels) + 1, 0).astype(np.int32)
    check_points(numbered, len(present))


def test_neighbours_that_share_an_edge_are_borders():
    labels = np.ones((9, 14), np.int32)
    labels[:, 5:] = 2
    points, radius = inscribed_points(torch.from_numpy(labels[None]), torch.tensor([2]))
    assert points.tolist() == [[2, 2], [9, 4]]
    assert radius.tolist() == [3, 5]


def test_first_of_equal_maxima():
    mask = torch.zeros(1, 11, 20, dtype=torch.bool)
    mask[0, 4:7, 2:19] = True  # distance 2 along the middle row
    mask[0, 0, 8] = True
    stats = region_stats(mask, torch.zeros(mask.shape))
    points, radius = inscribed_points(stats.labels, stats.counts)
    assert points.tolist() == [[8, 0], [3, 5]]
    assert radius.tolist() == [1, 2]


def test_batch_with_an_empty_image():
    masks = torch.zeros(3, 8, 13, dtype=torch.bool)
    masks[0, 1:6, 2:7] = True
    masks[2, 0:3, 10:13] = True
    masks[2, 7, 0] = True
    stats = region_stats(masks, torch.zeros(masks.shape))
    points, radius = inscribed_points(stats.labels, stats.counts)
    assert stats.counts.tolist() == [1, 0, 2]
    assert points.tolist() == [[4, 3], [11, 1], [0, 7]]
    assert radius.tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("labels", "counts", "error", "words"),
    [
        (np.zeros((1, 2, 3), np.int32), torch.tensor([0]), TypeError, "ndarray"),
        (torch.zeros(1, 2, 3), torch.tensor([0]), TypeError, "torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int32), torch.tensor([0], dtype=torch.int32), TypeError, "torch.int32"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.tensor([0]), ValueError, r"\(2, 3\)"),
        (torch.zeros(2, 2, 3, dtype=torch.int32), torch.tensor([0]), ValueError, r"\[2\]"),
        (torch.full((1, 2, 3), 2, dtype=torch.int32), torch.tensor([1]), ValueError, r"span 2\.\.2"),
        (torch.full((1, 2, 3), -1, dtype=torch.int32), torch.tensor([1]), ValueError, r"span -1\.\.-1"),
        (torch.full((1, 2, 3), 2, dtype=torch.int32), torch.tensor([2]), ValueError, "no pixel of label 1"),
    ],
)
def test_wrong_labels(labels, counts, error, words):
    with pytest.raises(error, match=words):
        inscribed_points(labels, counts)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.zeros(1, 2, 3), TypeError),
        (np.zeros((1, 2, 3), bool), TypeError),
        (torch.zeros(2, 3, dtype=torch.bool), ValueError),
        (torch.zeros(1, 2, 0, dtype=torch.bool), ValueError),
    ],
)
def test_wrong_mask(mask, error):
    with pytest.raises(error, match="pass"):
        distance_transform(mask)
