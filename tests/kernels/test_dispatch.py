"""Which implementation runs, and what is said about the others."""

import logging
import subprocess
import sys

import pytest
import torch
from activefreq_engine.kernels import dispatch
from activefreq_engine.kernels.region_stats import region_stats

from activefreq_engine import kernels
from activefreq_engine.errors import ActiveFreqError, BackendUnavailableError, InvalidArgumentError

LOGGER = "activefreq_engine.kernels.dispatch"


def even(value=None):
    """A verifier: runs on this machine, but takes even numbers only."""
    return (True, "") if value is None or value % 2 == 0 else (False, f"value is {value}; only even ones")


@pytest.fixture
def op(monkeypatch):
    """An op with a reference, a picky triton on both devices, and a cupy that only takes CUDA inputs."""
    monkeypatch.setattr(dispatch, "_registry", {})
    monkeypatch.setattr(dispatch, "_logged", set())
    monkeypatch.delenv("ACTIVEFREQ_BACKEND", raising=False)
    dispatch.register("double", "reference", lambda v: ("reference", 2 * v), devices=("cpu", "cuda"), priority=0)
    dispatch.register("double", "cupy", lambda v: ("cupy", 2 * v), devices=("cuda",), priority=20)
    dispatch.register(
        "double", "triton", lambda v: ("triton", 2 * v), devices=("cpu", "cuda"), priority=10, verify=even
    )
    return "double"


@pytest.mark.parametrize(
    ("device", "value", "expected"), [("cpu", 4, "triton"), ("cpu", 5, "reference"), ("cuda", 5, "cupy")]
)
def test_auto_takes_the_highest_priority_that_can_run(op, device, value, expected):
    assert dispatch.call(op, device, "auto", value) == (expected, 2 * value)


def test_each_reason_is_logged_once(op, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        for _ in range(3):
            dispatch.call(op, "cpu", "auto", 5)
        assert [record.getMessage() for record in caplog.records] == [
            "double: the cupy backend is passed over: it runs on cuda, the input is on cpu",
            "double: the triton backend is passed over: value is 5; only even ones",
        ]
        dispatch.call(op, "cpu", "auto", 7)
    assert len(caplog.records) == 3


def test_a_backend_by_name_runs(op):
    assert dispatch.call(op, "cuda", "reference", 4) == ("reference", 8)
    assert dispatch.call(op, "cuda", "triton", 4) == ("triton", 8)


@pytest.mark.parametrize(
    ("backend", "words"), [("triton", "value is 5; only even ones"), ("cupy", "runs on cuda, the input is on cpu")]
)
def test_a_backend_by_name_raises_its_reason(op, backend, words):
    with pytest.raises(BackendUnavailableError, match=words):
        dispatch.call(op, "cpu", backend, 5)


def test_the_environment_variable_names_a_backend(op, monkeypatch):
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", "reference")
    assert dispatch.call(op, "cuda", "auto", 4) == ("reference", 8)
    assert dispatch.call(op, "cuda", "triton", 4) == ("triton", 8), "the argument comes first"


def test_a_bare_name_holds_where_there_is_such_an_implementation(op, monkeypatch, caplog):
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", "cupy")
    assert dispatch.call(op, "cuda", "auto", 4) == ("cupy", 8)
    assert dispatch.call(op, "cpu", "auto", 4) == ("triton", 8), "cupy takes no CPU inputs"
    dispatch.register("half", "reference", lambda v: v / 2, devices=("cuda",), priority=0)
    assert dispatch.call("half", "cuda", "auto", 4) == 2, "there is no cupy for it"
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", "triton")
    assert dispatch.call(op, "cuda", "auto", 4) == ("triton", 8)
    with caplog.at_level(logging.INFO, LOGGER):
        assert dispatch.call(op, "cuda", "auto", 5) == ("cupy", 10), "triton takes even numbers only"
    assert "the triton backend is passed over: value is 5" in caplog.text


def test_a_bare_name_that_this_machine_cannot_run_is_an_error(op, monkeypatch):
    dispatch.register(
        "half", "cupy", print, devices=("cuda",), priority=5, verify=lambda *_: (False, "cupy is not installed")
    )
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", "cupy")
    with pytest.raises(BackendUnavailableError, match=r"half .*ACTIVEFREQ_BACKEND=cupy.*cupy is not installed"):
        dispatch.call("half", "cuda", "auto", 4)


def test_the_environment_variable_names_a_backend_of_one_op(op, monkeypatch):
    monkeypatch.setattr(kernels, "__path__", [])  # no other ops than those made here
    dispatch._settings.cache_clear()
    dispatch.register("half", "triton", lambda v: v / 2, devices=("cuda",), priority=0)
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", " double = reference , triton")
    assert dispatch.call(op, "cuda", "auto", 4) == ("reference", 8)
    assert dispatch.call("half", "cuda", "auto", 4) == 2
    assert dispatch.is_named("half", "cuda", "auto", 4)
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", "double=cupy")
    with pytest.raises(
        BackendUnavailableError, match=r"ACTIVEFREQ_BACKEND=double=cupy.* runs on cuda, the input is on"
    ):
        dispatch.call(op, "cpu", "auto", 4)
    assert not dispatch.is_named("half", "cuda", "auto", 4)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("Triton", "'Triton' is not a backend; allowed are auto"),
        ("double=cuda", "'cuda' is not a backend"),
        ("treble=triton", "'treble' is not an op; there are double"),
        ("triton,cupy", "triton and cupy are both for all ops"),
    ],
)
def test_what_the_environment_variable_may_not_say(op, monkeypatch, value, words):
    monkeypatch.setattr(kernels, "__path__", [])
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", value)
    with pytest.raises(ActiveFreqError, match=words) as error:
        dispatch.call(op, "cpu", "auto", 4)
    assert isinstance(error.value, BackendUnavailableError)


