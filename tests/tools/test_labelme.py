"""labelme's own window with our models in its list, in its environment, on a screen that Xvfb makes."""

from __future__ import annotations

from pathlib import Path

from .driving import run

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "examples" / "images" / "ISIC_0014809.jpg"


def test_points_and_a_box(tools: Path, tmp_path: Path) -> None:
    command = (tools / "labelme" / "bin" / "python", Path(__file__).with_name("labelme_mouse.py"), PICTURE, tmp_path)
    print(run(*command, screen="1280x1024x24", env={"HOME": str(tmp_path), "QT_QPA_PLATFORM": "xcb"}))
