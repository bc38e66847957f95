"""docs/environment.md names every environment variable of ours that the code reads."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATTERN = re.compile(r"\bACTIVEFREQ_[A-Z_]+\b")


def named_in(*folders: str) -> set[str]:
    files = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    assert files
    return {name for p in files if p != Path(__file__) for name in PATTERN.findall(p.read_text("utf-8"))}


def test_every_variable_is_on_the_page_and_no_other() -> None:
    page = (ROOT / "docs" / "environment.md").read_text("utf-8")
    assert set(PATTERN.findall(page)) == named_in("activefreq_engine", "kernels", "bench", "tests")
