"""docs/environment.md names every environment variable that the code reads."""

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


def test_variables_of_others_that_are_read_are_on_the_page() -> None:
    page = (ROOT / "docs" / "environment.md").read_text("utf-8")
    reads = re.compile(r"""environ(?:\.get\(|\.setdefault\(|\[)\s*"([A-Z_]+)"|"([A-Z_]+)" in os\.environ\b(?!\.)""")
    found = {
        (name, str(path.relative_to(ROOT)))
        for folder in ("activefreq_engine", "kernels", "bench", "tests", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for names in reads.findall(path.read_text("utf-8"))
        for name in names
        if name and name not in INHERITED
    }
    assert len(found) > 10
    assert not {place for place in found if f"`{place[0]}`" not in page}


INHERITED = {"PATH", "PYTHONPATH"}
"""Read only to hand them on, longer, to a process of our own."""
