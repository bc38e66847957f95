"""The WebSocket against a `Session` in this process: the same clicks must give the same masks."""

import base64
import gzip
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed

from activefreq_engine import ClickResult, Engine, Session
from activefreq_engine.serve import batches
from activefreq_engine.session.zoom import network_shape
from activefreq_engine.types import Prompt

from .client import HEIGHT, LESION, PATIENCE, WIDTH, Client, picture, png
from .conftest import Server

CLICKS = [(60.5, 60.0, True), (150.0, 20.0, False), (48.25, 70.5, True), (90.0, 12.0, False)]


@pytest.fixture
def session(engine: Engine) -> Session:
    session = Session(engine=engine)
    session.set_image(picture())
    return session


def test_clicks_undo_and_redo_give_the_masks_of_a_session(client: Client, session: Session) -> None:
    for n, (x, y, positive) in enumerate(CLICKS, 1):
        done = client.ask("click", x=x, y=y, positive=positive)
        session.click(x, y, positive)
        assert done["objects"][0]["clicks"][-1] == [x, y, positive]
        assert np.array_equal(client.mask(), session.mask), f"after click {n}"
    assert client.mask().any()
    for _ in CLICKS:
        client.ask("undo")
        session.undo()
        assert np.array_equal(client.mask(), session.mask)
    assert not client.mask().any()
    for _ in CLICKS[:2]:
        client.ask("redo")
        session.redo()
        assert np.array_equal(client.mask(), session.mask)
    client.ask("reset")
    assert not client.mask().any()
    done = client.ask("redo")
    assert (done["objects"][0]["undo"], done["objects"][0]["redo"]) == (1, 3)


PROMPTS = [
    {"op": "box", "x0": 20, "y0": 30.5, "x1": 110, "y1": 90},
    {"op": "scribble", "points": [[60, 60], [75.5, 62], [80, 70]], "positive": True},
    {"op": "lasso", "points": [[20, 30], [60, 30], [60, 50], [20, 50]], "positive": False},
    {"op": "click", "x": 61.5, "y": 60.0, "positive": True},
    {"op": "lasso", "points": [[100, 40], [140, 40], [120, 80]], "positive": True},
]


def test_prompts_of_all_kinds_are_those_of_a_session(client: Client, session: Session) -> None:
    calls = [
        lambda: session.box(20, 30.5, 110, 90),
        lambda: session.scribble([(60, 60), (75.5, 62), (80, 70)]),
        lambda: session.lasso([(20, 30), (60, 30), (60, 50), (20, 50)], positive=False),
        lambda: session.click(61.5, 60.0),
        lambda: session.lasso([(100, 40), (140, 40), (120, 80)]),
    ]
    client.ask("click", x=5, y=5, positive=True)
    session.click(5, 5)
    for n, (prompt, call) in enumerate(zip(PROMPTS, calls, strict=True), 1):
        op, rest = prompt["op"], {k: v for k, v in prompt.items() if k != "op"}
        done = client.ask(op, **rest)
        call()
        assert done["objects"][0]["prompts"] == PROMPTS[:n]  # a box begins anew
        assert len(done["objects"][0]["clicks"]) == len(session.clicks)
        assert np.array_equal(client.mask(), session.mask), f"after prompt {n}"
    for _ in calls:
        client.ask("undo")
        session.undo()
        assert np.array_equal(client.mask(), session.mask)
    for _ in calls[:3]:
        client.ask("redo")
        session.redo()
    client.dial(client.state["id"])
    assert client.state["objects"][0]["prompts"] == PROMPTS[:3]
    assert np.array_equal(client.mask(), session.mask)


def test_stale_answers_are_dropped_and_the_last_mask_is_right(client: Client, session: Session) -> None:
    for x, y, positive in CLICKS:
        client.post("click", x=x, y=y, positive=positive)
        session.click(x, y, positive)
    while client.take("done")["seq"] != client.seq:
        continue
    assert np.array_equal(client.mask(), session.mask)


