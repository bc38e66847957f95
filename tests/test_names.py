"""One concept, one name: no two public classes are called the same."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_class_has_its_name_for_itself() -> None:
    found = defaultdict(list)
    for part in ("activefreq_engine", "kernels", "bench"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(path.relative_to(ROOT)))
    assert len(found) > 150
    twice = {name: places for name, places in found.items() if len(places) > 1}
    assert not twice, twice
