"""Label Studio's four routes: what comes in, what goes out, and where pictures may come from.

A server of this test stands in for Label Studio where pictures are fetched; tests/tools/test_label_studio.py has the
real one.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest

from activefreq_engine import Engine, Session, masks
from activefreq_engine.errors import ActiveFreqError
from activefreq_engine.serve.errors import ServeError
from activefreq_engine.serve.label_studio import LabelStudio

from .client import HEIGHT, PATIENCE, WIDTH, picture, png
from .conftest import Server

CONFIG = (
    '<View><!-- what is asked --><Image name="img" value="$photo"/>'
    '<BrushLabels name="brush" toName="img"><Label value="Blob"/></BrushLabels>'
    '<KeyPointLabels name="points" toName="img" smart="true"><Label value="Blob"/></KeyPointLabels></View>'
)
KEY = "legacy-key"
PERSONAL = "personal.refresh.key"


class Pictures(BaseHTTPRequestHandler):
    """Gives its picture to those who know the key."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        known = self.headers.get("Authorization") in (f"Token {KEY}", "Bearer short-lived")
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
        else:
            self.send_response(200 if known else 401)
        data = png(picture()) if known and not self.path.startswith("/away") else b""
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, sent) == ("/api/token/refresh", {"refresh": PERSONAL})
        data = json.dumps({"access": "short-lived"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def studio() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def backend(engine: Engine, studio: Any) -> Iterator[Server]:
    server = Server(engine, label_studio=f"http://127.0.0.1:{studio.server_port}/")
    yield server
    server.close()


@pytest.fixture
def ask(backend: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=backend.url + "/label-studio", timeout=PATIENCE) as client:
        assert client.post("/setup", json={"project": "1.2", "access_token": KEY}).json()["model_version"]
        yield client


def keypoint(x: float, y: float, positive: bool = True, **other: Any) -> dict[str, Any]:
    return {
        "type": "keypointlabels",
        "to_name": "img",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "is_positive": int(positive),
        "value": {"x": x * 100 / WIDTH, "y": y * 100 / HEIGHT, "width": 0.4, "keypointlabels": ["Blob"]},
        **other,
    }


def request(result: Any, url: str = "/data/upload/blob.png", **other: Any) -> dict[str, Any]:
    return {
        "tasks": [{"id": 5, "data": {"photo": url}}],
        "project": "1.1700000000",
        "label_config": CONFIG,
        "params": {"context": {"result": result}},
        **other,
    }


def test_key_points_become_a_brush_region(ask: httpx.Client, engine: Engine) -> None:
    assert ask.get("/health").json()["status"] == "UP"
    clicks = [keypoint(63.5, 58.5), keypoint(160.5, 20.5, positive=False)]
    with Session(engine=engine) as session:
        session.set_image(png(picture()))
        expected = [
            session.predict([[63.5, 58.5]], [1]).mask,
            session.predict([[63.5, 58.5], [160.5, 20.5]], [1, 0]).mask,
        ]
    for count, mask in enumerate(expected, 1):
        answer = ask.post("/predict", json=request(clicks[:count])).json()
        (region,) = answer["results"][0]["result"]
        assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "img", "brushlabels")
        assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
        assert region["value"]["brushlabels"] == ["Blob"]
        assert region["value"]["rle"] == masks.to_label_studio_rle(mask)
    assert ask.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 200


def rectangle(x: float, y: float, width: float, height: float, **other: Any) -> dict[str, Any]:
    value = {
        "x": x * 100 / WIDTH,
        "y": y * 100 / HEIGHT,
        "width": width * 100 / WIDTH,
        "height": height * 100 / HEIGHT,
        "rectanglelabels": ["Blob"],
        **other,
    }
    return keypoint(0, 0, type="rectanglelabels", value=value)


def test_a_rectangle_is_a_box(ask: httpx.Client, engine: Engine) -> None:
    x0, y0, x1, y1 = 20.0, 25.0, 106.0, 92.5
    drawn = rectangle(x0, y0, x1 - x0, y1 - y0)
    unlabelled = {
        **drawn,
        "type": "rectangle",
        "value": {k: v for k, v in drawn["value"].items() if k != "rectanglelabels"},
    }
    with Session(engine=engine) as session:
        session.set_image(png(picture()))
        expected = [
            session.predict([], [], box=(x0, y0, x1, y1)).mask,
            session.predict([[160.5, 20.5]], [0], box=(x0, y0, x1, y1)).mask,
        ]
    assert expected[0].any()
    for first in (drawn, unlabelled):
        for results, mask in zip(([first], [first, keypoint(160.5, 20.5, False)]), expected, strict=True):
            answer = ask.post("/predict", json=request(results, "/data/boxed.png")).json()
            found = [region["value"]["rle"] for region in answer["results"][0]["result"]]
            assert found == ([masks.to_label_studio_rle(mask)] if mask.any() else [])


def test_a_rotated_rectangle_is_the_box_around_it(ask: httpx.Client) -> None:
    """Label Studio turns a rectangle clockwise, around the corner that it gives."""
    for degrees, turned, box in (
        (90, (106.4, 25.4, 67.0, 86.0), (20.4, 25.4, 106.4, 92.4)),
        (180, (106.4, 92.4, 86.0, 67.0), (20.4, 25.4, 106.4, 92.4)),
        (45, (60.4, 20.4, 40 * 2**0.5, 20 * 2**0.5), (40.4, 20.4, 100.4, 80.4)),
    ):
        x0, y0, x1, y1 = box
        found = []
        for drawn in (rectangle(*turned, rotation=degrees), rectangle(x0, y0, x1 - x0, y1 - y0, rotation=0)):
            answer = ask.post("/predict", json=request([drawn], "/data/turned.png")).json()
            (region,) = answer["results"][0]["result"]
            found.append(region["value"]["rle"])
        assert found[0] == found[1], degrees


def test_of_two_pictures_the_one_that_was_clicked(ask: httpx.Client, studio: Any) -> None:
    config = (
        '<View><Image name="left" value="$first"/><Image name="right" value="$second"/>'
        '<BrushLabels name="on_left" toName="left"/><BrushLabels name="on_right" toName="right"/></View>'
    )
    tasks = [{"id": 5, "data": {"first": "/data/left.png", "second": "/data/right.png"}}]
    for clicked, brush in (("right", "on_right"), ("left", "on_left")):
        studio.asked.clear()
        results = [keypoint(63, 58, to_name="left"), keypoint(63, 58, to_name=clicked)]
        answer = ask.post("/predict", json=request(results, label_config=config, tasks=tasks)).json()
        (region,) = answer["results"][0]["result"]
        assert (region["from_name"], region["to_name"]) == (brush, clicked)
        assert studio.asked == [f"/data/{clicked}.png"]


def test_without_prompts_there_is_no_region(ask: httpx.Client) -> None:
    assert ask.post("/predict", json=request([])).json()["results"][0]["result"] == []
    assert ask.post("/predict", json=request([], params={})).json() == {"results": []}


def test_the_far_edge_is_the_last_pixel(ask: httpx.Client) -> None:
    answer = ask.post("/predict", json=request([keypoint(WIDTH, HEIGHT)], "/data/corner.png"))
    assert answer.status_code == 200, answer.text


def test_pictures_come_from_label_studio_alone(ask: httpx.Client, studio: Any, engine: Engine) -> None:
    own = f"http://127.0.0.1:{studio.server_port}"
    point = [keypoint(63, 58)]
    assert ask.post("/predict", json=request(point, own + "/data/a.png")).status_code == 200
    assert ask.post("/predict", json=request(point, "/away?/data/b.png")).status_code == 200
    studio.asked.clear()
    for url in (
        "http://localhost:1/x.png",
        "//localhost:1/x.png",
        f"http://localhost:{studio.server_port}/x.png",
        f"{own}@localhost/x.png",
        "file:///etc/passwd",
        "s3://bucket/x.png",
        "data:image/png;base64,AAAA",
    ):
        answer = ask.post("/predict", json=request(point, url))
        assert answer.status_code == 400, url
        assert "alone" in answer.json()["detail"] or "itself" in answer.json()["detail"]
    assert studio.asked == []
    answer = ask.post("/predict", json=request(point, f"/away?http://localhost:{studio.server_port}/c.png"))
    assert answer.status_code == 400
    assert studio.asked == [f"/away?http://localhost:{studio.server_port}/c.png"]


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("/data/local-files/?d=My scans/lesion 1.png", "/data/local-files/?d=My%20scans/lesion%201.png"),
        ("/data/upload/1/ab12-läsion図.png", "/data/upload/1/ab12-l%C3%A4sion%E5%9B%B3.png"),
        ("/data/upload/1/a%20b.png?x=1&y=%2F", "/data/upload/1/a%20b.png?x=1&y=%2F"),
        (" /data/upload/2/c.png\n", "/data/upload/2/c.png"),
    ],
)
def test_addresses_are_written_as_a_browser_takes_them(
    ask: httpx.Client, studio: Any, written: str, asked: str
) -> None:
    studio.asked.clear()
    answer = ask.post("/predict", json=request([keypoint(63, 58)], written))
    assert answer.status_code == 200, answer.text
    assert studio.asked == [asked]


