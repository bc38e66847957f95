"""The Fourier module against sums written out, and the properties that make it what it is."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from activefreq_engine.models.freqnet import (
    BASE,
    FreqBlock,
    FreqModule,
    FreqNet,
    SpectralFilter,
    resize_full_axis,
    resize_half_axis,
)

SIZES = [(5, 7, 9), (3, 6, 10), (1, 1, 5), (4, 8, 6), (2, 17, 3)]  # C', H, W
PAIRS = ["hw", "cw", "ch"]


def randomise(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p))
    return module


def dft_matrix(n: int, sign: int) -> np.ndarray:
    k = np.arange(n)
    return np.exp(sign * 2j * np.pi * np.outer(k, k) / n) / math.sqrt(n)


def slow_filter(x: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """Filter real `[M, N]` maps: forward DFT, times the half spectrum `[M, N//2+1]`, and the real inverse, all by sums.

    The half spectrum stands for a whole one of a real signal: bins 1.. count twice (with their mirror images), the
    first and, where N is even, the last once, and of the sum the real part is taken.
    """
    m, n = x.shape
    forward = dft_matrix(m, -1) @ x @ dft_matrix(n, -1).T
    filtered = forward[:, : n // 2 + 1] * spectrum
    back = np.zeros((m, n))
    for k in range(n // 2 + 1):
        twice = 1 if k == 0 or 2 * k == n else 2
        column = dft_matrix(m, 1) @ filtered[:, k]  # [M]
        wave = np.exp(2j * np.pi * k * np.arange(n) / n) / math.sqrt(n)
        back += twice * np.real(np.outer(column, wave))
    return back


def slow_branch(x: np.ndarray, spectrum: np.ndarray, pair: str) -> np.ndarray:
    """One sample `[C', H, W]` through one spectral quarter, one plane at a time."""
    out = np.empty_like(x)
    channels, height, width = x.shape
    if pair == "hw":
        for c in range(channels):
            out[c] = slow_filter(x[c], spectrum[c])
    elif pair == "cw":
        for y in range(height):
            out[:, y] = slow_filter(x[:, y], spectrum)
    else:
        for i in range(width):
            out[:, :, i] = slow_filter(x[:, :, i], spectrum)
    return out


@pytest.mark.parametrize("kind", ["complex", "magnitude", "none"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}x{s[2]}")
@torch.no_grad()
def test_branch_equals_the_sums(size: tuple[int, int, int], pair: str, kind: str) -> None:
    branch = randomise(SpectralFilter(size[0], pair, kind).double())
    x = torch.randn(2, *size, dtype=torch.float64)
    spectrum = branch.spectrum(size[1], size[2]).numpy()
    assert spectrum.dtype == np.complex128
    if kind != "complex":
        assert not spectrum.imag.any()
    wanted = np.stack([slow_branch(sample, spectrum, pair) for sample in x.numpy()])
    np.testing.assert_allclose(branch(x).numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pair", PAIRS)
@torch.no_grad()
def test_spectrum_has_the_shape_that_the_kernel_takes(pair: str) -> None:
    shape = {"hw": (5, 7, 12 // 2 + 1), "cw": (5, 12 // 2 + 1), "ch": (5, 7 // 2 + 1)}[pair]
    assert SpectralFilter(5, pair, "complex").spectrum(7, 12).shape == shape


@pytest.mark.parametrize("axes", ["multi", "hw"])
@torch.no_grad()
def test_module_is_its_quarters_in_order(axes: str) -> None:
    module = randomise(FreqModule(20, axes).double())
    x = torch.randn(2, 20, 7, 9, dtype=torch.float64)
    y = module(x)
    for i, pair in enumerate(("hw", "cw", "ch") if axes == "multi" else ("hw", "hw", "hw")):
        part = slice(5 * i, 5 * i + 5)
        spectrum = module.filters[i].spectrum(7, 9).numpy()
        wanted = np.stack([slow_branch(sample, spectrum, pair) for sample in x[:, part].numpy()])
        np.testing.assert_allclose(y[:, part].numpy(), wanted, rtol=1e-10, atol=1e-10)
    padded = np.pad(x[:, 15:].numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    conv = np.zeros((2, 5, 7, 9)) + module.dwconv.bias.numpy()[:, None, None]
    for dy in range(3):
        for dx in range(3):
            conv += module.dwconv.weight.numpy()[:, 0, dy, dx, None, None] * padded[:, :, dy : dy + 7, dx : dx + 9]
    np.testing.assert_allclose(y[:, 15:].numpy(), conv, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}x{s[2]}")
@torch.no_grad()
def test_fresh_filter_is_the_identity(size: tuple[int, int, int], pair: str) -> None:
    x = torch.randn(2, *size, dtype=torch.float64)
    torch.testing.assert_close(SpectralFilter(size[0], pair, "complex").double()(x), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
@torch.no_grad()
def test_linear(pair: str) -> None:
    branch = randomise(SpectralFilter(5, pair, "complex").double())
    x, y = torch.randn(2, 1, 5, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(branch(2.5 * x - 3 * y), 2.5 * branch(x) - 3 * branch(y), rtol=0, atol=1e-10)


@pytest.mark.parametrize("pair", PAIRS)
@torch.no_grad()
def test_shifting_the_input_shifts_the_output(pair: str) -> None:
    """A filter is a circular convolution over its two axes; the third axis is a batch ("cw", "ch") or has filters of
    its own ("hw")."""
    branch = randomise(SpectralFilter(5, pair, "complex").double())
    x = torch.randn(1, 5, 7, 12, dtype=torch.float64)
    shift = {"hw": (0, 3, 5), "cw": (2, 4, 5), "ch": (2, 3, 7)}[pair]
    dims = (1, 2, 3)
    torch.testing.assert_close(branch(x.roll(shift, dims)), branch(x).roll(shift, dims), rtol=0, atol=1e-10)
    if pair == "hw":
        assert (branch(x.roll(1, 1)) - branch(x).roll(1, 1)).abs().max() > 0.1


@pytest.mark.parametrize("pair", PAIRS)
@torch.no_grad()
def test_a_delta_gives_the_kernel_on_its_own_axes_only(pair: str) -> None:
    branch = randomise(SpectralFilter(5, pair, "complex").double())
    x = torch.zeros(1, 5, 7, 12, dtype=torch.float64)
    x[0, 2, 3, 4] = 1
    y = branch(x)[0]
    reached = {"hw": y[2], "cw": y[:, 3], "ch": y[:, :, 4]}[pair]
    assert (reached.abs() > 1e-9).float().mean() > 0.9  # everywhere in its plane
    assert float(y.abs().sum()) == pytest.approx(float(reached.abs().sum()))  # and nowhere else


# --- resizing ---------------------------------------------------------------------------------------------------------
ANY = [1, 2, 3, 5, 8, 14, 15, 16, 17, 31, 32, 33, 56]


@pytest.mark.parametrize("size", ANY)
@torch.no_grad()
def test_a_filter_of_ones_stays_ones(size: int) -> None:
    assert torch.equal(resize_full_axis(torch.ones(2, BASE, 3), 1, size), torch.ones(2, size, 3))
    assert torch.equal(resize_half_axis(torch.ones(2, BASE // 2 + 1), 1, size), torch.ones(2, size // 2 + 1))


@torch.no_grad()
def test_its_own_size_is_exact() -> None:
    full, half = torch.randn(2, BASE, 3), torch.randn(2, BASE // 2 + 1)
    assert torch.equal(resize_full_axis(full, 1, BASE), full)
    assert torch.equal(resize_half_axis(half, 1, BASE), half)


@pytest.mark.parametrize("size", ANY)
@torch.no_grad()
def test_dc_lands_on_dc(size: int) -> None:
    filters = torch.randn(BASE)
    assert resize_full_axis(filters, 0, size)[0] == filters[0]
    assert resize_half_axis(filters[: BASE // 2 + 1], 0, size)[0] == filters[0]


@pytest.mark.parametrize("size", ANY)
@torch.no_grad()
def test_positive_and_negative_frequencies_never_blend(size: int) -> None:
    """On the base grid: bins 1..7 hold 1, bins -8..-1 hold -1, DC 0.  Every resized bin must keep its side."""
    filters = torch.ones(BASE, dtype=torch.float64)
    filters[0] = 0
    filters[BASE // 2 :] = -1
    k = np.fft.fftfreq(size, 1 / size)
    got = resize_full_axis(filters, 0, size).numpy()
    # linear from 0 at DC to 1 at the first base bin, then flat
    np.testing.assert_allclose(got, np.sign(k) * np.minimum(np.abs(k) * BASE / size, 1), atol=1e-12)


@pytest.mark.parametrize("size", ANY)
@torch.no_grad()
def test_a_ramp_over_frequency_stays_that_ramp(size: int) -> None:
    """Equal relative frequency -> equal value, up to the clamp beyond the highest positive base bin."""
    base = torch.fft.fftfreq(BASE, dtype=torch.float64)
    wanted = torch.fft.fftfreq(size, dtype=torch.float64).clamp(max=7 / BASE)
    torch.testing.assert_close(resize_full_axis(base, 0, size), wanted, rtol=0, atol=1e-12)
    half = torch.fft.rfftfreq(BASE, dtype=torch.float64)
    torch.testing.assert_close(
        resize_half_axis(half, 0, size), torch.fft.rfftfreq(size, dtype=torch.float64), rtol=0, atol=1e-12
    )


# --- types, gradients, errors -----------------------------------------------------------------------------------------
@torch.no_grad()
def test_half_precision_in_half_precision_out() -> None:
    module = FreqModule(40).to(torch.bfloat16)  # C' = 10 and 14: no powers of two
    x = torch.randn(1, 40, 14, 14)
    y = module(x.to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert (y[:, :30].float() - x[:, :30]).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["complex", "magnitude"])
def test_gradients(kind: str) -> None:
    block = randomise(FreqBlock(8, "multi", kind, 1).double())
    x = torch.randn(1, 8, 3, 5, dtype=torch.float64, requires_grad=True)
    filters = [p for n, p in block.named_parameters() if ".filters." in n]
    assert len(filters) == 3
    block(x).square().sum().backward()
    for p in block.parameters():
        assert p.grad is not None
        assert p.grad.abs().sum() > 0
    if kind == "magnitude":  # the imaginary halves play no part
        assert all(not f.grad[..., 1].any() for f in filters)
    branch = randomise(SpectralFilter(2, "cw", kind).double())
    small = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: branch(x), (small, branch.weight), fast_mode=True)


def test_kind_none_learns_and_stores_nothing() -> None:
    branch = SpectralFilter(4, "hw", "none")
    assert not list(branch.parameters())
    assert not branch.state_dict()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((10,), ["10", "multiple of 4"]), ((8, "wh"), ["'wh'", "'multi'", "'hw'"]), ((8, "hw", "real"), ["'real'"])],
)
def test_errors_say_what_is_allowed(arguments: tuple, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"got|allowed") as e:
        FreqModule(*arguments)
    assert all(w in str(e.value) for w in words)


# --- decoder ----------------------------------------------------------------------------------------------------------
def maps_of(channels: tuple[int, ...], height: int, width: int) -> list[torch.Tensor]:
    return [torch.randn(2, c, height >> i, width >> i, dtype=torch.float64) for i, c in enumerate(channels)]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_composed_fuse_is_the_same_function(training: bool) -> None:
    decoder = randomise(FreqNet((8, 4, 12, 8), 6, depth=2).double()).train(training)
    maps = maps_of((8, 4, 12, 8), 16, 24)
    plain = decoder(maps)
    decoder.compose_fuse = True
    composed = decoder(maps)
    torch.testing.assert_close(composed.logits, plain.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(composed.embedding, plain.embedding, rtol=1e-10, atol=1e-10)
    assert plain.logits.shape == (2, 1, 16, 24)
    assert plain.embedding.shape == (2, 6, 16, 24)


@torch.no_grad()
def test_filtered_first_map_skips_its_layer() -> None:
    decoder = randomise(FreqNet((8, 4), 6).double()).eval()
    maps = maps_of((8, 4), 6, 10)
    kept = [decoder.freq_layers[0](maps[0]), maps[1]]
    assert torch.equal(decoder(kept, first_is_filtered=True).logits, decoder(maps).logits)
    assert not torch.equal(decoder(kept).logits, decoder(maps).logits)


@torch.no_grad()
def test_fusion_order_is_deepest_first() -> None:
    """Order c4, c3, c2, c1: the last slice of the fuse convolution belongs to the first map."""
    decoder = FreqNet((4, 4), 3).double().eval()
    maps = maps_of((4, 4), 6, 10)
    decoder.fuse.weight[:, 3:] = 0
    a = decoder(maps).embedding
    assert torch.equal(a, decoder([torch.randn_like(maps[0]), maps[1]]).embedding)
    assert not torch.equal(a, decoder([maps[0], torch.randn_like(maps[1])]).embedding)
