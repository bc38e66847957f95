"""The definition of the mask output, and what the op refuses."""

import math

import pytest
import torch
from activefreq_engine.kernels import dispatch
from activefreq_engine.kernels.mask_output import mask_output

from tests.compiler import needs_compiler


def bilinear(z, height, width):
    """Pixel centres aligned, one output pixel at a time."""
    h, w = len(z), len(z[0])
    out = [[0.0] * width for _ in range(height)]
    for i in range(height):
        y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
        y0 = int(y)
        y1 = min(y0 + 1, h - 1)
        for j in range(width):
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            x0 = int(x)
            x1 = min(x0 + 1, w - 1)
            top = z[y0][x0] + (z[y0][x1] - z[y0][x0]) * (x - x0)
            bottom = z[y1][x0] + (z[y1][x1] - z[y1][x0]) * (x - x0)
            out[i][j] = top + (bottom - top) * (y - y0)
    return out


def test_against_loops():
    logits, previous = 4 * torch.randn(2, 1, 5, 3), torch.rand(2, 11, 13) < 0.5
    out = mask_output(logits, previous, threshold=0.6)
    assert (out.probs.dtype, out.mask.dtype, out.entropy.dtype, out.changed.dtype) == (
        torch.float32,
        torch.bool,
        torch.float32,
        torch.int32,
    )
    for b in range(2):
        z = bilinear(logits[b, 0].tolist(), 11, 13)
        changed = []
        for i in range(11):
            for j in range(13):
                p = 1 / (1 + math.exp(-z[i][j]))
                assert out.probs[b, i, j].item() == pytest.approx(p, abs=1e-6)
                bits = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
                assert out.entropy[b, i, j].item() == pytest.approx(bits, abs=1e-6)
                assert out.mask[b, i, j] == (out.probs[b, i, j] > 0.6)
                if out.mask[b, i, j] != previous[b, i, j]:
                    changed.append((j, i))
        xs, ys = zip(*changed, strict=True)
        assert out.changed[b].tolist() == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def test_nothing_changed():
    logits, previous = torch.randn(1, 1, 4, 6), torch.zeros(1, 8, 12, dtype=torch.bool)
    mask = mask_output(logits, previous).mask
    assert mask_output(logits, mask).changed.tolist() == [[12, 8, 0, 0]]


LOGITS, PREVIOUS = torch.zeros(2, 1, 3, 4), torch.zeros(2, 6, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("logits", "previous", "threshold", "error", "words"),
    [
        ([0.0], PREVIOUS, 0.5, TypeError, "logits is a list"),
        (LOGITS.int(), PREVIOUS, 0.5, TypeError, "torch.int32"),
        (LOGITS, PREVIOUS.float(), 0.5, TypeError, "previous has dtype torch.float32"),
        (LOGITS[:, 0], PREVIOUS, 0.5, ValueError, r"\(2, 3, 4\); pass \[B, 1, h, w\]"),
        (LOGITS, PREVIOUS[:1], 0.5, ValueError, r"previous has shape \(1, 6, 8\).*\[2, H, W\]"),
        (LOGITS, PREVIOUS[:, :0], 0.5, ValueError, "at least one pixel"),
        (LOGITS, PREVIOUS, 1.5, ValueError, "threshold is 1.5"),
        (LOGITS, PREVIOUS, float("nan"), ValueError, "threshold is nan"),
        (LOGITS.clone().requires_grad_(), PREVIOUS, 0.5, RuntimeError, "logits requires a gradient"),
        (LOGITS.to("meta"), PREVIOUS, 0.5, ValueError, "meta, previous on cpu"),
    ],
)
def test_bad_arguments(logits, previous, threshold, error, words):
    with pytest.raises(error, match=words):
        mask_output(logits, previous, threshold=threshold)


@needs_compiler
def test_compiles_as_one_op():
    logits, previous = torch.randn(2, 1, 3, 4), torch.rand(2, 6, 8) < 0.5
    compiled = torch.compile(mask_output, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(logits, previous), mask_output(logits, previous), strict=True):
        assert torch.equal(found, expected)


def test_triton_by_name_without_a_gpu():
    with pytest.raises(dispatch.BackendUnavailableError, match="mask_output cannot run on the triton backend"):
        mask_output(LOGITS, PREVIOUS, backend="triton")
