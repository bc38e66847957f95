"""The kernels compile for real GPUs within the limits, and need what `bench/results/kernel_resources.csv` says."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from activefreq_engine.kernels import triton_support
from activefreq_engine.kernels.freq_module import LARGEST_TF32

from activefreq_engine.conventions import network_shapes
from activefreq_engine.models.mit import MIT_SPECS
from activefreq_engine.runtime.engine import SIZES
from activefreq_engine.session.zoom import network_shape
from bench.tools.shapes import every_map

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
    products = re.findall(r"freq_module .* mma (\d+)/(\d+)/(\d+)", out)
    assert len(products) == 2 * len(QUICK_ARCHITECTURES), "one with a side padded to 64 in fp16, one in tf32x3"
    assert all(int(hmma) > 0 and (hgmma, utc) == ("0", "0") for hmma, hgmma, utc in products)
    assert "0 break a limit" in out


@needs_triton
@pytest.mark.slow
def test_every_configuration():
    assert "0 break a limit" in run("--check")


@pytest.fixture
def gate(monkeypatch):
    """The module, for compiling in this process."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.gates import triton_kernels

    return triton_kernels


@needs_triton
@pytest.mark.parametrize(
    ("arch", "rows", "column", "count"),
    [(90, 64, "hgmma", 1), (100, 64, "utchmma", 1), (90, 32, "hgmma", 0), (100, 32, "utchmma", 0)],
)
def test_a_planted_product_of_a_warp_group_is_refused(arch, rows, column, count, gate, monkeypatch, tmp_path, capsys):
    from tests.benchmarks.planted_product import product_kernel

    x, y = (torch.empty(1, dtype=t, device="meta") for t in (torch.float16, torch.float32))
    call = triton_support.KernelCall(product_kernel, (1,), {"x_ptr": x, "y_ptr": y, "ROWS": rows}, num_warps=4)
    planted = gate.Configuration("planted", call, multiplies=True)
    r = gate.measure(planted, arch)
    assert (getattr(r, column) > 0) == bool(count), r
    assert (gate.faults(planted, r, set()) == []) == (not count)
    assert gate.faults(planted, r, {("planted", arch, r.triton)}) == []
    for other in (("another", arch, r.triton), ("planted", 80, r.triton), ("planted", arch, "0.0")):
        assert len(gate.faults(planted, r, {other})) == count

    monkeypatch.setattr(gate, "configurations", lambda: iter([planted]))
    monkeypatch.setattr(gate, "PROVEN", tmp_path / "proven.csv")
    monkeypatch.setattr(sys, "argv", ["gate", "--arch", str(arch)])
    gate.PROVEN.write_text(",".join(gate.PROOF) + "\n")
    assert gate.main() == count
    assert ("no device has shown right" in capsys.readouterr().out) == bool(count)
    row = {**dict.fromkeys(gate.PROOF, "some"), "configuration": "planted", "arch": arch, "triton": r.triton}
    with gate.PROVEN.open("a") as file:
        print(*(row[column] for column in gate.PROOF), sep=",", file=file)
    assert gate.main() == 0


@needs_triton
@pytest.mark.parametrize(
    ("text", "words"),
    [("configuration,arch\nx,90\n", "columns"), ("{}\nx,90,,1,2,3,4\n", "says nothing in some column")],
)
def test_a_proof_must_name_everything(text, words, gate, monkeypatch, tmp_path):
    monkeypatch.setattr(gate, "PROVEN", tmp_path / "proven.csv")
    gate.PROVEN.write_text(text.format(",".join(gate.PROOF)))
    with pytest.raises(SystemExit, match=words):
        gate.read_proven()


@needs_triton
def test_every_map_of_a_plan_is_in_a_class_that_is_compiled(gate):
    """All shapes of the network's input at all sizes, for the encoder whose weights ship."""
    channels = MIT_SPECS["mit_b0"].channels
    compiled = {(gate.class_of(map_), precision) for map_, precision in gate.planned()}
    for map_ in every_map(channels):
        assert (gate.class_of(map_), "fp16") in compiled, map_
        assert ((gate.class_of(map_), "tf32x3") in compiled) == (max(map_) <= LARGEST_TF32), map_
    for size in SIZES:
        boxes = [box for n in range(1, size + 1) for box in ((0, 0, n, size), (0, 0, size, n))]
        assert {network_shape(box, size) for box in boxes} == set(network_shapes(size)), "regions have other shapes"
    wide = {(80, 96), (40, 48), (20, 24), (10, 12), (48, 64), (64, 12), (12, 2), (1, 12)}
    assert wide <= {map_[1:] for map_ in every_map(channels)}, "shapes are missing"


@needs_triton
def test_the_recorded_table_holds_what_ships_and_nothing_else(gate):
    """On three architectures, for the oldest Triton and a newer one."""
    table, proven = gate.read_table(), gate.read_proven()
    recorded = {(r.triton, r.arch) for r in table}
    versions = {version for version, _ in recorded}
    assert "3.6.0" in versions
    assert len(versions) >= 2
    assert recorded == {(version, arch) for version in versions for arch in (80, 90, 100)}
    configurations = list(gate.configurations())
    for configuration in configurations:
        rows = [r for r in table if r.configuration == configuration.name]
        assert {(r.triton, r.arch) for r in rows} == recorded, configuration.name
        assert [gate.faults(configuration, r, proven) for r in rows] == [[]] * len(rows)
    assert {r.configuration for r in table} == {c.name for c in configurations}


@needs_triton
def test_the_limits_can_be_broken(gate, monkeypatch, tmp_path):
    good = gate.TritonResources("some kernel", 80, "9.9.9", 4, 128, 0, 0, 20480, 76, 0, 0, 1720)
    plain = gate.Configuration(good.configuration, None, multiplies=True)
    waived = gate.Configuration(good.configuration, None, multiplies=True, waiver="tf32x3")
    assert gate.faults(plain, good, set()) == []

    def broken(configuration, **change):
        return " ".join(gate.faults(configuration, replace(good, **change), set()))

    assert "8 bytes of stack" in broken(plain, stack=8)
    assert "2 local memory instructions" in broken(plain, local=2)
    most, _ = gate.WAIVED["tf32x3"]
    assert broken(waived, stack=most, local=9) == ""
    assert f"{most + 1} bytes of stack" in broken(waived, stack=most + 1)
    assert "shared memory" in broken(plain, shared=10**6)
    assert "no matrix instruction" in broken(plain, hmma=0, hgmma=0, utchmma=0)
    assert "3 HGMMA and 0 UTC*MMA" in broken(plain, hgmma=3)
    assert "0 HGMMA and 9 UTC*MMA" in broken(plain, utchmma=9)
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
