"""A real browser: Chromium as the system has it (apt-get install chromium), driven by Playwright.

These run by `make test-browser`, never by themselves: they need a browser, and a machine that is not busy.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
ASKED = os.environ.get("ACTIVEFREQ_BROWSER") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not ASKED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="a browser is driven by make test-browser"))


class Served:
    """`activefreq serve` in a process of its own."""

    def __init__(self, journal: Path, *arguments: str) -> None:
        self.journal, self.arguments, self.port = journal, arguments, "0"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "activefreq_engine.cli",
            "serve",
            "--port",
            self.port,
            "--journal",
            str(self.journal),
        ]
        self.process = subprocess.Popen([*command, *self.arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"activefreq serves on (http://127\.0\.0\.1:(\d+)/\S*)\n", line)
        assert found, line
        self.url, self.port = found[1], found[2]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}; apt-get install chromium, or set CHROMIUM")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("journal"))
    yield served
    served.kill()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Makes pages; whatever they complain about fails the test."""
    contexts, complaints = [], []

    def make(**how: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 760}, **how})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        return page

    yield make
    for context in contexts:
        context.close()
    # what a page says when its server is killed, or refuses something, which tests bring about
    killed = ("WebSocket connection", "ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
    refused = ("status of 409", "status of 507", "ERR_FILE_NOT_FOUND")
    real = [c for c in complaints if not any(k in c for k in killed + refused)]
    assert not real, real
