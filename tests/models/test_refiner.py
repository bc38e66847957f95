"""RoIAlign against explicit bilinear sampling, and the gate."""

import numpy as np
import pytest
import torch

from activefreq_engine.models import FreqFormer
from activefreq_engine.models.refiner import Refiner, roi_align


def sample(image: np.ndarray, x: float, y: float) -> float:
    """Bilinear value at (x, y), where pixel (i, j) has its centre at (i + 0.5, j + 0.5); beyond the map its border."""
    height, width = image.shape
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    fx, fy = x - x0, y - y0
    top = (1 - fx) * image[y0, x0] + fx * image[y0, x1]
    bottom = (1 - fx) * image[y1, x0] + fx * image[y1, x1]
    return (1 - fy) * top + fy * bottom


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_roi_align_equals_explicit_sampling(samples: int, scale: float, rng: np.random.Generator) -> None:
    maps = rng.normal(size=(3, 2, 9, 14))
    # fractional, inside, and reaching beyond the map on all sides
    boxes = np.array([[1.3, 2.7, 8.9, 6.1], [-2.5, -1.0, 16.5, 11.0], [10.2, 0.4, 13.9, 8.8]]) / scale
    h, w = 5, 7
    wanted = np.zeros((3, 2, h, w))
    for b in range(3):
        x0, y0, x1, y1 = boxes[b] * scale
        for i in range(h):
            for j in range(w):
                xs = [x0 + (x1 - x0) * (j + (s + 0.5) / samples) / w for s in range(samples)]
                ys = [y0 + (y1 - y0) * (i + (s + 0.5) / samples) / h for s in range(samples)]
                for c in range(2):
                    wanted[b, c, i, j] = np.mean([sample(maps[b, c], x, y) for y in ys for x in xs])
    got = roi_align(torch.from_numpy(maps), torch.from_numpy(boxes), (h, w), scale, samples)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_roi_align_of_the_whole_map_is_the_map() -> None:
    maps = torch.randn(1, 2, 6, 11, dtype=torch.float64)
    got = roi_align(maps, torch.tensor([[0.0, 0.0, 11.0, 6.0]]), (6, 11))
    torch.testing.assert_close(got, maps, rtol=0, atol=1e-12)


def refiner_inputs(size: int = 32) -> tuple[torch.Tensor, ...]:
    boxes = torch.tensor([[3.5, 10.0, 40.0, 60.5], [0.0, 0.0, 96.0, 64.0]])
    return (
        torch.randn(2, 3, size, size),
        (torch.rand(2, 2, size, size) > 0.9).float(),
        torch.randn(2, 8, 16, 24),
        torch.randn(2, 1, 64, 96),
        boxes,
    )


@torch.no_grad()
def test_the_gate_blends_coarse_and_detail() -> None:
    refiner = Refiner(8, 4).eval()
    arguments = refiner_inputs()
    coarse = roi_align(arguments[3], arguments[4], 32)
    out = refiner(*arguments)
    gate = out.boundary.sigmoid()
    torch.testing.assert_close(out.logits, gate * out.detail + (1 - gate) * coarse)
    refiner.boundary.weight.zero_()
    refiner.boundary.bias.fill_(-40)  # gate shut
    torch.testing.assert_close(refiner(*arguments).logits, coarse)
    refiner.boundary.bias.fill_(40)  # gate open
    opened = refiner(*arguments)
    torch.testing.assert_close(opened.logits, opened.detail)
    assert not torch.allclose(opened.detail, coarse)


def test_every_input_and_parameter_matters() -> None:
    refiner = Refiner(8, 4).train()
    image, disks, embedding, coarse, boxes = refiner_inputs()
    inputs = [t.requires_grad_(True) for t in (image, disks, embedding, coarse)]
    refiner(image, disks, embedding, coarse, boxes).logits.square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in inputs)
    assert all(p.grad is not None for p in refiner.parameters())


@torch.no_grad()
def test_model_refines_a_box(model: FreqFormer) -> None:
    coarse = model.decode_clicks(model.encode_image(torch.randn(2, 3, 64, 96)), torch.zeros(2, 3, 64, 96))
    size = model.config.refine_size
    boxes = torch.tensor([[3.5, 10.0, 40.0, 60.5], [0.0, 0.0, 96.0, 64.0]])
    crop, disks = torch.randn(2, 3, size, size), torch.zeros(2, 2, size, size)
    both = model.refine(coarse, boxes, crop, disks)
    assert both.shape == (2, 1, size, size)
    second = type(coarse)(*(t[1:] for t in coarse))  # each box belongs to its own sample
    torch.testing.assert_close(model.refine(second, boxes[1:], crop[1:], disks[1:]), both[1:], rtol=1e-4, atol=1e-5)
