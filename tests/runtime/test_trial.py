"""Layers of a plan on a CPU are verified at the size at which they run; a layer that is planted wrong is not used."""

import json
import logging
import math
import sys

import numpy as np
import pytest
import torch
from activefreq_engine.kernels import dispatch, verification

from activefreq_engine import Engine
from activefreq_engine.cli import main
from activefreq_engine.errors import ActiveFreqError, MemoryShortageError
from activefreq_engine.runtime import verify
from activefreq_engine.runtime.engine import StepRequest
from activefreq_engine.runtime.plan import Folded, layers, trial

from .clicking import request
from .modules import random_model, relative

LOGGER = "activefreq_engine.kernels.verification"
CPU = torch.device("cpu")


def forget(monkeypatch):
    """What a new process does not know."""
    monkeypatch.setattr(dispatch, "_proven", {})
    monkeypatch.setattr(verification, "_known", {})
    monkeypatch.setattr(verification, "_said", set())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTIVEFREQ_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)


@pytest.fixture
def model():
    return random_model(dtype=torch.float32, refine_size=64)


PLANTS = {
    "wrong": lambda y: y * 1.1,
    "NaN": lambda y: y * math.nan,
    "raises": lambda y: y.view(-1, 7, 11, 13),
    "reads memory that nobody wrote": lambda y: y + 0 * torch.stack([torch.empty_like(y) for _ in range(9)]).sum(0),
}


def plant(monkeypatch, how):
    """A fault in bf16 of the last stage's convolution with stride 2, where its input is 16 pixels high."""
    right = layers.Conv._run

    def run(self, x):
        y = right(self, x)
        here = x.dtype == torch.bfloat16 and x.shape[1:3] == (160, 16) and self.kernel == (3, 3)
        return PLANTS[how](y) if here else y

    monkeypatch.setattr(layers.Conv, "_run", run)


def step(engine, asked):
    return engine.run([asked])[0].probs


@pytest.mark.parametrize("how", PLANTS)
def test_a_planted_layer_is_not_used_where_it_is_wrong(how, model, rng, monkeypatch, caplog):
    if how.startswith("reads") and sys.platform != "linux":
        pytest.skip("elsewhere freed memory may be handed out last")
    asked, other = request(rng, 256, 96), request(rng, 128, 96)
    exact = Engine(model, device="cpu", precision="fp32")
    expected, expected_other = step(exact, asked), step(exact, other)
    plant(monkeypatch, how)
    tries = []
    check = trial._check
    monkeypatch.setattr(trial, "_check", lambda *a: (tries.append(a), check(*a))[1])
    for process in range(2):
        caplog.clear()
        engine = Engine(model, device="cpu", precision="bf16")
        with caplog.at_level(logging.WARNING, LOGGER):
            for _ in range(2):
                assert np.abs(step(engine, asked) - expected).max() <= 1e-4, "float32 answers"
            assert np.abs(step(engine, other) - expected_other).max() <= 0.05, "the fault is at one size"
        (record,) = caplog.records
        for word in ("layers of a network of 256x96", "bfloat16", "oneDNN", "torch", "cpu"):
            assert word.lower() in record.getMessage().lower()
        if how != "raises":
            assert "convolution 3x3, stride 2, groups 1, from 16x6x160 to 256 channels" in record.getMessage()
        assert len(tries) == 3, f"process {process}: one for each network, one for the refiner, and none again"
        forget(monkeypatch)


