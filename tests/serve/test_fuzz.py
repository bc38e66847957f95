"""Rubbish for the WebSocket, for every path of the OpenAPI document and in packed arrays: no 5xx, no hang, no growth.

FUZZ_EXAMPLES (make fuzz-serve) draws more of it than CI does.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from websockets.exceptions import ConnectionClosed

from activefreq_engine import Engine
from activefreq_engine.serve import packing
from activefreq_engine.serve.live import BROKEN
from activefreq_engine.serve.sessions import Limits

from .client import Client, picture, png
from .conftest import Server

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
SETTINGS = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200), st.integers(), st.floats(), st.text(max_size=20), st.just("click")
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=5
)
OPS = (
    *("click", "box", "scribble", "lasso", "mask", "undo", "redo", "reset"),
    *("next", "select", "delete", "rename", "slice", "window", "uncertainty"),
)
MESSAGES = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS) | SCALARS},
    optional={
        "x": st.floats(-10, 200) | VALUES,
        "y": st.floats(-10, 120) | VALUES,
        **{side: st.floats(-10, 200) | VALUES for side in ("x0", "y0", "x1", "y1")},
        "points": st.lists(st.lists(st.floats(-10, 200), min_size=2, max_size=2), max_size=6) | VALUES,
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
DRAWN = ("/add_scribble_interaction", "/add_lasso_interaction", "/add_initial_seg_interaction")


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
            with pytest.raises(ConnectionClosed) as closed:
                client.take("never")
            assert closed.value.rcvd.code == BROKEN, closed.value
        client.http.delete(f"/v1/sessions/{identity}")


@settings(SETTINGS, max_examples=EXAMPLES * 5 // 2)
@given(st.data())
def test_rest_answers_rubbish(fuzzed: Server, data: st.DataObject) -> None:
    with fuzzed.http() as http:
        paths = _paths(http)
        method, path = data.draw(st.sampled_from(paths))
        identity = data.draw(st.sampled_from([existing_session(fuzzed, http), "x", "..", "é"]))
        path = path.replace("{identity}", identity)
        for name in ("{number}", "{format_}"):
            path = path.replace(
                name, data.draw(st.sampled_from(["1", "2", "-1", "x", "coco", "png", "99999999999999999999"]))
            )
        query = data.draw(
            st.dictionaries(st.sampled_from(["k", "rle", "slice", "name", "colours"]), st.text(max_size=8), max_size=2)
        )
        body = data.draw(VALUES | MESSAGES)
        headers = {"X-Lease-Token": data.draw(st.sampled_from([existing_lease(fuzzed, http), "x"]))}
        answer = http.request(method, path, params=query, content=json.dumps(body), headers=headers)
        assert answer.status_code < 500 or answer.status_code == 503, (method, path, query, body, answer.text)
        if answer.status_code >= 400:
            assert isinstance(answer.json()["detail"], str), answer.text
    assert len(fuzzed.sessions) <= 4


@SETTINGS
@given(hnp.arrays(st.sampled_from(list(packing.DTYPES.values())), hnp.array_shapes(min_dims=1, max_dims=4)), st.data())
def test_packed_arrays_are_answered(fuzzed: Server, array: np.ndarray, data: st.DataObject) -> None:
    """nnInteractive's requests with arrays of any kind, shape and value, whole and spoiled."""
    packed = bytearray(packing.pack(array))
    for place in data.draw(st.lists(st.integers(0, len(packed) - 1), max_size=2)):
        packed[place] = data.draw(st.integers(0, 255))
    shape = data.draw(st.sampled_from([array.shape[1:], (1, 9, 7), (3, 8, 8)]))
    with fuzzed.http() as http:
        headers = {"X-Lease-Token": existing_lease(fuzzed, http)}
        box = [[0, int(n)] for n in shape]
        drawn = packing.pack(data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))))
        meta = {"X-Meta": json.dumps({"interaction_bbox": data.draw(st.sampled_from([None, box, box[:2]]))})}
        asked = [
            http.post("/set_image", content=bytes(packed), headers=headers),
            http.post("/set_target_buffer", json={"shape": shape, "dtype": "uint8"}, headers=headers),
            http.post(data.draw(st.sampled_from(DRAWN)), content=drawn, headers={**headers, **meta}),
            http.post("/predict", headers=headers),
        ]
        for answer in asked:
            assert answer.status_code < 500, (array.dtype, array.shape, answer.text)


def _paths(http: httpx.Client) -> list[tuple[str, str]]:
    if not _PATHS:
        api = http.get("/v1/openapi.json").json()
        _PATHS.extend((m.upper(), p) for p, methods in api["paths"].items() for m in methods)
    return _PATHS


def existing_session(server: Server, http: httpx.Client) -> str:
    found = [i for i, w in server.sessions._works.items() if w.connections == 0]
    if found:
        return found[0]
    answer = http.post("/v1/sessions")
    if answer.status_code != 201:
        return "x"
    identity: str = answer.json()["id"]
    http.put(f"/v1/sessions/{identity}/image", content=png(picture()))
    return identity


def existing_lease(server: Server, http: httpx.Client) -> str:
    leases = list(server.sessions.others._leases)
    return leases[0] if leases else http.post("/claim").json().get("lease_token", "x")


_PATHS: list[tuple[str, str]] = []
