"""These tests take minutes: `make test-slow`, or ``python -m pytest -m slow``."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="slow: make test-slow")
    for item in items:
        if item.get_closest_marker("slow") and "mutations" in item.path.parts:
            item.add_marker(skip)
