"""The CVAT function under cvat-cli's own agent driver, in CVAT's environment."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_the_agents_driver(tools: Path) -> None:
    command = [tools / "cvat" / "bin" / "python", Path(__file__).parent / "cvat_driver.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not enough positive points" in done.stdout
