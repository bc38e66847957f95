"""Painting on a device: the definition, the kernel and the host's painter agree in every bit."""

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.mask_bits import mask_bits, trial
from activefreq_engine.kernels.mask_bits.trial import drawn

from activefreq_engine.session.painter import Painter, limit


def unpacked(bits: torch.Tensor, height: int, width: int) -> np.ndarray:
    words = -(-width // 32)
    rows = bits[: height * words].cpu().numpy().view(np.uint8).reshape(height, 4 * words)
    return np.unpackbits(rows, axis=1, count=width, bitorder="little").view(bool)


def signed(number: int) -> int:
    return number - 2**32 if number >= 2**31 else number


def box_of(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [mask.shape[1], mask.shape[0], 0, 0]


SIZES = [(1, 1), (1, 77), (31, 33), (40, 128), (35, 129), (9, 300), (12, 16)]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_every_bit_is_the_hosts(size, backend, device, rng):
    height, width = size
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for threshold in (0.49, 0.9):
        h, w = (int(rng.integers(1, min(40, 3 * side + 2))) for side in size)
        bits = torch.full((2, 2048), -1, dtype=torch.int32, device=device)
        found = torch.full((2, 8), -7, dtype=torch.int32, device=device)
        before: list[np.ndarray] = []
        for known in (0, 1):
            levels = drawn((h, w), generator)
            asked = torch.tensor([[height, width, signed(limit(threshold)), 0, height, known, 0, 0]] * 2).int()
            mask_bits(levels.to(device), asked.to(device), bits, found, backend=backend)
            expected = []
            for image in range(2):
                mask = np.zeros(size, bool)
                Painter((0, 0, width, height), levels[image].numpy(), limit(threshold)).threshold(mask, blank=True)
                assert np.array_equal(unpacked(bits[image], height, width), mask)
                differs = mask ^ before[image] if known else mask
                assert found[image].tolist() == [*box_of(mask), *box_of(differs)]
                expected.append(mask)
            before = expected


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_rows_of_a_large_region_are_painted_in_turns(backend, device, rng):
    """And an image that asks for none keeps what it had."""
    levels = drawn((20, 30), torch.Generator().manual_seed(int(rng.integers(2**31))))
    whole = np.zeros((90, 70), bool)
    Painter((0, 0, 70, 90), levels[0].numpy(), limit(0.49)).threshold(whole, blank=True)
    for top, rows in ((0, 40), (40, 40), (80, 10)):
        bits = torch.full((2, 512), 5, dtype=torch.int32, device=device)
        found = torch.full((2, 8), -7, dtype=torch.int32, device=device)
        asked = torch.tensor([[90, 70, limit(0.49), top, rows, 0, 0, 0], [0] * 8]).int()
        mask_bits(levels.to(device), asked.to(device), bits, found, backend=backend)
        part = whole[top : top + rows]
        assert np.array_equal(unpacked(bits[0], rows, 70), part)
        x0, y0, x1, y1 = box_of(part)
        assert found[0, :4].tolist() == ([x0, y0 + top, x1, y1 + top] if part.any() else [70, 90, 0, 0])
        assert bits[1].eq(5).all()
        assert found[1].eq(-7).all()


def test_the_trial_passes(device, monkeypatch):
    if device.type != "cuda":  # the interpreter takes a minute for the larger ones
        monkeypatch.setattr(trial, "CASES", trial.CASES[1:3])
    for sample in trial.samples():
        for part in trial.check(device, **sample.arguments):
            assert part.ok, part
