"""Reports: exact round trips, and every format says the same."""

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from activefreq_engine.errors import DatasetError, FileWriteError, InvalidArgumentError
from activefreq_engine.eval import Report, evaluate, load_dataset, plot, read_json, to_markdown, write_json
from activefreq_engine.eval.metrics import iou

from .fakes import DiskPainter, write_pairs


class Revealer(DiskPainter):
    """Shows a further part of the truth with each click; how much depends on the picture."""

    def __init__(self, truths):
        super().__init__()
        self.truths = {t.shape: t == 1 for t in truths}

    def reset(self):
        super().reset()
        self.clicks = 0

    def click(self, x, y, *, positive=True):
        self.clicks += 1
        height, width = self.shape
        self.probs = (self.truths[self.shape] & (np.arange(width) < self.clicks * height / 6)).astype(np.float32)
        return SimpleNamespace(mask=self.probs > 0.49)


def test_the_ignore_label_is_told_and_older_reports_have_none(report):
    assert "do not count" not in to_markdown([report])
    noted = replace(report, settings=replace(report.settings, ignore_label=255))
    assert "; pixels of value 255 do not count" in to_markdown([noted])
    data = noted.to_json()
    assert Report.from_json(data) == noted
    del data["settings"]["ignore_label"]
    assert Report.from_json(data) == report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "lesions"
    truths = write_pairs(root, [(33, 47), (41, 29), (8, 39)])
    report = evaluate(load_dataset(root), model="reveal", predictors=[Revealer(truths), Revealer(truths)])
    assert len({len(s.clicks) for s in report.samples}) == 3  # not all alike
    return report


def test_json_keys(report):
    data = json.loads(json.dumps(report.to_json()))
    for key in ("noc80", "noc85", "noc90", "noc95"):
        assert 1 <= data[key] <= 20
    assert 0 <= data["never90"] <= data["nof90"] <= 3
    assert list(data["miou"]) == ["1", "2", "3", "5", "10", "20"]
    assert all(0 < v <= 1 for v in data["miou"].values())
    assert (data["samples"], data["clicker"], data["model"]) == (3, "ritm", "reveal")
    assert data["settings"]["versions"]["numpy"] == np.__version__
    low, high = data["intervals"]["miou2"]
    assert low <= data["miou"]["2"] <= high
    placed = [len(sample["clicks"]) for sample in data["per_sample"]]
    assert data["clicks"] == sum(placed) < 60
    assert data["latency_ms"]["p50"] <= data["latency_ms"]["p95"] <= data["latency_ms"]["p99"]
    assert data["spc"] == pytest.approx(data["seconds"] / sum(placed))


def test_json_round_trip_is_exact(report, tmp_path):
    write_json(report, tmp_path / "report.json")
    again = read_json(tmp_path / "report.json")
    assert again == report
    assert again.to_json() == report.to_json()


def test_report_of_fewer_clicks(tmp_path):
    write_pairs(tmp_path, [(20, 31)])
    short = evaluate(load_dataset(tmp_path), model="disks", predictors=[DiskPainter()], max_clicks=1)
    assert list(short.metrics()["miou"]) == ["1"]
    assert short.metrics()["intervals"] == {"noc90": None, "miou2": None}  # one sample, one click
    assert "mIoU@1 |" in to_markdown([short])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(format="coco"), "format is 'coco'"),
        (lambda d: d.pop("clicker"), "KeyError"),
        (lambda d: d["settings"].update(extra=1), "extra"),
        (lambda d: d["per_sample"][0].pop("iou"), "iou"),
        (lambda d: d["per_sample"][0]["iou"].pop(), "expected 20"),
        (lambda d: d["per_sample"][0]["iou"].__setitem__(3, 7.0), "0..1"),
        (lambda d: d["per_sample"][0]["ms"].pop(), "times"),
        (lambda d: d.update(per_sample=3), "TypeError"),
        (lambda d: d.update(model=None), "model is a NoneType"),
        (lambda d: d["settings"].update(about="x"), "about is a str"),
        (lambda d: d["settings"].update(dataset_samples=True), "dataset_samples is a bool"),
        (lambda d: d["settings"].update(stop_at="x"), "stop_at is x"),
        (lambda d: d["settings"].update(ignore_label="x"), "ignore_label is x"),
        (lambda d: (d["settings"].update(max_clicks=0), d.update(per_sample=[])), "max_clicks is 0"),
    ],
)
def test_damaged_reports_are_refused(report, tmp_path, damage, message):
    data = report.to_json()
    damage(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=message):
        read_json(tmp_path / "bad.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '"x"'])
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DatasetError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(DatasetError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_places_that_cannot_be_end_in_errors_of_ours(report, tmp_path):
    (tmp_path / "file").touch()
    for folder, error in ((tmp_path / "file", FileWriteError), ("x" * 300, FileWriteError), (5, InvalidArgumentError)):
        with pytest.raises(error):
            report.write(folder)
    with pytest.raises(InvalidArgumentError, match="nothing to plot"):
        plot([], tmp_path / "curve.png")
    with pytest.raises(DatasetError, match="cannot read 5"):
        read_json(5)


def test_all_files_say_the_same(report, tmp_path):
    paths = report.write(tmp_path / "out")
    assert [p.name for p in paths] == ["report.json", "samples.csv", "report.md", "curve.png"]
    assert read_json(paths[0]) == report
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert [r["id"] for r in rows] == ["case00", "case01", "case02"]
    m = report.metrics()
    for key in ("noc80", "noc85", "noc90", "noc95"):
        assert np.mean([int(r[key]) for r in rows]) == pytest.approx(m[key])
    assert np.mean([float(r["iou2"]) for r in rows]) == pytest.approx(m["miou"]["2"], abs=1e-7)
    table = paths[2].read_text().splitlines()
    cells = dict(zip(table[0].split("|"), table[2].split("|"), strict=True))
    assert cells[" mIoU@2 "].split()[0] == f"{100 * m['miou']['2']:.2f}"
    assert cells[" NoC@90 "].split()[0] == f"{m['noc90']:.2f}"
    image = cv2.imread(str(paths[3]))
    assert image.shape[1] > 600
    assert image.std() > 5  # something is drawn


def test_plot_draws_every_report(report, tmp_path):
    plot([report], tmp_path / "one.png")
    flat = type(report)(report.settings, report.samples[:1], 1.0)
    plot([report, flat], tmp_path / "two.png")
    one, two = cv2.imread(str(tmp_path / "one.png")), cv2.imread(str(tmp_path / "two.png"))
    colours = [len(np.unique(image.reshape(-1, 3)[image.reshape(-1, 3).std(1) > 60], axis=0)) for image in (one, two)]
    assert colours[1] > colours[0]  # a second line in a second colour


def test_markdown_warns_about_stopped_and_partial_runs(tmp_path):
    write_pairs(tmp_path, [(33, 47), (41, 29)])
    data = load_dataset(tmp_path)
    text = to_markdown([evaluate(data, predictors=[DiskPainter()], stop_at=0.8, shard=(1, 2))])
    assert "stopped at IoU 0.8" in text
    assert "shard 1 of 2 only" in text
    assert "| - |" in text  # NoC above the stop is not invented


def test_iou_values_are_float32(report):
    assert all(v == float(np.float32(v)) for s in report.samples for v in s.ious)
    assert iou(np.array([[True, True, False]]), np.array([[1, 1, 1]])) == float(np.float32(2 / 3))
