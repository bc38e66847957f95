"""What the program around the engine has set is its own, and changes no answer."""

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from activefreq_engine import AcSelect, Engine, Session, create_model
from activefreq_engine.images import load_image


@contextlib.contextmanager
def set_to(setter: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


HOSTS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "default dtype float64": lambda: set_to(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype float16": lambda: set_to(torch.set_default_dtype, torch.float16, torch.float32),
    "default device": lambda: set_to(torch.set_default_device, "meta", None),
    "device of a block": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients off": torch.inference_mode,
    "NumPy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings_are_errors,
}


def answers(weights: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """What a new engine says about a click, a network shape that it has not seen, and where to click next."""
    model = create_model()
    model.load_state_dict(weights)
    with Session(engine=Engine(model, device="cpu")) as session:
        picture = np.random.default_rng(0).integers(0, 256, (64, 330, 3), np.uint8)
        session.set_image(picture)
        session.click(150, 30)
        hints = session.suggest()
        assert Session.restore(session.state_dict(), picture, engine=session._engine).clicks == session.clicks
        return [session.probs, session.uncertainty, np.array([(h.x, h.y, h.score) for h in hints])]


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, torch.Tensor], list[np.ndarray]]:
    weights = create_model(pretrained=True).state_dict()
    return weights, answers(weights)


@pytest.mark.parametrize("host", HOSTS)
def test_settings_of_the_host_change_no_answer(plain: Any, host: str) -> None:
    weights, expected = plain
    with HOSTS[host]():
        found = answers(weights)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_shipped_weights_are_float32_whatever_the_default() -> None:
    with HOSTS["default dtype float64"](), HOSTS["device of a block"]():
        model = create_model(pretrained=True)
    assert {(t.dtype, t.device.type) for t in model.parameters()} == {(torch.float32, "cpu")}


def test_regions_are_scored_whatever_the_default_device() -> None:
    probs = np.random.default_rng(0).random((40, 50))
    expected = AcSelect().suggest_scores(probs, tau=0.5).rows()
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert AcSelect().suggest_scores(probs, tau=0.5).rows() == expected


@pytest.mark.parametrize("host", ["NumPy raises", "warnings are errors"])
def test_pictures_at_the_ends_of_their_type(host: str) -> None:
    wild = np.random.default_rng(0).normal(0, 1, (40, 50))
    wild[0, 0], wild[1, 1] = 1e308, -1e308
    half = np.float16(wild.clip(-1, 1)) * np.float16(6e4)
    with HOSTS[host]():
        assert load_image(wild).std() > 30  # two hot pixels of 2,000 move no percentile
        assert load_image(half).std() > 30
        assert load_image(np.array([[-1.7e308, 0, 1.7e308]])).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("set_before", [None, "new", "old"])
def test_captures_in_float32_leave_the_hosts_settings_as_they_were(set_before):
    """torch has two ways to say whether convolutions may be rounded to TF32, and refuses one after the other."""
    program = f"""
import torch
new = hasattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision")
if {set_before!r} == "new" and new:
    torch.backends.cudnn.conv.fp32_precision = "tf32"
elif {set_before!r} == "old":
    torch.backends.cudnn.allow_tf32 = False
from activefreq_engine.runtime.graphs.cuda import convolutions_in_full

def exact():
    return torch.backends.cudnn.conv.fp32_precision == "ieee" if new else not torch.backends.cudnn.allow_tf32

def settings():
    return torch.backends.cudnn.conv.fp32_precision if new else None, torch.backends.cudnn.allow_tf32

before = settings()
try:
    with convolutions_in_full():
        assert exact()
        raise KeyError
except KeyError:
    pass
assert settings() == before, (settings(), before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
