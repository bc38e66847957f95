"""The loop: it learns, survives being killed, and does the same on one process as it says it does on several."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import get_worker_info

from activefreq_engine import cli
from activefreq_engine.conventions import SLOTS
from activefreq_engine.errors import (
    ActiveFreqError,
    BackendUnavailableError,
    DatasetError,
    FileWriteError,
    InvalidArgumentError,
)
from activefreq_engine.files import alone_in
from activefreq_engine.models import FreqFormer, create_model, load_checkpoint, read_metadata, save_checkpoint
from activefreq_engine.session import zoom
from activefreq_engine.train import loop
from activefreq_engine.train.config import Schedule, TrainConfig
from activefreq_engine.train.loop import parameter_groups, pick_device, train
from activefreq_engine.train.losses import coarse_loss
from activefreq_engine.train.record import Record, read_log
from activefreq_engine.train.simulate import THRESHOLD, ClickBatch, simulate
from activefreq_engine.train.state import Ema, load_state, save_state
from activefreq_engine.train.steps import CoarseStep, RefinerStep, focus_boxes, norms, placed
from activefreq_engine.types import Click

from .tiny_run import OVERRIDES, tiny

PROGRAM = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums depend on the number of threads in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# --- learning ---------------------------------------------------------------------------------------------------------
def test_it_learns(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Record, "EVERY", 15)
    # so short a run has no time to get used to frozen statistics
    config = tiny(pairs, steps=60, sizes=((0.0, 32),), ema=0.9, lr=1e-2, frozen_norms=1.0)
    path = train(config, tmp_path, device="cpu")
    rows = read_log(tmp_path / "log.csv")
    assert [int(r["step"]) for r in rows] == [15, 30, 45, 60]
    losses = [float(r["loss"]) for r in rows]
    assert losses[-1] < 0.85 * losses[0]
    assert load_checkpoint(path).config == create_model("freqformer_b0", **OVERRIDES).config
    facts = read_metadata(path)["metadata"]
    assert facts["steps"] == 60
    assert facts["training_data"] == [list(pairs.parts[-2:])]
    assert facts["recipe"]["lr"] == 1e-2
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_clicks_played_without_gradient_do_not_stop_the_gradient(autocast: bool, rng: np.random.Generator) -> None:
    """Casts that autocast keeps from the simulation would cut the pass that is learnt from off the weights."""
    step = CoarseStep(create_model("freqformer_b0", **OVERRIDES))
    labels = torch.zeros(2, 1, 32, 64, dtype=torch.int8)
    labels[:, :, 8:24, 20:40] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = step(torch.randn(2, 3, 32, 64), labels, 2, rng)
    loss.backward()
    without = [n for n, p in step.model.named_parameters() if p.grad is None and not n.startswith("refiner.")]
    assert without == []
    assert all(p.grad is None for n, p in step.model.named_parameters() if n.startswith("refiner."))


@pytest.mark.parametrize("encoder", ["mit_tiny", "tinyvit_5m"])
def test_frozen_norms_learn_what_will_run(encoder: str, rng: np.random.Generator) -> None:
    """The loss is that of the network as it runs after training, and the running statistics stay."""
    model = create_model("freqformer_b0", **{**OVERRIDES, "encoder": encoder, "drop_path": 0.0})
    step = CoarseStep(model)
    image = torch.randn(2, 3, 32, 64)
    labels = torch.zeros(2, 1, 32, 64, dtype=torch.int8)
    labels[:, :, 8:24, 20:40] = 1
    for norm in norms(model):  # far from the statistics of any batch, so that the two losses differ
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.02, 0.1)
    before = {k: v.clone() for k, v in model.named_buffers() if "running" in k and not k.startswith("refiner.")}
    seed = int(rng.integers(1000))

    def loss(frozen: bool) -> torch.Tensor:
        step.frozen = frozen
        return step(image, labels, 0, np.random.default_rng(seed)).detach()

    frozen = loss(True)
    assert before
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers() if k in before)
    clicks, _ = simulate(model.eval(), image, labels, 0, np.random.default_rng(seed))
    torch.testing.assert_close(frozen, coarse_loss(model(image, clicks), labels.float()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(frozen, loss(False), rtol=1e-5)  # by chance they can be within a thousandth
    assert not any(torch.equal(v, before[k]) for k, v in model.named_buffers() if k in before)


def test_the_refiner_learns_with_frozen_norms_too(rng: np.random.Generator) -> None:
    model = create_model("freqformer_b0", **OVERRIDES)
    assert model.refiner is not None
    step = RefinerStep(model)
    labels = torch.zeros(2, 1, 64, 96, dtype=torch.int8)
    labels[:, :, 8:40, 20:60] = 1

    def changed(frozen: bool) -> bool:
        before = {k: v.clone() for k, v in model.named_buffers() if "running" in k}
        step.frozen = frozen
        step(torch.randn(2, 3, 64, 96), labels, 0, rng)
        return not all(torch.equal(v, before[k]) for k, v in model.named_buffers() if k in before)

    assert not changed(frozen=True)
    assert changed(frozen=False)


def test_a_run_ends_with_frozen_norms(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = CoarseStep.forward

    def noted(self, *given):
        seen.append(self.frozen)
        return forward(self, *given)

    monkeypatch.setattr(CoarseStep, "forward", noted)
    train(tiny(pairs, steps=4, frozen_norms=0.5), tmp_path, device="cpu")
    assert seen == [False, False, True, True]


def test_the_refiner_stage_trains_the_refiner_alone(pairs: Path, tmp_path: Path) -> None:
    init = tmp_path / "init.safetensors"
    model = create_model("freqformer_b0", **OVERRIDES)
    torch.nn.init.uniform_(model.decoder.norm.running_mean)
    save_checkpoint(model, init)
    before = load_file(init)
    refined = load_file(train(tiny(pairs, steps=2, stage="refiner", init=str(init)), tmp_path / "r", device="cpu"))
    moved = {k for k in before if not torch.equal(before[k], refined[k])}
    assert moved
    assert all(k.startswith("refiner.") for k in moved)
    assert {k.split(".")[1] for k in moved} == {"stem", "stem_norm", "local", "context", "merge", "detail", "boundary"}
    coarse = load_file(train(tiny(pairs, steps=2, init=str(init)), tmp_path / "c", device="cpu"))
    moved = {k for k in before if not torch.equal(before[k], coarse[k])}
    assert not any(k.startswith("refiner.") for k in moved)
    assert {k.split(".")[0] for k in moved} == {"encoder", "decoder", "click_embed"}


def test_a_gradient_that_is_not_finite_is_skipped(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, calls = CoarseStep.forward, []

    def poisoned(self, *arguments):
        calls.append(1)
        return forward(self, *arguments) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(CoarseStep, "forward", poisoned)
    with caplog.at_level(logging.WARNING):
        train(tiny(pairs, steps=3), tmp_path, device="cpu")
    assert next(r.getMessage() for r in caplog.records if "skipped" in r.getMessage()).startswith("step 1:")
    assert all(v.isfinite().all() for v in load_file(tmp_path / "state.safetensors").values())


def test_no_decay_on_norms_biases_and_filters() -> None:
    model = create_model("freqformer_b0", **OVERRIDES)
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert all(names[id(p)].endswith("weight") and ".filters." not in names[id(p)] for p in decayed["params"])
    assert sum(".filters." in names[id(p)] for p in plain["params"]) == 12


# --- stop and go on ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that nobody disturbed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    train(tiny(pairs), out, device="cpu")
    return out


def test_killed_while_saving_and_resumed(pairs: Path, whole: Path, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, str(PROGRAM), "kill", str(pairs), str(tmp_path), "5"], check=False)
    assert killed.returncode == -signal.SIGKILL
    (partial,) = tmp_path.glob(".*.partial")
    assert partial.stat().st_size == 1000
    assert (tmp_path / "curve.png").exists()
    assert read_metadata(tmp_path / "model.safetensors")["metadata"]["steps"] == 4
    train(tiny(pairs), tmp_path, device="cpu")
    assert not list(tmp_path.glob(".*"))
    assert same(tmp_path / "state.safetensors", whole / "state.safetensors")
    assert same(tmp_path / "model.safetensors", whole / "model.safetensors")


def test_loader_processes_change_nothing(pairs: Path, whole: Path, tmp_path: Path) -> None:
    train(tiny(pairs, workers=2), tmp_path, device="cpu")
    assert same(tmp_path / "state.safetensors", whole / "state.safetensors")


@pytest.mark.parametrize("how", ["none", "too little"])
def test_without_shared_memory_samples_are_made_here(
    pairs: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    get = loop.PackedDataset.__getitem__

    def none() -> None:
        raise OSError(30, "Read-only file system")

    def too_little(self: Any, item: tuple[int, int]) -> Any:
        if get_worker_info() is not None and item[0] >= 4 * 3:  # in a loader process, from the third step on
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )
        return get(self, item)

    if how == "none":
        monkeypatch.setattr(loop.torch.multiprocessing, "Lock", none)
    else:
        monkeypatch.setattr(loop.PackedDataset, "__getitem__", too_little)
    train(tiny(pairs, workers=1), tmp_path, device="cpu")
    assert same(tmp_path / "state.safetensors", whole / "state.safetensors")
    assert "made in the process that trains" in caplog.text


def test_a_loader_that_was_killed_is_no_bug(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Any, item: tuple[int, int]) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loop.PackedDataset, "__getitem__", killed)
    with pytest.raises(ActiveFreqError, match=r"a loader process failed .*--workers 0"):
        train(tiny(pairs, workers=1), tmp_path, device="cpu")


def test_a_finished_run_stays_as_it_is(pairs: Path, whole: Path) -> None:
    before, log = load_file(whole / "state.safetensors"), (whole / "log.csv").read_text()
    train(tiny(pairs), whole, device="cpu")
    after = load_file(whole / "state.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert (whole / "log.csv").read_text() == log


def test_a_run_that_goes_on_elsewhere_is_left_alone(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with alone_in(tmp_path):
        with pytest.raises(InvalidArgumentError, match="another process is at work"):
            train(tiny(pairs), tmp_path, device="cpu")
        for more in ([], ["--dry-run"]):
            assert cli.main(["train", str(pairs), "-o", str(tmp_path), "--steps", "1", *more]) == 2
            assert "another process is at work" in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_another_run_is_refused(pairs: Path, whole: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"another run \(lr: 0\.005 there, 0\.001 now; seed: 0 there, 3 now\)"
    ):
        train(tiny(pairs, lr=1e-3, seed=3), whole, device="cpu")
    with pytest.raises(InvalidArgumentError, match="hours"):
        train(tiny(pairs, hours=1.0), whole, device="cpu")


def test_runs_older_than_a_field_go_on(pairs: Path, tmp_path: Path) -> None:
    train(tiny(pairs, steps=1), tmp_path, device="cpu")
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["clicker"]
    path.write_text(json.dumps(stored))
    train(tiny(pairs, steps=1, workers=1), tmp_path, device="cpu")
    path.write_text(json.dumps(stored))
    with pytest.raises(InvalidArgumentError, match="clicker: 'ritm' there, 'acselect' now"):
        train(tiny(pairs, steps=1, clicker="acselect"), tmp_path, device="cpu")
    path.write_text(json.dumps({**stored, "momentum": 0.9}))
    with pytest.raises(InvalidArgumentError, match=r"momentum: 0\.9 there, 'nothing' now"):
        train(tiny(pairs, steps=1), tmp_path, device="cpu")


@pytest.mark.parametrize("wrong", [{"init": "nowhere"}, {"guide": "nowhere"}, {"model": "nothing"}], ids=str)
def test_a_mistyped_name_leaves_the_folder_free(pairs: Path, whole: Path, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ActiveFreqError, match=r"nowhere|nothing"):
        train(tiny(pairs, **wrong), tmp_path, device="cpu", packed=whole / "data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"{", b"[1]", b"", b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"],
    ids=["cut", "list", "empty", "bytes", "deep", "digits"],
)
def test_damaged_configuration(pairs: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match="new folder"):
        train(tiny(pairs), tmp_path, device="cpu")


def test_a_state_that_says_what_cannot_be(tmp_path: Path) -> None:
    model = create_model("freqformer_b0", **OVERRIDES)
    ema, optimizer, path = Ema(model, 0.9), torch.optim.SGD(model.parameters(), lr=1), tmp_path / "state.safetensors"
    save_state(path, model, ema, optimizer, None, 3, 1.5)
    assert load_state(path, model, ema, optimizer, None) == (3, 1.5)
    tensors, good = load_file(path), '{"step": %s, "elapsed": %s, "scaler": null}'
    for facts in (
        *(good % n for n in (("Infinity", 1), (-1, 1), (1, "NaN"), (1, -1))),
        "[" * 100_000,
        "[]",
        "1" * 5000,
    ):
        save_file(tensors, path, {"facts": facts})
        with pytest.raises(InvalidArgumentError, match=r"state\.safetensors cannot be resumed from"):
            load_state(path, model, ema, optimizer, None)


@pytest.mark.parametrize("how", ["cut", "text", "other"])
def test_damaged_state(pairs: Path, whole: Path, tmp_path: Path, how: str) -> None:
    data = (whole / "state.safetensors").read_bytes()
    other = (whole / "model.safetensors").read_bytes()
    (tmp_path / "state.safetensors").write_bytes({"cut": data[:-9], "text": b"hello", "other": other}[how])
    with pytest.raises(InvalidArgumentError, match=r"state\.safetensors cannot be resumed from"):
        train(tiny(pairs), tmp_path, device="cpu", packed=whole / "data")


def test_the_initial_checkpoint_is_needed_at_the_start_only(pairs: Path, tmp_path: Path) -> None:
    init = tmp_path / "init.safetensors"
    save_checkpoint(create_model("freqformer_b0", **OVERRIDES), init)
    config = tiny(pairs, steps=1, init=str(init))
    train(config, tmp_path / "run", device="cpu")
    init.unlink()
    train(config, tmp_path / "run", device="cpu")
    with pytest.raises(ActiveFreqError, match="no checkpoint"):
        train(config, tmp_path / "new", device="cpu")


# --- several processes ------------------------------------------------------------------------------------------------
def test_two_processes_share_the_work_and_agree(pairs: Path, tmp_path: Path) -> None:
    """By the clock, which each process reads a little differently."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (tmp_path / "output").open("wb") as output:
        launcher = subprocess.Popen(
            [*command, "ranks", str(pairs), str(tmp_path)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = launcher.wait(timeout=900)
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGTERM)  # the launcher ends its workers, which have left its group
                launcher.wait(timeout=60)
    assert code == 0, (tmp_path / "output").read_text()[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["steps"] == second["steps"] > 0
    assert not set(first["asked"]) & set(second["asked"])
    seen = sorted(first["asked"] + second["asked"])
    assert seen == list(range(4 * first["steps"]))  # what one process with twice the batch would have seen
    assert read_metadata(tmp_path / "run" / "model.safetensors")["metadata"]["steps"] == first["steps"]


# --- schedules, options, errors ---------------------------------------------------------------------------------------
def test_schedule_in_steps() -> None:
    config = tiny(Path("x"), steps=100, sizes=((0.0, 32), (0.25, 64), (0.8, 96)), warmup=10, lr=1.0)
    schedule = Schedule(config, 0)
    assert [schedule(s) for s in (0, 24, 25, 79, 80, 99)] == [32, 32, 64, 64, 96, 96]
    assert schedule(100) is None
    rates = [schedule.lr(s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=1e-2)
    assert max(rates) == rates[9]
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[50] == pytest.approx(0.505)
    assert 0.01 <= rates[99] < 0.012
    assert [schedule.frozen(s) for s in (0, 69, 70, 99)] == [False, False, True, True]


def test_schedule_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("activefreq_engine.train.config.time.monotonic", lambda: now[0])
    config = tiny(Path("x"), hours=1.0, sizes=((0.0, 32), (0.5, 64)), warmup=1, lr=1.0)
    schedule = Schedule(config, elapsed=900)
    assert schedule.progress(7) == 0.25
    now[0] += 900
    assert schedule.progress(7) == 0.5
    assert schedule(7) == 64
    schedule.exclude(900)  # validation, say
    assert schedule.elapsed == 900
    assert schedule(7) == 32
    now[0] += 2700
    assert schedule(7) is None
    assert schedule.lr(7) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": None}, "steps or as hours"),
        ({"hours": 1.0}, "steps or as hours"),
        ({"hours": 0.0, "steps": None}, "hours is 0"),
        ({"hours": float("inf"), "steps": None}, "hours is inf"),  # its learning rate would never fall
        ({"steps": 0}, "steps is 0"),
        ({"data": ()}, "data is empty"),
        ({"stage": "both"}, "'coarse', 'refiner'"),
        ({"stage": "refiner"}, "as init"),
        ({"clicker": "me"}, "ritm, acselect"),
        ({"sizes": ((0.0, 48),)}, "multiple of 32"),
        ({"sizes": ((0.1, 32),)}, "first progress 0"),
        ({"sizes": ()}, "sizes are"),
        ({"sizes": ((0.0, 32), (1.5, 64))}, "sizes are"),
        ({"batch": 0}, "batch is 0"),
        ({"warmup": 0}, "warmup is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"ema": 1.0}, "ema is 1"),
        ({"frozen_norms": 1.1}, "frozen_norms is 1.1"),
        ({"frozen_norms": float("nan")}, "frozen_norms is nan"),
        ({"iterations": ((0, 0.0),)}, "shares zero"),
        ({"source_weights": (1.0, 1.0)}, "1 data folders"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_configurations(changes: dict, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        replace(tiny(Path("x")), **changes)


def test_bad_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(InvalidArgumentError, match="'gpu'"):
        pick_device("gpu")
    with pytest.raises(BackendUnavailableError, match="cuda:99"):
        pick_device("cuda:99")
    with pytest.raises(InvalidArgumentError, match="2 processes"):
        pick_device("cuda:0", world=2)


def test_folders_that_cannot_be_end_in_errors_of_ours(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="too long"):
        train(tiny(pairs), tmp_path / ("x" * 300), device="cpu")
    with pytest.raises(DatasetError, match="there is no folder"):
        train(tiny(tmp_path / ("x" * 300)), tmp_path / "run", device="cpu")
    (tmp_path / "data").touch()
    with pytest.raises(FileWriteError, match="exists"):
        train(tiny(pairs), tmp_path / "run", device="cpu", packed=tmp_path / "data")
    (tmp_path / "run" / "state.safetensors").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"state\.safetensors cannot be resumed from"):
        train(tiny(pairs), tmp_path / "run", device="cpu")


def test_out_of_memory_says_what_to_change(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CoarseStep, "forward", full)
    with pytest.raises(ActiveFreqError, match=r"batch 4 at 64 pixels .* smaller"):
        train(tiny(pairs), tmp_path, device="cpu")


def test_without_matplotlib_nothing_starts(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activefreq_engine.train.record.find_spec", lambda _: None)
    with pytest.raises(DatasetError, match=r"\[train\]"):
        train(tiny(pairs), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_model_without_refiner_cannot_train_it(pairs: Path, tmp_path: Path) -> None:
    plain = {**OVERRIDES, "refiner_width": 0}
    save_checkpoint(create_model("freqformer_b0", **plain), tmp_path / "i.safetensors")
    config = tiny(pairs, stage="refiner", init=str(tmp_path / "i.safetensors"), overrides=plain)
    with pytest.raises(InvalidArgumentError, match="no refiner"):
        train(config, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="no refiner"):
        RefinerStep(FreqFormer(replace(create_model("freqformer_b0", **plain).config)))


def test_focus_boxes(rng: np.random.Generator) -> None:
    """Each is what a session would redraw after the sample's last click, a third smaller to a third larger."""
    before, after = torch.zeros(3, 64, 96), torch.zeros(3, 64, 96)
    after[0, 20:45, 10:50] = 0.9  # a first mask
    before[1] = after[0]
    after[1] = before[1]
    after[1, 25:28, 50:53] = 0.9  # a small change beside it
    clicks = ClickBatch(3)  # the third sample has neither click nor mask
    clicks.add(0, 30, 30, True)
    clicks.add(1, 20, 25, True)
    clicks.add(1, 51, 26, True)
    wanted = [
        zoom.focus_box(b.numpy(), a.numpy(), c, THRESHOLD)
        for b, a, c in zip(before[:2], after[:2], clicks.last[:2], strict=True)
    ]
    ratios = []
    for _ in range(30):
        boxes = focus_boxes(before, after, clicks, rng)
        assert boxes.shape == (3, 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([96, 64])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 15).all()
        for box, (x0, _, x1, _) in zip(boxes[:2].tolist(), wanted, strict=True):
            ratio = (box[2] - box[0]) / (x1 - x0)
            assert 0.74 <= ratio <= 1.34
            ratios.append(ratio)
    assert np.std(ratios) > 0.05


def test_placed_clicks_are_where_a_session_puts_them(rng: np.random.Generator) -> None:
    boxes = [(8, 4, 40, 36), (0, 0, 96, 64)]
    clicks = ClickBatch(2)
    for b in range(2):
        for _ in range(6):
            clicks.add(b, int(rng.integers(96)), int(rng.integers(64)), bool(rng.integers(2)))
        clicks.add(b, 9, 5, True)
        clicks.add(b, 95, 63, False)
    got = placed(clicks.points(), torch.tensor(boxes, dtype=torch.float32), 48)
    for box, points, (positive, negative) in zip(boxes, got, clicks.clicks, strict=True):
        known = [*(Click(x, y, True) for x, y in positive), *(Click(x, y, False) for x, y in negative)]
        wanted = torch.from_numpy(zoom.point_slots(known, box, 48, 48))
        for k, half in enumerate(points.chunk(2)):
            filled = half[(half >= 0).all(1)]
            theirs = wanted[k * SLOTS : (k + 1) * SLOTS]
            torch.testing.assert_close(filled, theirs[(theirs >= 0).all(1)])
            assert (half[(half < 0).any(1)] == -1).all()


def test_configuration_survives_json(pairs: Path) -> None:
    config = tiny(pairs, source_weights=(1.0,))
    assert json.loads(json.dumps(config.as_json())) == config.as_json()
    assert isinstance(config, TrainConfig)
    assert loop.PATIENCE.total_seconds() > 3600
