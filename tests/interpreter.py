"""Triton's interpreter without the work that it does again at each call of a function within a kernel."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Nothing:
    def restore(self) -> None:
        pass


def quicken() -> None:
    """Have the interpreter replace its language's functions once for a kernel, not at every call that it makes.

    It does so before each call of a jitted function, those within a kernel included, by looking through all names of
    several modules: a third of the time of our tests, and to no effect, since a kernel's call has replaced them already
    (Triton 3.6 and 3.9, `runtime.interpreter._patch_lang`).
    """
    from triton import language
    from triton.runtime import interpreter

    patch: Callable[[Any], Any] = interpreter._patch_lang

    @functools.cache
    def languages(fn: Callable[..., Any]) -> list[ModuleType]:
        known = (language, language.core)
        return [module for module in known if any(value is module for value in fn.__globals__.values())]

    def patch_once(fn: Callable[..., Any]) -> Any:
        replaced = not any(language.core.is_builtin(module.load) for module in languages(fn))
        return _Nothing() if replaced and languages(fn) else patch(fn)

    interpreter._patch_lang = patch_once
