"""The real tools, each in an environment of its own: they need other versions of much, and up to a gigabyte each.

These run by `make test-tools`, never by themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TOOLS = os.environ.get("ACTIVEFREQ_TOOLS")
"""The folder with their environments: label-studio, cvat, napari."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if TOOLS is None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="real tools are driven by make test-tools"))


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with their environments."""
    assert TOOLS is not None
    return Path(TOOLS).absolute()
