"""Arguments that no one should pass, at every public door: the call works, or raises one of our errors, and a session
stays as it was."""

import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from activefreq_engine import (
    ActiveFreqError,
    Click,
    Engine,
    FileWriteError,
    InvalidArgumentError,
    Session,
    click_batch,
    masks,
)
from activefreq_engine.files import beside
from activefreq_engine.images import load_image

from .fakes import SquareModel

ODD: list[Any] = [
    *(None, True, "3", "\0", b"3", 3 + 0j, float("nan"), float("inf"), 1e308, 10**400, decimal.Decimal("sNaN")),
    *(np.longdouble(3), np.array([3, 4]), np.array([[1, 2]]), torch.tensor([3]), torch.ones(1, requires_grad=True)),
    *(torch.tensor(3.0, requires_grad=True), [], [[1], [1, 2]], {}, object(), np.datetime64("2020"), np.ma.masked),
]
SQUARE = np.array([[0, 0], [3, 0], [3, 3]])
MASK = np.eye(9, 12, dtype=np.bool_)
ENGINE = Engine(SquareModel())
IMAGE = np.zeros((9, 12, 3), np.uint8)

SESSION: dict[str, Callable[[Session, Any], Any]] = {
    "click": lambda s, v: s.click(v, 5),
    "click, its sign": lambda s, v: s.click(5, 5, v),
    "click, profile": lambda s, v: s.click(5, 5, True, v),
    "look": lambda s, v: s.look(v, 0, 5, 5),
    "look, alone": lambda s, v: s.look(v),
    "box": lambda s, v: s.box(v, 0, 5, 5),
    "scribble": lambda s, v: s.scribble(v),
    "scribble, a point": lambda s, v: s.scribble([[v, 1]]),
    "lasso": lambda s, v: s.lasso([[v, 1], [8, 1], [8, 8]]),
    "predict": lambda s, v: s.predict(v, v),
    "predict, a point": lambda s, v: s.predict([[v, 1]], [1]),
    "predict, a label": lambda s, v: s.predict([[1, 1]], [v]),
    "predict, a mask": lambda s, v: s.predict([[1, 1]], [1], mask_input=v),
    "predict, a box": lambda s, v: s.predict([[1, 1]], [1], box=v),
    "load_mask": lambda s, v: s.load_mask(v),
    "select_object": lambda s, v: s.select_object(v),
    "delete_object": lambda s, v: s.delete_object(v),
    "mask_of": lambda s, v: s.mask_of(v),
    "suggest": lambda s, v: s.suggest(v),
    "suggest, ahead": lambda s, v: s.suggest(1, look_ahead=v),
    "to_coco_rle": lambda s, v: s.to_coco_rle(compressed=v),
    "to_polygons": lambda s, v: s.to_polygons(holes=v),
    "click_batch": lambda s, v: click_batch([s], v),
    "click_batch, sessions": lambda s, v: click_batch(v, [Click(1, 1)]),
    "set_image, window": lambda s, v: s.set_image(IMAGE, window=(v, 300)),
    "set_image, limit": lambda s, v: s.set_image(IMAGE, max_pixels=v),
}
OTHERS: dict[str, Callable[[Any], Any]] = {
    "threshold": lambda v: Session(engine=ENGINE, threshold=v),
    "wait": lambda v: Session(engine=ENGINE, wait=v),
    "zoom": lambda v: Session(engine=ENGINE, zoom=v),
    "acselect": lambda v: Session(engine=ENGINE, acselect=v),
    "engine": lambda v: Session(engine=v) if v is not None else None,
    "engine and size": lambda v: Session(engine=ENGINE, size=v),
    "device": lambda v: Engine(SquareModel(), device=v),
    "restore": lambda v: Session.restore(v, IMAGE),
    "load_image": load_image,
    "as_mask": masks.as_mask,
    "as_mask, shape": lambda v: masks.as_mask(MASK, v),
    "from_coco_rle": masks.from_coco_rle,
    "from_coco_rle, size": lambda v: masks.from_coco_rle({"size": [v, 3], "counts": [9]}),
    "from_coco_rle, counts": lambda v: masks.from_coco_rle({"size": [3, 3], "counts": v}),
    "to_polygons, tolerance": lambda v: masks.to_polygons(MASK, tolerance=v),
    "from_polygons": lambda v: masks.from_polygons(v, 5, 5),
    "from_polygons, a ring": lambda v: masks.from_polygons([masks.Polygon(v)], 5, 5),
    "from_polygons, height": lambda v: masks.from_polygons([masks.Polygon(SQUARE)], v, 5),
    "from_polygons, width": lambda v: masks.from_polygons([], 5, v),
    "to_coco_annotation": lambda v: json.dumps(masks.to_coco_annotation(MASK, image_id=v)),
    "to_coco_annotation, kind": lambda v: masks.to_coco_annotation(MASK, segmentation=v),
    "from_geojson": lambda v: masks.from_geojson({"type": "Polygon", "coordinates": v}, 5, 5),
    "from_geojson, a number": lambda v: masks.from_geojson({"type": "Polygon", "coordinates": [[[v, 0]] * 3]}, 5, 5),
    "to_labelme": lambda v: masks.to_labelme(v, "a"),
    "to_labelme, path": lambda v: json.dumps(masks.to_labelme({"a": MASK}, v)),
    "to_labelme, tolerance": lambda v: masks.to_labelme({"a": MASK}, "a", tolerance=v),
    "from_labelme": masks.from_labelme,
    "from_labelme, height": lambda v: masks.from_labelme({"imageHeight": v, "imageWidth": 5, "shapes": []}),
    "from_labelme, points": lambda v: masks.from_labelme(
        {"imageHeight": 5, "imageWidth": 5, "shapes": [{"label": "a", "points": v}]}
    ),
    "to_yolo, category": lambda v: masks.to_yolo(MASK, category=v),
    "from_yolo": lambda v: masks.from_yolo(v, 5, 5),
    "from_yolo, height": lambda v: masks.from_yolo("0 0.1 0.1 0.8 0.1 0.8 0.8", v, 5),
    "save_png": lambda v: masks.save_png(v, MASK) if not isinstance(v, (str, bytes, int)) else None,
    "save_labels_png": lambda v: masks.save_labels_png("/dev/null", v),
    "load_labels_png": masks.load_labels_png,
}  # fmt: skip


