"""The kernels compile for real GPUs within the limits, and need what `bench/results/kernel_resources.csv` says."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from activefreq_engine.kernels import triton_support

ROOT = Path(__file__).parents[2]
QUICK_ARCHITECTURES = (80, 90)

needs_triton = pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1])


def run(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.gates.triton_kernels", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, "a limit is broken, or the recorded table no longer holds"
    return done.stdout


@needs_triton
def test_a_few_configurations():
    out = run("--quick", "--check", "--arch", *map(str, QUICK_ARCHITECTURES))
    products = re.findall(r"freq_module C16 32x32 fp16 .* mma (\d+)/(\d+)/(\d+)", out)
    assert len(products) == len(QUICK_ARCHITECTURES)
    assert all(any(int(n) > 0 for n in counts) for counts in products), "no matrix instruction"
    assert "0 break a limit" in out


@needs_triton
@pytest.mark.slow
def test_every_configuration():
    assert "0 break a limit" in run("--check")


@needs_triton
def test_the_limits_can_be_broken(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.gates import triton_kernels as gate

    good = gate.Resources("some kernel", 80, "9.9.9", 4, 128, 0, 0, 20480, 76, 0, 0, 1720)
    plain = gate.Configuration(good.configuration, None, multiplies=True)
    waived = gate.Configuration(good.configuration, None, multiplies=True, waiver="tf32x3")
    assert gate.faults(plain, good) == []

    def broken(configuration, **change):
        return " ".join(gate.faults(configuration, replace(good, **change)))

    assert "8 bytes of stack" in broken(plain, stack=8)
    assert "2 local memory instructions" in broken(plain, local=2)
    most, _ = gate.WAIVED["tf32x3"]
    assert broken(waived, stack=most, local=9) == ""
    assert f"{most + 1} bytes of stack" in broken(waived, stack=most + 1)
    assert "shared memory" in broken(plain, shared=10**6)
    assert "no matrix instruction" in broken(plain, hmma=0, hgmma=0, utchmma=0)
    assert "registers" in " ".join(gate.differences(replace(good, registers=good.registers + 1), [good]))
    assert gate.differences(good, [good]) == []
    assert gate.differences(replace(good, configuration="another"), [good]) == ["not recorded"]
    assert gate.differences(good, []) == [], "no table of this Triton version yet"
    monkeypatch.setattr(gate, "TABLE", tmp_path / "table.csv")
    other = replace(good, arch=90)
    gate.write_table([good, other])
    changed = replace(good, registers=99)
    gate.write_table([changed])
    assert gate.read_table() == [changed, other], "rows of other architectures stay"
