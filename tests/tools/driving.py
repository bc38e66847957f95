"""How the tools are run: with patience, and so that a failure tells what the tool said."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

PATIENCE = 1800.0
"""Seconds that a tool may take.  It only has to end: on a busy machine imports alone take minutes."""


def run(
    *command: str | Path, screen: str | None = None, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a tool to its end; what it printed.

    Args:
        command: the program and its arguments.
        screen: size and depth of the screen that Xvfb makes, and its extensions. Default: none.
        cwd, env: folder, and variables to set beside those of this process.
    """
    if screen is not None:
        command = ("xvfb-run", "-a", "-s", f"-screen 0 {screen}", *command)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**variables(), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the screen and what runs on it as well
        out, err = process.communicate()
        pytest.fail(f"it did not end within {PATIENCE:.0f} s\n{out[-6000:]}\n{err[-6000:]}")
    assert process.returncode == 0, f"it ended with {process.returncode}\n{out[-6000:]}\n{err[-6000:]}"
    return out


def variables() -> dict[str, str]:
    """The variables of this process, without those that harm a tool.

    OpenCV, when imported, sets the places of its own Qt: another Qt then finds no screen and aborts.  And Python may be
    told to write no bytecode; each start of a tool would compile thousands of modules anew.
    """
    return {n: v for n, v in os.environ.items() if not n.startswith("QT_") and n != "PYTHONDONTWRITEBYTECODE"}
