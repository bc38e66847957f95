"""Slides of the folder: the whole shown coarsely, regions finely, exports in pixels of the slide's full size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from activefreq_engine import Engine, Session, masks
from activefreq_engine.serve import pictures

from .client import picture
from .conftest import Server

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("zarr")

WIDTH, HEIGHT = 724, 388
BOX = [100, 120, 461, 331]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("slides")
    pixels = picture(WIDTH, HEIGHT)
    with tifffile.TiffWriter(folder / "a slide.svs") as out:
        how = {"tile": (64, 64), "photometric": "rgb"}
        out.write(pixels, subifds=1, **how)
        out.write(pixels[::2, ::2], subfiletype=1, **how)
    Image.fromarray(pixels[:50, :60]).save(folder / "plain.tif")
    return folder, pixels


@pytest.fixture
def served(
    engine: Engine, slide: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, httpx.Client]]:
    monkeypatch.setattr(pictures, "REGION_PIXELS", 80_000)  # the coarse level has 70,228, all of the fine one 280,912
    server = Server(engine, tmp_path, slide[0])
    with server.http() as http:
        yield server, http
    server.close()


def shown(http: httpx.Client, state: dict[str, object]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(http.get(f"/v1/sessions/{state['id']}/image").content)))


def test_a_region_is_shown_finely_and_exported_in_place(
    served: tuple[Server, httpx.Client], slide: tuple[Path, np.ndarray], engine: Engine
) -> None:
    server, http = served
    name, pixels = "a slide.svs", slide[1]
    whole = http.post("/v1/sessions", json={"picture": name}).json()
    assert whole["picture"]["region"] == {"box": [0, 0, WIDTH, HEIGHT], "width": WIDTH, "height": HEIGHT}
    assert np.array_equal(shown(http, whole), pixels[::2, ::2])
    part = http.post("/v1/sessions", json={"picture": name, "box": BOX}).json()
    x0, y0, x1, y1 = BOX
    assert np.array_equal(shown(http, part), pixels[y0:y1, x0:x1])
    assert http.post("/v1/sessions", json={"picture": name, "box": BOX}).json()["id"] == part["id"]
    found = {}
    for state, x, y in ((whole, 130, 115), (part, 150, 110)):
        http.post(f"/v1/sessions/{state['id']}/clicks", json={"x": x, "y": y}).raise_for_status()
        session = Session(engine=engine)
        session.set_image(shown(http, state))
        found[state["id"]] = session.click(x, y).mask
    geometry = http.get(f"/v1/sessions/{part['id']}/exports/geojson").json()["features"][0]
    placed = np.zeros((HEIGHT, WIDTH), np.bool_)
    placed[y0:y1, x0:x1] = found[part["id"]]
    assert np.array_equal(masks.from_geojson(geometry, HEIGHT, WIDTH), placed)
    both = http.get("/v1/pictures/geojson", params={"picture": name}).json()["features"]
    assert both[1] == geometry
    coarse = np.repeat(np.repeat(found[whole["id"]], 2, axis=0), 2, axis=1)
    assert np.array_equal(masks.from_geojson(both[0], HEIGHT, WIDTH), coarse)
    image = http.get(f"/v1/sessions/{part['id']}/exports/coco").json()["images"][0]
    assert image["region"] == BOX
    assert (image["width"], image["height"]) == (x1 - x0, y1 - y0)
    # all of it is there again after a restart
    listed = next(p for p in http.get("/v1/pictures").json() if p["name"] == name)
    assert listed["regions"] == [{"box": BOX, "session": part["id"]}]
    server.sessions._works[part["id"]].touched -= 10_000
    server.sessions.sweep()
    assert part["id"] not in server.sessions._works
    again = http.get(f"/v1/sessions/{part['id']}").json()
    assert again["picture"] == part["picture"]
    assert again["objects"][0]["clicks"] == [[150, 110, True]]


def test_what_is_no_region_of_a_slide_is_refused(served: tuple[Server, httpx.Client]) -> None:
    _, http = served
    assert http.post("/v1/sessions", json={"picture": "plain.tif"}).json()["picture"]["region"] is None
    for body, status, words in (
        ({"picture": "plain.tif", "box": BOX}, 409, "is not a slide"),
        ({"picture": "a slide.svs", "box": [900, 0, 950, 9]}, 400, "no part of the picture"),
        ({"picture": "a slide.svs", "box": [9, 9, 9, 9]}, 400, "no part of the picture"),
        ({"picture": "a slide.svs", "box": [0, 0, 9]}, 422, "box"),
        ({"picture": "../a slide.svs", "box": BOX}, 404, "no picture"),
    ):
        answer = http.post("/v1/sessions", json=body)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["detail"]


def test_a_huge_picture_without_levels_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "flat.tif", picture(WIDTH, HEIGHT), tile=(64, 64), photometric="rgb")
    monkeypatch.setattr(pictures, "REGION_PIXELS", 10_000)
    assert not pictures.is_slide(tmp_path / "flat.tif", WIDTH * HEIGHT)
    assert pictures.is_slide(tmp_path / "flat.tif", WIDTH * HEIGHT - 1)
    found = pictures.read_region(tmp_path / "flat.tif", "flat.tif", None)
    assert found.height * found.width == pytest.approx(10_000, rel=0.02)
    assert found.region == pictures.SlideRegion((0, 0, WIDTH, HEIGHT), WIDTH, HEIGHT)
