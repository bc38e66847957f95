"""What all tests share: their random numbers, the device option, and skipping what this machine cannot run."""

import os
import secrets
import tempfile
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests import interpreter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tests that take one: cpu, cuda, cuda:1, ...")
    parser.addoption("--seed", type=int, help="seed of the random inputs; without it every run draws a new one")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = secrets.randbits(32)
    # Verdicts on kernels are kept for one run, also for the processes that tests start, and not in a user's home.
    cache = tempfile.TemporaryDirectory(prefix="activefreq-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(cache.cleanup)
    os.environ["ACTIVEFREQ_CACHE"] = cache.name
    for name in [n for n in os.environ if n.startswith("PYTEST_XDIST_")]:
        del os.environ[name]  # a pytest that a test starts is nobody's worker; pytest-benchmark would not measure there
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpreter.quicken()


def pytest_report_header(config: pytest.Config) -> str:
    return f"random inputs: --seed={config.option.seed}"


def seeded(config: pytest.Config, name: str) -> np.random.Generator:
    """A generator for what is called `name`; from here on torch draws by the same seed too."""
    generator = np.random.default_rng([config.option.seed, zlib.crc32(name.encode())])
    torch.manual_seed(int(generator.integers(1 << 63)))
    return generator


@pytest.fixture(autouse=True)
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The source of a test's random inputs: new ones in every run, and the same again with ``--seed``.

    Ask for `rng` to draw by numpy (``rng.random((3, 5))``), and hand it on to helpers.  Torch is seeded in every test:
    ``torch.randn(3, 5)`` just works, in shared fixtures too.  Never draw from ``np.random.default_rng()``, the module
    `random` or a generator made when a file is imported: nobody could have those numbers again.

    A failed test shows its ``--seed``; numbers depend on that and on the test's own name, so the test may run alone.
    """
    again = f"--seed={request.config.option.seed} draws the same random inputs again"
    request.node.add_report_section("setup", "seed", again)
    return seeded(request.config, request.node.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> Iterator[None]:
    """A fixture that several tests share draws the same by torch whichever of them comes first."""
    if fixturedef.scope != "function":
        seeded(request.config, f"{fixturedef.baseid}::{fixturedef.argname}")
    return (yield)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device named by --device."""
    return torch.device(request.config.getoption("--device"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
