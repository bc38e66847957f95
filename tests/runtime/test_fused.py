"""Which networks have a click by fused kernels, and the click itself in Triton's interpreter."""

import contextlib
import gc
import itertools
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from activefreq_engine.kernels import triton_support
from activefreq_engine.kernels.norm_linear import norm_linear

from activefreq_engine import create_model
from activefreq_engine.runtime.plan import Folded
from activefreq_engine.runtime.plan.fused import OPS, Aside, shares

FILE = Path(__file__).parent / "on_device" / "test_fused_click.py"


@pytest.mark.skipif(not triton_support.installed()[0], reason=triton_support.installed()[1])
def test_the_click_in_the_interpreter(pytestconfig):
    # Triton must learn of it before it is imported: a process of its own
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--durations=5", str(FILE)]
    command.append(f"--seed={pytestconfig.getoption('seed')}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout


def test_a_plan_on_a_cpu_has_none():
    assert Folded(create_model("freqformer_b0"), "cpu", "fp32").plan(32, 64).fused is None


@pytest.mark.parametrize("name", ["freqformer_b0", "freqformer_b0_guided", "freqformer_b1", "freqformer_b3"])
def test_kernels_are_offered_for_every_op_of_our_encoders(name):
    click = Folded(create_model(name), "cpu", "fp16").fuse()
    assert click is not None
    calls = click.calls(96, 64)
    assert {op for op, _ in calls} == OPS.keys()
    assert [OPS[op].limits(*args) for op, args in calls] == [""] * len(calls)


def test_a_guide_costs_a_click_no_launch():
    """What it adds is read by the embeddings of the stages, which run anyway."""
    models = create_model("freqformer_b0"), create_model("freqformer_b0", guide="tinyvit_5m")
    plain, guided = (Folded(model, "cpu", "fp16").fuse() for model in models)
    assert plain is not None
    assert guided is not None
    calls = [click.calls(96, 160) for click in (plain, guided)]
    assert [name for name, _ in calls[0]] == [name for name, _ in calls[1]]
    where = OPS["patch_embed"].names.index("added")
    without, added = ([args[where] for name, args in c if name == "patch_embed"] for c in calls)
    assert without == [None] * 3
    assert [tuple(t.shape) for t in added] == [(1, 12, 20, 64), (1, 6, 10, 160), (1, 3, 5, 256)]


def test_another_encoder_has_none(caplog):
    with caplog.at_level("INFO"):
        assert Folded(create_model("freqformer_tinyvit"), "cpu", "fp16").fuse() is None


def test_an_op_whose_kernel_cannot_run_runs_by_its_reference():
    x, weight = torch.randn(1, 2, 3, 64, dtype=torch.float64), torch.randn(8, 64, dtype=torch.float64)
    expected = torch.layer_norm(x, [64], None, None, 1e-6) @ weight.T
    assert torch.allclose(norm_linear(x, weight, eps=1e-6), expected)


def test_shares_depend_on_channels_alone():
    assert [shares(c, (384 / stride) ** 2 / 16, 32) for c, stride in ((64, 8), (160, 16), (256, 32))] == [1, 5, 8]
    for channels in (64, 128, 160, 256, 320, 512):
        for tiles in (9, 36, 144):
            share = channels / shares(channels, tiles, 16)
            assert share == channels or (share >= 16 and share in (16, 32, 64, 128, 256))


def test_no_two_engines_have_one_second_stream(monkeypatch, caplog):
    """torch hands out the same few streams again and again; launches of one stream share counters."""
    handles = itertools.cycle(range(3))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream", next(handles)))
    device = torch.device("cuda", 0)
    held = [Aside(device) for _ in range(3)]
    assert len({aside._stream for aside in held}) == 3
    with caplog.at_level("INFO"):
        assert Aside(device)._stream is None
    assert "no stream of cuda:0 is free" in caplog.text
    gone = held.pop()._stream
    gc.collect()
    assert Aside(device)._stream == gone


def test_what_runs_aside_waits_for_its_operands_and_is_waited_for(monkeypatch):
    told = []

    class Stream:
        device = torch.device("cuda", 0)

        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            told.append(f"{self.name} waits for {other.name}")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("second"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(told.append(f"on {stream.name}")))
    aside, operand = Aside(Stream.device), torch.zeros(1)
    alive = weakref.ref(operand)
    with aside.beside(operand):
        told.append("work")
    del operand
    assert alive() is not None  # its memory is not given to what runs beside
    aside.join()
    assert told == ["second waits for main", "on second", "work", "main waits for second"]
    assert alive() is None
