"""kill -9 at any moment loses nothing: a real server process, killed in the middle of work, started again.

ACTIVEFREQ_KILLS=100 makes it more often than CI does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from activefreq_engine import Engine, Session
from activefreq_engine.cli import main
from activefreq_engine.serve import journal as journal_module
from activefreq_engine.serve.errors import ConflictError, NotFoundError, StorageError
from activefreq_engine.serve.journal import Journal, Journals

from .client import HEIGHT, LESION, PATIENCE, WIDTH, Client, picture, png
from .conftest import Server

KILLS = int(os.environ.get("ACTIVEFREQ_KILLS", "2"))


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["activefreq_engine.cli", "activefreq_engine.serve.app", "uvicorn"])


class Process:
    """`activefreq serve`: first as a user starts it, then forked from a process that has imported everything."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.port = journal, 0

    def start(self) -> None:
        arguments = ["serve", "--model", "freqformer_b0", "--port", str(self.port), "--journal", str(self.journal)]
        if self.port:
            forked = FORKS.Process(target=main, args=(arguments,))
            forked.start()
            self.kill, self.join = forked.kill, forked.join
            self._wait()
            return
        command = [sys.executable, "-m", "activefreq_engine.cli", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("activefreq serves on http://127.0.0.1:"), line
        self.url = line.split()[-1].rstrip("/")
        self.port = int(self.url.rsplit(":", 1)[1])
        self.kill, self.join = process.kill, process.wait

    def stop(self) -> None:
        """kill -9."""
        self.kill()
        self.join(PATIENCE)

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "the server does not come back"
                time.sleep(0.02)


PROMPTS = ("click", "box", "scribble", "lasso")


def requests(rng: random.Random) -> list[dict[str, object]]:
    """What a person might do, in two objects."""
    found: list[dict[str, object]] = []
    objects = 1
    for _ in range(14):
        kind = rng.choice(["click"] * 3 + [*PROMPTS[1:], "undo", "undo", "redo", "reset", "next", "select", "rename"])
        if kind == "click":
            where = {"x": rng.uniform(0, WIDTH), "y": rng.uniform(0, HEIGHT), "positive": rng.random() < 0.7}
            found.append({"op": kind, **where})
        elif kind == "box":
            x, y = rng.uniform(0, WIDTH / 2), rng.uniform(0, HEIGHT / 2)
            found.append({"op": kind, "x0": x, "y0": y, "x1": x + rng.uniform(5, 60), "y1": y + rng.uniform(5, 40)})
        elif kind in ("scribble", "lasso"):
            x, y = rng.uniform(5, WIDTH - 45), rng.uniform(5, HEIGHT - 35)
            points = [[x, y], [x + rng.uniform(5, 40), y + rng.uniform(0, 4)], [x + 8, y + rng.uniform(9, 30)]]
            found.append({"op": kind, "points": points, "positive": rng.random() < 0.6})
        elif kind == "next" and objects == 1 and any(f["op"] in PROMPTS for f in found):
            objects = 2
            found += [{"op": "next"}, {"op": "click", "x": rng.uniform(0, WIDTH), "y": rng.uniform(0, HEIGHT)}]
        elif kind == "select":
            found.append({"op": kind, "object": rng.randint(1, objects)})
        elif kind == "rename":
            found.append({"op": kind, "object": objects, "name": f"name {rng.random()}"})
        elif kind != "next":
            found.append({"op": kind})
    return found


def told(session: Session, request: dict[str, object]) -> bool:
    """The same on a session of this process; whether there was anything to do."""
    match request["op"]:
        case "click":
            session.click(request["x"], request["y"], request.get("positive", True))
        case "box":
            session.box(request["x0"], request["y0"], request["x1"], request["y1"])
        case "scribble":
            session.scribble(request["points"], request["positive"])
        case "lasso":
            session.lasso(request["points"], request["positive"])
        case "undo":
            return bool(session.undo())
        case "redo":
            return bool(session.redo())
        case "reset":
            before = session.prompts
            while session.undo():
                continue
            return bool(before)
        case "next":
            session.next_object()
        case "select":
            session.select_object(request["object"])
    return True


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "journal")
    process.start()
    yield process
    process.stop()


