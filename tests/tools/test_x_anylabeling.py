"""X-AnyLabeling's own client code, in its environment, without a screen."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.browser.conftest import Served


def test_points_and_a_box(tools: Path, tmp_path: Path) -> None:
    served = Served(tmp_path / "journal")
    try:
        command = [tools / "x-anylabeling" / "bin" / "python", Path(__file__).parent / "x_anylabeling_client.py"]
        env = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)}
        done = subprocess.run([*command, served.url.rstrip("/")], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        print(done.stdout)
    finally:
        served.kill()
