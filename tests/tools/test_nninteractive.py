"""nnInteractive's own plug-in for napari, in its environment, on a screen that Xvfb makes, asks a server of ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.browser.conftest import Served


def test_points_boxes_scribbles_and_lassos(tools: Path, tmp_path: Path) -> None:
    served = Served(tmp_path / "journal")
    try:
        script = Path(__file__).with_name("nninteractive_mouse.py")
        command = [tools / "nninteractive" / "bin" / "python", script, served.url.rstrip("/"), tmp_path]
        env = {**os.environ, "HOME": str(tmp_path), "LIBGL_ALWAYS_SOFTWARE": "1", "QT_QPA_PLATFORM": "xcb"}
        screen = ("xvfb-run", "-a", "-s", "-screen 0 1280x1024x24 +extension GLX")
        done = subprocess.run([*screen, *command], env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr[-6000:]
        print(done.stdout)
    finally:
        served.kill()