def test_kill_9_loses_nothing(engine: Engine, process: Process, rng: np.random.Generator) -> None:
    chance = random.Random(int(rng.integers(1 << 32)))
    for turn in range(KILLS):
        print(f"turn {turn}", flush=True)
        wanted = requests(chance)
        with Client(process.url) as client:
            identity = client.begin()
            numbered = [{"seq": n, **r} for n, r in enumerate(wanted, 1)]
            # the page's outbox: everything is sent at once, the answers that arrive before the kill are noted
            for request in numbered:
                client.raw(json.dumps(request))
            answered = 0
            until = chance.randint(0, len(numbered))
            while answered < until:
                answered = client.take("done", "error")["seq"]
            time.sleep(chance.uniform(0, 0.03))
            process.stop()
            with contextlib.suppress(ConnectionClosed, OSError):
                while True:
                    answered = client.take("done", "error")["seq"]
        process.start()
        with Client(process.url) as client:
            client.dial(identity)
            kept = client.state["seq"]
            for request in numbered[kept:]:
                client.raw(json.dumps(request))
                client.take("done")
            session = Session(engine=engine)
            session.set_image(picture())
            effects = [told(session, request) for request in wanted]
            # an undo of nothing is answered, and leaves no line
            assert not any(effects[kept:answered]), f"turn {turn}: an answered request was lost"
            client.dial(identity)
            assert client.state["object"] == session.object_number, f"turn {turn}"
            assert len(client.state["objects"]) == session.object_count
            for number in range(1, session.object_count + 1):
                session.select_object(number)
                clicks = [[c.x, c.y, c.positive] for c in session.clicks]
                assert client.state["objects"][number - 1]["clicks"] == clicks, f"turn {turn}, object {number}"
                assert np.array_equal(client.mask(number), session.mask), f"turn {turn}, object {number}"


def test_a_session_is_back_after_idle_time(engine: Engine, tmp_path: Path) -> None:
    server = Server(engine, tmp_path)
    try:
        with Client(server.url) as client:
            identity = client.begin()
            client.ask("click", x=60, y=60, positive=True)
            mask = client.mask().copy()
            client.hang_up()
            while server.sessions._works[identity].connections:
                time.sleep(0.01)
            server.sessions._works[identity].touched -= 10_000
            server.sessions.sweep()
            assert len(server.sessions) == 0
            client.dial(identity)
            assert np.array_equal(client.mask(), mask)
    finally:
        server.close()


def test_a_second_picture_is_back_with_what_was_done_on_it(engine: Engine, tmp_path: Path) -> None:
    server = Server(engine, tmp_path)
    try:
        with Client(server.url) as client:
            identity = client.begin()
            client.ask("click", x=60, y=60, positive=True)
            client.ask("next")
            client.hang_up()
            put = {"params": {"name": "two.png"}, "content": png(picture(90, 150, seed=2))}
            assert client.http.put(f"/v1/sessions/{identity}/image", **put).status_code == 200
            client.dial(identity)
            client.ask("click", x=30, y=90, positive=True)
            mask, seq = client.mask().copy(), client.seq
            client.hang_up()
            while server.sessions._works[identity].connections:
                time.sleep(0.01)
            server.sessions._works.pop(identity).close()
            client.dial(identity)
            assert client.state["picture"]["name"] == "two.png"
            assert [o["clicks"] for o in client.state["objects"]] == [[[30, 90, True]]]
            assert client.state["seq"] == seq
            assert np.array_equal(client.mask(), mask)
            # numbers go on from a picture that nothing was done on, too
            client.hang_up()
            assert client.http.put(f"/v1/sessions/{identity}/image", **put).status_code == 200
            while server.sessions._works[identity].connections:
                time.sleep(0.01)
            server.sessions._works.pop(identity).close()
            state = client.http.get(f"/v1/sessions/{identity}").json()
            assert (state["seq"], state["objects"][0]["clicks"]) == (seq, [])
    finally:
        server.close()


