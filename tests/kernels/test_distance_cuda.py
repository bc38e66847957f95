"""distance.cu on the host under random interleavings, or on the GPU with --device cuda.  All comparisons are exact."""

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from activefreq_engine.kernels.distance import cupy_impl, distance_transform, fixed, inscribed_points
from activefreq_engine.kernels.region_stats import region_stats
from scipy import ndimage

from tests.cuda_on_host import Schedule


def schedules(rng):
    seed = int(rng.integers(1 << 30))
    return [Schedule(live=1), Schedule(seed, 0.3, 8)]


def squared(distance: torch.Tensor) -> np.ndarray:
    return np.rint(distance.cpu().numpy() ** 2).astype(np.int64)


def scipy_squared(mask: np.ndarray) -> np.ndarray:
    """int64 `[H, W]`, from the integer offsets of SciPy's nearest false pixels; outside of the image is false."""
    padded = np.pad(mask, 1)
    nearest = ndimage.distance_transform_edt(padded, return_distances=False, return_indices=True)
    return ((nearest - np.indices(padded.shape)) ** 2).sum(0)[1:-1, 1:-1]


def root(n: int) -> float:
    """The square root of n, correctly rounded, by integers alone."""
    floor = math.isqrt(n << 120)
    return float(Fraction(2 * floor + (floor * floor < n << 120), 1 << 61))  # a half more where it is not whole


def check_points(rng: np.random.Generator, host, device, labels: np.ndarray, counts: list[int]) -> None:
    labels, counts = torch.from_numpy(labels), torch.tensor(counts)
    points, radius = inscribed_points(labels, counts, backend="reference")
    for host.schedule in schedules(rng):
        got = cupy_impl.inscribed_points(labels.to(device), counts.to(device))
        assert [g.dtype for g in got] == [torch.int64, torch.float64]
        np.testing.assert_array_equal(got[1].cpu(), radius)
        np.testing.assert_array_equal(got[0].cpu(), points)


def test_distance_equals_scipy_opencv_and_the_reference(host, device, mask, rng):
    masks = torch.from_numpy(mask[None])
    for host.schedule in schedules(rng):
        got = cupy_impl.distance_transform(masks.to(device))
        np.testing.assert_array_equal(squared(got[0]), scipy_squared(mask))
        assert torch.equal(got.cpu(), distance_transform(masks, backend="reference"))
    opencv = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    np.testing.assert_allclose(got[0].cpu(), opencv, rtol=1e-6, atol=0)


def test_distance_of_blobs_in_a_batch(host, device, rng):
    noise = ndimage.gaussian_filter(rng.random((3, 97, 121)), (0, 5, 5))
    masks = noise > np.quantile(noise, 0.3)
    got = cupy_impl.distance_transform(torch.from_numpy(masks).to(device))
    assert got.max() > 8
    for b in range(3):
        np.testing.assert_array_equal(squared(got[b]), scipy_squared(masks[b]))


@pytest.mark.parametrize("shape", [(1, 2048), (2048, 1), (3, 1024), (1023, 2), (33, 31)], ids=str)
def test_full_images_up_to_the_largest(host, device, shape):
    masks = np.ones((1, *shape), bool)
    masks[0, -1, -1] = False
    got = cupy_impl.distance_transform(torch.from_numpy(masks).to(device))
    np.testing.assert_array_equal(squared(got[0]), scipy_squared(masks[0]))


def test_distances_are_the_roots_of_integers_however_torch_rounds(host, device, monkeypatch):
    """On some CPUs torch's float64 square root is one unit in the last place off."""
    correct = torch.Tensor.sqrt

    def off(t: torch.Tensor) -> torch.Tensor:
        return torch.nextafter(correct(t), torch.full_like(t, torch.inf))

    for name in ("sqrt", "sqrt_"):
        monkeypatch.setattr(torch.Tensor, name, off)
        monkeypatch.setattr(torch, name, off)
    mask = np.ones((121, 161), bool)
    mask[60, 80] = False  # so many distances are no whole numbers
    labels = torch.from_numpy(mask[None]).int()
    expected = scipy_squared(mask)
    assert len(np.unique(expected)) > 500
    roots = np.vectorize(root, otypes=[float])(expected)
    np.testing.assert_array_equal(cupy_impl.distance_transform(labels.bool().to(device))[0].cpu(), roots)
    np.testing.assert_array_equal(distance_transform(labels.bool(), backend="reference")[0], roots)
    _, radius = cupy_impl.inscribed_points(labels.to(device), torch.tensor([1], device=device))
    assert radius.item() == roots.max()


