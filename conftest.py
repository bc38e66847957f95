"""`pytest --benchmark`: the latency tests in bench/, and nothing else.  Without the option nothing changes.

It stands here because pytest reads options before it looks into bench/.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# `pytest` then finds the packages bench and tests, as `python -m pytest` does from here.
sys.path.append(str(ROOT))
_found = find_spec("activefreq_engine")
if _found is not None and _found.origin is not None and Path(_found.origin).is_relative_to(ROOT):
    # The processes that tests start in other folders find this checkout as well, though it may not be installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the latency tests in bench/ and nothing else")


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark reads benchmark_only when it is configured
def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError('--benchmark needs pytest-benchmark; install it with: pip install -e ".[bench]"')
    config.option.benchmark_only = True
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / "bench")]