def test_two_pictures_at_once_leave_one_that_comes_back(engine: Engine, tmp_path: Path) -> None:
    server = Server(engine, tmp_path)
    try:
        with server.http() as http, ThreadPoolExecutor(6) as pool:
            path = f"/v1/sessions/{http.post('/v1/sessions').json()['id']}"
            contents = {f"{n}.png": png(picture(60 + n, 50, seed=n)) for n in range(6)}
            put = lambda name: http.put(f"{path}/image", params={"name": name}, content=contents[name])  # noqa: E731
            for _ in range(3):
                assert {answer.status_code for answer in pool.map(put, contents)} == {200}
                before = http.get(path).json()
                server.sessions._works.pop(before["id"]).close()
                assert http.get(path).json() == before
    finally:
        server.close()


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.create("a" * 16, "model", 256)
    journal.append({"op": "undo"})
    journal.append({"op": "redo"})
    journal.append({"op": "void"})
    journal.close()
    file = tmp_path / ("a" * 16) / "events.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op":"cli')
    journal = journals.open("a" * 16, "model", 256)
    assert journal.events == [{"op": "undo"}], "what was taken back does not count either"
    journal.append({"op": "reset"})
    journal.close()
    assert file.read_bytes() == whole + b'{"op":"reset"}\n'


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes a part of a line; the next one must not be glued to it."""
    journals, name = Journals(tmp_path), "a" * 16
    journal = journals.create(name, "model", 256)
    whole = (tmp_path / name / "events.jsonl").read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:9]))
        with pytest.raises(StorageError, match="9 of"):
            journal.append({"op": "undo"})
    assert (tmp_path / name / "events.jsonl").read_bytes() == whole
    journal.append({"op": "redo"})
    journal.close()
    assert journals.open(name, "model", 256).events == [{"op": "redo"}]


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_session_without_room_for_its_journal_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journals, opened, closed = Journals(tmp_path), [], []
    locked, close = journal_module._locked, os.close
    monkeypatch.setattr(journal_module, "_locked", lambda folder: opened.append(locked(folder)) or opened[-1])
    monkeypatch.setattr(os, "close", lambda file: closed.append(file) or close(file))
    monkeypatch.setattr(os, "write", no_room)
    with pytest.raises(StorageError, match="No space left"):
        journals.create("a" * 16, "model", 256)
    assert opened
    assert set(opened) <= set(closed)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_refuses_steps_in_words_and_loses_none(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(engine, tmp_path / "j", LESION.parent)
    try:
        with server.http() as http:
            path = f"/v1/sessions/{http.post('/v1/sessions', json={'picture': LESION.name}).json()['id']}"
            click, done = {"x": 160, "y": 230}, {"picture": LESION.name, "status": "done"}
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", no_room)
                asked = [
                    http.post(f"{path}/clicks", json=click),
                    http.post("/v1/sessions", json={"picture": "ISIC_0013793.jpg"}),
                    http.put("/v1/pictures/status", json=done),
                ]
            assert [r.status_code for r in asked] == [507] * 3
            assert all("No space left" in r.json()["detail"] for r in asked)
            assert http.get(path).json()["objects"][0]["clicks"] == []
            assert http.post(f"{path}/clicks", json=click).json()["object"]["clicks"] == [[160, 230, True]]
            assert http.put("/v1/pictures/status", json=done).status_code == 200
            assert len(server.sessions) == 1
    finally:
        server.close()


def test_what_the_disk_does_not_sync_was_not_done(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(engine, tmp_path)

    def broken(_: Journal) -> None:
        raise StorageError("the server cannot keep this, so it was not done: Input/output error")

    try:
        with Client(server.url) as client:
            identity = client.begin()
            client.ask("click", x=60, y=60, positive=True)
            before = client.mask().copy()
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "sync", broken)
                for op in ({"op": "click", "x": 150, "y": 20}, {"op": "undo"}, {"op": "next"}, {"op": "reset"}):
                    assert "was not done" in client.ask(**op)["message"]
            done = client.ask("rename", object=1, name="same")
            assert (done["objects"][0]["undo"], done["objects"][0]["redo"]) == (1, 0)
            client.dial(identity)
            assert np.array_equal(client.mask(), before)
            client.hang_up()
            while server.sessions._works[identity].connections:
                time.sleep(0.01)
            server.sessions._works.pop(identity).close()
            client.dial(identity)
            assert [o["clicks"] for o in client.state["objects"]] == [[[60, 60, True]]]
            assert np.array_equal(client.mask(), before)
    finally:
        server.close()


def test_an_answer_waits_for_the_disk(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, lines, sync = Server(engine, tmp_path), [], Journal.sync

    def slow(journal: Journal) -> None:
        seen = (journal.folder / "events.jsonl").read_bytes().count(b"\n")
        time.sleep(0.1)
        sync(journal)
        lines.append(seen)

    monkeypatch.setattr(Journal, "sync", slow)
    try:
        with Client(server.url) as client:
            client.begin()
            client.ask("click", x=60, y=60, positive=True)
            assert lines[-1] == 3, "the head, the picture, and the click that was answered"
            client.ask("undo")
            assert lines[-1] == 4
            client.raw(json.dumps({"op": "lasso", "points": [[1, 3], [4, 3], [2, 3]], "seq": 3}))
            assert client.take("done", "error")["type"] == "error"
            assert lines[-1] == 6, "what failed was taken back before that was told"
    finally:
        server.close()


def test_a_journal_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    name = "b" * 16
    journal = journals.create(name, "model", 256)
    with pytest.raises(ConflictError, match="another server"):
        journals.open(name, "model", 256)
    with pytest.raises(ConflictError, match="another server"):
        journals.drop(name)
    assert (tmp_path / name / "events.jsonl").exists()
    journal.close()
    with pytest.raises(ConflictError, match="--model model"):
        journals.open(name, "other", 256)
    for bad in ("../x", "b" * 15, "", "c" * 16, "..", "b" * 16 + "/.."):
        with pytest.raises(NotFoundError):
            journals.open(bad, "model", 256)
    (tmp_path / name / "events.jsonl").write_text('{"format": 1}\n')
    with pytest.raises(ConflictError, match="damaged"):
        journals.open(name, "model", 256)


def test_a_picture_that_changed_is_not_clicked_on(engine: Engine, tmp_path: Path) -> None:
    server = Server(engine, tmp_path)
    try:
        with Client(server.url) as client:
            identity = client.begin()
            client.hang_up()
            while server.sessions._works[identity].connections:
                time.sleep(0.01)
            server.sessions._works.pop(identity).close()
            (tmp_path / identity / "picture").write_bytes(b"something else")
            answer = client.http.get(f"/v1/sessions/{identity}")
            assert answer.status_code == 409
            assert "not the one" in answer.json()["detail"]
    finally:
        server.close()
