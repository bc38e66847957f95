"""The napari plug-in, in napari's own environment, on a screen that Xvfb makes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path) -> None:
    env = {**os.environ, "LIBGL_ALWAYS_SOFTWARE": "1", "QT_QPA_PLATFORM": "xcb"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_manifest_is_valid(tools: Path) -> None:
    run(tools / "napari" / "bin" / "npe2", "validate", "activefreq-engine")


def test_mouse_and_keys(tools: Path) -> None:
    screen = ("xvfb-run", "-a", "-s", "-screen 0 1280x1024x24 +extension GLX")
    run(*screen, tools / "napari" / "bin" / "python", "-m", "pytest", "-q", Path(__file__).parent / "napari_mouse.py")
