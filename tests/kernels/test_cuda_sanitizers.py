"""The CUDA sources under address and undefined-behaviour sanitizers, in a process that loads these first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cuda_on_host

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not cuda_on_host.sanitizers(), reason="g++ and its sanitizer libraries are not installed")
def test_the_sources_are_clean(pytestconfig):
    command = [sys.executable, "-m", "tests.cuda_on_host.exercise", "--sanitize", "--side", "60", "--batches", "4"]
    command += ["--seed", str(pytestconfig.getoption("seed"))]
    environment = {**os.environ, **cuda_on_host.preload()}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 batches are right" in done.stdout
