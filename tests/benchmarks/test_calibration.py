"""Calibration: each bin's probabilities beside the share of object pixels in it."""

import csv

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from activefreq_engine import create_model
from activefreq_engine.models import save_checkpoint
from bench.quality import calibration
from bench.quality.calibration import BINS, bins, table
from tests.eval.fakes import write_pairs


def test_probabilities_that_are_true_have_no_error(rng):
    probs = rng.random((300, 400)).astype(np.float32)
    truth = (rng.random((300, 400)) < probs).astype(np.int8)
    truth[:20] = -1
    share, p, y = bins(probs, truth, truth == 1)
    assert share.sum() == pytest.approx(1)
    assert np.abs(p - y).sum() < 0.02
    (row, *rest) = table("made", "w", [{1: np.stack([share, p, y])}])
    assert (row["bin"], row["clicks"], row["objects"]) == ("all", 1, 1)
    assert row["ece"] < 2
    assert [r["bin"] for r in rest] == list(range(BINS))
    assert all(abs(r["probability"] - (r["bin"] + 0.5) / BINS) < 0.02 for r in rest)


def test_what_is_called_certain_and_wrong_is_an_error():
    truth = np.zeros((50, 60), np.int8)
    truth[10:30, 10:30] = 1
    mask = np.zeros((50, 60), bool)
    mask[10:30, 10:40] = True  # a third of it is wrong
    counted = bins(mask.astype(np.float32), truth, mask)
    (row, *rest) = table("made", "w", [{1: counted}])
    # the box is 30 x 20, 1.4 times as much each way 42 x 28
    assert row["ece"] == pytest.approx(100 * 200 / (42 * 28))
    assert rest[-1]["object"] == pytest.approx(2 / 3)
    assert rest[-1]["probability"] == 1


def test_ignored_and_far_pixels_do_not_count():
    truth = np.zeros((200, 200), np.int8)
    truth[90:110, 90:110] = 1
    truth[:, 100:] = -1
    probs = np.full((200, 200), 0.75, np.float32)
    probs[:80] = 0.25
    share, _, _ = bins(probs, truth, np.zeros((200, 200), bool))
    assert share[7] == pytest.approx(1)
    assert bins(probs, np.zeros((200, 200), np.int8), np.zeros((200, 200), bool)) is None


def test_the_command(tmp_path):
    write_pairs(tmp_path / "made" / "val", [(60, 81)] * 3, seed=3)
    torch.manual_seed(0)
    save_checkpoint(create_model(), tmp_path / "random.safetensors")
    app = Typer()
    app.command()(calibration.main)
    made = [str(tmp_path / name) for name in ("made/val", "random.safetensors", "c.csv", "c.png")]
    found = CliRunner().invoke(
        app, [made[0], "--model", made[1], "--limit", "2", "--table", made[2], "--plot", made[3]]
    )
    assert found.exit_code == 0, found.output
    assert "made  clicks 1  objects 2  ECE" in found.output
    with (tmp_path / "c.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert {r["clicks"] for r in written} == {"1", "2", "5"}
    assert all(r["commit"] for r in written)
    assert (tmp_path / "c.png").stat().st_size > 5000