@pytest.mark.parametrize("last", ["an undo too many", "another object", "a refusal", "the uncertainty"])
def test_masks_whose_answers_were_dropped_come_with_the_last_answer(client: Client, last: str) -> None:
    client.ask("click", x=150, y=20, positive=True)
    client.post("click", x=60, y=60, positive=True)
    if last == "an undo too many":
        for _ in range(3):
            client.post("undo")
    elif last == "another object":
        client.post("next")
    elif last == "a refusal":
        client.post("click", x=WIDTH, y=60, positive=True)
    else:
        client.raw(json.dumps({"op": "uncertainty", "on": True}))
        client.take_heat()
    while last != "the uncertainty" and client.take("done", "error")["seq"] != client.seq:
        continue
    shown = client.mask().copy()
    client.dial(client.state["id"])
    assert np.array_equal(shown, client.mask())
    assert client.mask().any() == (last != "an undo too many")


def test_objects_keep_their_masks_steps_and_names(client: Client) -> None:
    client.ask("click", x=60, y=60, positive=True)
    first = client.mask(1).copy()
    client.ask("next")
    assert client.state["object"] == 2
    assert client.ask("next")["object"] == 2, "an untouched object is used again"
    client.ask("click", x=170, y=10, positive=True)
    second = client.mask(2).copy()
    assert second.any()
    client.ask("next")
    client.ask("select", object=1)
    client.ask("rename", object=1, name="nævus")
    client.ask("undo")
    assert not client.mask(1).any()
    assert np.array_equal(client.mask(2), second)
    client.ask("redo")
    assert np.array_equal(client.mask(1), first)
    client.ask("delete", object=2)
    assert [o["number"] for o in client.state["objects"]] == [1, 3]
    client.ask("next")
    client.ask("click", x=60, y=60, positive=True)
    assert np.array_equal(client.mask(3), first), "a new object starts blank, whatever was deleted"
    client.ask("delete", object=3)
    client.ask("delete", object=1)
    assert [o["number"] for o in client.state["objects"]] == [4], "there is always one"


def test_everything_is_back_after_a_reconnect(client: Client) -> None:
    for x, y, positive in CLICKS:
        client.ask("click", x=x, y=y, positive=positive)
    client.ask("next")
    client.ask("click", x=170, y=10, positive=True)
    client.ask("undo")
    before, masks = client.state, {n: m.copy() for n, m in client.masks.items()}
    client.dial(before["id"])
    assert client.state["objects"] == before["objects"]
    for number, mask in masks.items():
        assert np.array_equal(client.mask(number), mask)


def test_a_request_that_is_sent_again_is_not_carried_out_again(client: Client) -> None:
    client.ask("click", x=60, y=60, positive=True)
    client.raw(json.dumps({"op": "click", "seq": client.seq, "x": 60, "y": 60, "positive": True}))
    assert len(client.take("done")["objects"][0]["clicks"]) == 1


def test_what_was_received_is_carried_out_though_the_page_has_gone(client: Client, session: Session) -> None:
    for n in range(6):
        client.post("click", x=60 + n, y=60, positive=True)
        session.click(60 + n, 60)
    client.hang_up()
    client.dial(client.state["id"])  # at once: the state that is told has all of it
    assert len(client.state["objects"][0]["clicks"]) == 6
    assert client.state["seq"] == 6
    assert np.array_equal(client.mask(), session.mask)


