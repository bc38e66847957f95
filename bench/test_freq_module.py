"""The FreqModule at the per-click levels of the B0 encoder, beside the module as it is trained and as a CUDA graph.

Runs on a GPU where there is one.  A time is only taken after the output has met the float64 definition.
"""

from collections.abc import Callable

import pytest
import torch
from activefreq_engine.kernels.freq_module import FreqModulePlan, reference

from activefreq_engine.models.freqnet import FreqModule

LEVELS = {"C64-32x32": (64, 32, 32), "C160-16x16": (160, 16, 16), "C256-8x8": (256, 8, 8), "C32-64x64": (32, 64, 64)}
TOLERANCE = 2e-3  # of fp16 operands; float32 is far inside

Case = tuple[FreqModule, torch.Tensor]


@pytest.fixture(params=[1, 8], ids=["B1", "B8"])
def batch(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=LEVELS)
def case(request: pytest.FixtureRequest, batch: int, device: torch.device) -> Case:
    channels, height, width = LEVELS[request.param]
    module = FreqModule(channels).requires_grad_(False).to(device)
    for p in module.parameters():
        p.add_(0.1 * torch.randn_like(p))
    return module, torch.randn(batch, channels, height, width, device=device)


def parameters(case: Case) -> list[torch.Tensor]:
    module, x = case
    filters = [f.spectrum(*x.shape[2:]) for f in module.filters]
    return [*filters, module.dwconv.weight, module.dwconv.bias]


def measure(benchmark: Callable, case: Case, run: Callable[[torch.Tensor], torch.Tensor], backend: str) -> None:
    x = case[1]
    wide = [p.to(torch.complex128 if p.is_complex() else torch.float64) for p in parameters(case)]
    expected = reference.freq_module(x.double(), *wide)
    error = ((run(x).double() - expected).norm() / expected.norm()).item()
    assert error <= TOLERANCE
    benchmark.extra_info.update(
        error=error,
        backend=backend,
        torch=torch.__version__,
        device=torch.cuda.get_device_name(x.device) if x.is_cuda else "cpu",
        threads=torch.get_num_threads(),
    )

    def timed() -> None:
        run(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    benchmark.group = f"freq_module B{x.shape[0]} " + "x".join(map(str, x.shape[1:]))
    benchmark(timed)


def graphed(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same as a CUDA graph that is bound to the memory of `x`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(x)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)

    def replay(_: torch.Tensor) -> torch.Tensor:
        graph.replay()
        return out

    return replay


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=["eager", "graph"])
def test_module(benchmark: Callable, case: Case, graph: bool) -> None:
    """torch.fft, filters resized in every call."""
    module, x = case
    measure(benchmark, case, graphed(module, x) if graph else module, "module")


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=["eager", "graph"])
@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.gpu)])
def test_plan(benchmark: Callable, case: Case, backend: str, graph: bool) -> None:
    x = case[1]
    plan = FreqModulePlan(*parameters(case), size=(x.shape[2], x.shape[3]), backend=backend)
    measure(benchmark, case, graphed(plan, x) if graph else plan, backend)