def test_info_shows_what_is_not_used_and_tries_all_again(monkeypatch, capsys):
    if Folded(random_model(dtype=torch.float32)).precision != "bf16":
        monkeypatch.setattr("activefreq_engine.runtime.cpu.has_bf16", lambda: True)
    monkeypatch.setattr(verify, "network_shapes", lambda size: [(256, 32), (128, 32)])
    plant(monkeypatch, "wrong")
    assert main(["info", "--verify", "--size", "256", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    tried = {f["size"].rpartition(" of ")[2]: f for f in facts["verification"] if f["op"] == "layers"}
    assert {size: f["ok"] for size, f in tried.items()} == {"256x32": False, "128x32": True, "192x192": True}
    bad = tried["256x32"]
    assert facts["rejected"] == [bad]
    assert (bad["backend"], bad["dtype"], bad["device"]) == ("onednn", "bfloat16", "cpu")
    assert bad["error"] > bad["tolerance"]

    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "not used: its error in the convolution" in text


def test_a_shortage_of_memory_is_no_verdict(model, rng, monkeypatch):
    asked = request(rng, 64, 32)
    engine = Engine(model, device="cpu", precision="bf16")
    with monkeypatch.context() as short:
        short.setattr(trial, "fill_freed_memory", lambda *_: torch.empty(1 << 60))
        with pytest.raises(MemoryShortageError):
            engine.run([asked])
    assert np.isfinite(step(engine, asked)).all()
    assert {f.ok for f in verification.findings(CPU)} == {True}


def test_what_is_right_says_nothing(model, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        folded = Folded(model, precision="bf16", pack=True)
        folded.plan(64, 32)
        assert folded.plan(32, 64).refine is not None
    assert not caplog.records
    assert all(f.ok and f.error > 0 for f in verification.findings(CPU))
    assert len(verification.findings(CPU)) == 3


def test_a_layer_of_zeros_is_right(model):
    """As a new guide's projections are: what the relative error is relative to is zero."""
    with torch.no_grad():
        model.encoder.stages[1].blocks[0].ffn.fc1.weight.zero_()
        model.encoder.stages[1].blocks[0].ffn.fc1.bias.zero_()
    Folded(model, precision="bf16", pack=True).plan(64, 32)
    assert all(f.ok for f in verification.findings(CPU))
    assert verification.findings(CPU)


def test_float32_is_not_tried(model):
    Folded(model, precision="fp32", pack=True).plan(64, 32)
    assert not verification.findings(CPU)


def test_after_a_trial_layers_are_as_before(model):
    folded = Folded(model, precision="bf16", pack=True)
    plan = folded.plan(64, 64)
    assert all("forward" not in vars(layer) for layer in trial._layers([plan.prepare, plan.click, plan.refine]))


def test_every_layer_of_a_plan_is_tried_at_its_size(model):
    folded = Folded(model, precision="bf16", pack=True)
    plan = folded._plan(64, 96, "fft")
    own = trial._layers([plan.prepare, plan.click])
    with torch.inference_mode(), trial._recording(own) as cases:
        maps = torch.zeros(1, 3, 64, 96)
        plan.click(*plan.prepare(maps), maps)
    kinds = {trial._weights(layer) for layer in own}
    assert {weights for weights, *_ in cases} == kinds
    assert ((1, 2, 3, 256)) in {shape for _, shape, _, _ in cases}


def planted_nan(monkeypatch):
    """Makes a bf16 plan return NaN without its trial seeing it."""
    monkeypatch.setattr(trial, "_check", lambda *_: [verification.Part("nothing", 0.0, 1.0)])
    right = layers.Conv._run
    monkeypatch.setattr(
        layers.Conv, "_run", lambda self, x: right(self, x) * (math.nan if x.dtype == torch.bfloat16 else 1)
    )


def test_nan_of_a_kernel_does_not_blame_the_weights(model, rng, monkeypatch):
    planted_nan(monkeypatch)
    engine = Engine(model, device="cpu", precision="bf16")
    with pytest.raises(ActiveFreqError, match=r"in bf16 on cpu: its weights are right, .* Use precision='fp32'"):
        engine.run([request(rng, 64, 32)])


def test_nan_of_damaged_weights_names_them(model, rng):
    with torch.no_grad():
        model.decoder.head.bias.fill_(math.nan)
    for precision in ("bf16", "fp32"):
        with pytest.raises(ActiveFreqError, match=r"weights are damaged: decoder\.head\.bias hold NaN"):
            Engine(model, device="cpu", precision=precision).run([request(rng, 64, 32)])


def test_nan_of_a_model_that_overflows_says_so(model, rng):
    with torch.no_grad():
        model.decoder.head.weight.fill_(3e38)
    with pytest.raises(ActiveFreqError, match="overflow between its layers"):
        Engine(model, device="cpu", precision="fp32").run([request(rng, 64, 32)])


def test_a_request_without_its_crop_cannot_be_run_again(model, rng, monkeypatch):
    engine = Engine(model, device="cpu", precision="bf16")
    asked = request(rng, 64, 32)
    answer = engine.run([asked])[0]
    planted_nan(monkeypatch)
    later = StepRequest(None, answer.features, asked.previous, asked.points)
    with pytest.raises(ActiveFreqError, match="weights are finite, so the precision or a kernel may be at fault"):
        engine.run([later])


def test_the_reference_of_a_layer_is_the_layer(model):
    """In float32 both are the same function."""
    plan = Folded(model, precision="fp32").plan(64, 64)
    with torch.inference_mode(), trial._recording(trial._layers([plan.prepare, plan.click])) as cases:
        maps = torch.randn(1, 3, 64, 64)
        plan.click(*plan.prepare(maps), maps)
    with torch.inference_mode():
        for (_, shape, _, added), layer in cases.items():
            x = torch.randn(shape)
            arguments = (x,) if added is None else (x, torch.randn(added))
            assert relative(layer(*arguments), trial._reference(layer, *arguments)) <= 1e-5