def test_an_address_that_is_none_is_refused(ask: httpx.Client) -> None:
    answer = ask.post("/predict", json=request([keypoint(63, 58)], "http://["))
    assert answer.status_code == 400
    assert "no address" in answer.json()["detail"]


@pytest.mark.parametrize(
    "said",
    [
        b"rubbish\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
@pytest.mark.parametrize("key", [None, PERSONAL])
def test_a_server_that_is_no_label_studio_is_refused_in_words(backend: Server, said: bytes, key: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        other = LabelStudio(backend.sessions, f"http://127.0.0.1:{listening.getsockname()[1]}", key)
        with pytest.raises(ActiveFreqError):
            other.answer(request([keypoint(63, 58)]))
        thread.join()


def test_keys(ask: httpx.Client, studio: Any, backend: Server) -> None:
    own = f"http://127.0.0.1:{studio.server_port}"
    personal = LabelStudio(backend.sessions, own, PERSONAL)
    assert personal.answer(request([keypoint(63, 58)]))["results"][0]["result"]
    personal.close()
    assert ask.post("/setup", json={"access_token": None}).status_code == 200
    answer = ask.post("/predict", json=request([keypoint(63, 58)], "/data/fresh.png"))
    assert answer.status_code == 400
    assert "LABEL_STUDIO_API_KEY" in answer.json()["detail"]
    with pytest.raises(ServeError, match="http"):
        LabelStudio(backend.sessions, "localhost:8080")


def test_a_token_is_given_as_a_password(engine: Engine, studio: Any) -> None:
    url = f"http://127.0.0.1:{studio.server_port}"
    server = Server(engine, token="a-token-of-this-test", label_studio=url)
    try:
        health = server.url + "/label-studio/health"
        assert httpx.get(health).status_code == 401
        assert httpx.get(health, auth=("anybody", "another-token-than-it")).status_code == 401
        assert httpx.get(health, headers={"Authorization": "Basic ///"}).status_code == 401
        assert httpx.get(health, auth=("anybody", "a-token-of-this-test")).status_code == 200
    finally:
        server.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"label_config": "<View>"},
        {"label_config": '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>'},
        {"label_config": '<View><Image name="img" value="$photo"/></View>'},
        {"label_config": '<View><BrushLabels name="b" toName="nothing"/></View>'},
        {"label_config": 7},
        {"tasks": []},
        {"tasks": [{"data": {"photo": 3}}]},
        {"tasks": "x"},
        {"params": {"context": {"result": [keypoint(3, 3, original_width=1)]}}},
        {"params": {"context": {"result": [keypoint(3, 3, value={"x": "a", "y": 2})]}}},
        {"params": {"context": {"result": [keypoint(3, 3, value=None)]}}},
        {"params": {"context": {"result": [keypoint(3, 3, value={"x": 10**400, "y": 2})]}}},
        {"params": {"context": {"result": [keypoint(-30, 3)]}}},
        {"params": {"context": {"result": [keypoint(WIDTH + 30, 3)]}}},
        {"params": {"context": {"result": [keypoint(3, float("nan"))]}}},
    ],
)
def test_a_request_that_is_none_is_refused_in_words(ask: httpx.Client, wrong: dict[str, Any]) -> None:
    answer = ask.post("/predict", content=json.dumps(request([keypoint(3, 3)], **wrong)))
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"]


def test_odd_requests_break_nothing(ask: httpx.Client) -> None:
    for content in ("", "[]", "3", "{", '{"params": []}', '{"params": {"context": {"result": 5}}}'):
        assert ask.post("/predict", content=content).status_code in (200, 400)
        assert ask.post("/setup", content=content).status_code in (200, 400)


def test_without_label_studio_there_are_no_routes(http: httpx.Client) -> None:
    for answer in (http.get("/label-studio/health"), http.post("/label-studio/predict", json={})):
        assert answer.status_code == 404
        assert "--label-studio" in answer.json()["detail"]


def test_the_first_session_is_let_go(backend: Server, ask: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activefreq_engine.serve.label_studio.TASKS", 2)
    first = ask.post("/predict", json=request([keypoint(63, 58)], "/data/0.png")).json()
    for number in range(4):
        assert ask.post("/predict", json=request([keypoint(63, 58)], f"/data/{number}.png")).status_code == 200
    again = ask.post("/predict", json=request([keypoint(63, 58)], "/data/0.png")).json()
    rle = [np.array(a["results"][0]["result"][0]["value"]["rle"]) for a in (first, again)]
    np.testing.assert_array_equal(*rle)
