"""What only a CPU needs."""

import pytest
import torch
from activefreq_engine.kernels.click_maps import click_maps as op

from activefreq_engine.runtime.cpu import click_maps

pytestmark = pytest.mark.usefixtures("seed")


@pytest.mark.parametrize("radius", [5.0, 3.0, 0.5, 7.3])
@pytest.mark.parametrize("shape", [(37, 64), (64, 33), (8, 9)])
def test_click_maps_equal_the_op(radius, shape):
    height, width = shape
    points = torch.rand(3, 14, 2) * torch.tensor([width, height])
    points[:, ::3] = points[:, ::3].round()  # on pixel centres, where a distance can equal the radius
    points[0, 2:9] = -1
    points[1, 0] = torch.tensor([0.0, 0.0])
    points[1, 1] = torch.tensor([width - 1.0, height - 1.0])
    points[2, 3] = torch.tensor([width + 2.0, 1.0])
    maps = click_maps(points, height, width, radius)
    assert torch.equal(maps, op(points, height, width, radius, backend="reference"))
    assert maps.dtype == torch.float32
    assert maps.any()


def test_no_clicks():
    assert not click_maps(torch.full((1, 4, 2), -1.0), 8, 8, 5.0).any()
    assert click_maps(torch.zeros(2, 0, 2), 8, 4, 5.0).shape == (2, 2, 8, 4)
