"""Runs `on_device` in Triton's interpreter, which must be chosen before Triton is imported: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from activefreq_engine.kernels import triton_support

FOLDER = Path(__file__).parent / "on_device"


@pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1])
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_kernels_in_the_interpreter(name, pytestconfig):
    # One thread: the operands are small, and threads that wait for each other slow everything down.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10", str(FOLDER / name)]
    command.append(f"--seed={pytestconfig.getoption('seed')}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout
