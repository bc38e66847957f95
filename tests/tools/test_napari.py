"""The napari plug-in, in napari's own environment, on a screen that Xvfb makes."""

from __future__ import annotations

from pathlib import Path

from .driving import run

ROOT = Path(__file__).parents[2]


SOFTWARE = {"LIBGL_ALWAYS_SOFTWARE": "1", "QT_QPA_PLATFORM": "xcb"}


def test_the_manifest_is_valid(tools: Path) -> None:
    run(tools / "napari" / "bin" / "npe2", "validate", "activefreq-engine", cwd=ROOT, env=SOFTWARE)


def test_layers(tools: Path) -> None:
    command = (tools / "napari" / "bin" / "python", "-m", "pytest", "-q", Path(__file__).parent / "napari_layers.py")
    run(*command, cwd=ROOT, env={"QT_QPA_PLATFORM": "offscreen"})


def test_mouse_and_keys(tools: Path) -> None:
    command = (tools / "napari" / "bin" / "python", "-m", "pytest", "-q", Path(__file__).parent / "napari_mouse.py")
    run(*command, screen="1280x1024x24 +extension GLX", cwd=ROOT, env=SOFTWARE)
