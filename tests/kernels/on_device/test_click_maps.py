"""The click map kernel against its definition: equal, to the last pixel on the circle."""

import pytest
import torch
from activefreq_engine.kernels.click_maps import click_maps


@pytest.mark.parametrize("radius", [5.0, 2.7])
@pytest.mark.parametrize("kind", ["fractions", "pixels", "half-pixels"])
def test_equals_the_reference(kind, radius, device):
    points = torch.rand(2, 48, 2, device=device) * 50 - 5
    if kind != "fractions":  # circles that pass exactly through pixel centres
        points = (points * 2).round() / 2 if kind == "half-pixels" else points.round()
    points[1, 3:] = -1
    found = click_maps(points, 33, 47, radius, backend="triton")
    assert torch.equal(found, click_maps(points, 33, 47, radius, backend="reference"))
    assert found.sum() > 0


def test_odd_inputs(device):
    points = torch.tensor([[[3.0, 1.0], [float("nan"), 1.0], [1e30, 0.0], [-0.5, 2.0]]], device=device)
    for p in (points, points.half(), points.repeat(1, 1, 2)[..., 1:3].flip(-1)):
        found = click_maps(p, 5, 7, backend="triton")
        assert torch.equal(found, click_maps(p, 5, 7, backend="reference"))
    assert click_maps(points[:0], 5, 7, backend="triton").shape == (0, 2, 5, 7)
    assert not click_maps(points[:, :0], 5, 7, backend="triton").any()
