"""The gain of one click by rule: each rule's own click from the same mask, undone before the next."""

import csv

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from activefreq_engine import Session, create_model
from activefreq_engine.acselect import AcSelect
from activefreq_engine.eval.metrics import iou
from activefreq_engine.models import save_checkpoint
from bench.quality import click_gain
from bench.quality.acselect import LargestRegion
from tests.eval.fakes import blob, write_pairs


def test_each_rule_starts_from_the_same_mask(rng):
    session = Session(create_model())
    image, truth = rng.integers(0, 256, (70, 93, 3), dtype=np.uint8), blob(rng, 70, 93)
    session.set_image(image)
    rules = {"widest": AcSelect(prominence=1), "ape": AcSelect((0, 1, 0), prominence=0), "largest": LargestRegion()}
    found = list(click_gain.gains(session, truth, rules, clicks=3))
    assert len(session.clicks) == 3  # those of the robot; every trial is undone
    while session.clicks:
        before = iou(session.mask, truth)
        first = {name: rule.oracle(session.probs, session.mask, truth == 1)[0] for name, rule in rules.items()}
        if len({(s.x, s.y, s.positive) for s in first.values()}) > 1:
            row = found.pop()
            for name, s in first.items():
                after = iou(session.click(s.x, s.y, s.positive).mask, truth)
                session.undo()
                assert row[name] == pytest.approx(after - before, abs=1e-6)
            assert row["best"] == max(row[name] for name in rules)
        session.undo()
    assert found == []


def test_the_summary_is_paired_and_by_image():
    rows = [
        {"sample": "a", "widest": 0.10, "ape": -0.02},
        {"sample": "a", "widest": 0.02, "ape": 0.02},
        {"sample": "b", "widest": 0.01, "ape": 0.03},
    ]
    best, worst = click_gain.summary(rows, "widest")
    assert (best["rule"], best["gain"], best["more"], best["harmful"]) == ("widest", pytest.approx(13 / 3), 0, 0)
    assert (worst["masks"], worst["images"]) == (3, 2)
    assert worst["more"] == pytest.approx((-6 + 2) / 2)
    assert worst["harmful"] == pytest.approx(100 / 3)


def test_the_command_writes_a_row_a_rule(tmp_path):
    write_pairs(tmp_path / "data", [(60, 81)] * 3, seed=3)
    torch.manual_seed(0)  # of the weights: some masks leave the rules no choice
    save_checkpoint(create_model(), tmp_path / "random.safetensors")
    app = Typer()
    app.command()(click_gain.main)
    arguments = ["--out", str(tmp_path / "gain.csv"), "--model", str(tmp_path / "random.safetensors"), "--clicks", "2"]
    result = CliRunner().invoke(app, [str(tmp_path / "data"), *arguments])
    assert result.exit_code == 0, result.output
    with (tmp_path / "gain.csv").open() as stream:
        rules = {row["rule"] for row in csv.DictReader(stream)}
    assert {"acselect", "widest", "largest-region", "any-region", "mpe-0", "best"} <= rules