def accepted(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ActiveFreqError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", SESSION)
def test_a_session_refuses_in_words_and_stays_as_it_was(door: str) -> None:
    session = Session(engine=ENGINE)
    session.set_image(IMAGE)
    session.click(5, 5)
    before = session._scene
    for value in ODD:
        if not accepted(lambda value=value: SESSION[door](session, value)):
            assert session._scene is before
        session._scene = before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", OTHERS)
def test_refusals_are_of_our_family(door: str) -> None:
    taken = [accepted(lambda value=value: OTHERS[door](value)) for value in ODD]
    assert not all(taken)


@pytest.mark.parametrize("points", [[["3", 1]], [[b"3", 1]], [[3 + 1j, 1]]])
def test_predict_takes_no_text_for_numbers(points: Any) -> None:
    session = Session(engine=ENGINE)
    session.set_image(IMAGE)
    assert not accepted(lambda: session.predict(points, [1]))


def test_a_file_that_cannot_be_written_is_told_as_the_system_tells_it(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match="No such file") as raised:
        masks.save_png(tmp_path / "none" / "m.png", MASK)
    assert isinstance(raised.value, OSError)
    assert raised.value.errno == 2
    with pytest.raises(FileWriteError), beside(tmp_path / "none" / "x") as partial:
        partial.write_bytes(b"1")
    with pytest.raises(InvalidArgumentError, match="null"):
        masks.save_png("a\0b", MASK)
