"""The definition of the FreqModule, what the op refuses, and which implementation runs.

The Triton kernel is tested in `on_device`.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from activefreq_engine.kernels import dispatch, triton_support
from activefreq_engine.kernels.freq_module import FreqModulePlan, freq_module

from activefreq_engine.models.freqnet import FreqModule
from tests.compiler import needs_compiler

NAMES = ("filter_hw", "filter_cw", "filter_ch", "dw_weight", "dw_bias")
SIZES = [(2, 3, 5, 7, 3), (1, 2, 6, 4, 5), (1, 1, 1, 1, 7), (2, 4, 9, 2, 3)]  # B, C', H, W, k


def make(b, cq, h, w, k, dtype=torch.float64):
    """x and parameters; filters that are not near anything special."""
    real = {torch.float64: torch.complex128}.get(dtype, torch.complex64)
    shapes = ((cq, h, w // 2 + 1), (cq, w // 2 + 1), (cq, h // 2 + 1))
    filters = (torch.randn(s, dtype=real) for s in shapes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.randn(b, 4 * cq, h, w).to(dtype), (*filters, torch.randn(cq, 1, k, k, dtype=wide), torch.randn(cq))


def filter_by_sums(x, half_spectrum):
    """One real `[M, N]` plane through a DFT, a filter and the inverse, all by sums; the half spectrum on axis 1."""
    m, n = x.shape
    row, column = (np.exp(-2j * np.pi * np.outer(np.arange(s), np.arange(s)) / s) / np.sqrt(s) for s in (m, n))
    spectrum = (row @ x @ column)[:, : n // 2 + 1] * half_spectrum
    waves = column.conj()[: n // 2 + 1]
    weight = np.where((np.arange(n // 2 + 1) == 0) | (2 * np.arange(n // 2 + 1) == n), 1, 2)
    return ((row.conj() @ spectrum) * weight @ waves).real


def module_by_sums(x, hw, cw, ch, weight, bias):
    b, c, h, w = x.shape
    q, pad = c // 4, weight.shape[-1] // 2
    y = np.zeros_like(x)
    for i in range(b):
        for j in range(q):
            y[i, j] = filter_by_sums(x[i, j], hw[j])
        for j in range(h):
            y[i, q : 2 * q, j] = filter_by_sums(x[i, q : 2 * q, j], cw)
        for j in range(w):
            y[i, 2 * q : 3 * q, :, j] = filter_by_sums(x[i, 2 * q : 3 * q, :, j], ch)
        for j in range(q):
            padded = np.pad(x[i, 3 * q + j], pad)
            windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:])
            y[i, 3 * q + j] = (windows * weight[j, 0]).sum((2, 3)) + bias[j]
    return y


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "B{}-C{}-{}x{}-k{}".format(*s))
def test_the_definition_against_sums(size):
    x, parameters = make(*size)
    found = freq_module(x, *parameters)
    expected = module_by_sums(x.numpy(), *(p.numpy() for p in parameters))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


def test_it_is_the_module_of_the_model():
    module = FreqModule(24, kernel=5).requires_grad_(False)
    for p in module.parameters():
        p.copy_(torch.randn_like(p))
    x = torch.randn(2, 24, 14, 9)
    filters = [f.spectrum(14, 9) for f in module.filters]
    found = freq_module(x, *filters, module.dwconv.weight, module.dwconv.bias)
    torch.testing.assert_close(found, module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtype_and_layout_are_those_of_the_input(dtype):
    x, parameters = make(2, 2, 5, 6, 3, dtype)
    wide = freq_module(x.float(), *parameters)
    x = x.to(memory_format=torch.channels_last)
    found = freq_module(x, *parameters)
    assert (found.dtype, found.stride()) == (dtype, x.stride())
    assert (found.float() - wide).norm() <= 2 * torch.finfo(dtype).eps * wide.norm()


def test_output_argument():
    x, parameters = make(1, 2, 5, 6, 3, torch.float32)
    whole = torch.full((1, 8, 7, 8), 5.0)
    out = whole[:, :, 1:6, 1:7]
    assert freq_module(x, *parameters, out=out) is out
    assert torch.equal(out, freq_module(x, *parameters))
    out.fill_(5.0)
    assert (whole == 5.0).all()


def test_a_residual_is_added_before_rounding():
    x, parameters = make(1, 2, 5, 6, 3, torch.float16)
    residual = (100 * torch.randn(1, 8, 6, 5)).half().transpose(2, 3)
    wide = freq_module(x.float(), *parameters)
    found = freq_module(x, *parameters, residual=residual)
    assert torch.equal(found, (wide + residual).half())
    plan = FreqModulePlan(*parameters, size=(5, 6))
    assert torch.equal(plan(x, residual=residual), found)
    assert torch.equal(plan(x, residual=x), (wide + x).half())


def test_an_empty_batch():
    x, parameters = make(0, 2, 5, 6, 3, torch.float32)
    assert freq_module(x, *parameters).shape == (0, 8, 5, 6)
    out = torch.empty_like(x)
    assert freq_module(x, *parameters, out=out) is out


def test_a_plan_is_a_snapshot():
    x, parameters = make(2, 3, 5, 6, 3, torch.float32)
    plan = FreqModulePlan(*(p.requires_grad_() for p in parameters), size=(5, 6))
    with torch.no_grad():
        expected = freq_module(x, *parameters)
        for p in parameters:
            p.zero_()
    assert torch.equal(plan(x), expected)
    assert torch.equal(plan(x[1:]), expected[1:])
    assert (plan.size, plan.channels, plan.precision, plan.input_limit) == ((5, 6), 12, "fp16", float("inf"))
    assert plan.backend == "reference"
    assert repr(plan) == "FreqModulePlan(12x5x6, precision='fp16', backend='reference')"


def replaced(index, value):
    return lambda x, p: (x, (*p[:index], value(p[index]), *p[index + 1 :]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x, p: (x.tolist(), p), TypeError, "x is a list"),
        (lambda x, p: (x[0], p), ValueError, r"x has shape \(8, 5, 6\)"),
        (lambda x, p: (x[:, :7], p), ValueError, r"\(1, 7, 5, 6\).*multiple of 4"),
        (lambda x, p: (x[:, :4], p), ValueError, r"x has shape \(1, 4, 5, 6\); .* \[B, 8, 5, 6\]"),
        (lambda x, p: (x.int(), p), TypeError, "x has dtype torch.int32"),
        (lambda x, p: (x.double(), p), TypeError, "x has dtype torch.float64"),
        (lambda x, p: (x.to("meta"), p), ValueError, "x is on meta, the filters on cpu"),
        (lambda x, p: (x[..., :4], p), ValueError, r"filter_hw has shape \(2, 5, 4\); .* 5x4 .* \(2, 5, 3\)"),
        (replaced(0, lambda f: f.real), TypeError, "filter_hw has dtype torch.float32"),
        (replaced(0, lambda f: f[0]), ValueError, r"filter_hw has shape \(5, 4\)"),
        (replaced(1, lambda f: f.to(torch.complex128)), TypeError, "filter_cw has dtype torch.complex128"),
        (replaced(1, lambda f: f[:, None]), ValueError, r"filter_cw has shape \(2, 1, 4\)"),
        (replaced(2, lambda f: f[:, :2]), ValueError, r"filter_ch has shape \(2, 2\); .* \(2, 3\)"),
        (replaced(2, lambda f: f.numpy()), TypeError, "filter_ch is a ndarray"),
        (replaced(3, lambda w: w[..., :2, :2]), ValueError, "dw_weight is 2x2; allowed are 3x3, 5x5 and 7x7"),
        (replaced(3, lambda w: w[:, 0]), ValueError, r"\[C', 1, k, k\]"),
        (replaced(3, lambda w: w.int()), TypeError, "dw_weight has dtype torch.int32"),
        (replaced(4, lambda b: b[:1]), ValueError, r"dw_bias has shape \(1,\); .* \(2,\)"),
        (replaced(4, lambda b: b.to("meta")), ValueError, "dw_bias is on meta"),
    ],
)
def test_bad_arguments(change, error, words):
    x, parameters = change(*make(1, 2, 5, 6, 3, torch.float32))
    with pytest.raises(error, match=words):
        freq_module(x, *parameters)


def test_bad_options():
    x, parameters = make(1, 2, 5, 6, 3, torch.float32)
    with pytest.raises(ValueError, match="precision is 'bf16'; allowed are fp16, tf32x3, tf32"):
        freq_module(x, *parameters, precision="bf16")
    with pytest.raises(ValueError, match="'numpy'; allowed are auto"):
        freq_module(x, *parameters, backend="numpy")
    for out, words in ((x.double(), "out has dtype"), (x[:, :4], "out is"), (x, "overlaps"), (x[:1], "overlaps")):
        with pytest.raises((TypeError, ValueError), match=words):
            freq_module(x, *parameters, out=out)
    for residual, words in ((x.half(), "residual has dtype"), (x[..., :5], "residual is"), (3, "residual is a int")):
        with pytest.raises((TypeError, ValueError), match=words):
            freq_module(x, *parameters, residual=residual)
    residual = torch.zeros_like(x)
    with pytest.raises(ValueError, match="out overlaps residual"):
        freq_module(x, *parameters, out=residual, residual=residual)
    with pytest.raises(ValueError, match="several elements share one place"):
        freq_module(x, *parameters, out=torch.zeros(1, 8, 5, 1).expand(1, 8, 5, 6))


@pytest.mark.parametrize("name", ["x", *NAMES])
def test_a_gradient_is_refused(name):
    x, parameters = make(1, 2, 5, 6, 3, torch.float32)
    dict(zip(("x", *NAMES), (x, *parameters), strict=True))[name].requires_grad_()
    with pytest.raises(RuntimeError, match=f"{name} requires a gradient, and freq_module is for inference only"):
        freq_module(x, *parameters)
    with torch.no_grad():
        freq_module(x, *parameters)


@needs_compiler
def test_compile_and_export_see_one_op():
    x, parameters = make(2, 2, 5, 6, 3, torch.float32)
    expected = freq_module(x, *parameters)
    out = torch.zeros_like(x)
    compiled = torch.compile(freq_module, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, *parameters), expected)
    assert torch.equal(compiled(x, *parameters, out=out), expected)

    class Module(torch.nn.Module):
        def forward(self, x):
            return freq_module(x, *parameters)

    program = torch.export.export(Module(), (x,))
    assert [str(n.target) for n in program.graph.nodes if "activefreq" in str(n.target)] == [
        "activefreq.freq_module.default"
    ]
    assert torch.equal(program.module()(x), expected)


# ---- which implementation runs


def triton_verdict(cq, h, w, precision="fp16", dtype=torch.complex64):
    (triton,) = (i for i in dispatch._registry["freq_module"].values() if i.name == "triton")
    return triton.verify(torch.ones(cq, h, w // 2 + 1, dtype=dtype), size=(h, w), precision=precision)


def test_sizes_that_triton_is_offered_for(monkeypatch):
    monkeypatch.setattr(triton_support, "available", lambda: (True, ""))
    for size in ((1, 1, 1), (64, 128, 128), (128, 64, 64), (5, 31, 45)):
        assert triton_verdict(*size) == (True, "")
    assert triton_verdict(64, 64, 64, "tf32x3") == (True, "")
    assert triton_verdict(8, 129, 16) == (False, "C' = 8 on 129x16 maps; in fp16 each is offered up to 128")
    assert triton_verdict(129, 8, 16)[0] is False
    assert triton_verdict(8, 16, 65, "tf32x3") == (False, "C' = 8 on 16x65 maps; in tf32x3 each is offered up to 64")
    assert triton_verdict(65, 8, 65) == (False, "C' = 65 on 8x65 maps; C' or the sides must be 64 or less")
    assert "complex128" in triton_verdict(8, 16, 16, dtype=torch.complex128)[1]


def test_why_triton_cannot_run_here(monkeypatch):
    if triton_support.INTERPRETING or torch.cuda.is_available():
        pytest.skip("it can")
    x, parameters = make(1, 2, 5, 6, 3, torch.float32)
    with pytest.raises(dispatch.BackendUnavailableError, match="it runs on cuda, the input is on cpu"):
        freq_module(x, *parameters, backend="triton")
    ok, reason = triton_support.available()
    assert not ok
    assert "triton is not installed" in reason or "sees no CUDA device" in reason
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: None)
    assert triton_support.installed.__wrapped__()[1].startswith("triton is not installed")
    monkeypatch.undo()
    if triton_support.installed()[0]:
        monkeypatch.setattr(triton_support.importlib.metadata, "version", lambda name: "3.5.1")
        assert triton_support.installed.__wrapped__() == (False, "triton is 3.5.1; install 3.6 or newer")


def test_triton_is_imported_only_when_it_runs(tmp_path):
    program = (
        "import sys, torch, activefreq_engine\n"
        "from activefreq_engine.kernels.dispatch import table\n"
        "rows = {(row.op, row.backend): row for row in table()}\n"
        "for op in ('freq_module', 'mask_output', 'click_maps'):\n"
        "    assert rows[op, 'reference'].ok and rows[op, 'triton'].ok == torch.cuda.is_available(), rows\n"
        "assert rows['freq_module', 'triton'].ok or rows['freq_module', 'triton'].reason\n"
        "print('triton' in sys.modules)"
    )
    # Started elsewhere, so that the package is the installed one and not a folder of the checkout.
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "False"
