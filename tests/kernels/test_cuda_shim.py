"""The shim that runs CUDA on the host notices what it is there for."""

import numpy as np
import pytest

from tests import cuda_on_host
from tests.cuda_on_host import LaunchError, Schedule

pytestmark = pytest.mark.skipif(cuda_on_host.GPP is None, reason="g++ is not installed")

SOURCE = """
extern "C" __global__ void indices(int* out, int n) {
    const int block = blockIdx.y * gridDim.x + blockIdx.x, thread = threadIdx.y * blockDim.x + threadIdx.x;
    const int i = block * blockDim.x * blockDim.y + thread;
    if (i < n) out[i] = i;
}
extern "C" __global__ void reversed(int* out, int barrier) {
    SHARED(int, s, 64);
    s[threadIdx.x] = threadIdx.x;
    if (barrier) __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void count(int* out, int atomic) {
    if (atomic) { atomicAdd(out, 1); return; }
    const int n = *out;
    RACE_POINT();
    *out = n + 1;
}
extern "C" __global__ void divergent(int* out, int kind) {
    if (kind == 0 && threadIdx.x == 5) return;
    if (kind == 1 && threadIdx.x == 5) __syncthreads();
    if (kind == 2) while (*out == 0) RACE_POINT();
    __syncthreads();
}
"""


@pytest.fixture
def run():
    def run(kernel, grid, block, out, number, schedule=None):
        host = cuda_on_host.Host(schedule or Schedule())
        cuda_on_host._RawModule(host, "#include <cstddef>\n" + SOURCE, cuda_on_host.cupy_impl.OPTIONS).run(
            kernel, grid, block, (out.ctypes.data, np.int32(number))
        )
        return out

    return run


RANDOM = Schedule(3, 0.3, 5)


@pytest.mark.parametrize("schedule", [Schedule(live=1), RANDOM])
def test_grids_blocks_and_threads(run, schedule):
    got = run("indices", (3, 2), (4, 5), np.full(125, -1, np.int32), 117, schedule)
    assert got.tolist() == [*range(117), *[-1] * 8]


def test_a_barrier_and_its_absence(run):
    for schedule in (Schedule(live=1), RANDOM):
        assert run("reversed", (1,), (64,), np.zeros(64, np.int32), 1, schedule).tolist() == list(range(63, -1, -1))
        got = run("reversed", (1,), (64,), np.zeros(64, np.int32), 0, schedule)
        assert (got == np.int32(-0x5A5A5A5B)).any(), "shared memory starts as poison"


def test_lost_updates_appear_under_random_schedules_only(run):
    assert run("count", (4,), (32,), np.zeros(1, np.int32), 0, Schedule(live=1)) == 128
    assert run("count", (4,), (32,), np.zeros(1, np.int32), 0, RANDOM) < 128
    assert run("count", (4,), (32,), np.zeros(1, np.int32), 1, RANDOM) == 128


@pytest.mark.parametrize(
    ("kind", "words"), [(0, "have returned|has returned"), (1, "different barriers"), (2, "a loop does not end")]
)
@pytest.mark.parametrize("schedule", [Schedule(live=1), RANDOM], ids=["sequential", "random"])
def test_what_would_hang_a_gpu_is_an_error(run, kind, words, schedule):
    with pytest.raises(LaunchError, match=words):
        run("divergent", (2,), (16,), np.zeros(1, np.int32), kind, schedule)


def test_arguments_are_checked_as_strictly_as_a_launch_needs():
    module = cuda_on_host._RawModule(cuda_on_host.Host(), SOURCE, cuda_on_host.cupy_impl.OPTIONS)
    out = np.zeros(4, np.int32)
    for arguments in ((out.ctypes.data,), (out.ctypes.data, 4), (out, np.int32(4)), (out.ctypes.data, np.int64(4))):
        with pytest.raises(AssertionError, match=r"takes 2 arguments|for a parameter of type"):
            module.run("indices", (1,), (4,), arguments)
