"""The public names and signatures, compared with api.json.

A deliberate change is one command away, and belongs in the same commit: ``python tests/test_api_snapshot.py``.
"""

import difflib
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

SNAPSHOT = Path(__file__).parent / "api.json"
MODULES = (
    "activefreq_engine",
    "activefreq_engine.compat",
    "activefreq_engine.models",
    "activefreq_engine.eval",
    "activefreq_engine.kernels.region_stats",
    "activefreq_engine.kernels.distance",
    "activefreq_engine.kernels.click_maps",
    "activefreq_engine.kernels.freq_module",
    "activefreq_engine.kernels.mask_output",
)


def signature(function: Any) -> str:
    """Names, kinds and defaults; annotations are left out, for they print differently from one Python to the next."""
    full = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in full.parameters.values()]
    return str(full.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def describe(value: Any) -> Any:
    if inspect.isclass(value):
        ours = [base for base in value.__mro__ if base.__module__.startswith("activefreq_engine")]
        members: dict[str, str] = {}
        for base in reversed(ours):
            for name, member in vars(base).items():
                if name.startswith("_"):
                    continue
                if isinstance(member, property):
                    members[name] = "property"
                elif isinstance(member, (staticmethod, classmethod)):
                    members[name] = f"{type(member).__name__} {signature(getattr(value, name))}"
                elif callable(member):
                    members[name] = signature(member)
        bases = [b.__name__ for b in value.__bases__ if b is not object]
        result: dict[str, Any] = {"bases": bases, "members": dict(sorted(members.items()))}
        if not issubclass(value, Exception):
            result["call"] = signature(value)
        return result
    return signature(value) if callable(value) else type(value).__name__


def public_api() -> dict[str, Any]:
    api = {}
    for name in MODULES:
        module = importlib.import_module(name)
        api[name] = {n: describe(getattr(module, n)) for n in sorted(module.__all__)}
    return api


def render(api: dict[str, Any]) -> str:
    return json.dumps(api, indent=2) + "\n"


def test_the_public_interface_is_the_recorded_one() -> None:
    recorded, present = SNAPSHOT.read_text("utf-8"), render(public_api())
    if recorded == present:
        return
    lines = difflib.unified_diff(recorded.splitlines(), present.splitlines(), "api.json", "the code", lineterm="")
    pytest.fail(
        "the public interface has changed; if that is meant, run 'python tests/test_api_snapshot.py' and commit "
        "api.json:\n" + "\n".join(lines),
        pytrace=False,
    )


if __name__ == "__main__":
    SNAPSHOT.write_text(render(public_api()), "utf-8")
    print(f"wrote {SNAPSHOT}")
