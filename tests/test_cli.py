"""The command line: what it writes and prints, and that every mistake ends in one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activefreq_engine import Click, __version__, create_model
from activefreq_engine.cli import main
from activefreq_engine.errors import InvalidClickError
from activefreq_engine.models import save_checkpoint
from activefreq_engine.segment.prompts import parse_click

WIDTH, HEIGHT = 93, 71


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights: the command line is tested here, not the model."""
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(create_model(), path)
    return str(path)


@pytest.fixture
def photo(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "photo.png"
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that must fail as bad input does."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_segment_writes_mask_overlay_and_json(
    capsys: pytest.CaptureFixture[str], photo: Path, checkpoint: str, tmp_path: Path
) -> None:
    mask_path, overlay_path = tmp_path / "mask.png", tmp_path / "overlay.png"
    clicks = ("--click", "40,30", "--click", "80.5,60,-")
    targets = ("-o", mask_path, "--overlay", overlay_path, "--json")
    code, out, err = run(capsys, "segment", photo, *clicks, *targets, "--model", checkpoint, "--device", "cpu")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["width"], report["height"]) == (WIDTH, HEIGHT)
    assert [(c["x"], c["y"], c["positive"]) for c in report["clicks"]] == [(40, 30, True), (80.5, 60, False)]
    assert all(c["elapsed_ms"] > 0 for c in report["clicks"])
    mask = np.array(Image.open(mask_path))
    assert mask.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) <= {0, 255}
    assert report["area"] == (mask == 255).sum()
    overlay = np.array(Image.open(overlay_path))
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    assert (overlay != np.array(Image.open(photo))).any()


def test_segment_gives_the_mask_of_a_session(
    capsys: pytest.CaptureFixture[str], photo: Path, checkpoint: str, tmp_path: Path
) -> None:
    from activefreq_engine import Session

    target = tmp_path / "mask.png"
    where = ("--model", checkpoint, "--device", "cpu")
    code, out, _ = run(capsys, "segment", photo, "--click", "40,30", "-o", target, *where)
    assert code == 0
    assert f"wrote {target}" in out
    with Session(model=checkpoint, device="cpu") as session:
        session.set_image(photo)
        expected = session.click(40, 30).mask
    assert np.array_equal(np.array(Image.open(target)) == 255, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12,7", Click(12, 7, True)),
        ("12.5,7,+", Click(12.5, 7, True)),
        (" 12 , 7 , - ", Click(12, 7, False)),
    ],
)
def test_clicks_are_parsed(text: str, expected: Click) -> None:
    assert parse_click(text) == expected


@pytest.mark.parametrize("text", ["", "12", "12,", "a,b", "1,2,*", "1,2,3", "1,2,-,", "1;2"])
def test_malformed_clicks_are_refused(text: str) -> None:
    with pytest.raises(InvalidClickError, match="--click"):
        parse_click(text)


def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path) -> None:
    mask = tmp_path / "m.png"
    assert "command" in fails(capsys)
    assert "frobnicate" in fails(capsys, "frobnicate")
    assert "--frobnicate" in fails(capsys, "info", "--frobnicate")
    assert "--click" in fails(capsys, "segment", photo, "-o", mask)
    assert "--output" in fails(capsys, "segment", photo, "--click", "1,2")
    assert "'1,2,*'" in fails(capsys, "segment", photo, "--click", "1,2,*", "-o", mask)
    assert ".png" in fails(capsys, "segment", photo, "--click", "1,2", "-o", tmp_path / "m.jpg")
    assert "no directory" in fails(capsys, "segment", photo, "--click", "1,2", "-o", tmp_path / "no" / "m.png")
    (tmp_path / "folder.png").mkdir()
    assert "is a directory" in fails(capsys, "segment", photo, "--click", "1,2", "-o", tmp_path / "folder.png")
    assert "overwrite" in fails(capsys, "segment", photo, "--click", "1,2", "--overlay", photo)
    assert "--max-clicks" in fails(capsys, "eval", tmp_path, "--max-clicks", "many")
    assert not mask.exists()


def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], photo: Path, checkpoint: str, tmp_path: Path
) -> None:
    mask = tmp_path / "m.png"
    end = ("-o", mask, "--model", checkpoint, "--device", "cpu")
    text = tmp_path / "text.png"
    text.write_text("not an image\n")
    assert "nowhere.png" in fails(capsys, "segment", tmp_path / "nowhere.png", "--click", "1,2", *end)
    assert "text.png" in fails(capsys, "segment", text, "--click", "1,2", *end)
    for click in (f"{WIDTH},5", f"5,{HEIGHT}", "-1,5", "nan,5", "5,inf"):
        fails(capsys, "segment", photo, "--click", click, *end)
    assert "freqformer_b0" in fails(capsys, "segment", photo, "--click", "1,2", "-o", mask, "--model", "unheard_of")
    fails(capsys, "segment", photo, "--click", "1,2", "-o", mask, "--model", text)
    fails(capsys, "segment", photo, "--click", "1,2", "-o", mask, "--model", checkpoint, "--device", "abacus")
    fails(capsys, "eval", tmp_path / "nowhere", "--model", checkpoint)
    assert not mask.exists()


def test_info_tells_versions_devices_models_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "info", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["versions"]["activefreq_engine"] == __version__
    assert facts["devices"][0]["name"] == "cpu"
    assert "freqformer_b0" in [m["name"] for m in facts["models"]]
    rows = {(b["op"], b["backend"]): b for b in facts["backends"]}
    assert rows["region_stats", "reference"]["ok"]
    assert all(b["reason"] for b in facts["backends"] if not b["ok"])

    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "")
    for word in (__version__, "cuda", "freqformer_b0", "region_stats", "ACTIVEFREQ_BACKEND"):
        assert word in out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"activefreq_engine {__version__}\n", "")
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    for command in ("segment", "eval", "train", "info"):
        assert command in out
        code, help_text, err = run(capsys, command, "--help")
        assert (code, err) == (0, "")
        assert "Usage" in help_text


def test_the_process_prints_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "activefreq_engine.cli", "segment", "nowhere.png", "--click", "1,2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