@pytest.mark.parametrize("value", ["", "auto"])
def test_an_unset_environment_variable_is_auto(op, monkeypatch, value):
    monkeypatch.setenv("ACTIVEFREQ_BACKEND", value)
    assert dispatch.call(op, "cpu", "auto", 4) == ("triton", 8)


def test_unknown_names(op):
    with pytest.raises(InvalidArgumentError, match="'numpy'; allowed are auto, reference, triton, cupy"):
        dispatch.call(op, "cpu", "numpy", 4)


def test_no_implementation_can_run(op):
    with pytest.raises(BackendUnavailableError) as error:
        dispatch.call(op, "mps", "auto", 5)
    assert all(f"{name}: it runs on" in str(error.value) for name in ("reference", "triton", "cupy"))


def test_registration_is_checked(op):
    with pytest.raises(ValueError, match="already"):
        dispatch.register(op, "reference", print, devices=("cpu",), priority=0)
    with pytest.raises(ValueError, match="'numba'"):
        dispatch.register(op, "numba", print, devices=("cpu",), priority=0)


def test_a_real_op_without_the_backend_asked_for():
    candidates, probs = torch.ones(1, 2, 3, dtype=torch.bool), torch.rand(1, 2, 3)
    assert len(region_stats(candidates, probs, backend="reference")) == 1
    with pytest.raises(BackendUnavailableError, match=r"region_stats .*triton"):
        region_stats(candidates, probs, backend="triton")


def test_table_asks_about_the_machine_and_keeps_the_order_of_auto(op, monkeypatch):
    monkeypatch.setattr(kernels, "__path__", [])
    dispatch.register(
        "absent", "triton", print, devices=("cuda",), priority=5, verify=lambda *_: (False, "triton is not installed")
    )
    assert [(row.op, row.backend, row.ok, row.reason) for row in dispatch.table()] == [
        ("absent", "triton", False, "triton is not installed"),
        ("double", "cupy", True, ""),
        ("double", "triton", True, ""),
        ("double", "reference", True, ""),
    ]


def test_table_finds_every_op_in_a_fresh_process(tmp_path):
    program = (
        "from activefreq_engine.kernels.dispatch import table\n"
        "print(*(f'{row.op}/{row.backend}/{row.ok}' for row in table()))"
    )
    # Started elsewhere, so that the package is the installed one and not a folder of the checkout.
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert {
        "distance_transform/reference/True",
        "inscribed_points/reference/True",
        "region_stats/reference/True",
    } <= set(run.stdout.split())
