"""The mask output kernel against the float64 definition."""

import pytest
import torch
from activefreq_engine.kernels.mask_output import mask_output

TOLERANCE = 1e-6  # absolute, of probabilities and bits
CASES = [  # B, h, w, H, W
    (2, 7, 9, 29, 37),
    (1, 16, 12, 64, 48),
    (2, 1, 1, 1, 1),
    (1, 1, 5, 3, 140),
    (2, 5, 3, 5, 3),
    (1, 20, 31, 10, 11),
    (1, 8, 33, 32, 132),
]


def check(logits, previous, threshold=0.49):
    found = mask_output(logits, previous, threshold=threshold, backend="triton")
    expected = mask_output(logits, previous, threshold=threshold, backend="reference")
    for name in ("probs", "mask", "entropy", "changed"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device), name
    print("errors", (found.probs - expected.probs).abs().max(), (found.entropy - expected.entropy).abs().max())
    assert (found.probs - expected.probs).abs().max() <= TOLERANCE
    assert (found.entropy - expected.entropy).abs().max() <= TOLERANCE
    assert torch.equal(found.mask, found.probs > threshold)
    clear = (expected.probs - threshold).abs() > TOLERANCE  # elsewhere rounding decides
    assert torch.equal(found.mask[clear], expected.mask[clear])
    if torch.equal(found.mask, expected.mask):
        assert torch.equal(found.changed, expected.changed)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: "B{}-{}x{}-to-{}x{}".format(*c))
def test_matches_float64(case, dtype, device):
    b, h, w, height, width = case
    logits = (4 * torch.randn(b, 1, h, w)).to(dtype).to(device)
    check(logits, torch.rand(b, height, width).to(device) < 0.5)


def test_the_box_bounds_what_changed(device):
    """A few pixels anywhere, in tiles of their own; and none at all in the last image."""
    previous = torch.zeros(3, 41, 300, dtype=torch.bool, device=device)
    logits = torch.full((3, 1, 41, 300), -9.0, device=device)
    boxes = []
    for image in range(2):
        ys, xs = torch.randint(0, 41, (3,)), torch.randint(0, 300, (3,))
        logits[image, 0, ys, xs] = 9.0
        boxes.append([xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1])
    boxes.append([300, 41, 0, 0])
    found = check(logits, previous)
    assert found.changed.tolist() == boxes
    assert check(logits, found.mask).changed.tolist() == [[300, 41, 0, 0]] * 3
    assert check(-logits, found.mask).changed.tolist() == [[0, 0, 300, 41]] * 3


def test_extreme_logits(device):
    logits = torch.tensor([-1e4, -88.0, -17.0, -0.0, 0.0, 17.0, 88.0, 1e4], device=device).view(1, 1, 1, 8)
    found = check(logits, torch.zeros(1, 1, 8, dtype=torch.bool, device=device))
    assert torch.isfinite(found.entropy).all()
    assert found.entropy.max() == 1.0


def test_strided_logits_and_mask(device):
    logits = torch.randn(2, 3, 10, 7, device=device)[:, 1:2].transpose(2, 3)
    previous = (torch.rand(2, 20, 14, device=device) < 0.5).transpose(1, 2)
    check(logits, previous)


def test_no_image(device):
    found = mask_output(
        torch.empty(0, 1, 3, 3, device=device), torch.empty(0, 5, 5, dtype=torch.bool, device=device), backend="triton"
    )
    assert found.probs.shape == (0, 5, 5)
    assert found.changed.shape == (0, 4)


@pytest.mark.gpu
def test_a_cuda_graph_replays_it(device):
    logits, previous = torch.randn(1, 1, 16, 16, device=device), torch.zeros(1, 64, 64, dtype=torch.bool, device=device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        mask_output(logits, previous, backend="triton")
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mask_output(logits, previous, backend="triton")
    logits.copy_(torch.randn_like(logits))
    for t in out:
        t.fill_(1)
    graph.replay()
    expected = mask_output(logits, previous, backend="reference")
    assert (out.probs - expected.probs).abs().max() <= TOLERANCE
    assert torch.equal(out.mask, out.probs > 0.49)
