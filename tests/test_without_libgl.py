"""Server images lack the desktop's libraries that opencv-python is linked with."""

import importlib

import pytest

import activefreq_engine


@pytest.mark.parametrize("library", ["libGL.so.1", "libgthread-2.0.so.0"])
def test_the_error_says_what_to_install(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"{library}: cannot open shared object file: No such file or directory")

    monkeypatch.delitem(vars(activefreq_engine), "Session", raising=False)
    monkeypatch.setattr(activefreq_engine, "import_module", fail)
    with pytest.raises(ImportError, match=rf"{library}.*opencv-python-headless.*libgl1"):
        _ = activefreq_engine.Session


def test_other_missing_modules_are_named_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(activefreq_engine), "Session", raising=False)
    monkeypatch.setattr(activefreq_engine, "import_module", lambda name: importlib.import_module("no_such_module"))
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_module'$"):
        _ = activefreq_engine.Session
