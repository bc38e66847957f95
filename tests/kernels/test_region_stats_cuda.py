"""region_stats.cu: the same source and host code as on a GPU, run on the host under random interleavings.

With --device cuda the same tests run on the GPU.  Tolerances are those of kernels/region_stats/README.md.
"""

from dataclasses import fields

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.region_stats import RegionStats, cupy_impl, fixed, region_stats
from scipy import ndimage

from tests.cuda_on_host import Schedule

MEAN = 2e-6  # entropies and probabilities are summed in units of 2^-20
EXACT = ("labels", "counts", "image", "label", "area", "bbox", "peak")
CLOSE = {"max_entropy": 1e-12, "mean_entropy": MEAN, "mean_prob": MEAN, "centroid": 1e-9}
KERNELS = ["label_tiles", "join_tiles", "count_roots", "number_roots", "measure_regions", "finish_regions"]


def schedules(rng):
    """Sequential, and two that interleave threads and blocks; new seeds in every run."""
    seeds = rng.integers(1 << 30, size=2)
    return [Schedule(live=1), Schedule(int(seeds[0]), 0.05, 4), Schedule(int(seeds[1]), 0.3, 8)]


def random_probs(rng: np.random.Generator, shape) -> np.ndarray:
    """Half arbitrary, half multiples of 1/16: equal entropies, certainty, and p = 1/2."""
    coarse = rng.integers(0, 17, shape) / 16
    return np.where(rng.random(shape) < 0.5, coarse, rng.random(shape)).astype(np.float32)


