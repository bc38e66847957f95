"""The CVAT function under cvat-cli's own agent driver, in CVAT's environment."""

from __future__ import annotations

from pathlib import Path

from .driving import run


def test_the_agents_driver(tools: Path) -> None:
    said = run(tools / "cvat" / "bin" / "python", Path(__file__).parent / "cvat_driver.py")
    assert "not enough positive points" in said
