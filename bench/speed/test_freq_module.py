"""The FreqModule at the levels of the B0 encoder for 256 pixels, as the plan and the Triton kernel run it.

The reference is the module as it is trained: torch.fft, and filters resized in every call.  On a GPU each also runs as
a CUDA graph.  bench/speed/spectral_forms.py measures the forms among which the plan chooses.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from activefreq_engine.kernels.freq_module import FreqModulePlan, reference

from activefreq_engine.models.freqnet import FreqModule
from activefreq_engine.runtime.plan.spectral import spectral_module
from bench.tools.verify import measure

LEVELS = {"C32-64x64": (32, 64, 64), "C64-32x32": (64, 32, 32), "C160-16x16": (160, 16, 16), "C256-8x8": (256, 8, 8)}
TOLERANCE = 2e-3  # of fp16 operands, relative; float32 is far inside

Apply = Callable[[torch.Tensor], torch.Tensor]


def plain(freq: FreqModule, height: int, width: int) -> Apply:
    return freq


def plan(freq: FreqModule, height: int, width: int) -> Apply:
    return spectral_module(freq, height, width)


def triton(freq: FreqModule, height: int, width: int) -> Apply:
    filters = [f.spectrum(height, width) for f in freq.filters]
    return FreqModulePlan(*filters, freq.dwconv.weight, freq.dwconv.bias, size=(height, width), backend="triton")


MAKERS = {"plain module": plain, "plan": plan, "triton": triton}


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("implementation", MAKERS)
@pytest.mark.parametrize("batch", [1, 8], ids=["B1", "B8"])
@pytest.mark.parametrize("level", LEVELS)
def test_freq_module(
    benchmark: Any, device: torch.device, level: str, batch: int, implementation: str, graph: bool
) -> None:
    if device.type == "cpu" and (graph or implementation == "triton"):
        pytest.skip("CUDA graphs and Triton need a CUDA device")
    channels, height, width = LEVELS[level]
    freq = FreqModule(channels).requires_grad_(False).to(device)
    for p in freq.parameters():
        p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(batch, channels, height, width, device=device)
    with torch.inference_mode():
        run = MAKERS[implementation](freq, height, width)
        if graph:
            run = graphed(run, x)

        def check() -> float:
            wide = [f.spectrum(height, width).to(torch.complex128) for f in freq.filters]
            expected = reference.freq_module(x.double(), *wide, freq.dwconv.weight.double(), freq.dwconv.bias.double())
            error = ((run(x).double() - expected).norm() / expected.norm()).item()
            assert error <= TOLERANCE, f"relative error {error:.1e}, more than {TOLERANCE}"
            return error

        measure(
            benchmark, group=f"freq_module B{batch} {level}", implementation=implementation + " graph" * graph,
            reference=implementation == "plain module" and not graph, run=lambda: run(x), check=check, device=device,
        )  # fmt: skip


def graphed(run: Apply, x: torch.Tensor) -> Apply:
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
