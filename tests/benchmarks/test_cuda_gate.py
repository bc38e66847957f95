"""The CUDA sources compile for real GPUs, within limits, and the recorded table is up to date."""

import csv

import pytest

from bench.gates import cuda_sources as cuda_gate
from tests import cuda_on_host

KERNELS = {name for path in cuda_gate.SOURCES for name in cuda_on_host.parameters(path.read_text())}

needs_nvrtc = pytest.mark.skipif(cuda_gate.find_nvrtc() is None, reason="pip install nvidia-cuda-nvrtc-cu12")


@pytest.fixture(scope="module")
def rows():
    return cuda_gate.table()


@needs_nvrtc
def test_every_kernel_compiles_within_limits(rows):
    assert {(row.kernel, row.arch) for row in rows} == {(k, a) for k in KERNELS for a in cuda_gate.ARCHITECTURES}
    assert [row for row in rows if row.fault] == []
    assert all(8 <= row.registers <= 64 for row in rows), "or a block of 1024 threads finds no room"


@needs_nvrtc
def test_the_recorded_table_is_that_of_the_sources(rows, tmp_path, monkeypatch):
    recorded = cuda_gate.TABLE.read_text()
    if {row["nvrtc"] for row in csv.DictReader(recorded.splitlines())} != {rows[0].nvrtc}:
        pytest.skip("recorded with another NVRTC, whose registers may differ")
    monkeypatch.setattr(cuda_gate, "TABLE", tmp_path / "cuda_resources.csv")
    cuda_gate.write(rows)
    assert cuda_gate.TABLE.read_text() == recorded, "run python -m bench.gates.cuda_sources --write"


@needs_nvrtc
def test_a_source_that_does_not_compile(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text('extern "C" __global__ void k(int* p) {\n    *p = missing;\n}\n')
    with pytest.raises(RuntimeError, match=r'broken.cu\(2\): error: identifier "missing"'):
        list(cuda_gate.compile_source(source, 90))


def test_a_report_with_spills_is_a_fault():
    report = (
        "ptxas info    : Compiling entry function 'k' for 'sm_90'\n"
        "    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 50000 bytes smem\n"
    )
    (row,) = cuda_gate.read_report(report, 90, "12.9")
    assert (row.registers, row.stack, row.spilled, row.shared) == (255, 16, 32, 50000)
    assert row.fault == "16 bytes of stack, 32 spilled"
