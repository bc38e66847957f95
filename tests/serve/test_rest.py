"""The REST interface, against a `Session` in this process, and what its exports say of the masks."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from activefreq_engine import Engine, Session, masks
from activefreq_engine.serve import batches, sessions
from activefreq_engine.serve.errors import NotFoundError
from activefreq_engine.serve.frames import changed_box
from activefreq_engine.serve.journal import Journals
from activefreq_engine.serve.pictures import Folder, read_picture
from activefreq_engine.serve.sessions import Limits

from .client import HEIGHT, LESION, PATIENCE, WIDTH, Client, picture, png
from .conftest import Server


@pytest.fixture
def path(http: httpx.Client) -> str:
    """The path of a session with a picture."""
    identity = http.post("/v1/sessions").json()["id"]
    assert http.put(f"/v1/sessions/{identity}/image?name=a%20blob.png", content=png(picture())).status_code == 200
    return f"/v1/sessions/{identity}"


@pytest.mark.parametrize(("missing", "kind"), [("SimpleITK", "volumes"), ("tifffile", "slides"), ("zarr", "slides")])
def test_the_server_says_what_it_can_read(
    missing: str, kind: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = http.get("/v1/info").json()["reads"]
    assert "pictures" in found
    pytest.importorskip(missing)
    assert kind in found
    monkeypatch.setitem(sys.modules, missing, None)
    assert http.get("/v1/info").json()["reads"] == [k for k in found if k != kind]


def test_clicks_over_rest_are_those_of_a_session(http: httpx.Client, path: str, engine: Engine) -> None:
    session = Session(engine=engine)
    session.set_image(picture())
    for x, y, positive in ((60.5, 60.0, True), (150.0, 20.0, False), (48.25, 70.5, True)):
        answer = http.post(f"{path}/clicks", json={"x": x, "y": y, "positive": positive}).json()
        session.click(x, y, positive)
        assert np.array_equal(masks.from_coco_rle(answer["rle"]), session.mask)
        assert answer["area"] == session.mask.sum()
    assert http.post(f"{path}/undo?rle=false").json()["rle"] is None
    session.undo()
    (found,) = http.get(f"{path}/suggestions?k=1").json() or [None]
    best = session.suggest(1)
    assert (found and (found["x"], found["y"])) == ((best[0].x, best[0].y) if best else None)
    heat = np.asarray(Image.open(io.BytesIO(http.get(f"{path}/uncertainty").content)))
    assert np.abs(heat / 255 - session.uncertainty).max() < 1 / 255
    assert http.post(f"{path}/reset").json()["area"] == 0
    assert http.post(f"{path}/undo").json()["changed"] is False
    assert http.post(f"{path}/redo").json()["changed"] is True


def test_prompts_over_rest_are_those_of_a_session(http: httpx.Client, path: str, engine: Engine) -> None:
    session = Session(engine=engine)
    session.set_image(picture())
    for body, call in (
        ({"op": "box", "x0": 20, "y0": 30, "x1": 110, "y1": 90}, lambda: session.box(20, 30, 110, 90)),
        ({"op": "scribble", "points": [[30, 40], [50, 41]], "positive": False},
         lambda: session.scribble([(30, 40), (50, 41)], False)),
        ({"op": "lasso", "points": [[60, 40], [90, 40], [80, 80]]},
         lambda: session.lasso([(60, 40), (90, 40), (80, 80)])),
        ({"op": "click", "x": 60, "y": 60}, lambda: session.click(60, 60)),
    ):  # fmt: skip
        answer = http.post(f"{path}/prompts", json=body)
        assert answer.status_code == 200, answer.text
        call()
        assert np.array_equal(masks.from_coco_rle(answer.json()["rle"]), session.mask)
    assert [p["op"] for p in answer.json()["object"]["prompts"]] == ["box", "scribble", "lasso", "click"]
    for body in (
        {"op": "box", "x0": 20, "y0": 30, "x1": 10, "y1": 90},
        {"op": "box", "x0": 1e6, "y0": 30, "x1": 2e6, "y1": 90},
        {"op": "scribble", "points": [[1e6, 3]]},
        {"op": "lasso", "points": [[1, 3], [4, 5]]},
        {"op": "lasso", "points": [[1, 3], [4, 3], [2, 3]]},
        {"op": "scribble", "points": []},
        {"op": "scribble", "points": [[1, 2, 3]]},
        {"op": "lasso", "points": [[1, 2]] * 10_001},
        {"op": "star", "points": [[1, 2]]},
        {"x": 1},
        [],
    ):
        refused = http.post(f"{path}/prompts", json=body)
        assert refused.status_code in (400, 422)
        assert refused.json()["detail"]
    assert http.get(path).json()["objects"][0]["undo"] == 4


def test_an_object_that_is_deleted_leaves_the_others_as_they_are(http: httpx.Client, path: str, engine: Engine) -> None:
    found = []
    for x in (20, 90, 150):
        found.append(masks.from_coco_rle(http.post(f"{path}/clicks", json={"x": x, "y": 50}).json()["rle"]))
        http.post(f"{path}/objects")
    http.delete(f"{path}/objects/2")
    for number, mask in ((1, found[0]), (3, found[2])):
        http.post(f"{path}/objects/{number}/select")
        assert http.post(f"{path}/undo").json()["changed"]
        assert np.array_equal(masks.from_coco_rle(http.post(f"{path}/redo").json()["rle"]), mask)


def test_exports_hold_all_objects(http: httpx.Client, path: str) -> None:
    first = masks.from_coco_rle(http.post(f"{path}/clicks", json={"x": 60, "y": 60}).json()["rle"])
    http.put(f"{path}/objects/1/name", json={"name": "nævus"})
    assert http.post(f"{path}/objects").json()["object"] == 2
    second = masks.from_coco_rle(http.post(f"{path}/clicks", json={"x": 170, "y": 10}).json()["rle"])
    assert first.any()
    assert second.any()

    answer = http.get(f"{path}/exports/png")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20blob-object2.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))) == 255, second)
    labels = np.asarray(Image.open(io.BytesIO(http.get(f"{path}/exports/labels").content)))
    assert np.array_equal(labels, np.where(second, 2, first))

    coco = http.get(f"{path}/exports/coco").json()
    assert coco["images"] == [{"id": 1, "file_name": "a blob.png", "width": WIDTH, "height": HEIGHT}]
    assert [c["name"] for c in coco["categories"]] == ["nævus", "object"]
    for annotation, mask in zip(coco["annotations"], (first, second), strict=True):
        assert np.array_equal(masks.from_coco_rle(annotation["segmentation"]), mask)
        x0, y0, x1, y1 = changed_box(None, mask) or ()
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert annotation["area"] == mask.sum()

    features = http.get(f"{path}/exports/geojson").json()["features"]
    assert [f["properties"]["object"] for f in features] == [1, 2]
    assert features[0]["properties"]["classification"]["name"] == "nævus"


def test_coco_is_read_by_pycocotools(http: httpx.Client, path: str, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    mask = masks.from_coco_rle(http.post(f"{path}/clicks", json={"x": 60, "y": 60}).json()["rle"])
    (tmp_path / "coco.json").write_bytes(http.get(f"{path}/exports/coco").content)
    read = coco.COCO(str(tmp_path / "coco.json"))
    (annotation,) = read.loadAnns(read.getAnnIds())
    assert np.array_equal(read.annToMask(annotation) != 0, mask)


def test_a_slow_upload_keeps_its_session(engine: Engine, tmp_path: Path) -> None:
    server = Server(engine, tmp_path, limits=Limits(sessions=1))
    data, at_work, go_on = png(picture()), threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield data[:1000]
        at_work.set()
        go_on.wait(PATIENCE)
        yield data[1000:]

    try:
        with server.http() as http, ThreadPoolExecutor(1) as pool:
            path = f"/v1/sessions/{http.post('/v1/sessions').json()['id']}"
            upload = pool.submit(http.put, f"{path}/image", content=slowly())
            assert at_work.wait(PATIENCE)
            deadline = time.monotonic() + 20
            while not next(iter(server.sessions._works.values())).connections and time.monotonic() < deadline:
                time.sleep(0.01)
            full = http.post("/v1/sessions")
            go_on.set()
            assert upload.result(PATIENCE).status_code == 200
            assert full.status_code == 503
            assert http.post(f"{path}/clicks", json={"x": 60, "y": 60}).status_code == 200
            assert http.post("/v1/sessions").status_code == 201, "its place is free again"
    finally:
        go_on.set()
        server.close()


def test_what_waits_for_a_session_that_ends_is_told_so(
    http: httpx.Client, path: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, click = threading.Event(), threading.Event(), batches.click_batch

    def slow(*arguments: Any) -> Any:
        started.set()
        go_on.wait(PATIENCE)
        return click(*arguments)

    monkeypatch.setattr(batches, "click_batch", slow)
    work = server.sessions._works[path.rsplit("/", 1)[1]]

    def waiting(count: int) -> None:
        while len(work.lock._waiters or ()) < count:
            time.sleep(0.01)

    with ThreadPoolExecutor(5) as pool:
        try:
            first = pool.submit(http.post, f"{path}/clicks", json={"x": 60, "y": 60})
            assert started.wait(PATIENCE)
            ended = pool.submit(http.delete, path)
            waiting(1)
            late = [
                pool.submit(http.post, f"{path}/clicks", json={"x": 150, "y": 20}),
                pool.submit(http.get, f"{path}/exports/png"),
                pool.submit(http.put, f"{path}/image", content=png(picture())),
            ]
            waiting(4)
        finally:
            go_on.set()
        assert ended.result().status_code == 204
        assert first.result().status_code in (200, 410)  # the click was made; its mask is read after the end
        assert [(answer.result().status_code, "open it again" in answer.result().text) for answer in late] == [
            (410, True)
        ] * 3


def test_a_folder_is_annotated_to_the_end(http: httpx.Client, server: Server) -> None:
    names = [p["name"] for p in http.get("/v1/pictures").json()]
    assert LESION.name in names
    first = http.post("/v1/sessions", json={"picture": LESION.name}).json()
    http.post(f"/v1/sessions/{first['id']}/clicks", json={"x": 160, "y": 230})
    assert http.post("/v1/sessions", json={"picture": LESION.name}).json()["id"] == first["id"], "it keeps its session"
    assert http.put("/v1/pictures/status", json={"picture": LESION.name, "status": "done"}).status_code == 200
    found = {p["name"]: p["status"] for p in http.get("/v1/pictures").json()}
    assert found[LESION.name] == "done"
    coco = http.get("/v1/pictures/coco").json()
    assert [i["file_name"] for i in coco["images"]] == [LESION.name]
    assert len(coco["annotations"]) == 1
    http.put("/v1/pictures/status", json={"picture": LESION.name, "status": "open"})
    assert http.get("/v1/pictures/coco").json()["images"] == []
    assert http.put("/v1/pictures/status", json={"picture": LESION.name, "status": "lost"}).status_code == 422


def test_pictures_that_go_from_the_folder_do_not_keep_the_others_from_coco(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "images" / name).write_bytes(png(picture()))
    server = Server(engine, tmp_path / "journal", tmp_path / "images")
    try:
        with server.http() as http:
            begun = {}
            for name in ("a.png", "b.png"):
                begun[name] = http.post("/v1/sessions", json={"picture": name}).json()["id"]
                http.post(f"/v1/sessions/{begun[name]}/clicks", json={"x": 60, "y": 60})
                http.put("/v1/pictures/status", json={"picture": name, "status": "done"})
            (tmp_path / "images" / "a.png").unlink()
            server.sessions._works.pop(begun["a.png"]).close()
            assert [i["file_name"] for i in http.get("/v1/pictures/coco").json()["images"]] == ["b.png"]
            http.delete(f"/v1/sessions/{begun['b.png']}")
            answer = http.get("/v1/pictures/coco")
            assert answer.status_code == 409
            assert "b.png" in answer.json()["detail"]
            assert http.post("/v1/sessions", json={"picture": "b.png"}).status_code == 201
            assert len(http.get("/v1/pictures/coco").json()["images"]) == 1
    finally:
        server.close()


def test_a_picture_that_cannot_be_read_is_named(
    http: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    answer = http.post("/v1/sessions", json={"picture": "ISIC_0013793.jpg"})
    assert answer.status_code == 409
    assert answer.json()["detail"] == "the picture ISIC_0013793.jpg cannot be read: Permission denied"


@pytest.mark.parametrize("value", [1e30, -3e38])
def test_a_picture_of_one_huge_value_is_shown(http: httpx.Client, path: str, value: float) -> None:
    data = io.BytesIO()
    Image.fromarray(np.full((20, 30), value, np.float32)).save(data, "TIFF")
    low, high = http.put(f"{path}/image?name=flat.tif", content=data.getvalue()).json()["window"]
    assert low < high
    assert http.get(f"{path}/image").status_code == 200
    assert http.post(f"{path}/clicks", json={"x": 5, "y": 5}).status_code == 200


def test_sessions_that_come_back_at_once_have_a_limit(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(engine, tmp_path, limits=Limits(sessions=2))
    try:
        with server.http() as http, ThreadPoolExecutor(6) as pool:
            paths = []
            for seed in range(6):
                paths.append(f"/v1/sessions/{http.post('/v1/sessions').json()['id']}")
                http.put(f"{paths[-1]}/image", content=png(picture(seed=seed)))
            for identity in list(server.sessions._works):
                server.sessions._works.pop(identity).close()
            counts, read = [], Journals.open

            def slowly(*arguments: Any) -> Any:
                time.sleep(0.2)
                return read(*arguments)

            def decode(*arguments: Any) -> Any:
                counts.append(len(server.sessions))
                time.sleep(0.2)
                return read_picture(*arguments)

            monkeypatch.setattr(Journals, "open", slowly)
            monkeypatch.setattr(sessions, "read_picture", decode)
            statuses = sorted(answer.status_code for answer in pool.map(http.get, paths))
            assert max(counts) <= 2
            assert statuses[:2] == [200, 200]
            assert set(statuses[2:]) <= {200, 503}
            assert [http.get(p).status_code for p in paths] == [200] * 6, "those that were refused come back later"
    finally:
        server.close()


def test_a_name_that_is_no_text_costs_only_its_own_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(LESION.read_bytes())
    except OSError:
        pytest.skip("names here are always text")
    names = ["a\nb.png", "\u00fc \U0001f600.png", "100%#?.png"]
    for name in names:
        (tmp_path / name).touch()
    folder = Folder(tmp_path)
    assert folder.names() == sorted(names)
    assert "no UTF-8" in caplog.text
    with pytest.raises(NotFoundError, match="no picture"):
        folder.path(os.fsdecode(b"\xff.png"))


def test_a_folder_that_is_gone_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    folder = Folder(tmp_path / "p")
    assert folder.names() == []
    (tmp_path / "p").rmdir()
    with pytest.raises(NotFoundError, match="is gone"):
        folder.names()


def test_the_description_is_complete(http: httpx.Client) -> None:
    api = http.get("/v1/openapi.json").json()
    for path, methods in api["paths"].items():
        for method, what in methods.items():
            if path.startswith("/v1/"):
                assert what.get("description"), f"{method} {path} says nothing of itself"
    assert "/v1/sessions/{identity}/clicks" in api["paths"]
    assert "/" not in api["paths"]


def test_many_sessions_click_at_once_and_get_their_own_masks(server: Server, engine: Engine) -> None:
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        with Client(server.url) as client:
            client.begin(png(picture(seed=seed)))
            for x, y in ((60, 60), (150, 20), (48, 70)):
                client.ask("click", x=x, y=y, positive=y > 30)
            found[seed] = client.mask().copy()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    session = Session(engine=engine)
    for seed in range(6):
        session.set_image(picture(seed=seed))
        for x, y in ((60, 60), (150, 20), (48, 70)):
            session.click(x, y, y > 30)
        # batches differ from single clicks by floating-point noise: pixels at the threshold may turn
        assert (found[seed] != session.mask).mean() < 0.002


def test_a_clicks_answer_is_json_only(http: httpx.Client, path: str) -> None:
    for body in (
        b"",
        b"{",
        b"[]",
        b'{"x": NaN, "y": 1}',
        b'{"x": 1e999, "y": 1}',
        b"\xff",
        b'{"x": 1, "y": 1, "op": "undo"}',
    ):
        answer = http.post(f"{path}/clicks", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), (body, answer.text)
        assert isinstance(json.loads(answer.text)["detail"], str)
