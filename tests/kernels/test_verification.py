"""Verified or not used: trials, verdicts on the disk and what is said, with an op whose kernel can be wrong."""

import json
import logging
import math
import threading

import pytest
import torch
from activefreq_engine.kernels import dispatch, verification
from activefreq_engine.kernels.verification import Form, Part, Trial

LOGGER = "activefreq_engine.kernels.verification"
CPU = torch.device("cpu")


class Kernel:
    """An implementation of doubling, right or not, that counts how often it is tried."""

    def __init__(self) -> None:
        self.factor, self.tries = 2.0, 0
        self.error: BaseException | None = None

    def form(self, x):
        return Form((x.numel(),), f"{x.numel()} numbers", "float32", {"n": x.numel()})

    def check(self, device, n):
        self.tries += 1
        if self.error is not None:
            raise self.error
        wrong = abs(self.factor - 2) if self.factor == self.factor else math.nan
        return [Part("first half", 0.0, 1e-3), Part("second half", wrong, 1e-3)]


def forget():
    """What a new process does not know."""
    dispatch._proven.clear()
    verification._known.clear()
    verification._said.clear()


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    kernel = Kernel()
    monkeypatch.setattr(dispatch, "_registry", {})
    monkeypatch.setattr(dispatch, "_proven", {})
    monkeypatch.setattr(verification, "_known", {})
    monkeypatch.setattr(verification, "_said", set())
    monkeypatch.setenv("ACTIVEFREQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ACTIVEFREQ_BACKEND", raising=False)
    dispatch.register("double", "reference", lambda x: 2 * x, devices=("cpu",), priority=0)
    dispatch.register(
        "double",
        "triton",
        lambda x: kernel.factor * x,
        devices=("cpu",),
        priority=10,
        trial=Trial(kernel.form, kernel.check),
    )
    return kernel


def double(n=3, backend="auto"):
    return dispatch.call("double", "cpu", backend, torch.ones(n)).tolist()


def test_a_right_kernel_runs_and_is_tried_once_for_each_form(kernel, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        assert [double(), double(), double(4)] == [[2] * 3, [2] * 3, [2] * 4]
    assert kernel.tries == 2
    assert not caplog.records
    forget()
    assert double() == [2] * 3
    assert kernel.tries == 2, "a second process reads the verdict"


@pytest.mark.parametrize("planted", ["wrong", "NaN", "raises"])
def test_a_wrong_kernel_is_not_used_and_one_warning_says_so(kernel, planted, caplog):
    kernel.factor = {"wrong": 2.5, "NaN": math.nan, "raises": 2.5}[planted]
    kernel.error = RuntimeError("an illegal memory access\nand more") if planted == "raises" else None
    words = {
        "wrong": "error in second half is 0.5, 0.001 is allowed",
        "NaN": "error in second half is nan",
        "raises": "raised RuntimeError: an illegal memory access.",
    }[planted]
    for process in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, LOGGER):
            for _ in range(3):
                assert double() == [2] * 3
        (record,) = caplog.records
        for word in (words, "double", "triton", "3 numbers", "float32", "cpu", f"torch {torch.__version__}"):
            assert word in record.getMessage(), process
        assert kernel.tries == 1, "the verdict against it is kept as well"
        forget()


def test_a_kernel_that_is_asked_for_by_name_runs_as_it_is(kernel):
    kernel.factor = 2.5
    assert double(backend="triton") == [2.5] * 3
    assert kernel.tries == 0


def test_another_source_or_version_is_tried_again(kernel, monkeypatch):
    kernel.factor = 2.5
    double()
    for what in ("source", "version"):
        forget()
        if what == "source":
            monkeypatch.setattr(verification, "source", lambda *_: "changed")
        else:
            monkeypatch.setattr(verification, "environment", lambda _: {"device": "CPU", "torch": "99"})
        double()
    assert kernel.tries == 3
    forget()
    kernel.factor = 2.0
    double()
    assert kernel.tries == 3, "nothing has changed: the verdict against it holds"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("could not create a primitive")], ids=repr
)
def test_a_shortage_of_memory_says_nothing_about_a_kernel(kernel, error, caplog):
    kernel.error = error
    with caplog.at_level(logging.WARNING, LOGGER):
        assert double() == [2] * 3
    assert "memory was short" in caplog.text
    forget()
    kernel.error = None
    double()
    assert kernel.tries == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"op": "double"}', "\0\1", "3", "null"])
def test_a_damaged_file_is_written_anew(kernel, text, caplog):
    double()
    (file,) = verification.folder().rglob("*.json")
    good = file.read_text()
    file.write_text(text)
    forget()
    with caplog.at_level(logging.INFO, LOGGER):
        assert double() == [2] * 3
    assert "tried again" in caplog.text
    assert (kernel.tries, file.read_text()) == (2, good)


def test_values_of_the_wrong_type_are_damage_too(kernel):
    double()
    (file,) = verification.folder().rglob("*.json")
    file.write_text(file.read_text().replace('"ok": true', '"ok": "yes"'))
    forget()
    double()
    assert kernel.tries == 2


