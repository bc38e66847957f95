"""The latency tests: when they run, that a wrong op gets no time, and what is said about a run."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.speed.compare import speed_up, summarise, table
from bench.tools.verify import measure, probabilities_agree, sessions_agree

pytest.importorskip("pytest_benchmark", reason='pytest-benchmark is not installed: pip install -e ".[bench]"')

ROOT = Path(__file__).parents[2]

# Loaded as a plugin, it makes one implementation of one op wrong by one per cent.
WRONG = """
from activefreq_engine.runtime.plan import spectral

right = spectral.spectral_module
spectral.spectral_module = lambda *args, **kwargs: Wrong(right(*args, **kwargs))


class Wrong:
    def __init__(self, module):
        self.module = module

    def __call__(self, x):
        return 1.01 * self.module(x)
"""


def pytest_run(*arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True
    )
    print(done.stdout, done.stderr)
    return done


def collected(*arguments):
    """The test files that such a run of pytest would run."""
    done = pytest_run("--collect-only", "-q", *arguments)
    assert done.returncode == 0
    return {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}


def test_the_option_selects_the_latency_tests_and_no_others():
    files = collected("--benchmark")
    assert {"bench/speed/test_click.py", "bench/speed/test_freq_module.py", "bench/speed/test_region_stats.py"} <= files
    assert all(f.startswith("bench/") for f in files)
    assert collected("--benchmark", "bench/speed/test_region_stats.py") == {"bench/speed/test_region_stats.py"}


def test_plain_pytest_runs_none_of_them():
    files = collected("--ignore-glob=tests/*/*", "--ignore-glob=tests/test_[!n]*.py")  # few of ours, which is quick
    assert files
    assert not any(f.startswith("bench/") for f in files)


QUICK = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=1", "--benchmark-warmup=off")


def test_suggestions_are_compared_with_those_of_scipy():
    """By functions that take the place of ours, and so must take what ours take."""
    done = pytest_run("--benchmark", "bench/speed/test_click.py", "-k", "suggest", *QUICK)
    assert done.returncode == 0
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_all_of_them_run():
    assert pytest_run("--benchmark", *QUICK).returncode == 0


def test_a_wrong_op_gets_no_time_and_no_speed_up(tmp_path):
    (tmp_path / "wrong_op.py").write_text(WRONG)
    file = tmp_path / "run.json"
    select = "cpu and B1 and C256-8x8 and eager"
    quick = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=2", f"--benchmark-json={file}")
    suite = "bench/speed/test_freq_module.py"
    done = pytest_run("--benchmark", suite, "-k", select, "-p", "wrong_op", *quick, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "relative error 1.0e-02" in done.stdout
    run = summarise(json.loads(file.read_text()), "cpu")
    assert {name for rows in run["groups"].values() for name in rows} == {"plain module"}
    assert math.isnan(speed_up(run, "freq_module B1 C256-8x8, cpu", "plan"))


class Fixture:
    """In the place of pytest-benchmark's."""

    def __init__(self):
        self.extra_info, self.calls = {}, []

    def __call__(self, run):
        self.calls.append("calibrated")

    def pedantic(self, run, *, setup, rounds, warmup_rounds):
        self.calls.append("pedantic")


def test_nothing_is_timed_before_it_is_checked():
    fixture = Fixture()

    def wrong():
        raise AssertionError("wrong")

    common = {"group": "op", "implementation": "ours", "run": lambda: None, "device": torch.device("cpu")}
    for setup in (None, lambda: None):
        with pytest.raises(AssertionError, match="wrong"):
            measure(fixture, check=wrong, setup=setup, **common)
    assert fixture.calls == []
    measure(fixture, check=lambda: 0.25, **common)
    measure(fixture, check=lambda: 0.25, setup=lambda: None, **common)
    assert fixture.calls == ["calibrated", "pedantic"]
    assert fixture.extra_info["error"] == 0.25


def test_probabilities_that_are_off_are_refused(rng):
    p = rng.random((3, 5), dtype=np.float32) * 0.9
    assert probabilities_agree(p + np.float32(0.008), p) == pytest.approx(0.008, abs=1e-6)
    with pytest.raises(AssertionError, match=r"differ by 0\.012"):
        probabilities_agree(p + np.float32(0.012), p)
    with pytest.raises(AssertionError, match=r"differ by 0\.024"):
        probabilities_agree(p + np.float32(0.008), p, area=5)
    with pytest.raises(AssertionError, match="shape"):
        probabilities_agree(p[:2], p)


class Answer:
    """In the place of a session."""

    def __init__(self, mask):
        self.mask, self.probs = mask, np.where(mask, np.float32(0.495), np.float32(0.485))


def test_masks_may_differ_along_the_outline_only():
    square = np.zeros((90, 120), bool)
    square[20:60, 30:90] = True
    wider, stray = square.copy(), square.copy()
    wider[18:62, 28:92] = True
    stray[70:72, 100:102] = True
    assert sessions_agree(Answer(wider), Answer(square)) > 0
    with pytest.raises(AssertionError, match="4 pixels off the outline differ from a mask of 2400 pixels"):
        sessions_agree(Answer(stray), Answer(square))


def one_run(**milliseconds):
    """As pytest-benchmark writes it; the reference is `plain`."""
    return {
        "machine_info": {"activefreq": {"cpu": {"device": "a processor", "commit": "abc"}}},
        "benchmarks": [
            {
                "group": "click, cpu",
                "extra_info": {"implementation": name, "reference": name == "plain", "device": "cpu", "error": 0.0},
                "stats": {"median": t / 1e3, "q1": t / 1.1e3, "q3": t / 0.9e3, "rounds": 9, "data": [1.0] * 9},
            }
            for name, t in milliseconds.items()
        ],
    }


def test_ratios_are_taken_within_a_run():
    now, then = (summarise(one_run(**t), "cpu") for t in ({"plain": 80, "plan": 20}, {"plain": 50, "plan": 25}))
    assert speed_up(now, "click, cpu", "plan") == 4
    lines = [line.split() for line in table(now, then).splitlines()]
    assert lines[-1][0] == "plan"
    assert lines[-1][-2:] == ["4.00x", "2.00x"]
    assert "[1.0" not in json.dumps(now)  # single rounds are not kept


def test_what_was_not_measured_has_no_ratio_and_is_named():
    now, then = (summarise(one_run(**t), "cpu") for t in ({"plain": 80}, {"plain": 50, "plan": 25}))
    assert math.isnan(speed_up(now, "click, cpu", "plan"))
    assert table(now, then).splitlines()[-1].strip() == "click, cpu: plan"
    alone = summarise(one_run(plan=20), "cpu")
    assert math.isnan(speed_up(alone, "click, cpu", "plan"))
