"""The rooms of bench/: every command that is named anywhere can be run, every file has its line in the README."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for p in (ROOT / "bench").glob("*/*.py") if p.name != "__init__.py")
FOREIGN = {"_attn_implementation", "_exit"}  # of transformers and of os


def test_every_command_that_is_named_is_a_file() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.md", "*.py", "*.yml", "*.toml", "Makefile"], cwd=ROOT, capture_output=True, text=True
    )
    files = listed.stdout.splitlines() if listed.returncode == 0 else []
    if not files:
        pytest.skip("not a git checkout")
    named = {
        (name, module)
        for name in files
        if name != "CHANGELOG.md" and (ROOT / name).exists()
        for module in re.findall(r"python -m (bench\.[a-z_]+(?:\.[a-z_]+)*)", (ROOT / name).read_text("utf-8"))
    }
    assert len(named) > 20
    wrong = [f"{name}: {m}" for name, m in sorted(named) if not (ROOT / (m.replace(".", "/") + ".py")).is_file()]
    assert not wrong, "commands that are not there:\n" + "\n".join(wrong)


def test_every_file_stands_in_the_readme() -> None:
    text = (ROOT / "bench" / "README.md").read_text("utf-8")
    missing = [p for p in FILES if f"`{p.name}`" not in text and not p.name.startswith("test_")]
    assert not missing, f"add a line to bench/README.md for {[str(p.relative_to(ROOT)) for p in missing]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_nothing_private_of_others_is_reached_into(path: Path) -> None:
    reached = [
        f"line {node.lineno}: .{node.attr}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in FOREIGN
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert not reached, reached


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_globals_of_another_module_of_ours_are_rewritten(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    imported = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] in ("activefreq_engine", "bench")
    }
    rewritten = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)) and root(node) in imported
    ]
    assert not rewritten, rewritten


def root(node: ast.expr) -> str | None:
    """The name with which ``a.b.c`` begins."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
