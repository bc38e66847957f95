"""The kernels pass their own trials, and a kernel that is planted wrong does not."""

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from activefreq_engine.kernels import click_maps, dispatch, mask_output, norm_linear, triton_support, verification
from activefreq_engine.kernels.freq_module import FreqModulePlan, freq_module, trial, triton_impl
from activefreq_engine.kernels.norm_linear import triton_impl as norm_linear_kernels

from activefreq_engine.models.freqnet import FreqBlock
from activefreq_engine.runtime.plan import frequency, layers

PLANTS = {
    "depth-wise quarter": ("acc += v.to(tl.float32) * tl.load(", "acc += 1.1 * v.to(tl.float32) * tl.load("),
    "quarter ch": ("filter_ptr + CH_FILTER,", "filter_ptr + CW_FILTER,"),
    "nan": ("acc = tl.zeros((ROWS, WP), dtype=tl.float32)", "acc = tl.full((ROWS, WP), float('nan'), tl.float32)"),
    "raised": ("rh = h0 + tl.arange(0, ROWS)", "rh = h0 + tl.arange(0, ROWS + 1)"),
}
"""What the verdict says -> text of the kernel's source, and its replacement."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTIVEFREQ_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)


def forget(monkeypatch):
    """What a new process does not know."""
    monkeypatch.setattr(dispatch, "_proven", {})
    monkeypatch.setattr(verification, "_known", {})
    monkeypatch.setattr(verification, "_said", set())


def plant(name, folder, monkeypatch):
    old, new = PLANTS[name]
    source = Path(triton_impl.__file__).read_text()
    assert source.count(old) == 1
    file = folder / "planted.py"
    file.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("activefreq_engine.kernels.freq_module.planted", file)
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as m:  # its operators are registered already
        m.setattr("activefreq_engine.kernels.operators.define", lambda *_, **__: None)
        spec.loader.exec_module(module)
    monkeypatch.setattr(triton_impl, "freq_module_kernel", module.freq_module_kernel)


def make():
    parameters = (
        torch.randn(1, 4, 2, dtype=torch.complex64),
        torch.randn(1, 2, dtype=torch.complex64),
        torch.randn(1, 3, dtype=torch.complex64),
        torch.randn(1, 1, 3, 3),
    )
    return torch.randn(1, 4, 3, 4).permute(0, 3, 1, 2), parameters


@pytest.mark.parametrize("sample", [*click_maps.trial.samples(), *mask_output.trial.samples()], ids=lambda s: s.size)
def test_kernels_pass(sample, device):
    op = click_maps.trial if "slots" in sample.size else mask_output.trial
    assert all(part.ok for part in op.check(device, **sample.arguments))


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("tf32x3", torch.float32)], ids=str)
def test_the_freq_module_passes(dtype, precision, device):
    like = torch.empty(1, 4, 3, 8, dtype=dtype, device="meta").permute(0, 3, 1, 2)
    form = trial.form(like, None, like, 3, precision)
    assert all(part.ok for part in trial.check(device, **form.arguments))


def test_a_misaligned_input_is_a_form_of_its_own_and_an_expanded_one_is_not(device):
    whole = torch.randn(4 * 16 + 1, device=device)
    aligned, misaligned = whole[:-1].view(1, 4, 4, 4), whole[1:].view(1, 4, 4, 4)
    expanded = aligned.expand(2, -1, -1, -1)
    forms = [trial.form(t, None, None, 3, "fp16") for t in (aligned, misaligned, expanded)]
    assert forms[0].key == forms[2].key != forms[1].key
    for form in forms[1:]:
        assert all(part.ok for part in trial.check(device, **form.arguments))


@pytest.mark.skipif(not triton_support.INTERPRETING, reason="on a GPU trials run in a process without the plant")
@pytest.mark.parametrize("planted", PLANTS)
def test_a_planted_kernel_is_not_used(planted, device, tmp_path, monkeypatch, caplog):
    x, parameters = make()
    expected = FreqModulePlan(*parameters, size=(4, 3), backend="reference")(x, residual=x)
    plant(planted, tmp_path, monkeypatch)
    wrong = FreqModulePlan(*parameters, size=(4, 3), backend="triton")
    if planted != "raised":  # by name it runs: the plant is one
        assert not (wrong(x, residual=x) - expected).abs().max() < 0.01
    with caplog.at_level(logging.WARNING):
        plan = FreqModulePlan(*parameters, size=(4, 3))
        for _ in range(2):
            assert torch.equal(plan(x, residual=x), expected)
        assert not plan.proven(x, residual=x)
        assert torch.equal(freq_module(x, *parameters, None, residual=x), expected)
    (record,) = caplog.records
    assert planted in record.getMessage()
    assert "C'=1 4x3 (fp16, channels last, plus residual)" in record.getMessage()

    monkeypatch.setattr(trial, "RUNS", None)  # a second process tries nothing
    forget(monkeypatch)
    assert torch.equal(FreqModulePlan(*parameters, size=(4, 3))(x, residual=x), expected)


@pytest.mark.skipif(not triton_support.INTERPRETING, reason="on a GPU trials run in a process without the plant")
def test_a_block_of_a_plan_takes_torchs_operations_instead(device, tmp_path, monkeypatch, caplog):
    block = FreqBlock(4, "multi", "complex", 2)
    norm, ffn = layers.Norm(block.norm1), layers.PointwiseFFN(block)
    arguments = (norm, block.freq, ffn, 4, 3, "auto", torch.float32, device)
    assert isinstance(frequency.frequency_block(*arguments), frequency.OneLaunch)
    forget(monkeypatch)
    (file,) = verification.folder().rglob("*.json")
    file.unlink()
    plant("quarter ch", tmp_path, monkeypatch)
    with caplog.at_level(logging.WARNING):
        made = [frequency.frequency_block(*arguments) for _ in range(2)]
    assert all(isinstance(m, layers.Frequency) for m in made)
    assert len(caplog.records) == 1
    x = torch.randn(1, 4, 3, 4)
    with torch.inference_mode():
        expected = block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert (made[0](x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.skipif(not triton_support.INTERPRETING, reason="on a GPU trials run in a process without the plant")
def test_a_planted_fused_kernel_is_not_used(device, monkeypatch, caplog):
    """Its bias is left out."""
    x, weight, bias = torch.randn(1, 3, 5, 64).half(), torch.randn(24, 64).half() / 8, torch.randn(24).half()
    right = norm_linear.norm_linear(x, weight, bias, eps=1e-6)
    assert torch.equal(right, norm_linear.norm_linear(x, weight, bias, eps=1e-6, backend="triton"))
    forget(monkeypatch)
    for file in verification.folder().rglob("*.json"):
        file.unlink()
    plain = norm_linear_kernels.kernel_call

    def wrong(*arguments):
        call = plain(*arguments)
        call.arguments["BIAS"] = False
        return call

    monkeypatch.setattr(norm_linear_kernels, "kernel_call", wrong)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got = norm_linear.norm_linear(x, weight, bias, eps=1e-6)
            assert torch.equal(got, norm_linear.norm_linear(x, weight, bias, eps=1e-6, backend="reference"))
    (record,) = caplog.records
    assert "norm_linear" in record.getMessage()
    assert "3x5x64 -> 3x5x24 without residual" in record.getMessage()
