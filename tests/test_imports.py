"""Which part may know which: the direction of imports, read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = "activefreq_engine"

COMMON = {"errors", "conventions", "ending", "files", "host", "memory", "types", "values"}
"""Leaves: any part may import them."""

MAY_IMPORT = {
    "conventions": set(),
    "ending": {"errors"},
    "errors": set(),
    "files": {"errors"},
    "host": set(),
    "memory": {"ending", "errors"},
    "types": set(),
    "values": {"errors"},
    "kernels": {"kernels", "errors", "conventions"},
    "models": {"models", "kernels", *COMMON},
    "runtime": {"runtime", "models", "kernels", *COMMON},
    "images": {"images", *COMMON},
    "masks": {"images", *COMMON},
    "acselect": {"kernels", *COMMON},
    # a session asks an engine and shows levels; what runs behind the engine is none of its business
    "session": {
        "session", "images", "masks", "acselect", "models", "kernels.region_stats",
        "runtime.engine", "runtime.levels", "runtime.painting", "runtime.timing", *COMMON,
    },
    "compat": {"compat", "session", "images", "models", "runtime.engine", *COMMON},
}  # fmt: skip
"""Of each part, the parts of ours that it may import; a dotted name means that module and no other of its package."""

NEVER = {
    "models": {"triton", "cupy"},
    "runtime": {"PIL"},
    "session": {"torch.nn", "triton", "cupy", "PIL"},
}
"""Of each part, what it may not import from outside."""


def sources(part: str) -> list[Path]:
    if part == "kernels":
        return sorted((ROOT / "kernels").rglob("*.py"))
    folder = ROOT / OURS / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == OURS else (OURS, *parts)).removesuffix(".__init__")


def imported(source: str, name: str, is_package: bool) -> Iterator[str]:
    """The modules that a source imports, also within functions and for types alone.  ``from a import b`` counts as
    ``a.b``, which covers a module b as well as a name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*up, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(module: str, names: set[str]) -> bool:
    return any(module == n or module.startswith(n + ".") for n in names)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may_know(part: str) -> None:
    files = sources(part)
    assert files
    wrong = []
    for path in files:
        name = module_name(path)
        for module in imported(path.read_text("utf-8"), name, path.name == "__init__.py"):
            if within(module, {OURS}):
                own = module[len(OURS) + 1 :]
                # `from activefreq_engine import masks` names a part; so does `import activefreq_engine.masks`
                if own and not within(own, MAY_IMPORT[part] | {part}):
                    wrong.append(f"{name} imports {module}")
            elif within(module, NEVER.get(part, set())):
                wrong.append(f"{name} imports {module}")
    assert not wrong, f"{part} may import {sorted(MAY_IMPORT[part])}:\n" + "\n".join(wrong)


def test_imports_are_read_in_every_form() -> None:
    source = """
import torch.nn
from .. import images
from .canvas import Canvas
if TYPE_CHECKING:
    from activefreq_engine.runtime.plan import Folded
def f():
    import triton
"""
    found = set(imported(source, f"{OURS}.session.click", is_package=False))
    assert found == {
        "torch.nn",
        f"{OURS}.images",
        f"{OURS}.session.canvas.Canvas",
        f"{OURS}.runtime.plan.Folded",
        "triton",
    }
    assert set(imported("from .a import b\nfrom . import c", f"{OURS}.session", is_package=True)) == {
        f"{OURS}.session.a.b",
        f"{OURS}.session.c",
    }