def test_a_large_image(host, device):
    masks = np.ones((1, 517, 1024), bool)
    masks[0, 130, 700] = False
    got = cupy_impl.distance_transform(torch.from_numpy(masks).to(device))
    assert got.max() == 259
    np.testing.assert_array_equal(squared(got[0]), scipy_squared(masks[0]))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_points_of_components(rng, host, device, mask, connectivity):
    masks = torch.from_numpy(mask[None])
    stats = region_stats(masks, torch.zeros(masks.shape), connectivity=connectivity, backend="reference")
    check_points(rng, host, device, stats.labels.numpy(), stats.counts.tolist())


def test_points_of_regions_that_touch(rng, host, device):
    """Regions that share edges, lie in several pieces, and surround each other."""
    for side in (3, 9, 40):
        labels = rng.integers(0, 4, (2, side, side + 5)).astype(np.int32)
        labels[:, 0, :4] = [0, 1, 2, 3]
        check_points(rng, host, device, labels, [3, 3])
    labels = np.kron(rng.integers(0, 4, (1, 6, 9)), np.ones((1, 7, 5), int)).astype(np.int32)
    labels[0, 0, :4] = [0, 1, 2, 3]
    check_points(rng, host, device, labels, [3])


def test_batch_with_an_empty_image_and_first_of_equal_maxima(rng, host, device):
    labels = np.zeros((3, 11, 37), np.int32)
    labels[0, 4:7, 2:19] = 1  # distance 2 along the middle row
    labels[2] = 1
    labels[2, :, 20:] = 2
    check_points(rng, host, device, labels, [1, 0, 2])
    points, radius = cupy_impl.inscribed_points(torch.from_numpy(labels).to(device), torch.tensor([1, 0, 2]).to(device))
    assert points.tolist() == [[3, 5], [5, 5], [25, 5]]
    assert radius.tolist() == [2, 6, 6]


@pytest.mark.parametrize("capacity", [1, 2, 9])
def test_fixed_form(host, device, capacity):
    labels = torch.randint(-1, 6, (2, 19, 33), dtype=torch.int32)
    labels[labels == 2] = 0  # a label without pixels
    expected = fixed.reference(labels, capacity=capacity)
    got = cupy_impl.inscribed_points_fixed(labels.to(device), capacity=capacity)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a.cpu(), b)


def test_launches(host, device):
    if device.type == "cuda":
        pytest.skip("the host counts launches")
    for shape in ((1, 1, 1), (2, 40, 33)):
        host.launches.clear()
        cupy_impl.distance_transform(torch.rand(shape) < 0.5)
        cupy_impl.inscribed_points_fixed(torch.ones(shape, dtype=torch.int32), capacity=4)
        assert host.launches == ["column_distances", "row_distances"] * 2 + ["region_points"]


@pytest.mark.gpu
def test_a_graph_replays():
    pytest.importorskip("cupy")
    labels = torch.zeros(1, 61, 90, dtype=torch.int32, device="cuda")
    gaps, best = torch.empty_like(labels), torch.empty(1, 8, dtype=torch.int64, device="cuda")
    points = torch.empty(1, 8, 2, dtype=torch.int64, device="cuda")
    radius = torch.empty(1, 8, dtype=torch.float64, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        cupy_impl.launch(labels, gaps, None, best, points, radius)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cupy_impl.launch(labels, gaps, None, best, points, radius)
    for _ in range(3):
        labels.copy_(torch.randint(0, 5, labels.shape))
        points.fill_(-1), radius.fill_(-1)
        graph.replay()
        expected = fixed.reference(labels.cpu(), capacity=8)
        assert torch.equal(points.cpu(), expected[0])
        assert torch.equal(radius.cpu(), expected[1])