def test_a_page_is_told_of_another_picture_and_its_clicks_are_not_made_there(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, click = threading.Event(), threading.Event(), batches.click_batch

    def slow(sessions: list[Session], prompts: list[Prompt]) -> list[ClickResult]:
        started.set()
        go_on.wait(PATIENCE)
        return click(sessions, prompts)

    identity, address = client.state["id"], f"/v1/sessions/{client.state['id']}/image?name=other.png"
    with ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(batches, "click_batch", slow)
            client.post("click", x=60, y=60, positive=True)
            assert started.wait(PATIENCE)
            put = pool.submit(client.http.put, address, content=png(picture(50, 90)))
            time.sleep(0.5)
            client.post("click", x=20, y=20, positive=True)
            go_on.set()
            assert put.result(PATIENCE).status_code == 200
        with pytest.raises(ConnectionClosed) as closed:
            client.take("never")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012, "the page connects anew"
    client.dial(identity)
    assert client.state["picture"]["name"] == "other.png"
    assert client.state["objects"][0]["clicks"] == []
    assert not client.mask().any()
    assert client.ask("click", x=20, y=60, positive=True)["type"] == "done"


def test_a_page_is_told_that_its_session_is_over(client: Client) -> None:
    client.ask("click", x=60, y=60, positive=True)
    assert client.http.delete(f"/v1/sessions/{client.state['id']}").status_code == 204
    with pytest.raises(ConnectionClosed) as closed:
        client.ask("click", x=61, y=60, positive=True)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4404


def test_suggestions_and_uncertainty_follow_the_mask(client: Client, session: Session) -> None:
    client.begin(LESION.read_bytes(), "lesion.jpg")
    session.set_image(LESION)
    client.ask("click", x=160, y=230, positive=True)
    session.click(160, 230)
    items = client.take("suggestions")["items"]
    best = session.suggest(1)[0]
    assert (items[0]["x"], items[0]["y"], items[0]["positive"]) == (best.x, best.y, best.positive)
    client.raw(json.dumps({"op": "uncertainty", "on": True}))
    heat = client.take_heat()
    assert heat.shape == session.shape
    assert np.abs(heat / 255 - session.uncertainty).max() < 1 / 255


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"op": "click", "x": WIDTH, "y": 5, "positive": True}, "outside the picture"),
        ({"op": "click", "x": 5, "y": -0.1, "positive": True}, "outside the picture"),
        ({"op": "click", "x": "5", "y": 5}, "number"),
        ({"op": "click", "x": 1e400, "y": 5}, "finite"),
        ({"op": "click", "x": 5, "y": 5, "positive": 1}, "bool"),
        ({"op": "click", "x": 5}, "required"),
        ({"op": "click", "x": 5, "y": 5, "more": 1}, "xtra"),
        ({"op": "select", "object": 7}, "there is no object 7"),
        ({"op": "slice", "index": 1}, "there is no slice 1"),
        ({"op": "window", "low": 0, "high": 1}, "8 bits"),
        ({"op": "mask", "png": "AAAA"}, "cannot|not"),
        ({"op": "explode"}, "does not match"),
        ({}, "discriminator"),
    ],
)
def test_a_bad_request_is_refused_in_words_and_changes_nothing(
    client: Client, request_: dict[str, object], word: str
) -> None:
    client.ask("click", x=60, y=60, positive=True)
    before = client.mask().copy()
    client.seq += 1
    client.raw(json.dumps({**request_, "seq": client.seq}))
    error = client.take("error")
    assert error["seq"] == client.seq
    assert any(w in error["message"] for w in word.split("|")), error
    done = client.ask("undo")
    assert done["objects"][0]["redo"] == 1
    client.ask("redo")
    assert np.array_equal(client.mask(), before)


def test_a_mask_is_loaded_and_clicks_go_on_from_it(client: Client, session: Session) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[20:70, 30:110] = True
    client.ask("mask", png=base64.b64encode(png(mask.astype(np.uint8) * 255)).decode())
    assert np.array_equal(client.mask(), mask)
    client.ask("click", x=40, y=80, positive=True)
    session.load_mask(mask)
    session.click(40, 80)
    assert np.array_equal(client.mask(), session.mask)
    client.ask("undo")
    client.ask("undo")
    assert not client.mask().any()


def test_a_deep_picture_has_a_window_and_clicks_are_made_anew(client: Client, engine: Engine) -> None:
    deep = picture()[..., 0].astype(np.uint16) * 200 + 1000
    client.begin(png(deep))
    low, high = client.state["window"]
    session = Session(engine=engine)
    session.set_image(deep, window=(low, high))
    client.ask("click", x=60, y=60, positive=True)
    session.click(60, 60)
    assert np.array_equal(client.mask(), session.mask)
    client.ask("window", low=10_000, high=30_000)
    session.set_image(deep, window=(10_000, 30_000))
    session.click(60, 60)
    assert np.array_equal(client.mask(), session.mask)


