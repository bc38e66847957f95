"""What all tests share: the device option, and skipping what this machine cannot run."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tests that take one: cpu, cuda, cuda:1, ...")


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
