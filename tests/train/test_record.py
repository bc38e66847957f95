"""The log, the curve, and validation."""

from pathlib import Path

import cv2
import pytest
import torch

from activefreq_engine.errors import DatasetError, InvalidArgumentError
from activefreq_engine.models import read_metadata
from activefreq_engine.train.loop import train
from activefreq_engine.train.record import SCORES, Record, Validation, plot, read_log

from .conftest import write_pairs
from .tiny_run import tiny

SCORED = dict.fromkeys(SCORES, 0.5)


def test_rows_are_means_and_the_last_one_comes_in_any_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Record, "EVERY", 3)
    record = Record(tmp_path / "log.csv", 0)
    means = [record.add(s, float(s), float(s * s), 0.1, 64, last=s == 5) for s in range(1, 6)]
    assert means == [None, None, pytest.approx(14 / 3), None, pytest.approx(41 / 2)]
    rows = read_log(tmp_path / "log.csv")
    assert [(int(r["step"]), float(r["loss"])) for r in rows] == [(3, 4.66667), (5, 20.5)]
    assert all(not r["noc90"] for r in rows)


def test_validation_has_rows_of_its_own(tmp_path: Path) -> None:
    record = Record(tmp_path / "log.csv", 0)
    assert record.validated == -1
    assert record.add_scores(10, 1.0, {**SCORED, "noc90": 7.0})
    assert not record.add_scores(20, 2.0, {**SCORED, "noc90": 7.0})
    assert record.add_scores(30, 3.0, {**SCORED, "noc90": 6.5})
    again = Record(tmp_path / "log.csv", 25)  # killed after step 25 was saved
    assert again.best == 7.0
    assert again.validated == 20
    assert [r["step"] for r in read_log(tmp_path / "log.csv")] == ["10", "20"]


def test_logs_of_older_runs_and_rows_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,seconds,loss,lr,size\n50,1.5,0.7,1e-3,128\n100,3.0,0.6,1e-3,128\n12")
    record = Record(path, 1000)
    assert [(r["step"], r["loss"], r["noc90"]) for r in read_log(path)] == [("50", "0.7", ""), ("100", "0.6", "")]
    record.add_scores(100, 3.0, SCORED)
    assert read_log(path)[-1]["noc90"] == "0.5000"


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"a,b\n1,2\n", b"step,noc90\nx,1\n", b"step,noc90\n1,x\n", None],
    ids=["bytes", "columns", "step", "score", "folder"],
)
def test_what_is_no_log(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "log.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"log\.csv is no log .* remove it"):
        Record(path, 1000)


@pytest.mark.parametrize("scores", [0, 3])
@pytest.mark.parametrize("losses", [0, 4])
def test_curve(tmp_path: Path, losses: int, scores: int) -> None:
    record = Record(tmp_path / "log.csv", 0)
    for i in range(losses):
        record.add(50 * (i + 1), 60.0 * i, 1 / (i + 1), 1e-3, 64, last=True)
    for i in range(scores):
        record.add_scores(70 * i, 60.0 * i, SCORED)
    plot(tmp_path / "log.csv", tmp_path / "curve.png")
    image = cv2.imread(str(tmp_path / "curve.png"))
    assert image.shape[0] > (800 if scores else 400)
    blue = (image[..., 0].astype(int) - image[..., 2] > 60).sum()
    assert (blue > 200) == bool(losses or scores)
    assert not list(tmp_path.glob("*.partial"))


def test_validation_while_training(pairs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    validation = Validation(str(pairs), every=1e-9, limit=1)
    config = tiny(pairs, steps=2, iterations=((1, 1.0),))
    train(config, tmp_path / "a", device="cpu", validation=validation)
    rows = [r for r in read_log(tmp_path / "a" / "log.csv") if r["noc90"]]
    assert [r["step"] for r in rows] == ["1", "2"]  # and not twice at the end
    assert all(1 <= float(r["noc85"]) <= float(r["noc90"]) <= 20 and 0 <= float(r["miou20"]) <= 1 for r in rows)
    assert (tmp_path / "a" / "best.safetensors").exists()
    train(config, tmp_path / "a", device="cpu", validation=validation)
    assert len([r for r in read_log(tmp_path / "a" / "log.csv") if r["noc90"]]) == 2
    # it changes nothing else
    train(config, tmp_path / "b", device="cpu")
    a, b = (load(tmp_path / name) for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in b)


def load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "state.safetensors")


def test_validation_data_is_looked_at_before_training(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        train(tiny(pairs), tmp_path / "run", device="cpu", validation=Validation(str(tmp_path / "none")))
    assert not (tmp_path / "run").exists()


def test_validation_says_what_it_leaves_out(pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held_out = write_pairs(tmp_path / "held_out", 2)
    cv2.imwrite(str(held_out / "masks" / "000.png"), 0 * cv2.imread(str(held_out / "masks" / "000.png"), -1))
    train(tiny(pairs, steps=1), tmp_path / "run", device="cpu", validation=Validation(str(held_out)))
    assert "validation is without 1 of 2 samples; the first: mask" in caplog.text
    assert "000.png is empty" in caplog.text


def test_validation_that_fails_costs_no_training(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise DatasetError("the share is gone")

    monkeypatch.setattr(Validation, "scores", gone)
    with pytest.raises(DatasetError, match="share is gone"):
        train(tiny(pairs, steps=1), tmp_path, device="cpu", validation=Validation(str(pairs), limit=1))
    assert read_metadata(tmp_path / "model.safetensors")["metadata"]["steps"] == 1
    assert (tmp_path / "state.safetensors").exists()


def test_the_name_of_a_run_is_no_formula(tmp_path: Path) -> None:
    folder = tmp_path / "a$^$b {\n"
    folder.mkdir()
    Record(folder / "log.csv", 0).add(1, 1.0, 0.5, 0.1, 64, last=True)
    plot(folder / "log.csv", folder / "curve.png")
    assert cv2.imread(str(folder / "curve.png")) is not None
