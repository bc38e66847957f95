"""A program that PyInstaller froze: it finds weights and kernels, and gives the masks of the unfrozen one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from activefreq_engine import masks

PROGRAM = Path(__file__).with_name("frozen_program.py")
LESION = Path(__file__).parents[2] / "examples" / "images" / "ISIC_0014809.jpg"
UNUSED = ("matplotlib", "mypy", "onnx", "onnxruntime", "onnxscript", "pytest", "scipy", "setuptools")
"""Of the environment that is lent.  Without them freezing takes half the time."""


def run(command: list[str | Path], cwd: Path) -> str:
    """Its output.  Nothing in the environment leads to this checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def frozen(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program's folder, moved away from where it was built."""
    if not (tools / "frozen").exists():
        pytest.skip("programs are frozen by make test-frozen")
    folder = tmp_path_factory.mktemp("build")
    shutil.copy(PROGRAM, folder)
    without = [f"--exclude-module={name}" for name in UNUSED]
    run([tools / "frozen" / "bin" / "pyinstaller", "--onedir", *without, PROGRAM.name], folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "program"
    shutil.move(folder / "dist" / PROGRAM.stem, elsewhere)
    shutil.rmtree(folder)
    return elsewhere


def test_a_frozen_program_gives_the_same_masks(frozen: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    run([sys.executable, PROGRAM, "masks", LESION, here], tmp_path)
    shutil.copy(LESION, tmp_path / "a.jpg")
    run([frozen / PROGRAM.stem, "masks", "a.jpg", there], tmp_path)
    facts = json.loads((there / "facts.json").read_text())
    assert facts["frozen"]
    assert Path(facts["package"]).is_relative_to(frozen)
    assert facts["shipped"] == json.loads((here / "facts.json").read_text())["shipped"]
    assert {"freqformer_b0", "freqformer_b0_general", "freqformer_b0_guided"} <= set(facts["shipped"])
    for model in facts["shipped"]:
        ours, theirs = (masks.load_labels_png(folder / f"{model}.png") for folder in (here, there))
        assert np.array_equal(ours, theirs)
        assert ours.any()
        assert (here / f"{model}.json").read_text() == (there / f"{model}.json").read_text()


def test_the_commands_of_a_frozen_program(frozen: Path, tmp_path: Path) -> None:
    """They are imported by name, where PyInstaller cannot see it."""
    program = frozen / PROGRAM.stem
    info = run([program, "info", "--json"], tmp_path)
    print(run([program, "info"], tmp_path))
    facts = json.loads(info)
    assert facts["versions"]["torch"]
    assert all(m["weights"]["sha256"] for m in facts["models"] if m["weights"])
    assert {"region_stats", "click_maps", "freq_module"} <= {row["op"] for row in facts["backends"]}
    mask = tmp_path / "mask.png"
    run([program, "segment", LESION, "--click", "160,230", "-o", mask], tmp_path)
    assert masks.load_labels_png(mask).any()
    for command in ("eval", "export", "train", "serve"):
        assert f"activefreq {command}" in run([program, command, "--help"], tmp_path)
    assert list(frozen.rglob("region_stats.cu"))
