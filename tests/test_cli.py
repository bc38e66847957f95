"""The command line: what it writes and prints, and that every mistake ends in one line and exit code 2."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activefreq_engine import BoxPrompt, Click, __version__, create_model, masks
from activefreq_engine.cli import main
from activefreq_engine.errors import InvalidClickError
from activefreq_engine.models import save_checkpoint
from activefreq_engine.segment.prompts import Prompts, parse_click, read_prompts

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
    command = [sys.executable, "-m", "activefreq_engine", "segment", "nowhere.png", "--click", "1,2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# --- many images, streams, and consoles ---


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.JPG"):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_with_a_csv_of_clicks(
    capsys: pytest.CaptureFixture[str], photos: Path, checkpoint: str, tmp_path: Path
) -> None:
    from activefreq_engine import Session

    clicks = tmp_path / "clicks.csv"
    clicks.write_text("\ufeffImage;x;y;positive\na.png;40;30;1\na.png;5;5;-\nc.JPG;7;9;\n", encoding="utf-8")
    where = (
        "--model",
        checkpoint,
        "--device",
        "cpu",
        "--no-refine",
        "--threshold",
        "0.3",
        "--no-zoom",
        "--size",
        "384",
    )
    code, out, err = run(capsys, "segment", photos, "--clicks", clicks, "-o", tmp_path / "m", *where, "--json")
    assert code == 0
    assert "b.png" in err  # nothing is said about it
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(Path(r["image"]).name, len(r["clicks"])) for r in rows] == [("a.png", 2), ("c.JPG", 1)]
    with Session(checkpoint, device="cpu", size=384, refine=False, zoom=False, threshold=0.3) as session:
        session.set_image(photos / "a.png")
        session.click(40, 30)
        expected = session.click(5, 5, False).mask
    assert np.array_equal(np.array(Image.open(tmp_path / "m" / "a.png")) == 255, expected)
    assert np.array_equal(masks.from_coco_rle(rows[0]["rle"]), expected)
    assert sum(len(p["exterior"]) for p in rows[0]["polygons"]) > 0
    again = tmp_path / "again.jsonl"
    again.write_text(out)
    code, more, _ = run(capsys, "segment", photos, "--clicks", again, *where, "--json")
    assert code == 0
    assert [json.loads(line)["rle"] for line in more.splitlines()] == [r["rle"] for r in rows]


def test_boxes_and_start_masks(
    capsys: pytest.CaptureFixture[str], photo: Path, checkpoint: str, tmp_path: Path
) -> None:
    where = ("--model", checkpoint, "--device", "cpu")
    code, out, _ = run(capsys, "segment", photo, "--box", "10,20,60,50", "--json", *where)
    assert code == 0
    report = json.loads(out)
    assert report["clicks"] == []
    assert [(p["box"], p["changed_bbox"]) for p in report["prompts"]] == [
        ([10, 20, 60, 50], prompted(photo, checkpoint))
    ]
    (tmp_path / "report.json").write_text(out)
    code, again, _ = run(capsys, "segment", photo, "--clicks", tmp_path / "report.json", "--json", *where)
    assert code == 0
    assert json.loads(again)["rle"] == report["rle"]
    start = np.zeros((HEIGHT, WIDTH), bool)
    start[10:20, 30:60] = True
    masks.save_png(tmp_path / "start.png", start)
    entry = {"photo.png": {"clicks": [[35, 15, True]], "start_mask": "start.png"}}
    (tmp_path / "clicks.json").write_text(json.dumps(entry))
    code, out, _ = run(capsys, "segment", photo, "--clicks", tmp_path / "clicks.json", "--json", *where)
    assert code == 0
    assert np.array_equal(masks.from_coco_rle(json.loads(out)["rle"]), start)
    code, _, _ = run(capsys, "segment", photo, "--start-mask", tmp_path / "start.png", "-o", tmp_path / "o.png", *where)
    assert code == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "o.png")) == 255, start)


def test_prompts_of_a_file_keep_their_order_around_a_box(tmp_path: Path) -> None:
    before, box, after = Click(1, 2, False), BoxPrompt(0, 0, 9, 9), Click(3, 4)
    (tmp_path / "c.json").write_text('{"a.png": {"prompts": [[1, 2, false], {"box": [0, 0, 9, 9]}, [3, 4]]}}')
    (tmp_path / "b.csv").write_text("image,x0,y0,x1,y1,label\na.png,0,0,9,9,lesion\n")
    named = read_prompts(tmp_path / "c.json")["a.png"]
    option = Click(5, 6)
    assert (Prompts() + named).prompts == [before, box, after]
    assert (Prompts([BoxPrompt(1, 1, 2, 2), option]) + named).prompts == [before, box, option, after]
    assert (Prompts([option]) + read_prompts(tmp_path / "b.csv")["a.png"]).prompts == [box, option]
    assert (Prompts([box, option]) + Prompts([after])).prompts == [box, option, after]


def test_images_without_a_start_mask_are_named(
    capsys: pytest.CaptureFixture[str], photos: Path, checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "starts").mkdir()
    masks.save_png(tmp_path / "starts" / "a.png", np.ones((HEIGHT, WIDTH), bool))
    how = ("--click", "9,9", "--start-mask", tmp_path / "starts", "--json", "--model", checkpoint, "--device", "cpu")
    code, _, err = run(capsys, "segment", photos / "a.png", photos / "b.png", *how)
    assert code == 0
    assert "no start mask for 1 of 2 images" in err
    assert "b.png" in err


def prompted(photo: Path, checkpoint: str) -> list[int] | None:
    """What a box changes."""
    from activefreq_engine import Session

    with Session(checkpoint, device="cpu") as session:
        session.set_image(photo)
        found = session.box(10, 20, 60, 50).changed_bbox
        return None if found is None else list(found)


def test_scribbles_and_lassos_in_options_and_files(
    capsys: pytest.CaptureFixture[str], photos: Path, checkpoint: str, tmp_path: Path
) -> None:
    from activefreq_engine import Session

    scribble, lasso = [[10, 12], [30.5, 20]], [[5, 5], [50, 6], [40, 40]]
    with Session(checkpoint, device="cpu") as session:
        session.set_image(photos / "a.png")
        session.box(4, 5, 60, 50)
        session.lasso(lasso)
        session.scribble(scribble, positive=False)
        expected = session.click(20, 30).mask
        said = session.prompts
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "a.png": {
                    "prompts": [
                        {"box": [4, 5, 60, 50]},
                        {"lasso": lasso},
                        {"scribble": scribble, "positive": False},
                        [20, 30],
                    ]
                }
            }
        )
    )
    (tmp_path / "c.csv").write_text(
        "image,x,y,positive,x0,y0,x1,y1,scribble,lasso\n"
        'a.png,,,,,,,,,"5,5 50,6 40,40"\n'
        'a.png,,,0,,,,,"10,12 30.5,20",\n'
        "a.png,20,30,,,,,,,\n"
        "a.png,,,,4,5,60,50,,\n"
    )
    options = ("--click", "20,30", "--scribble", "10,12 30.5,20 -", "--box", "4,5,60,50", "--lasso", "5,5 50,6 40,40")
    for given in (options, ("--clicks", tmp_path / "c.json"), ("--clicks", tmp_path / "c.csv")):
        target = tmp_path / "o.png"
        end = ("--overlay", target, "--model", checkpoint, "--device", "cpu", "--json")
        code, out, _ = run(capsys, "segment", photos / "a.png", *given, *end)
        assert code == 0
        report = json.loads(out)
        assert np.array_equal(masks.from_coco_rle(report["rle"]), expected)
        assert [set(p) & {"box", "lasso", "scribble", "x"} for p in report["prompts"]] == [
            {"box"},
            {"lasso"},
            {"scribble"},
            {"x"},
        ]
        assert len(report["clicks"]) == 1
    assert len(said) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scribble", "1,2 3"),
        ("--scribble", ""),
        ("--scribble", "1,nan"),
        ("--scribble", "1,2 999,3"),
        ("--lasso", "1,2 3,4 -"),
        ("--lasso", "1;2 3;4 5;6"),
        ("--box", "900,1,999,2"),
    ],
)
def test_bad_lines_are_refused(
    capsys: pytest.CaptureFixture[str], photos: Path, checkpoint: str, arguments: tuple[str, str]
) -> None:
    message = fails(capsys, "segment", photos / "a.png", *arguments, "--json", "--model", checkpoint, "--device", "cpu")
    assert arguments[0][2:] in message


def test_a_broken_picture_costs_its_own_mask(
    capsys: pytest.CaptureFixture[str], photos: Path, checkpoint: str, tmp_path: Path
) -> None:
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:200])
    end = ("--click", "4,5", "--model", checkpoint, "--device", "cpu")
    code, out, err = run(capsys, "segment", str(photos / "*.png"), "-o", tmp_path / "m", *end)
    assert code == 2
    assert "a.png" in out
    assert "b.png" in err
    assert (tmp_path / "m" / "a.png").exists()
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photos}", "--click", "1,2", "-o", "{photos}"], "overwrite"),
        (["{photos}", "--click", "1,2", "-o", "{photos}/a.png"], "folder"),
        (["{photos}", "--click", "1,2", "-o", "{tmp}/m.png"], "folder"),
        (["{photos}", "--click", "1,2", "-o", "-"], "folder"),
        (["{photos}", "--click", "1,2", "-o", "{tmp}/m", "--overlay", "{tmp}/m"], "twice"),
        (["{photos}/a.png", "{photos}/a.png", "--click", "1,2", "-o", "{tmp}/m"], "twice"),
        (["{photos}/a.png", "{photos}/./a.png", "--click", "1,2", "--json"], "twice"),
        (["{photos}/a.png", "--click", "1,2", "-o", "{tmp}/x.png", "--overlay", "{tmp}/./x.png"], "twice"),
        (["{photos}/*.bmp", "--click", "1,2", "--json"], "no file matches"),
        (["{photos}/a.png", "--click", "1,2", "-o", "-", "--json"], "both print"),
        (["-", "--clicks", "-", "--json"], "standard input"),
        (["{photos}", "--clicks", "{tmp}/none.csv", "--json"], "none.csv"),
        (["{photos}", "--json"], "--click"),
        (["{photos}/a.png", "--box", "9,9,3,3", "--json"], "box"),
        (["{photos}/a.png", "--box", "1,1,3,3", "--start-mask", "m.png", "--json"], "both a start"),
        (["{photos}/" + "a" * 5000, "--click", "1,2", "--json"], "no such file"),
        (["https://host.org/a.png", "--click", "1,2", "--json"], "it is a URL; download it first"),
    ],
)
def test_bad_targets_and_prompts_are_told_before_any_work(
    capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert message in fails(capsys, "segment", *(a.format(photos=photos, tmp=tmp_path) for a in arguments))
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        '{"a.png": 3}',
        '{"a.png": [[1]]}',
        '{"a.png": [[1, 2, 7]]}',
        '{"a.png": [["x", 2]]}',
        '{"a.png": [[1, 1e999]]}',
        '{"a.png": {"box": [1, 2, 3]}}',
        '{"a.png": {"box": [3, 2, 1, 9]}}',
        '{"a.png": {"prompts": 7}}',
        '{"a.png": {"prompts": [{"scribble": [[1, 2, 3]]}]}}',
        '{"a.png": {"prompts": [{"lasso": "1,2"}]}}',
        '{"a.png": {"prompts": [[1, 2]], "clicks": [[3, 4]]}}',
        '{"nobody.png": [[1, 2]]}',
        '[{"image": "a.png", "clicks": [[1, 2]]}, {"image": "a.png", "clicks": []}]',
        "[" * 100_000,
        "{",
        '{"a.png": [[1, 2]], "a.png": [[3, 4]]}',
        '{"a.png": [{"x": 1, "y": 2, "label": 0}]}',
        '{"a.png": {"prompts": [{"scribble": [[1, 2]], "label": 0}]}}',
        '{"a.png": {"clicks": [[1, 2]], "lasso": [[1, 2], [3, 4], [9, 9]]}}',
    ],
    ids=range(20),
)
def test_damaged_files_of_clicks_are_refused(
    capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.json").write_text(text)
    assert "c.json" in fails(capsys, "segment", photos, "--clicks", tmp_path / "c.json", "--json")


def test_images_are_found_by_absolute_and_windows_paths_and_in_tab_separated_tables(
    capsys: pytest.CaptureFixture[str],
    photos: Path,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(f"image\tx\ty\n{photos.name}\\a.png\t40\t30\n{photos / 'b.png'}\t5\t6\n")
    how = ("--clicks", "c.csv", "--json", "--model", checkpoint, "--device", "cpu")
    code, out, _ = run(capsys, "segment", photos.name, *how)
    assert code == 0
    found = {Path(row["image"]).name: row["clicks"] for row in map(json.loads, out.splitlines())}
    assert {n: [(c["x"], c["y"]) for c in clicks] for n, clicks in found.items()} == {
        "a.png": [(40, 30)],
        "b.png": [(5, 6)],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x,y\n1,2\n",
        "image,x,y\na.png,1\n",
        "image,x,y\na.png,1,2,3,4\n",
        "image,x,y,positive\na.png,1,2,maybe\n",
        "image,x,y,label\na.png,1,2,0\n",
        "image,x,x,y\na.png,1,2,3\n",
        "image,x,y,x0,y0,x1,y1\na.png,1,2,0,0,5,5\n",
        'image,x,y,scribble\na.png,1,2,"3,4 5,6"\n',
    ],
)
def test_damaged_tables_of_clicks_are_refused(
    capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "c.csv").write_text(text)
    assert "c.csv" in fails(capsys, "segment", photos, "--clicks", tmp_path / "c.csv", "--json")


def test_streams_in_and_out(photo: Path, checkpoint: str) -> None:
    command = [sys.executable, "-m", "activefreq_engine.cli", "segment", "-", "--click", "40,30", "-o", "-"]
    done = subprocess.run(
        [*command, "--model", checkpoint, "--device", "cpu"], input=photo.read_bytes(), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert Image.open(io.BytesIO(done.stdout)).size == (WIDTH, HEIGHT)


def test_standard_input_is_read_as_files_are(
    capsys: pytest.CaptureFixture[str], checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostScript is a program, which Pillow would run."""
    for data, message in ((b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"), (b"", "empty")):
        monkeypatch.setattr("activefreq_engine.segment.command._stream_in", lambda data=data: data)
        assert message in fails(capsys, "segment", "-", "--click", "1,2", "--json", "--model", checkpoint)


def test_streams_that_are_closed_or_know_few_letters(photo: Path, checkpoint: str, tmp_path: Path) -> None:
    target = tmp_path / "\u30de\u30b9\u30af.png"
    where = ["segment", str(photo), "--click", "40,30", "-o", str(target), "--model", checkpoint, "--device", "cpu"]
    script = (
        "import os, sys; [os.close(n) for n in map(int, sys.argv[1].split())]; os.execv(sys.executable, sys.argv[2:])"
    )
    for closed in ("", "1", "0 1 2"):
        command = [sys.executable, "-c", script, closed, sys.executable, "-m", "activefreq_engine.cli", *where]
        done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
        assert (done.returncode, done.stderr) == (0, b""), closed
        assert Image.open(target).size == (WIDTH, HEIGHT)
        target.unlink()
    assert main(["info", "-h"]) == 0


def test_a_fault_of_ours_is_one_line_that_names_its_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("x")

    monkeypatch.setattr("activefreq_engine.cli.collect_info", broken)
    code, out, err = run(capsys, "info")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "bug" in err
    assert "KeyError" in err


@pytest.mark.skipif(os.name == "nt", reason="a folder in use cannot be deleted there")
@pytest.mark.parametrize(
    "code", ["from activefreq_engine import Session", "import activefreq_engine.cli as c; c.main(['info'])"]
)
def test_a_current_folder_that_was_deleted(tmp_path: Path, code: str) -> None:
    """MKL ends the process where torch is imported then."""
    where = "import os, tempfile; import activefreq_engine; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)\n"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{where}try:\n    {code}\nexcept activefreq_engine.ActiveFreqError as e: print(e)\nprint('on')",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert "the current folder does not exist any more" in done.stdout + done.stderr
    assert done.stdout.endswith("on\n")


def test_names_that_would_move_the_cursor(
    photo: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    names = ["new\nline.png", "red\x1b[31m.png", "turned\u202e.png", "\u4eba \u00fc.png", "-dash 'q\".png"]
    for name in names:
        (pictures / name).write_bytes(photo.read_bytes())
    arguments = ["segment", str(pictures), "--click", "40,30", "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*arguments, "--model", checkpoint]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(names)
    assert all(c.isprintable() for c in out.replace("\n", ""))
    assert all(text in out for text in ("new\\nline", "red\\x1b[31m", "turned\\u202e", "\u4eba \u00fc", "-dash 'q\""))
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(names)
    assert main(["segment", str(pictures / "no\n\x1b[2Jne.png"), "--click", "1,1", "-o", "x.png"]) == 2
    assert "\x1b" not in capsys.readouterr().err