def assert_equals(got: RegionStats, expected: RegionStats) -> None:
    for name in EXACT:
        a, b = getattr(got, name).cpu(), getattr(expected, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    for name, tolerance in CLOSE.items():
        a, b = getattr(got, name).cpu(), getattr(expected, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)


def check(rng: np.random.Generator, host, device, masks, probs, connectivity) -> None:
    """Equal to the reference under every schedule, and bit for bit the same under all of them."""
    masks, probs = torch.from_numpy(masks), torch.from_numpy(probs)
    expected = region_stats(masks, probs, connectivity=connectivity, backend="reference")
    first = None
    for host.schedule in schedules(rng):
        got = cupy_impl.region_stats(masks.to(device), probs.to(device), connectivity=connectivity)
        assert_equals(got, expected)
        first = first or got
        for field in fields(RegionStats):
            assert torch.equal(getattr(got, field.name), getattr(first, field.name)), field.name


@pytest.mark.parametrize("connectivity", [4, 8])
def test_equals_the_reference(host, device, mask, connectivity, rng):
    check(rng, host, device, mask[None], random_probs(rng, (1, *mask.shape)), connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("density", [0.407, 0.593])
def test_noise_at_the_percolation_threshold(host, device, density, connectivity, rng):
    masks = rng.random((2, 83, 101)) < density
    check(rng, host, device, masks, random_probs(rng, masks.shape), connectivity)


def test_random_shapes_and_batches(host, device, rng):
    for _ in range(6):
        shape = rng.integers(1, (4, 70, 100))
        masks = rng.random(shape) < rng.choice([0.3, 0.5, 0.7, 0.95, 1.0])
        check(rng, host, device, masks, random_probs(rng, shape), int(rng.choice([4, 8])))


def test_batch_of_empty_full_and_noise(host, device, rng):
    masks = rng.random((4, 35, 50)) < np.array([0.0, 1.0, 0.5, 0.0])[:, None, None]
    check(rng, host, device, masks, random_probs(rng, masks.shape), 8)


@pytest.mark.parametrize("shape", [(16, 32), (17, 33), (32, 64), (15, 31), (33, 32), (16, 65)], ids=str)
def test_sizes_around_a_tile(host, device, shape, rng):
    for density in (1.0, 0.8):
        masks = rng.random((1, *shape)) < density
        check(rng, host, device, masks, random_probs(rng, masks.shape), 4)


def test_labels_equal_scipy(host, device, rng):
    mask = rng.random((70, 99)) < 0.45
    labels, n = ndimage.label(mask, np.ones((3, 3)))
    got = cupy_impl.region_stats(torch.from_numpy(mask[None]).to(device), torch.rand(1, 70, 99).to(device))
    assert got.counts.tolist() == [n]
    np.testing.assert_array_equal(got.labels[0].cpu(), labels)


def test_one_region_over_many_tiles_has_exact_integers(host, device, rng):
    """Sums that a tile does not hold, and the peak in the last tile."""
    height, width = 90, 131
    masks, probs = torch.ones(1, height, width, dtype=torch.bool), torch.full((1, height, width), 0.25)
    probs[0, height - 1, width - 2] = 0.5
    host.schedule = schedules(rng)[1]
    got = cupy_impl.region_stats(masks.to(device), probs.to(device))
    assert got.area.tolist() == [height * width]
    assert got.bbox.tolist() == [[0, 0, width, height]]
    assert got.peak.tolist() == [[width - 2, height - 1]]
    assert got.centroid.tolist() == [[(width - 1) / 2, (height - 1) / 2]]
    assert got.max_entropy.tolist() == [1]


def test_ties_go_to_the_first_pixel(host, device):
    masks = torch.ones(1, 40, 70, dtype=torch.bool)
    for p in (0.0, 1.0, 0.5, 0.3):
        got = cupy_impl.region_stats(masks.to(device), torch.full((1, 40, 70), p).to(device))
        assert got.peak.tolist() == [[0, 0]]
        assert got.mean_prob.item() == pytest.approx(p, abs=MEAN)
    probs = torch.full((1, 40, 70), 0.1)
    probs[0, 20, 50], probs[0, 20, 60], probs[0, 37, 2] = 0.625, 0.375, 0.375  # 1 - 0.625 is 0.375
    assert cupy_impl.region_stats(masks.to(device), probs.to(device)).peak.tolist() == [[50, 20]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_probabilities(host, device, dtype):
    masks, probs = torch.rand(1, 21, 45) < 0.6, torch.rand(1, 21, 45).to(dtype)
    got = cupy_impl.region_stats(masks.to(device), probs.to(device))
    assert_equals(got, region_stats(masks, probs, backend="reference"))


def test_strided_inputs_and_inputs_that_need_gradients(host, device):
    masks, probs = torch.rand(1, 45, 30) < 0.5, torch.rand(1, 45, 30)
    got = cupy_impl.region_stats(masks.to(device).transpose(1, 2), probs.to(device).requires_grad_().transpose(1, 2))
    assert_equals(got, region_stats(masks.transpose(1, 2), probs.transpose(1, 2), backend="reference"))


@pytest.mark.parametrize("capacity", [1, 3, 300])
def test_fixed_form_and_overflow(host, device, capacity):
    masks = torch.rand(3, 41, 58) < torch.tensor([0.2, 0.0, 1.0])[:, None, None]
    probs = torch.rand(masks.shape)
    expected = fixed.reference(masks, probs, capacity=capacity)
    got = cupy_impl.region_stats_fixed(masks.to(device), probs.to(device), capacity=capacity)
    assert expected.overflow.tolist() == [capacity < 300, False, False]
    for field in fields(fixed.FixedRegionStats):
        a, b = getattr(got, field.name).cpu(), getattr(expected, field.name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE.get(field.name, 0), err_msg=field.name)


def test_more_regions_than_there_is_room_for_at_first(host, device, monkeypatch, rng):
    monkeypatch.setattr(cupy_impl, "CAPACITY", 5)
    masks = rng.random((2, 30, 41)) < 0.2
    check(rng, host, device, masks, random_probs(rng, masks.shape), 8)


def test_six_launches_whatever_the_input(host, device):
    if device.type == "cuda":
        pytest.skip("the host counts launches")
    for shape in ((1, 1, 1), (3, 5, 40), (1, 70, 99)):
        host.launches.clear()
        cupy_impl.region_stats_fixed(torch.rand(shape) < 0.5, torch.rand(shape), capacity=7)
        assert host.launches == KERNELS


def test_buffers_serve_again(host, device):
    """A replayed graph starts from what the last replay left behind."""
    buffers = cupy_impl.Buffers.allocate(1, 33, 47, 50, device)
    for density in (0.9, 0.1, 0.5):
        masks, probs = (torch.rand(1, 33, 47) < density).to(device), torch.rand(1, 33, 47).to(device)
        cupy_impl.launch(masks, probs, buffers)
        expected = fixed.reference(masks.cpu(), probs.cpu(), capacity=50)
        for name in ("labels", "counts", "overflow", "area", "bbox", "peak"):
            np.testing.assert_array_equal(getattr(buffers.result, name).cpu(), getattr(expected, name), err_msg=name)


def test_values_that_are_no_probabilities_are_not_fatal(host, device):
    """The fixed form checks no values: it would have to wait for them."""
    probs = torch.tensor([[[float("nan"), float("inf"), -3.0, 0.5]]]).to(device)
    got = cupy_impl.region_stats_fixed(torch.ones(1, 1, 4, dtype=torch.bool).to(device), probs, capacity=2)
    assert got.area.tolist() == [[4, 0]]
    assert got.peak[0, 0].tolist() == [3, 0]


def test_wrong_buffers(host, device):
    buffers = cupy_impl.Buffers.allocate(1, 4, 6, 3, device)
    masks = torch.ones(1, 4, 6, dtype=torch.bool, device=device)
    with pytest.raises(TypeError, match=r"torch.float64; pass torch.float32"):
        cupy_impl.launch(masks, torch.rand(1, 4, 6, device=device).double(), buffers)
    with pytest.raises(ValueError, match=r"\(1, 4, 5\), the buffers are for \(1, 4, 6\)"):
        cupy_impl.launch(masks, torch.rand(1, 4, 5, device=device), buffers)
    with pytest.raises(ValueError, match="contiguous"):
        cupy_impl.launch(masks, torch.rand(1, 6, 4, device=device).transpose(1, 2), buffers)


@pytest.mark.gpu
def test_a_graph_replays():
    pytest.importorskip("cupy")
    masks, probs = torch.rand(2, 61, 90, device="cuda") < 0.5, torch.rand(2, 61, 90, device="cuda")
    buffers = cupy_impl.Buffers.allocate(2, 61, 90, 2048, masks.device)
    with torch.cuda.stream(torch.cuda.Stream()):
        cupy_impl.launch(masks, probs, buffers)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cupy_impl.launch(masks, probs, buffers)
    for _ in range(3):
        masks.copy_(torch.rand(masks.shape) < 0.4)
        probs.uniform_()
        for name in (field.name for field in fields(fixed.FixedRegionStats)):
            getattr(buffers.result, name).fill_(1)
        graph.replay()
        got = fixed.unpack(buffers.result, buffers.result.counts.tolist())
        assert_equals(got, region_stats(masks.cpu(), probs.cpu(), backend="reference"))
