"""``activefreq train``: what its options become, and what bad usage looks like."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from activefreq_engine import cli
from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.train import loop
from activefreq_engine.train.cli import GROWING, parse_sizes
from activefreq_engine.train.config import TrainConfig


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("128", ((0.0, 128),)),
        ("128,192,256", ((0.0, 128), (1 / 3, 192), (2 / 3, 256))),
        (" 64@0, 96@0.4 ", ((0.0, 64), (0.4, 96))),
        (GROWING, TrainConfig(data=("x",), steps=1).sizes),
    ],
)
def test_sizes(text: str, sizes: tuple) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "128;192", "128@", "a", "128@x", "1.5"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--sizes is"):
        parse_sizes(text)


def test_options_reach_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    seen = {}

    def spy(config, out, **rest):
        seen.update(config=config, out=out, **rest)
        return out / "model.safetensors"

    monkeypatch.setattr(loop, "train", spy)
    arguments = [
        "a",
        "b",
        "--out",
        str(tmp_path),
        "--hours",
        "1.5",
        "--batch",
        "3",
        "--sizes",
        "64,96@0.4",
        "--seed",
        "5",
    ]
    arguments += ["--lr", "0.01", "--stage", "refiner", "--init", "i.safetensors", "--clicker", "acselect"]
    arguments += ["--validate", "v", "--validate-every", "7", "--validate-limit", "2", "--device", "cpu"]
    assert cli.main(["train", *arguments]) == 0
    config = seen["config"]
    assert config == TrainConfig(
        data=("a", "b"),
        init="i.safetensors",
        stage="refiner",
        hours=1.5,
        batch=3,
        sizes=((0.0, 64), (0.4, 96)),
        lr=0.01,
        seed=5,
        clicker="acselect",
    )
    assert (seen["out"], seen["device"], seen["save_every"]) == (tmp_path, "cpu", 60)
    assert (seen["validation"].folder, seen["validation"].every, seen["validation"].limit) == ("v", 7, 2)
    assert str(tmp_path / "model.safetensors") in capsys.readouterr().out


def test_a_gpu_for_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(loop, "train", lambda config, out, **rest: seen.update(config=config))
    options = ["--minutes", "9", "--on-device", "--frozen-norms", "0"]
    assert cli.main(["train", "mix.safetensors", "--out", str(tmp_path), *options]) == 0
    assert seen["config"] == TrainConfig(data=("mix.safetensors",), hours=0.15, on_device=True, frozen_norms=0.0)


def test_defaults_are_those_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(loop, "train", lambda config, out, **rest: seen.update(config=config, **rest))
    assert cli.main(["train", "a", "--out", str(tmp_path), "--steps", "9"]) == 0
    assert seen["config"] == TrainConfig(data=("a",), steps=9)
    assert seen["validation"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "DATA"),
        (["a"], "--out"),
        (["a", "-o", "OUT"], "steps or as hours"),
        (["a", "-o", "OUT", "--steps", "x"], "--steps"),
        (["a", "-o", "OUT", "--steps", "1", "--hours", "1"], "steps or as hours"),
        (["a", "-o", "OUT", "--minutes", "1", "--hours", "1"], "hours or as minutes"),
        (["a", "-o", "OUT", "--steps", "1", "--sizes", "100"], "multiple of 32"),
        (["a", "-o", "OUT", "--steps", "1", "--stage", "all"], "'coarse', 'refiner'"),
        (["a", "-o", "OUT", "--steps", "1", "--save-every", "0"], "--save-every"),
        (["a", "-o", "OUT", "--steps", "1"], "no folder"),
        (["a", "-o", "OUT", "--steps", "1", "--device", "gpu"], "'gpu'"),
        (["a", "-o", "OUT", "--steps", "1", "--validate", "nowhere"], "nowhere"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_usage_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert cli.main(["train", *(str(tmp_path / a) if a in ("a", "OUT") else a for a in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words.lower() in captured.err.lower()


def test_dry_run_keeps_nothing_but_the_packed_data(pairs: Path, tmp_path: Path) -> None:
    """As a module, which is how torchrun starts it."""
    command = [sys.executable, "-m", "activefreq_engine.train", str(pairs), "--out", str(tmp_path), "--hours", "9"]
    done = subprocess.run(
        [*command, "--sizes", "32,64", "--device", "cpu", "--dry-run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the set-up works" in done.stdout
    assert "step 2" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert len(json.loads((tmp_path / "data" / "index.json").read_text())["entries"]) == 8
