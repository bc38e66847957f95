"""What surrounds the CUDA kernels: when they are chosen, how they are launched, what torch.compile sees."""

import sys
import types

import pytest
import torch
from activefreq_engine.kernels import cupy_impl, dispatch
from activefreq_engine.kernels.distance import cupy_impl as distance
from activefreq_engine.kernels.distance import distance_transform, inscribed_points_fixed
from activefreq_engine.kernels.region_stats import cupy_impl as regions
from activefreq_engine.kernels.region_stats import fixed, region_stats, region_stats_fixed

from tests.compiler import needs_compiler

OPS = ("distance_transform", "inscribed_points", "inscribed_points_fixed", "region_stats", "region_stats_fixed")


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, whose CuPy a test may change."""
    cupy = types.SimpleNamespace(__version__="14.2.0", cuda=types.SimpleNamespace(is_available=lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    cupy_impl._verify_cupy.cache_clear()
    yield cupy
    cupy_impl._verify_cupy.cache_clear()


def selected(op, *args, **kwargs):
    return dispatch.select(op, "cuda", "auto", *args, **kwargs).name


def test_a_gpu_with_cupy_is_used(machine, monkeypatch):
    monkeypatch.setattr(dispatch, "proven", lambda *_: (True, ""))
    assert cupy_impl.verify_machine() == (True, "")
    masks, probs = torch.ones(2, 3, 4, dtype=torch.bool), torch.rand(2, 3, 4)
    assert selected("region_stats", masks, probs, connectivity=4) == "cupy"
    assert selected("region_stats_fixed", masks, probs, connectivity=8, capacity=5) == "cupy"
    assert selected("distance_transform", masks) == "cupy"
    assert selected("inscribed_points", masks.int(), torch.tensor([1, 1])) == "cupy"
    assert selected("inscribed_points_fixed", masks.int(), capacity=5) == "cupy"
    assert all(dispatch._registry[op]["cupy"].verify() == (True, "") for op in OPS)


def test_a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it would raise
    assert cupy_impl.verify_machine() == (False, "torch sees no CUDA device")


def test_reasons_against_cupy(machine, monkeypatch):
    machine.cuda.is_available = lambda: False
    assert "cupy sees no CUDA device" in cupy_impl.verify_machine()[1]
    cupy_impl._verify_cupy.cache_clear()
    machine.__version__ = "13.6.0"
    assert cupy_impl.verify_machine() == (False, "cupy is 13.6.0; 14 or newer is needed")
    cupy_impl._verify_cupy.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install cupy-cuda12x" in cupy_impl.verify_machine()[1]


def test_reasons_against_arguments(machine):
    masks, probs = torch.ones(1, 2, 4097, dtype=torch.bool), torch.rand(1, 2, 4097)
    assert selected("region_stats", masks, probs) == "reference"
    assert "at most [65535, 4096, 4096]" in regions.verify(masks, probs)[1]
    assert "pass probs.float()" in regions.verify(masks[..., :5], probs[..., :5].double())[1]
    assert distance.verify(masks[..., :2049])[1] == (
        "the input has shape (1, 2, 2049); at most [65535, 2048, 2048] is allowed"
    )
    assert distance.verify(masks[..., :2048].int(), capacity=4) == (True, "")


@pytest.mark.parametrize("op", [region_stats, region_stats_fixed])
def test_cupy_by_name_on_the_cpu_raises(op):
    with pytest.raises(dispatch.BackendUnavailableError, match=r"on the cupy .* runs on cuda, the input is on cpu"):
        op(torch.ones(1, 2, 3, dtype=torch.bool), torch.rand(1, 2, 3), backend="cupy")


def test_the_current_stream_is_asked_for_at_every_launch(host, device, monkeypatch):
    if device.type == "cuda":
        pytest.skip("looks at the stand-in")
    asked = []
    stream = torch.cuda.current_stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: asked.append(device) or stream)
    for _ in range(3):
        distance.distance_transform(torch.ones(1, 2, 3, dtype=torch.bool))
    assert asked == [torch.device("cpu")] * 3


def test_arguments_as_cupy_takes_them():
    cpu, strided = torch.device("cpu"), torch.ones(2, 3).t()
    tensor = torch.ones(2, 3)
    assert cupy_impl._argument(tensor, cpu) == tensor.data_ptr()
    assert cupy_impl._argument(None, cpu) == 0
    assert cupy_impl._argument(7, cpu).dtype == "int32"
    with pytest.raises(ValueError, match="contiguous"):
        cupy_impl._argument(strided, cpu)
    with pytest.raises(ValueError, match="on cuda:0 was given a tensor on cpu"):
        cupy_impl._argument(tensor, torch.device("cuda:0"))


def test_messages_of_the_compiler_name_our_lines():
    text = cupy_impl.source_text(regions.SOURCE)
    assert text.startswith('#line 1 "prelude.cu"\n')
    assert '\n#line 1 "region_stats.cu"\n// Connected regions' in text


def test_the_real_cupy_has_what_we_call():
    cupy = pytest.importorskip("cupy")
    assert int(cupy.__version__.split(".")[0]) >= 14
    assert callable(cupy.cuda.Stream.from_external)
    module = cupy.RawModule(code=cupy_impl.source_text(regions.SOURCE), options=cupy_impl.OPTIONS)
    assert callable(module.get_function)


@needs_compiler
def test_compile_and_export_see_one_node():
    def click(masks, probs):
        stats = region_stats_fixed(masks, probs, capacity=5)
        points, radius = inscribed_points_fixed(stats.labels, capacity=5)
        return stats.area, points, radius + distance_transform(masks).amax((1, 2))[:, None]

    class Click(torch.nn.Module):
        def forward(self, masks, probs):
            return click(masks, probs)

    masks, probs = torch.rand(2, 11, 17) < 0.6, torch.rand(2, 11, 17)
    expected = click(masks, probs)
    compiled = torch.compile(click, backend="eager", fullgraph=True)
    assert all(map(torch.equal, compiled(masks, probs), expected))
    program = torch.export.export(Click(), (masks, probs))
    ours = [str(node.target) for node in program.graph.nodes if str(node.target).startswith("activefreq.")]
    ops = ("distance_transform", "inscribed_points_fixed", "region_stats_fixed")
    assert sorted(ours) == [f"activefreq.{op}.default" for op in ops]
    assert all(map(torch.equal, program.module()(masks, probs), expected))


@pytest.mark.parametrize("capacity", [0, -1])
def test_wrong_capacity(capacity):
    with pytest.raises(ValueError, match=rf"capacity is {capacity}"):
        region_stats_fixed(torch.ones(1, 2, 3, dtype=torch.bool), torch.rand(1, 2, 3), capacity=capacity)
    with pytest.raises(ValueError, match=rf"capacity is {capacity}"):
        inscribed_points_fixed(torch.ones(1, 2, 3, dtype=torch.int32), capacity=capacity)


def test_wrong_inputs_of_the_fixed_forms():
    with pytest.raises(TypeError, match=r"torch\.int64"):
        inscribed_points_fixed(torch.ones(1, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        region_stats_fixed(torch.ones(2, 3, dtype=torch.bool), torch.rand(2, 3))


def test_fixed_form_of_the_reference_is_the_exact_form_with_zeros():
    masks, probs = torch.rand(3, 15, 22) < 0.3, torch.rand(3, 15, 22)
    masks[1] = False
    stats, got = region_stats(masks, probs), region_stats_fixed(masks, probs, capacity=200)
    back = fixed.unpack(got, got.counts.tolist())
    for name in ("labels", "counts", "image", "label", *fixed.ROWS):
        assert torch.equal(getattr(back, name), getattr(stats, name)), name
        assert getattr(back, name).dtype == getattr(stats, name).dtype
    assert got.area.sum() == masks.sum()
    assert not got.overflow.any()
