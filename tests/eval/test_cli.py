"""``activefreq eval`` end to end, with a small random model on the CPU."""

import csv
import errno
import json
import os
import signal
import sys

import pytest
import torch

from activefreq_engine.cli import main
from activefreq_engine.errors import MemoryShortageError
from activefreq_engine.eval import Report, read_json
from activefreq_engine.files import alone_at, alone_in
from activefreq_engine.models import create_model, read_metadata, save_checkpoint

from .fakes import write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    write_pairs(root / "lesions", [(40, 61), (52, 37), (33, 33)])
    torch.manual_seed(0)
    save_checkpoint(create_model("freqformer_b0"), root / "random.safetensors", {})
    return root


@pytest.fixture
def run(folder, capsys):
    def call(*arguments):
        code = main(["eval", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def common(folder):
    return ["--model", folder / "random.safetensors", "--max-clicks", 2, "--device", "cpu", "--batch-size", 2]


def test_writes_all_reports(folder, run, tmp_path):
    code, out, err = run(
        folder / "lesions", *common(folder), "--out", tmp_path / "o", "--json", tmp_path / "j" / "r.json"
    )
    assert (code, err) == (0, "")
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"report.json", "samples.csv", "report.md", "curve.png"}
    report = read_json(tmp_path / "j" / "r.json")
    assert report == read_json(tmp_path / "o" / "report.json")
    assert report.settings.about["threshold"] == 0.49
    assert report.settings.about["weights_sha256"] == read_metadata(folder / "random.safetensors")["sha256"]
    assert len(report.samples) == 3
    assert "| lesions | 3 |" in out


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_of_any_bytes_cost_no_evaluation(folder, run, tmp_path):
    data, names = tmp_path / "a$^$b|\n\udcff", ["new\nline", "no utf-8 \udcfe", '-p|q,"r']
    write_pairs(tmp_path / "plain", [(40, 61)] * 3)
    (tmp_path / "plain").rename(data)
    for number, name in enumerate(names):
        for kind in ("images", "masks"):
            (data / kind / f"case{number:02d}.png").rename(data / kind / f"{name}.png")
    out = tmp_path / "out \udcfd"
    code, text, err = run(data, *common(folder), "--clicker", "random", "--out", out, "--json", out / ("j" * 255))
    assert (code, err) == (0, "")
    assert {s.id for s in read_json(out / ("j" * 255)).samples} == set(names)
    assert {p.name for p in out.iterdir()} == {"report.json", "samples.csv", "report.md", "curve.png", "j" * 255}
    rows = list(csv.reader((out / "samples.csv").read_text("utf-8").splitlines(keepends=True)))
    assert {r[0] for r in rows[1:]} == {"new\nline", "no utf-8 \\udcfe", '-p|q,"r'}
    assert "a$^$b\\|\\n\\udcff" in (out / "report.md").read_text("utf-8")
    assert text.splitlines()[2].count(" | ") == text.splitlines()[0].count(" | ")


def test_two_evaluations_do_not_write_to_one_place(folder, run, tmp_path):
    arguments = [folder / "lesions", *common(folder), "--limit", 1]
    with alone_in(tmp_path / "o"), alone_at(tmp_path / "r.json"):
        code, out, err = run(*arguments, "--out", tmp_path / "o")
        assert (code, out) == (2, "")
        assert (
            err == f"error: another process is at work in {tmp_path / 'o'}; wait for its end, or name another folder\n"
        )
        code, out, err = run(*arguments, "--json", tmp_path / "r.json")
        assert (code, out) == (2, "")
        assert "another process is writing" in err
        assert run(*arguments, "--json", os.devnull)[0] == 0
    assert [p.name for p in tmp_path.rglob("*")] == ["o"]


def test_shards_merge_into_the_whole(folder, run, tmp_path):
    arguments = [folder / "lesions", *common(folder), "--clicker", "random", "--seed", 4]
    assert run(*arguments, "--json", tmp_path / "whole.json")[0] == 0
    for i in range(2):
        assert run(*arguments, "--shard", f"{i}/2", "--json", tmp_path / f"{i}.json")[0] == 0
    code, out, _ = run("--merge", tmp_path / "1.json", "--merge", tmp_path / "0.json", "--json", "-")
    assert code == 0
    whole, merged = read_json(tmp_path / "whole.json"), Report.from_json(json.loads(out))
    assert (merged.curves == whole.curves).all()
    assert [s.clicks for s in merged.samples] == [s.clicks for s in whole.samples]
    timing = ("spc", "latency_ms")
    assert {k: v for k, v in merged.metrics().items() if k not in timing} == {
        k: v for k, v in whole.metrics().items() if k not in timing
    }


def test_limit_and_acselect(folder, run):
    code, out, _ = run(folder / "lesions", *common(folder), "--limit", 1, "--clicker", "acselect", "--json", "-")
    assert code == 0
    report = json.loads(out)
    assert (report["samples"], report["clicker"]) == (1, "acselect")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATA"),
        (["{data}", "--merge", "x.json"], "DATA"),
        (["{data}", "--shard", "2/2"], "0/2 and 1/2"),
        (["{data}", "--shard", "half"], "0/2 and 1/2"),
        (["{data}", "--shard", "0/9"], "over 3 samples"),
        (["{data}", "--labels", "2;4"], "2,4"),
        (["{data}", "--labels", "9" * 5000], "2,4"),
        (["{data}", "--clicker", "human"], "ritm, acselect, random"),
        (["{data}", "--limit", "0"], "--limit"),
        (["{data}", "--stop-at", "90"], "stop_at is 90"),
        (["{data}", "--layout", "coco"], "coco"),
        (["{data}", "--model", "nothing"], "nothing"),
        (["{data}/nowhere"], "not a folder"),
        (["x" * 300], "not a folder"),
        (["{data}", "--json", "x" * 300], "too long"),
        (["{data}", "--frobnicate"], "--frobnicate"),
        (["--merge", "nothing.json"], "nothing.json"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(folder, run, arguments, message):
    arguments = [a.format(data=folder / "lesions") for a in arguments]
    model = [] if "--model" in arguments or "--merge" in arguments else common(folder)
    code, out, err = run(*arguments, *model)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_a_broken_sample_costs_its_row(folder, run, tmp_path):
    write_pairs(tmp_path / "d", [(40, 61), (52, 37), (33, 33), (30, 44)])
    images = sorted((tmp_path / "d" / "images").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:60])  # cut off
    images[3].write_bytes(b"")  # not even a header
    code, out, err = run(tmp_path / "d", *common(folder), "--json", tmp_path / "r.json")
    assert code == 2
    assert err.count("\n") == 1
    assert "| d | 2 |" in out
    assert images[1].stem in out
    report = read_json(tmp_path / "r.json")
    assert [f.number for f in report.failed] == [1, 3]
    assert [s.number for s in report.samples] == [0, 2]
    assert report.expected is None
    for image in images:
        image.write_bytes(b"")
    code, out, err = run(tmp_path / "d", *common(folder))
    assert (code, out) == (2, "")


def test_the_table_is_printed_whatever_becomes_of_the_files(folder, run, tmp_path):
    code, out, err = run(folder / "lesions", *common(folder), "--json", tmp_path)
    assert code == 0
    assert "| lesions | 3 |" in out
    assert len(read_json(tmp_path / "report.json").samples) == 3
    if os.path.exists("/dev/full"):
        code, out, err = run(folder / "lesions", *common(folder), "--json", "/dev/full")
        assert code == 1
        assert "| lesions | 3 |" in out
    (tmp_path / "file").write_text("")
    for option in ("--out", "--json"):
        target = tmp_path / "file" if option == "--out" else tmp_path / "file" / "r.json"
        code, out, err = run(folder / "lesions", *common(folder), option, target)
        assert (code, out) == (2, "")
        assert option in err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_keeps_what_was_measured(folder, run, tmp_path, monkeypatch, name):
    from activefreq_engine.eval import runner

    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("Windows has no SIGHUP")

    start, calls = runner._start, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return start(*arguments)

    monkeypatch.setattr(runner, "_start", interrupted)
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(number, usual)  # started by nohup, the tests themselves ignore SIGHUP
    try:
        code, out, _ = run(folder / "lesions", *common(folder), "--json", tmp_path / "r.json")
        assert (code, signal.getsignal(number)) == (130, usual)
    finally:
        signal.signal(number, before)
    assert "cut short: 2 of 3 samples" in out
    report = read_json(tmp_path / "r.json")
    assert (len(report.samples), report.expected) == (2, 3)


def test_a_shortage_of_memory_keeps_what_was_measured(folder, run, tmp_path, monkeypatch):
    from activefreq_engine.eval import runner

    start, calls = runner._start, []

    def short(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryShortageError("not enough memory for a click")
        return start(*arguments)

    monkeypatch.setattr(runner, "_start", short)
    code, out, err = run(folder / "lesions", *common(folder), "--json", tmp_path / "r.json")
    assert (code, err) == (1, "error: not enough memory for a click\n")
    assert "cut short: 2 of 3 samples" in out
    assert len(read_json(tmp_path / "r.json").samples) == 2


def test_a_disk_that_is_full_for_a_while_costs_nothing(folder, run, tmp_path, monkeypatch):
    from activefreq_engine.eval import cli, report

    write, calls = report.write_json, []

    def full_at_first(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(cli, "WRITE_EVERY", 0.0)
    monkeypatch.setattr(report, "write_json", full_at_first)
    code, out, err = run(folder / "lesions", *common(folder), "--json", tmp_path / "r.json")
    assert (code, err.count("could not be written")) == (0, 1)
    assert "| lesions | 3 |" in out
    assert len(read_json(tmp_path / "r.json").samples) == 3


def test_a_table_that_cannot_be_printed_does_not_cost_the_report(folder, run, tmp_path, monkeypatch):
    from activefreq_engine.eval import cli

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli.typer, "echo", full)
    assert run(folder / "lesions", *common(folder), "--json", tmp_path / "r.json")[0] == 1
    assert len(read_json(tmp_path / "r.json").samples) == 3


def test_a_huge_limit_is_no_limit(folder, run):
    code, out, _ = run(folder / "lesions", *common(folder), "--limit", "9" * 30)
    assert code == 0
    assert "| lesions | 3 |" in out
