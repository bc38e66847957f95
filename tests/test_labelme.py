"""What needs no labelme; its own window is in tests/tools/labelme_mouse.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from activefreq_engine import InvalidArgumentError
from activefreq_engine.labelme import add_models


def test_without_labelme_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "osam", None)
    with pytest.raises(InvalidArgumentError, match="pip install"):
        add_models()


def test_another_labelme_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "osam", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "labelme", SimpleNamespace(__version__="9.1"))
    monkeypatch.setitem(sys.modules, "labelme.widgets", SimpleNamespace(AiAssistedAnnotationWidget=object))
    with pytest.raises(InvalidArgumentError, match=r"labelme 9\.1"):
        add_models()
