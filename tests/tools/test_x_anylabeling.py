"""X-AnyLabeling's own client code, in its environment, without a screen."""

from __future__ import annotations

from pathlib import Path

from tests.browser.conftest import Served

from .driving import run


def test_points_and_a_box(tools: Path, tmp_path: Path) -> None:
    served = Served(tmp_path / "journal")
    try:
        command = (tools / "x-anylabeling" / "bin" / "python", Path(__file__).parent / "x_anylabeling_client.py")
        print(run(*command, served.url.rstrip("/"), env={"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)}))
    finally:
        served.kill()
