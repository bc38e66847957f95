"""Nobody gets in: names, origins, tokens, paths, sizes.  docs/security.md lists what is tried here."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from activefreq_engine import Engine, InvalidArgumentError
from activefreq_engine.serve import connections, live, recent, security
from activefreq_engine.serve.app import create_app
from activefreq_engine.serve.command import default_journal
from activefreq_engine.serve.errors import ConflictError
from activefreq_engine.serve.journal import Journals
from activefreq_engine.serve.progress import Progress
from activefreq_engine.serve.security import Gate, is_loopback
from activefreq_engine.serve.sessions import Limits, Sessions

from .client import PATIENCE, Client, picture, png
from .conftest import Server

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, with ways out of it."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(png(picture()))
    root = outside / "inside"
    (root / "deeper").mkdir(parents=True)
    (root / "deeper" / "good.png").write_bytes(png(picture()))
    (root / "linked.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    (root / "circle.png").symlink_to(root / "circle.png")
    (root / "inner.png").symlink_to(root / "deeper" / "good.png")
    (root / "notes.txt").write_text("not a picture")
    (root / ".hidden.png").write_bytes(png(picture()))
    return root


@pytest.fixture(scope="module")
def guarded(engine: Engine, folder: Path) -> Iterator[Server]:
    """A server with a token and small limits."""
    limits = Limits(sessions=2, pixels=40_000, upload=100_000, steps=3)
    server = Server(engine, images=folder, token=TOKEN, limits=limits, loopback=False)
    yield server
    server.close()


@pytest.fixture
def known(guarded: Server) -> Iterator[httpx.Client]:
    with guarded.http(Authorization=f"Bearer {TOKEN}") as client:
        for identity in list(guarded.sessions._works):
            guarded.sessions.drop(identity)
        yield client


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "[::1"]
)
def test_a_name_that_is_not_ours_is_refused(server: Server, http: httpx.Client, host: str) -> None:
    answer = http.get("/v1/info", headers={"Host": host})
    assert answer.status_code in (400, 403), answer.text
    with (
        pytest.raises((InvalidStatus, ConnectionClosed)),
        connect(f"ws://127.0.0.1:{server.port}/v1/sessions/x/live", additional_headers={"Origin": f"http://{host}"}),
    ):
        pass


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1", "[::1]:80", "127.9.9.9"])
def test_loopback_by_any_name_and_port_is_let_in(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "file://"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://{host}"}, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
    ],
)
def test_pages_of_other_sites_are_refused(
    server: Server, http: httpx.Client, headers: dict[str, str], status: int
) -> None:
    given = {k: v.format(host=f"127.0.0.1:{server.port}") for k, v in headers.items()}
    assert http.post("/v1/sessions", headers=given).status_code == status


def test_a_websocket_of_another_site_is_refused_before_it_opens(server: Server) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"ws://127.0.0.1:{server.port}/v1/sessions/x/live", origin="http://evil.example"),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_a_link_on_another_site_leads_to_the_page_and_nowhere_else(http: httpx.Client) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert http.get("/", headers=link).status_code == 200
    assert http.get("/", headers={**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert http.get("/", headers={**link, "Sec-Fetch-Mode": "no-cors"}).status_code == 403
    assert http.get("/", headers={**link, "Host": "evil.example"}).status_code == 403
    for method, path in (("POST", "/"), ("GET", "/v1/info"), ("GET", "/main.js"), ("POST", "/v1/sessions")):
        assert http.request(method, path, headers=link).status_code == 403, path


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"]
)
def test_without_the_token_nothing_is_told(guarded: Server, given: str | None) -> None:
    with guarded.http(**({} if given is None else {"Authorization": given})) as client:
        for method, path in (
            ("GET", "/v1/info"),
            ("GET", "/v1/pictures"),
            ("GET", "/v1/openapi.json"),
            ("POST", "/v1/sessions"),
            ("GET", "/v1/sessions/x"),
            ("GET", "/nothing"),
            ("POST", "/claim"),
        ):
            answer = client.request(method, path)
            assert answer.status_code == 401, (path, answer.text)
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/main.js", "/v1/health"):
            assert client.get(path).status_code == 200


def test_the_websocket_wants_the_token_first(guarded: Server, known: httpx.Client) -> None:
    identity = known.post("/v1/sessions").json()["id"]
    address = f"ws://127.0.0.1:{guarded.port}/v1/sessions/{identity}/live"
    for hello in ({"type": "hello"}, {"type": "hello", "token": "wrong"}, {"type": "hello", "token": 1}):
        with connect(address) as opened:
            opened.send(json.dumps(hello))
            with pytest.raises(ConnectionClosed) as closed:
                opened.recv(timeout=PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4401
    with connect(address) as opened:
        opened.send(json.dumps({"op": "click", "seq": 1, "x": 1, "y": 1}))
        with pytest.raises(ConnectionClosed):
            opened.recv(timeout=PATIENCE)
    with Client(guarded.url, TOKEN) as client:
        client.dial(identity)
        assert client.state["id"] == identity


@pytest.mark.parametrize(
    "path",
    ["linked.png", "folder/secret.png", "../secret.png", "deeper/../../secret.png", "circle.png", "notes.txt", "", ".",
     "/etc/passwd", "deeper", "a\0b.png", "..\\secret.png", "x" * 5000 + ".png"],
)  # fmt: skip
def test_no_path_leaves_the_folder(known: httpx.Client, path: str) -> None:
    answer = known.post("/v1/sessions", json={"picture": path})
    assert answer.status_code == 404, answer.text
    answer = known.put("/v1/pictures/status", json={"picture": path, "status": "done"})
    assert answer.status_code == 404, answer.text


def test_the_folder_shows_what_lies_inside(known: httpx.Client) -> None:
    names = [p["name"] for p in known.get("/v1/pictures").json()]
    assert names == ["deeper/good.png", "inner.png"]
    assert known.post("/v1/sessions", json={"picture": "inner.png"}).status_code == 201


@pytest.mark.parametrize(
    "path", ["/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/page/main.js", "/main.js/", "/.keep", "//etc/passwd"]
)
def test_no_path_leaves_the_page(known: httpx.Client, path: str) -> None:
    assert known.get(path).status_code in (404, 307)


def test_large_pictures_are_refused_before_they_are_decoded(known: httpx.Client) -> None:
    identity = known.post("/v1/sessions").json()["id"]
    put = f"/v1/sessions/{identity}/image"
    assert known.put(put, content=b"x" * 100_001).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    assert known.put(put, content=endless()).status_code == 413

    # a header that promises far more than is there: decoding it would need 40 GB
    ihdr = b"IHDR" + (200_000).to_bytes(4, "big") * 2 + bytes([8, 6, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + ihdr + zlib.crc32(ihdr).to_bytes(4, "big")
    answer = known.put(put, content=bomb)
    assert answer.status_code in (400, 413), answer.text
    out = io.BytesIO()
    Image.fromarray(np.zeros((201, 200), np.uint8)).save(out, "PNG")
    answer = known.put(put, content=out.getvalue())
    assert answer.status_code == 413
    assert "40200 pixels" in answer.json()["detail"]
    for junk in (b"", b"not a picture", png(picture())[:2000], b"\x00" * 500):
        answer = known.put(put, content=junk)
        assert answer.status_code == 400, answer.text
        assert "Traceback" not in answer.text
    assert known.get(f"/v1/sessions/{identity}/image").status_code == 409


def test_requests_in_json_have_a_limit(known: httpx.Client) -> None:
    assert known.post("/v1/sessions", content=b" " * (2**20 + 1)).status_code == 413
    identity = known.post("/v1/sessions").json()["id"]
    answer = known.post(f"/v1/sessions/{identity}/clicks", json={"x": 1, "y": 1, "z": "x" * 2**21})
    assert answer.status_code == 413


def test_sessions_and_steps_have_a_limit(guarded: Server, known: httpx.Client) -> None:
    first = known.post("/v1/sessions").json()["id"]
    assert known.post("/v1/sessions").status_code == 201
    answer = known.post("/v1/sessions")
    assert answer.status_code == 503
    assert "places" in answer.json()["detail"]
    known.put(f"/v1/sessions/{first}/image", content=png(picture()))
    for n in range(3):
        assert known.post(f"/v1/sessions/{first}/clicks", json={"x": n, "y": 5}).status_code == 200
    assert known.post(f"/v1/sessions/{first}/clicks", json={"x": 50, "y": 5}).status_code == 413
    assert known.delete(f"/v1/sessions/{first}").status_code == 204
    assert known.get(f"/v1/sessions/{first}").status_code == 410
    assert known.get("/v1/sessions/never-was").status_code == 404


def test_a_failure_of_ours_is_no_look_inside(
    guarded: Server, known: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("the secret of the server")

    monkeypatch.setattr(guarded.sessions, "create", fail)
    answer = known.post("/v1/sessions")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    deadline = time.monotonic() + PATIENCE  # the log is written after the answer
    while "the secret of the server" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert TOKEN not in caplog.text


def test_the_page_carries_its_policy(http: httpx.Client) -> None:
    for path in ("/", "/main.js", "/v1/info", "/v1/nothing"):
        headers = http.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_page_asks_nothing_of_other_servers() -> None:
    page = Path(__file__).parents[2] / "activefreq_engine" / "serve" / "page"
    for file in page.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, file
        assert "https://" not in text, file
        assert "eval(" not in text, file
        assert "innerHTML" not in text, file


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.1.2.3", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.5", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_what_counts_as_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) is here


def test_who_does_not_finish_a_request_is_hung_up_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 2.0)
    silent, head, body = (socket.create_connection(("127.0.0.1", server.port)) for _ in range(3))
    head.sendall(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
    # what follows a refusal is read, so that the client can read the answer, but not for ever
    body.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000\r\n\r\n")
    with Client(server.url) as client:
        client.begin()
        for drop in (silent, head, body):
            deadline = time.monotonic() + PATIENCE
            while not hung_up(drop, b"" if drop is silent else b"a"):
                assert time.monotonic() < deadline, "the connection stays open"
            drop.close()
        assert client.ask("click", x=60, y=55)["type"] == "done", "a WebSocket stays"


def hung_up(connection: socket.socket, drip: bytes) -> bool:
    """Whether the other side has closed a connection; sends a byte and waits a little for an answer."""
    connection.settimeout(0.2)
    try:
        connection.sendall(drip)
        while connection.recv(4096):
            continue
        return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_body_that_does_not_come_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_S", 0.2)
    with Client(server.url) as client:
        picture_ = f"/v1/sessions/{client.begin()}/image"
    for path in ("/v1/sessions", picture_):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
            method = b"PUT" if path == picture_ else b"POST"
            connection.sendall(method + b" " + path.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            connection.sendall(b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 "), path


def test_messages_of_the_websocket_have_a_limit(server: Server, client: Client) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/v1/sessions/x/live", compression=None) as stranger:
        with contextlib.suppress(ConnectionClosed):
            stranger.send(json.dumps({"type": "hello", "token": "x" * security.JSON_BYTES}))
        with pytest.raises(ConnectionClosed) as closed:
            stranger.recv(timeout=PATIENCE)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    # below the limit large requests are read one at a time; all are answered, in order
    for _ in range(3):
        assert client.ask("rename", object=1, name="x" * (2 * live.LARGE))["type"] == "error"
    for n in range(4):
        client.post("rename", object=1, name="y" * (2 * live.LARGE) if n % 2 else f"name {n}")
    assert [client.take("done", "error")["seq"] for _ in range(4)] == [4, 5, 6, 7]
    assert client.state["objects"][0]["name"] == "name 2"


def test_pictures_that_are_remembered_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEPT_PIXELS", 3000)
    made: list[int] = []

    def make(pixels: np.ndarray) -> int:
        made.append(pixels.shape[0])
        return pixels.shape[0]

    memory = recent.Recent(make, 10_000)
    texts = {n: base64.b64encode(png(picture(30, n))).decode() for n in (10, 50, 60, 200)}
    for n in (10, 50, 10, 60, 50, 10, 200, 200, 10):  # 50 and 60 do not fit together, 200 fits with nothing
        assert memory.of(texts[n]) == n
    assert made == [10, 50, 60, 50, 10, 200, 10]


def test_the_folder_of_journals_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(tmp_path / "images", tmp_path)
    progress.mark("patient.png", "done")
    (file,) = tmp_path.glob("folder-*.jsonl")
    assert file.stat().st_mode & 0o077 == 0 or os.name == "nt"
    with pytest.raises(ConflictError, match="--no-journal"):
        Journals(file / "journals")
    root = tmp_path / "deeper" / "journals"
    Journals(root)
    if not hasattr(os, "geteuid"):
        return
    assert root.stat().st_mode & 0o077 == 0
    if os.geteuid() == 0:
        os.chown(root, 4321, 4321)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(ConflictError, match="belongs to another user"):
        Journals(root)


def test_a_second_ctrl_c_ends_the_server_in_order(engine: Engine) -> None:
    """It cancels what the first one waits for; that used to be logged as a failure of thirty lines."""
    app = create_app(Sessions(engine, Limits(), journals=None, folder=None), Gate(None, loopback=True))
    said = []

    async def run() -> None:
        started = asyncio.Event()

        async def receive() -> dict[str, str]:
            if not said:
                return {"type": "lifespan.startup"}
            started.set()
            return await asyncio.Event().wait()

        async def send(message: dict[str, str]) -> None:
            said.append(message["type"])

        serving = asyncio.ensure_future(app({"type": "lifespan"}, receive, send))
        await asyncio.wait_for(started.wait(), PATIENCE)
        serving.cancel()
        await asyncio.wait_for(serving, PATIENCE)

    asyncio.run(run())
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_who_has_no_home_must_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    for variable in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InvalidArgumentError, match="--journal"):
        default_journal()
