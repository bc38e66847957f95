"""The ablation: arms that are what they say, and a table that compares images with themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from activefreq_engine.models import create_model, freqnet
from bench.quality import ablation
from bench.tools import rows
from tests.train.conftest import write_pairs


def built(name: str) -> torch.nn.Module:
    arm = ablation.ARMS[name]
    with arm.built():
        return create_model(refiner_width=0, **arm.overrides)


@pytest.mark.parametrize("name", ablation.ARMS)
def test_an_arm_answers_at_odd_sizes_and_leaves_the_modules_as_they_were(name: str) -> None:
    usual = freqnet.FreqModule
    model = built(name)
    assert freqnet.FreqModule is usual
    logits = model(torch.rand(1, 3, 96, 160), torch.zeros(1, 3, 96, 160))
    assert logits.shape == (1, 1, 96, 160)
    assert logits.isfinite().all()


def test_depth_wise_blocks_have_as_many_parameters() -> None:
    depth_wise, fourier = (
        sum(p.numel() for p in built(name).decoder.parameters()) for name in ("depth-wise 9x9", ablation.REFERENCE)
    )
    assert depth_wise == pytest.approx(fourier, rel=0.01)


def test_it_trains_evaluates_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_pairs(tmp_path / "data", 3)
    monkeypatch.setattr(ablation, "ARMS", {k: ablation.ARMS[k] for k in (ablation.REFERENCE, "depth-wise 9x9")})
    app = ablation.typer.Typer()
    app.command()(ablation.main)
    options = ["--steps", "1", "--size", "64", "--batch", "2", "--clicks", "2", "--limit", "2", "--device", "cpu"]
    table = tmp_path / "table.csv"
    words = [str(data), str(data), "--out", str(tmp_path / "out"), "--table", str(table), *options]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    first, second = rows.read(table)
    assert first["arm"] == ablation.REFERENCE
    assert float(first["miou2_more"]) == 0
    difference = float(second["miou2"]) - float(first["miou2"])
    assert float(second["miou2_more"]) == pytest.approx(difference, abs=1e-2)
    starts = [
        ablation.load_checkpoint(tmp_path / "out" / "0" / "start.safetensors"),
        create_model(pretrained=True),
    ]
    encoders, heads = ([m.get_parameter(k) for m in starts] for k in ("click_embed.proj.weight", "decoder.head.weight"))
    assert np.array_equal(*(e.detach().numpy() for e in encoders))
    assert not torch.equal(*heads)
