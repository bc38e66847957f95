"""The examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "activefreq_engine.acselect",
    "activefreq_engine.eval.clickers",
    "activefreq_engine.images.load",
    "activefreq_engine.models.registry",
    "activefreq_engine.runtime.engine",
    "activefreq_engine.session.session",
    "activefreq_engine.kernels.click_maps",
    "activefreq_engine.kernels.distance",
    "activefreq_engine.kernels.region_stats",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
