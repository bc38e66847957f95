"""One concept, one name: no two classes, and no class and type alias, are called the same."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def named(node: ast.stmt) -> tuple[str, bool] | None:
    """The name of a class or of a type alias, such as ``Box = tuple[int, ...]``, and whether it is a class."""
    if isinstance(node, ast.ClassDef):
        return node.name, True
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        if name[0].isupper() and not name.isupper():
            return name, False
    return None


def test_a_class_has_its_name_for_itself() -> None:
    """A private one too: `_Run` beside `Run` is read as the same."""
    classes, aliases = defaultdict(list), defaultdict(list)
    for part in ("activefreq_engine", "kernels", "bench"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for name, is_class in filter(None, map(named, ast.parse(path.read_text("utf-8")).body)):
                (classes if is_class else aliases)[name.lstrip("_")].append(str(path.relative_to(ROOT)))
    assert len(classes) > 150
    assert len(aliases) > 30
    twice = {name: places + aliases[name] for name, places in classes.items() if len(places) + len(aliases[name]) > 1}
    twice.pop("Predictor", None)  # `compat.sam._Predictor` is a base class that tests/api.json names
    assert not twice, twice
