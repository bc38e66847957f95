"""Clients that send picture and prompts each time: QuPath's extension (samapi) and X-AnyLabeling."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest

from activefreq_engine import Engine, Session, masks
from activefreq_engine.compat import SamPredictor
from activefreq_engine.compat.sam import Sam

from .client import HEIGHT, WIDTH, picture, png
from .conftest import Server

IMAGE = base64.b64encode(png(picture())).decode()
INSIDE, OUTSIDE = (60, 60), (150, 20)


def test_qupath(engine: Engine, http: httpx.Client) -> None:
    """The fields that the extension's SAMPromptParameters has, and what its parser reads."""
    predictor = SamPredictor(Sam(engine))
    predictor.set_image(picture())
    asked = {"type": "vit_l", "b64img": IMAGE, "multimask_output": False}
    points = {"point_coords": [OUTSIDE, INSIDE], "point_labels": [0, 1]}
    (feature,) = http.post("/sam/", json={**asked, **points}).json()
    wanted, scores, _ = predictor.predict(np.array([OUTSIDE, INSIDE]) + 0.5, np.array([0, 1]), multimask_output=False)
    assert wanted.any()
    assert np.array_equal(masks.from_geojson(feature, HEIGHT, WIDTH), wanted[0])
    assert feature["properties"]["quality"] == pytest.approx(scores[0], abs=1e-4)
    box = [30, 25, 110, 93]
    answer = http.post("/sam/", json={**asked, "bbox": box, "multimask_output": True}).json()
    wanted, _, _ = predictor.predict(box=np.array(box))
    found = [masks.from_geojson(f, HEIGHT, WIDTH) for f in answer]
    assert np.array_equal(found, [m for m in wanted if m.any()])
    assert http.get("/sam/version/").text == "0.6.1"
    (weights,) = http.get("/sam/weights/?type=vit_t").json()
    assert weights == {"type": "vit_t", "name": engine.name, "url": ""}


def test_x_anylabeling(engine: Engine, http: httpx.Client) -> None:
    models = http.get("/v1/models").json()["data"]
    assert list(models) == [engine.name]
    session = Session(engine=engine)
    session.set_image(picture())
    asked = {"model": engine.name, "image": f"data:image/png;base64,{IMAGE}"}
    marks: list[dict[str, object]] = []
    for x, y, label in ((*INSIDE, 1), (*OUTSIDE, 0), (40, 70, 1)):
        marks.append({"type": "point", "data": [x, y], "label": label})
        # the fields that X-AnyLabeling sends with each request
        params = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.0, "marks": marks}
        data = http.post("/v1/predict", json={**asked, "params": params}).json()["data"]
        wanted = session.click(x + 0.5, y + 0.5, bool(label)).mask
        assert data["replace"] is False
        assert all(s["points"][0] == s["points"][-1] for s in data["shapes"])
        rings = [masks.Polygon(np.array(s["points"][:-1], np.int32)) for s in data["shapes"]]
        outer = masks.from_polygons(masks.to_polygons(wanted, holes="drop"), HEIGHT, WIDTH)
        assert np.array_equal(masks.from_polygons(rings, HEIGHT, WIDTH), outer)
    coarse = http.post("/v1/predict", json={**asked, "params": {**params, "epsilon_factor": 0.01}}).json()["data"]
    assert 3 < len(coarse["shapes"][0]["points"]) < len(data["shapes"][0]["points"])
    box = {"marks": [{"type": "rectangle", "data": [30, 25, 110, 93], "label": 1}]}
    assert http.post("/v1/predict", json={**asked, "params": box}).json()["data"]["shapes"]
    assert http.post("/v1/predict", json={**asked, "params": {}}).json()["data"]["shapes"] == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/sam/", {"b64img": IMAGE}, 400),
        ("/sam/", {"b64img": "!", "bbox": [0, 0, 5, 5]}, 400),
        ("/sam/", {"b64img": "aGFsbG8=", "bbox": [0, 0, 5, 5]}, 400),
        ("/sam/", {"b64img": IMAGE, "bbox": [5, 5, 5, 5]}, 400),
        ("/sam/", {"b64img": IMAGE, "point_coords": [[1, 1]]}, 400),
        ("/sam/", {"b64img": IMAGE, "point_coords": [[1, 999]], "point_labels": [1]}, 400),
        ("/sam/", {"b64img": IMAGE, "point_coords": [[1, 1]], "point_labels": [7]}, 422),
        ("/sam/", {"b64img": IMAGE, "point_coords": [[1, 10**400]], "point_labels": [1]}, 422),
        ("/sam/", {"b64img": IMAGE, "bbox": [1, 1, 9, 10**400]}, 422),
        ("/sam/", {"b64img": IMAGE, "bbox": [0, 0, 9, 9], "b64mask": IMAGE}, 400),
        ("/v1/predict", {"model": "other", "image": IMAGE}, 404),
        ("/v1/predict", {"model": "", "image": IMAGE, "params": {"marks": [{"type": "point", "data": [1]}]}}, 422),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    http: httpx.Client, path: str, body: dict[str, object], status: int
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["detail"], str)


def test_marks_that_mean_nothing_are_refused(engine: Engine, http: httpx.Client) -> None:
    for mark in ({"type": "rectangle", "data": [1, 1, 9, 9], "label": 0}, {"type": "point", "data": [1, 1, 1]}):
        body = {"model": engine.name, "image": IMAGE, "params": {"marks": [mark]}}
        assert http.post("/v1/predict", json=body).status_code == 400


def test_the_token_comes_in_a_header_of_its_own(engine: Engine) -> None:
    """X-AnyLabeling's way."""
    server = Server(engine, token="long enough")
    try:
        with server.http() as http:
            assert http.get("/v1/models", headers={"Token": ""}).status_code == 401
            assert http.get("/v1/models", headers={"Token": "long enougi"}).status_code == 401
            assert http.get("/v1/models", headers={"Token": "long enough"}).status_code == 200
    finally:
        server.close()
