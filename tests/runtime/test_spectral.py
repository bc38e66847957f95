"""The FreqModule at a fixed map size, in each form, against the reference module."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.models.freqnet import FreqModule
from activefreq_engine.runtime.plan.spectral import FASTEST, spectral_module
from tests.compiler import needs_compiler

FORMS = ("auto", "fft", "matmul", "dense")
MAPS = [(7, 12), (14, 7), (16, 28), (28, 14), (5, 56), (56, 1), (1, 3), (2, 2)]


def random_module(quarter: int, **options: object) -> FreqModule:
    """Random filters; their DC and Nyquist columns are not Hermitian, as learned ones need not be."""
    module = FreqModule(4 * quarter, **options).double().eval().requires_grad_(False)
    for p in module.parameters():
        nn.init.normal_(p)
    return module


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quarter", [1, 2, 5, 8, 16, 40])
def test_every_form_is_the_reference_in_float64(form: str, quarter: int) -> None:
    for height, width in MAPS:
        freq = random_module(quarter)
        x = torch.randn(2, 4 * quarter, height, width, dtype=torch.float64)
        got = spectral_module(freq, height, width, form, torch.float64)(x)
        want = freq(x)
        assert got.dtype == want.dtype
        assert (got - want).abs().max() <= 1e-10, (height, width)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{"axes": "hw"}, {"kind": "magnitude"}, {"kind": "none"}, {"kernel": 5}])
def test_every_variant_of_the_module(form: str, options: dict[str, object]) -> None:
    freq = random_module(5, **options)
    x = torch.randn(1, 20, 12, 7, dtype=torch.float64)
    got = spectral_module(freq, 12, 7, form, torch.float64)(x)
    assert (got - freq(x)).abs().max() <= 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_lower_precision_costs_little_more_than_its_rounding(form: str, dtype: torch.dtype, tolerance: float) -> None:
    """bfloat16 rounds to 2^-9 = 2e-3 of a value, so only the output's rounding may show, not the operands'."""
    freq = random_module(16)
    x = (3 * torch.randn(1, 64, 28, 20) + 1).to(dtype)
    got = spectral_module(freq, 28, 20, form, dtype)(x)
    want = freq(x.double())
    assert got.dtype == dtype
    for part, truth in zip(got.chunk(4, dim=1)[:3], want.chunk(4, dim=1)[:3], strict=True):
        assert relative(part, truth) <= tolerance
    assert relative(got[:, 48:], want[:, 48:]) <= max(tolerance, 8e-3 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("form", FORMS)
def test_strides_do_not_matter(form: str) -> None:
    freq = random_module(5)
    x = torch.randn(2, 20, 12, 7, dtype=torch.float64)
    module = spectral_module(freq, 12, 7, form, torch.float64)
    maps = x.contiguous(memory_format=torch.channels_last)
    assert (module(maps) - module(x)).abs().max() <= 1e-12
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert (module(turned) - module(x)).abs().max() <= 1e-12


@needs_compiler
@pytest.mark.parametrize("form", ["matmul", "dense"])
def test_the_exportable_forms_have_no_complex_number(form: str) -> None:
    module = spectral_module(random_module(8), 12, 8, form)
    graph = torch.export.export(module, (torch.randn(1, 32, 12, 8),))
    names = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert names
    assert not [n for n in names if "fft" in n or "complex" in n]
    assert not any(t.is_complex() for t in (*module.buffers(), *module.parameters()))


def test_the_weights_are_copies_and_the_module_is_left_alone() -> None:
    freq = random_module(2)
    before = [p.clone() for p in freq.parameters()]
    x = torch.randn(1, 8, 7, 7, dtype=torch.float64)
    for form in FORMS:
        module = spectral_module(freq, 7, 7, form, torch.float32)
        want = module(x.float())
        freq.dwconv.weight.zero_()
        assert torch.equal(module(x.float()), want)
        freq.dwconv.weight.copy_(before[-2])
    for p, old in zip(freq.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_what_it_refuses() -> None:
    freq = random_module(1)
    with pytest.raises(InvalidArgumentError, match="allowed are auto, fft, matmul, dense"):
        spectral_module(freq, 7, 7, "circulant")
    with pytest.raises(InvalidArgumentError, match="0x7"):
        spectral_module(freq, 0, 7)


def test_auto_goes_by_the_record() -> None:
    path = Path(__file__).parents[2] / "bench" / "results" / "spectral_forms.csv"
    times: dict[tuple[str, ...], dict[str, float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            case = tuple(row[name] for name in ("models", "size", "stage", "threads"))
            times.setdefault(case, {})[row["form"]] = float(row["median_us"])
    assert len(times) == 48
    for case, forms in times.items():
        assert min(forms, key=forms.__getitem__) == FASTEST, case


def test_a_batch_has_the_bits_of_its_items(rng: np.random.Generator) -> None:
    for height, width in ((64, 48), (32, 32), (7, 5)):
        module = spectral_module(random_module(8).float(), height, width)
        x = torch.from_numpy(rng.standard_normal((3, 32, height, width), np.float32))
        x = x.contiguous(memory_format=torch.channels_last)
        together = module(x)
        alone = torch.cat([module(item) for item in x.split(1)])
        assert torch.equal(together[:, :24], alone[:, :24])  # the rest is a convolution
