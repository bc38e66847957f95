"""The ablation: arms that are what they say, and a table that compares images with themselves."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from activefreq_engine.models import FreqFormer, create_model
from activefreq_engine.models.freqnet import FreqModule
from bench.quality import ablation
from bench.tools import rows
from tests.train.conftest import write_pairs


def built(name: str, seed: int = 0) -> FreqFormer:
    return ablation.ARMS[name].start(create_model(pretrained=True), seed)


@pytest.mark.parametrize("name", ablation.ARMS)
def test_an_arm_answers_at_odd_sizes(name: str) -> None:
    model = built(name)
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


def test_arms_have_the_encoder_of_their_source_and_a_decoder_of_their_own() -> None:
    source = create_model(pretrained=True)
    for name in ablation.ARMS:
        model = built(name)
        assert torch.equal(model.click_embed.proj.weight, source.click_embed.proj.weight)
        assert not torch.equal(model.decoder.head.weight, source.decoder.head.weight)
        assert any(isinstance(m, FreqModule) for m in model.modules()) == (name != "depth-wise 9x9")
