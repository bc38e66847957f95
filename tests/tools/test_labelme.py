"""labelme's own window with our models in its list, in its environment, on a screen that Xvfb makes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "examples" / "images" / "ISIC_0014809.jpg"


def test_points_and_a_box(tools: Path, tmp_path: Path) -> None:
    command = [tools / "labelme" / "bin" / "python", Path(__file__).with_name("labelme_mouse.py"), PICTURE, tmp_path]
    env = {**os.environ, "HOME": str(tmp_path), "QT_QPA_PLATFORM": "xcb"}
    screen = ("xvfb-run", "-a", "-s", "-screen 0 1280x1024x24")
    done = subprocess.run([*screen, *command], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    print(done.stdout)
