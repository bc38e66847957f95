"""nnInteractive's own plug-in for napari, in its environment, on a screen that Xvfb makes, asks a server of ours."""

from __future__ import annotations

from pathlib import Path

from tests.browser.conftest import Served

from .driving import run


def test_points_boxes_scribbles_and_lassos(tools: Path, tmp_path: Path) -> None:
    served = Served(tmp_path / "journal")
    try:
        script = Path(__file__).with_name("nninteractive_mouse.py")
        command = (tools / "nninteractive" / "bin" / "python", script, served.url.rstrip("/"), tmp_path)
        env = {"HOME": str(tmp_path), "LIBGL_ALWAYS_SOFTWARE": "1", "QT_QPA_PLATFORM": "xcb"}
        print(run(*command, screen="1280x1024x24 +extension GLX", env=env))
    finally:
        served.kill()
