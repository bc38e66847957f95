"""The table by kind of image holds what the protocol measures, and its pictures show what failed."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer import BadParameter

from activefreq_engine.eval.metrics import noc
from bench.quality import kinds
from bench.tools import sets

from .test_worst import report

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two kinds of object, named "made"."""
    root = tmp_path / "made" / "val"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for image in sorted((EXAMPLES / "images").glob("*.jpg")):
        picture = Image.open(image).resize((128, 96))
        picture.save(root / "images" / f"{image.stem}.png")
        mask = np.asarray(
            Image.open(EXAMPLES / "masks" / f"{image.stem}.png").resize((128, 96), Image.Resampling.NEAREST)
        )
        labels = (mask > 0).astype(np.uint8)
        labels[:5, :5] = 2
        Image.fromarray(labels).save(root / "labels" / f"{image.stem}.png")
    return root


def test_a_set_is_measured_and_its_failures_are_drawn(folder, tmp_path, capsys):
    table, pictures = tmp_path / "kinds.csv", tmp_path / "worst"
    kinds.main([folder], model="freqformer_b0", labels=["made=1"], limit=2, file=table, pictures=pictures)
    with table.open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["run"], row["objects"]) == ("freqformer_b0, made", "2")
    assert 1 <= float(row["noc90"]) <= 20
    assert 50 < float(row["miou1"]) <= float(row["miou20"]) <= 100  # label 2, a corner, is no object
    assert "NoC@90" in capsys.readouterr().out
    with Image.open(pictures / "made.jpg") as sheet:
        assert sheet.width > 1000
    kinds.main([folder], model="freqformer_b0", labels=["made=1"], limit=2, file=table)
    assert len(table.read_text().splitlines()) == 2  # measured anew, not twice


def test_only_these_labels_are_objects(folder):
    assert len(sets.drawn(folder, 150)[2].samples) == 2 * len(sets.drawn(folder, 150, [2])[2].samples) == 4
    assert kinds.parse_labels(["vocalfolds=1,3", "a=2"]) == {"vocalfolds": [1, 3], "a": [2]}
    for bad in ("vocalfolds", "vocalfolds=", "vocalfolds=1,x"):
        with pytest.raises(BadParameter, match="SET=VALUE"):
            kinds.parse_labels([bad])


def test_a_row_has_the_reports_numbers(rng):
    curves = np.sort(rng.uniform(0.5, 1, (40, 20)), axis=1)
    measured = report(curves.tolist())
    row = kinds.row("s", "w", measured)
    assert row["noc90"] == pytest.approx(noc(curves, 0.9).mean())
    assert row["miou2"] == pytest.approx(100 * curves[:, 1].mean(), abs=1e-3)
    assert row["miou2_low"] < row["miou2"] < row["miou2_high"]
    assert row["noc90_low"] < row["noc90"] < row["noc90_high"]