def test_a_volume_is_segmented_slice_by_slice(client: Client, engine: Engine, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="volumes need SimpleITK")
    planes = np.stack([picture(seed=i)[..., 0] for i in range(3)]).astype(np.int16)
    image = sitk.GetImageFromArray(planes)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((-10, 20, 5))
    path = f"{tmp_path}/volume.nii.gz"
    sitk.WriteImage(image, path)
    identity = client.begin(Path(path).read_bytes(), "volume.nii.gz")
    assert client.state["picture"]["slices"] == 3
    client.ask("slice", index=2)
    assert not client.mask().any()
    client.ask("click", x=60, y=60, positive=True)
    there = client.mask().copy()
    assert there.any()
    client.ask("slice", index=0)
    assert not client.mask().any()
    client.ask("next")
    client.ask("click", x=150, y=20, positive=True)
    here = client.mask(2).copy()
    client.ask("slice", index=2)
    assert np.array_equal(client.mask(1), there)
    assert not client.mask(2).any()

    exported = client.http.get(f"/v1/sessions/{identity}/exports/nifti").content
    Path(f"{tmp_path}/labels.nii.gz").write_bytes(exported)
    labels = sitk.ReadImage(f"{tmp_path}/labels.nii.gz")
    assert labels.GetSpacing() == pytest.approx(image.GetSpacing())
    assert labels.GetOrigin() == pytest.approx(image.GetOrigin())
    assert exported[:2] == b"\x1f\x8b"
    assert gzip.decompress(exported)[252:328] == gzip.decompress(Path(path).read_bytes())[252:328]
    found = sitk.GetArrayFromImage(labels)
    assert np.array_equal(found[2] == 1, there)
    assert np.array_equal(found[0] == 2, here)
    assert not found[1].any()


def test_the_latest_connection_has_the_session(server: Server, client: Client) -> None:
    with Client(server.url) as other:
        other.dial(client.state["id"])
        with pytest.raises(ConnectionClosed) as closed:
            client.ask("undo")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4409
        assert other.ask("click", x=60, y=60, positive=True)["type"] == "done"


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"op": "click"', "[" * 100_000, b"\x00\xff"])
def test_what_is_not_json_ends_the_connection_and_nothing_else(client: Client, text: str | bytes) -> None:
    client.ask("click", x=60, y=60, positive=True)
    client.raw(text)
    with pytest.raises(ConnectionClosed):
        client.take("never")
    client.dial(client.state["id"])
    assert client.mask().any()


def test_a_server_closes_while_a_click_is_at_work(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(engine, tmp_path)
    with Client(server.url) as client:
        client.begin()
        client.ask("click", x=40.5, y=60.5, positive=True)
        (part,) = next(iter(server.sessions._works.values()))._slices.values()
        held = threading.Event()

        def hold() -> None:
            with part.session._turn():  # as a click holds it
                held.set()
                time.sleep(0.3)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        server.sessions.close()  # what the server calls last
        thread.join()
    monkeypatch.setattr(server.sessions, "close", lambda: None)
    server.close()


def test_a_session_that_ends_during_a_click_keeps_nobody_else_waiting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, click = threading.Event(), threading.Event(), batches.click_batch

    def slow(sessions: list[Session], prompts: list[Prompt]) -> list[ClickResult]:
        with sessions[0]._turn():  # as a click holds it
            started.set()
            go_on.wait()
        return click(sessions, prompts)

    with Client(server.url) as client, ThreadPoolExecutor(2) as pool:
        client.begin()
        monkeypatch.setattr(batches, "click_batch", slow)
        try:
            clicked = pool.submit(client.ask, "click", x=90.5, y=10.5, positive=True)
            started.wait()
            ended = pool.submit(client.http.delete, f"/v1/sessions/{client.state['id']}")
            time.sleep(0.3)
            assert client.http.get("/v1/info", timeout=60).status_code == 200
            assert not ended.done()
        finally:
            go_on.set()
        assert ended.result().status_code == 204
        assert clicked.exception() is None or isinstance(clicked.exception(), ConnectionClosed)  # its session is over


def test_the_picture_comes_back_as_it_is_shown(client: Client) -> None:
    data = client.http.get(f"/v1/sessions/{client.state['id']}/image").content
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture())


def test_what_is_shown_is_looked_at_before_the_first_click(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[int, ...]] = []
    prepare = Engine.prepare

    def spy(self: Engine, crop: np.ndarray, *rest: object) -> object:
        looked.append(crop.shape)
        return prepare(self, crop, *rest)

    monkeypatch.setattr(Engine, "prepare", spy)
    server = Server(engine, tmp_path)
    try:
        with Client(server.url) as client:
            client.begin()
            deadline = time.monotonic() + PATIENCE
            while not looked:
                assert time.monotonic() < deadline, "nobody looks at the picture"
                time.sleep(0.01)
            assert looked == [(*network_shape((0, 0, WIDTH, HEIGHT), engine.size), 3)]
            client.ask("click", x=60, y=60, positive=True)
            assert client.mask().any()
    finally:
        server.close()
