"""Tells PyInstaller, by an entry point of the wheel, what a frozen application needs of this package."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Folders with hooks."""
    return [str(Path(__file__).parent)]
