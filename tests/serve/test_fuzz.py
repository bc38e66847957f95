"""Rubbish for the WebSocket and for every path of the OpenAPI document: no 5xx, no hang, no growth."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from activefreq_engine import Engine
from activefreq_engine.serve.sessions import Limits

from .client import Client, picture, png
from .conftest import Server

SETTINGS = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200), st.integers(), st.floats(), st.text(max_size=20), st.just("click")
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=5
)
OPS = ("click", "mask", "undo", "redo", "reset", "next", "select", "delete", "rename", "slice", "window", "uncertainty")
MESSAGES = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS) | SCALARS},
    optional={
        "x": st.floats(-10, 200) | VALUES,
        "y": st.floats(-10, 120) | VALUES,
        "positive": st.booleans() | VALUES,
        "object": st.integers(0, 4) | VALUES,
        "name": st.text(max_size=120) | VALUES,
        "index": st.integers(-1, 2) | VALUES,
        "low": VALUES,
        "high": VALUES,
        "png": st.text(max_size=30) | VALUES,
        "on": VALUES,
        "extra": VALUES,
    },
)


@pytest.fixture(scope="module")
def fuzzed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(engine, tmp_path_factory.mktemp("journal"), limits=Limits(sessions=4, upload=200_000))
    yield server
    server.close()


@pytest.fixture(scope="module")
def talker(fuzzed: Server) -> Iterator[Client]:
    with Client(fuzzed.url) as client:
        client.begin()
        yield client


@SETTINGS
@given(st.lists(MESSAGES, min_size=1, max_size=5), st.booleans())
def test_the_websocket_answers_rubbish(talker: Client, messages: list[dict[str, Any]], numbered: bool) -> None:
    for message in messages:
        if numbered:
            talker.seq += 1
            message = {**message, "seq": talker.seq}
        talker.raw(json.dumps(message))
    done = talker.ask("click", x=60, y=60, positive=True)
    assert done["type"] == "done", done
    assert not any("server failed" in t.get("message", "") for t in talker.texts), talker.texts
    talker.texts.clear()
    assert threading.active_count() < 60


@SETTINGS
@given(st.text(max_size=40) | st.binary(max_size=40))
def test_the_websocket_closes_on_what_is_no_object(fuzzed: Server, data: str | bytes) -> None:
    with Client(fuzzed.url) as client:
        identity = client.http.post("/v1/sessions").json()["id"]
        client.dial(identity)
        client.raw(data)
        try:
            json_object = isinstance(json.loads(data), dict)
        except ValueError:
            json_object = False
        if not json_object:
            with pytest.raises(ConnectionClosed):
                client.take("never")
        client.http.delete(f"/v1/sessions/{identity}")


@settings(SETTINGS, max_examples=50)
@given(st.data())
def test_rest_answers_rubbish(fuzzed: Server, data: st.DataObject) -> None:
    with fuzzed.http() as http:
        paths = _paths(http)
        method, path = data.draw(st.sampled_from(paths))
        identity = data.draw(st.sampled_from([_session(fuzzed, http), "x", "..", "é"]))
        path = path.replace("{identity}", identity)
        for name in ("{number}", "{format_}"):
            path = path.replace(
                name, data.draw(st.sampled_from(["1", "2", "-1", "x", "coco", "png", "99999999999999999999"]))
            )
        query = data.draw(
            st.dictionaries(st.sampled_from(["k", "rle", "slice", "name", "colours"]), st.text(max_size=8), max_size=2)
        )
        body = data.draw(VALUES | MESSAGES)
        headers = {"X-Lease-Token": data.draw(st.sampled_from([_lease(fuzzed, http), "x"]))}
        answer = http.request(method, path, params=query, content=json.dumps(body), headers=headers)
        assert answer.status_code < 500 or answer.status_code == 503, (method, path, query, body, answer.text)
        if answer.status_code >= 400:
            assert isinstance(answer.json()["detail"], str), answer.text
    assert len(fuzzed.sessions) <= 4


def _paths(http: httpx.Client) -> list[tuple[str, str]]:
    if not _PATHS:
        api = http.get("/v1/openapi.json").json()
        _PATHS.extend((m.upper(), p) for p, methods in api["paths"].items() for m in methods)
    return _PATHS


def _session(server: Server, http: httpx.Client) -> str:
    found = [i for i, w in server.sessions._works.items() if w.connections == 0]
    if found:
        return found[0]
    answer = http.post("/v1/sessions")
    if answer.status_code != 201:
        return "x"
    identity: str = answer.json()["id"]
    http.put(f"/v1/sessions/{identity}/image", content=png(picture()))
    return identity


def _lease(server: Server, http: httpx.Client) -> str:
    leases = list(server.sessions.others._leases)
    return leases[0] if leases else http.post("/claim").json().get("lease_token", "x")


_PATHS: list[tuple[str, str]] = []
