"""Click maps against a plain loop over pixels."""

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.click_maps import click_maps


def slow(points: np.ndarray, height: int, width: int, radius: float) -> np.ndarray:
    batch, slots, _ = points.shape
    out = np.zeros((batch, 2, height, width), np.float32)
    for b in range(batch):
        for i, (px, py) in enumerate(points[b].tolist()):
            if px < 0 or py < 0:
                continue
            for y in range(height):
                for x in range(width):
                    if (x - px) ** 2 + (y - py) ** 2 <= radius**2:
                        out[b, int(i >= slots // 2), y, x] = 1
    return out


@pytest.mark.parametrize("radius", [0, 1.5, 5])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 29), (32, 11)], ids=lambda v: str(v))
def test_equals_the_loop(height: int, width: int, radius: float, rng: np.random.Generator) -> None:
    points = rng.integers(0, 30, (3, 6, 2)).astype(np.float32)  # quarter pixels, so distances are exact; some outside
    points += rng.integers(0, 4, points.shape) / 4
    points[rng.random((3, 6)) < 0.3] = -1
    got = click_maps(torch.from_numpy(points), height, width, radius)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), slow(points, height, width, radius))


def test_default_radius_is_5_and_its_rim_belongs_to_the_disk() -> None:
    disk = click_maps(torch.tensor([[[8.0, 6.0], [-1.0, -1.0]]]), 13, 17)[0]
    assert disk[0].sum() == 81  # lattice points with x² + y² <= 25
    assert disk[0, 6, 13] == disk[0, 1, 8] == disk[0, 3, 4] == 1  # (5, 0), (0, -5), (-4, -3)
    assert disk[0, 6, 14] == 0
    assert not disk[1].any()


def test_signs_do_not_mix_and_disks_may_overlap() -> None:
    points = torch.tensor([[[2.0, 2.0], [3.0, 2.0], [2.0, 2.0], [-1.0, -1.0]]])
    maps = click_maps(points, 9, 9, 2)
    assert maps.max() == 1
    assert maps[0, 0].sum() > maps[0, 1].sum() == 13


@pytest.mark.parametrize("slot", [(-1.0, -1.0), (-1.0, 4.0), (4.0, -1.0), (-0.25, 4.0)])
def test_a_negative_coordinate_empties_the_slot(slot: tuple[float, float]) -> None:
    assert not click_maps(torch.tensor([[slot, slot]]), 9, 9).any()


def test_no_slots() -> None:
    assert click_maps(torch.zeros(2, 0, 2), 5, 7).shape == (2, 2, 5, 7)
    assert not click_maps(torch.zeros(2, 0, 2), 5, 7).any()


@pytest.mark.parametrize("shape", [(2, 3, 2), (4, 2), (1, 4, 3)])
def test_shape_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 2N, 2\]") as e:
        click_maps(torch.zeros(shape), 5, 5)
    assert str(shape) in str(e.value)
