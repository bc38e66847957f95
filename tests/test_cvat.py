"""What CVAT's agent and its Nuclio function share; the agent's own driver is in tests/tools/cvat_driver.py."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from activefreq_engine import Engine, InvalidArgumentError, InvalidClickError, InvalidPromptError, Session, cvat
from activefreq_engine.cvat import Prompted, create

NUCLIO = Path(__file__).parents[1] / "examples" / "cvat_nuclio" / "main.py"
PICTURE = Path(__file__).parents[1] / "examples" / "images" / "ISIC_0014809.jpg"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.shared("freqformer_b0", "cpu")


def test_prompts_are_answered_in_the_order_in_which_they_came(engine: Engine) -> None:
    prompted = Prompted(engine, PICTURE)
    with Session(engine=engine) as session:
        session.set_image(PICTURE)
        prompted.mask([(160, 230)], [])
        session.predict([[160, 230]], [1])
        prompted.mask([(160, 230)], [(40, 60)])
        session.predict([[160, 230], [40, 60]], [1, 0])
        mask, iou = prompted.mask([(160, 230), (100, 250)], [(40, 60)])  # the list has the positive ones first
        expected = session.predict([[160, 230], [40, 60], [100, 250]], [1, 0, 1]).mask
        np.testing.assert_array_equal(mask, expected)
        assert 0 < iou <= 1
        again, _ = prompted.mask([(160, 230), (100, 250), (160, 230)], [(40, 60)])  # and one of them twice
        np.testing.assert_array_equal(again, expected)
        edge, _ = prompted.mask([(384, 384)], [])  # the far edge; and nothing of before counts
        assert edge[383, 383]
        np.testing.assert_array_equal(edge, session.predict([[383.5, 383.5]], [1]).mask)
        boxed, _ = prompted.mask([(160, 230)], [], ((300, 330), (20, 100)))  # corners in any order
        np.testing.assert_array_equal(boxed, session.predict([[160, 230]], [1], box=(20, 100, 300, 330)).mask)
    with pytest.raises(InvalidPromptError):
        prompted.mask([], [], ((5, 5), (5, 5)))
    for outside in ((385, 10), (10, 5000), (float("inf"), 10), (-1, 10)):
        with pytest.raises(InvalidClickError, match="outside the image"):
            prompted.mask([outside], [])


def test_the_next_request_is_prepared_for_once_this_one_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing takes the cores, and the score that the client waits for takes time as well."""
    made: list[str] = []
    monkeypatch.setattr(cvat, "expected_iou", lambda *_: made.append("score") or 0.5)
    monkeypatch.setattr(Session, "prepare", lambda _, background=False: made.append("prepare"))
    assert Prompted(engine, PICTURE).mask([(160, 230)], [])[1] == 0.5
    assert made == ["score", "prepare"]


def test_without_cvats_sdk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    with pytest.raises(InvalidArgumentError, match="pip install"):
        create()


def test_the_nuclio_function(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVEFREQ_MODEL", "freqformer_b0")
    spec = importlib.util.spec_from_file_location("cvat_nuclio_main", NUCLIO)
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    context: Any = SimpleNamespace(user_data=SimpleNamespace(), Response=lambda **how: SimpleNamespace(**how))
    main.init_context(context)
    body = {
        "image": base64.b64encode(PICTURE.read_bytes()).decode(),
        "pos_points": [[160, 230]],
        "neg_points": [[10, 10]],
        "obj_bbox": [],
    }
    answer = main.handler(context, SimpleNamespace(body=body))
    assert answer.status_code == 200
    found = json.loads(answer.body)
    mask = np.array(found["mask"])
    expected, _ = Prompted(context.user_data.engine, PICTURE).mask([(160, 230)], [(10, 10)])
    np.testing.assert_array_equal(mask, expected)
    assert np.array(found["points"]).shape[1] == 2
    assert len(context.user_data.pictures) == 1
    pieces = np.zeros((60, 90), np.bool_)
    pieces[5:25, 10:70] = True  # four corners, and beside it a comb with many
    pieces[40:50, 10:60:6] = pieces[39, 10:60] = True
    with monkeypatch.context() as patched:
        patched.setattr(Prompted, "mask", lambda *_: (pieces, 0.5))
        found = json.loads(main.handler(context, SimpleNamespace(body=body)).body)
    assert sorted(found["points"]) == [[10, 5], [10, 25], [70, 5], [70, 25]]
    for wrong in ({}, {**body, "image": "AAAA"}, {**body, "pos_points": [["a", 1]]}, {**body, "pos_points": [[-5, 1]]}):
        assert main.handler(context, SimpleNamespace(body=wrong)).status_code == 400