@pytest.mark.parametrize("name", ["file", "x" * 300], ids=["no folder", "too long a name"])
def test_a_folder_that_cannot_be_written_costs_a_trial_in_each_process(kernel, tmp_path, monkeypatch, caplog, name):
    """To look for a file fails in other ways than that it is not there: so, too, in the home folder of another user."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACTIVEFREQ_CACHE", str(tmp_path / name))
    assert verification.kept(torch.device("cpu")) == []
    with caplog.at_level(logging.INFO, LOGGER):
        assert [double(), double(4)] == [[2] * 3, [2] * 4]
    assert caplog.text.count("cannot be kept") == 1
    forget()
    double()
    assert kernel.tries == 3


def test_without_a_home_nothing_is_kept(kernel, monkeypatch):
    monkeypatch.delenv("ACTIVEFREQ_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(verification.Path, "home", homeless)
    if verification.sys.platform != "win32":
        assert verification.folder() is None
    assert double() == [2] * 3


def test_where_verdicts_are(monkeypatch, tmp_path):
    monkeypatch.setenv("ACTIVEFREQ_CACHE", str(tmp_path))
    assert verification.folder() == tmp_path / "verdicts"
    monkeypatch.setenv("ACTIVEFREQ_CACHE", "")
    monkeypatch.setattr(verification.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verification.folder() == tmp_path / "activefreq_engine" / "verdicts"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to pass over
    assert verification.folder() == verification.Path.home() / ".cache" / "activefreq_engine" / "verdicts"


def question(n):
    return dispatch.question("double", "triton", CPU, Form((n,), f"{n} numbers", "float32", {"n": n}))


def test_several_questions_and_the_same_anew(kernel):
    asked = [question(n) for n in (5, 3, 4, 3)]
    assert [f.size for f in verification.judge(asked)] == ["5 numbers", "3 numbers", "4 numbers", "3 numbers"]
    assert kernel.tries == 3
    assert len(list(verification.folder().rglob("*.json"))) == 3
    kernel.factor = 2.5
    assert all(f.ok for f in verification.judge(asked))
    assert not any(f.ok for f in verification.judge(asked, anew=True))
    assert kernel.tries == 6
    forget()
    assert not any(f.ok for f in verification.judge(asked)), "the newest verdict counts"
    assert {f.size for f in verification.kept(CPU) if not f.ok} == {"5 numbers", "3 numbers", "4 numbers"}
    assert not verification.judge([asked[2]])[0].ok, "each by itself, whatever it was asked with"
    assert kernel.tries == 6


def test_many_writers_and_readers_leave_no_half_of_a_file(kernel):
    asked = question(3)
    (finding,) = verification.judge([asked])
    read = []

    def work():
        for _ in range(50):
            verification._write(CPU, asked.key, finding)
            read.append(verification._read(CPU, asked.key))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert read == [finding] * 200
    assert [p.suffix for p in verification.folder().rglob("*") if p.is_file()] == [".json"]


def test_during_a_capture_nothing_is_tried(kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    form = kernel.form(torch.ones(3))
    ok, reason = dispatch.proven("double", "triton", torch.device("cuda", 0), form)
    assert (ok, kernel.tries) == (False, 0)
    assert "run it once before" in reason


PROGRAM = """
import os, sys
from activefreq_engine.kernels import dispatch, verification
from activefreq_engine.kernels.verification import Part, Trial

def check(device, n):
    print("a kernel may print")
    if n == 2:
        os._exit(7)
    if n == 3:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return [Part("all", 0.5 if n == 4 else float("nan") if n == 5 else 0.0, 0.1)]

dispatch.register("double", "triton", check, devices=("cpu",), priority=1, trial=Trial(check, check))
dispatch.load = lambda: None
verification.serve()
"""


def test_trials_in_another_process_survive_what_kernels_do_to_it(kernel):
    found = verification._elsewhere([question(n) for n in (1, 2, 3, 4, 5, 6)], PROGRAM)
    assert [f.size for f in found] == [f"{n} numbers" for n in (1, 2, 3, 4, 5, 6)]
    assert [f.ok for f in found] == [True, False, False, False, False, True]
    assert "ended: exit status 7" in found[1].reason
    assert "illegal memory access" in found[2].reason
    assert found[3].error == 0.5
    assert math.isnan(found[4].error)
    assert all(f.lasting and f.source == question(1).source for f in found)
    assert kernel.tries == 0


def test_a_trial_without_end_is_stopped_and_not_kept(kernel, monkeypatch):
    monkeypatch.setattr(verification, "PATIENCE", 2.0)
    program = f"import time\nprint('{verification._MARK}1', flush=True)\ntime.sleep(60)"
    (found,) = verification._elsewhere([question(1)], program)
    assert (found.ok, found.lasting) == (False, False)
    assert "took more than" in found.reason


def test_where_no_other_process_can_use_the_device_this_one_tries(kernel, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        found = verification._elsewhere([question(1), question(2)], "raise SystemExit('the device is exclusive')")
    assert [f.ok for f in found] == [True, True]
    assert kernel.tries == 2
    assert "the device is exclusive" in caplog.text


def test_each_form_of_each_op_can_be_asked_by_another_process():
    """Arguments of forms survive JSON."""
    dispatch.load()
    for op, implementations in dispatch._registry.items():
        for i in implementations.values():
            for form in () if i.trial is None else i.trial.samples():
                assert isinstance(hash(form.key), int)
                assert json.loads(json.dumps(form.arguments)) == form.arguments, op


def test_sources_cover_the_op_and_what_all_share(tmp_path):
    dispatch.load()
    of = {(op, i.name): i.source for op, all_ in dispatch._registry.items() for i in all_.values()}
    assert of["region_stats", "cupy"] == of["region_stats_fixed", "cupy"] != of["distance_transform", "cupy"]
    (tmp_path / "a.py").write_text("1")
    first = verification.source(tmp_path)
    (tmp_path / "b.cu").write_text("2")
    verification.source.cache_clear()
    assert verification.source(tmp_path) != first
