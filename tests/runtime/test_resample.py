"""Resampling by matrices and gathers equals the model's own."""

import pytest
import torch

from activefreq_engine.models.freqnet import upsample
from activefreq_engine.models.refiner import roi_align
from activefreq_engine.runtime.plan.resample import SumEnlarged, crop


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("parts", "size"), [([(12, 8), (6, 4), (3, 2)], (24, 16)), ([(5, 3)], (7, 11))])
def test_sum_enlarged(batch, parts, size):
    first = torch.randn(batch, *size, 6, dtype=torch.float64)
    maps = [torch.randn(batch, *s, 6, dtype=torch.float64) for s in parts]
    expected = first.clone()
    for m in maps:
        expected += upsample(m.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    total = SumEnlarged(size, parts, torch.float64, torch.device("cpu"))
    assert (total(first, maps) - expected).abs().max() <= 1e-10


def test_sum_enlarged_adds_up_before_it_rounds():
    sizes = [(12, 8), (6, 4), (3, 2)]
    first = torch.randn(1, 24, 16, 32).bfloat16()
    maps = [torch.randn(1, *s, 32).bfloat16() for s in sizes]
    exact, rounded = (SumEnlarged((24, 16), sizes, t, torch.device("cpu")) for t in (torch.float64, torch.bfloat16))
    expected = exact(first.double(), [m.double() for m in maps])
    assert (rounded(first, maps).double() - expected).norm() <= 4e-3 * expected.norm()


@pytest.mark.parametrize("shape", [(24, 17), (9, 30), (1, 5)])
def test_crop(shape):
    maps = torch.randn(3, *shape, 5, dtype=torch.float64)
    h, w = shape
    # inside, over all edges, and smaller than a pixel
    boxes = torch.tensor([[1.3, 0.2, w - 2.1, h - 0.4], [-3, -2, w + 1.5, h + 4], [2.2, 0.6, 2.7, 0.9]])
    got = crop(maps, boxes.double(), (13, 8))
    expected = roi_align(maps.permute(0, 3, 1, 2), boxes.double(), (13, 8)).permute(0, 2, 3, 1)
    assert (got - expected).abs().max() <= 1e-10
