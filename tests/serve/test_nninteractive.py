"""nnInteractive's protocol, spoken by nnInteractive's own client."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activefreq_engine import Engine, Session
from activefreq_engine.errors import ActiveFreqError
from activefreq_engine.serve import batches, packing
from activefreq_engine.serve.sessions import Limits
from activefreq_engine.serve.strokes import MOST_LINES, paths

from .client import HEIGHT, PATIENCE, WIDTH, picture
from .conftest import Server

remote = pytest.importorskip(
    "nnInteractive.inference.remote", reason="nnInteractive's client is missing: pip install nninteractive-client"
)
from nnInteractive.inference.remote.remote_session import ServerAtCapacityError, SessionExpiredError  # noqa: E402
from nnInteractive.inference.remote.serialization import pack_array, unpack_array  # noqa: E402

FLAT = np.ascontiguousarray(picture().transpose(2, 0, 1)[:, None])
"""A picture as their clients send it: [C, 1, H, W]."""


@pytest.fixture
def theirs(server: Server) -> Iterator[object]:
    with remote.nnInteractiveRemoteInferenceSession(server.url) as client:
        yield client


def begin(client: Any, image: np.ndarray, properties: dict[str, Any] | None = None) -> np.ndarray:
    client.set_image(image, properties)
    buffer = np.zeros(image.shape[1:], np.uint8)
    client.set_target_buffer(buffer)
    return buffer


def test_points_on_a_picture_are_those_of_a_session(theirs: Any, engine: Engine) -> None:
    buffer = begin(theirs, FLAT.astype(np.float32))
    assert theirs.original_image_shape == FLAT.shape
    session = Session(engine=engine)
    session.set_image(picture())
    masks = []
    for row, column, positive in ((60, 61, True), (12, 150, False), (70, 48, True)):
        box = theirs.add_point_interaction((0, row, column), positive)
        session.click(column + 0.5, row + 0.5, positive)
        masks.append(session.mask.copy())
        assert np.array_equal(buffer[0] != 0, session.mask)
        assert box is None or box[0] == [0, 1]
    assert masks[0].any()
    assert masks[0][60, 61]
    for mask in (masks[1], masks[0], np.zeros_like(masks[0])):
        assert theirs.undo()
        assert np.array_equal(buffer[0] != 0, mask)
    assert not theirs.undo()
    theirs.add_point_interaction((0, 60, 61), True)
    theirs.reset_interactions()
    assert not buffer.any()
    assert not theirs.undo()
    theirs.add_point_interaction((0, 60, 61), True)
    assert np.array_equal(buffer[0] != 0, masks[0])


def test_prompts_wait_until_a_prediction_is_wanted(theirs: Any) -> None:
    buffer = begin(theirs, FLAT)
    theirs.add_point_interaction((0, 60, 61), True, run_prediction=False)
    theirs.add_point_interaction((0, 12, 150), False, run_prediction=False)
    assert not buffer.any()
    assert theirs._predict() is not None
    assert buffer[0, 60, 61] == 1
    assert buffer[0, 12, 150] == 0
    assert theirs._predict() is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_are_segmented_in_the_slices_that_prompts_lie_in(theirs: Any, engine: Engine, axis: int) -> None:
    planes = np.stack([picture(seed=i)[..., 0] for i in range(4)])
    volume = np.moveaxis(planes, 0, axis)
    buffer = begin(theirs, volume[None].astype(np.int16))
    stroke = np.zeros((4, HEIGHT, WIDTH), np.uint8)
    stroke[2, np.arange(55, 80), np.arange(50, 75)] = 1  # a slanting line lies in one slice only
    theirs.add_scribble_interaction(np.ascontiguousarray(np.moveaxis(stroke, 0, axis)), True)
    found = np.moveaxis(buffer, axis, 0)
    assert found[2].any()
    assert found[2, 55, 50]
    assert found[2, 79, 74]
    assert not found[[0, 1, 3]].any()
    at = [60, 61]
    at.insert(axis, 3)
    theirs.add_point_interaction(at, True)
    session = Session(engine=engine)
    session.set_image(planes[3])
    session.click(61.5, 60.5)
    assert np.array_equal(found[3] != 0, session.mask)
    kept = found[2].copy()
    assert theirs.undo()
    assert not found[3].any()
    assert np.array_equal(found[2], kept)
    assert theirs.undo(), "a scribble is one step"
    assert not buffer.any()


def test_the_slice_axis_is_the_one_of_the_largest_spacing(theirs: Any) -> None:
    volume = np.ascontiguousarray(np.moveaxis(np.stack([picture(seed=i)[..., 0] for i in range(4)]), 0, 2))
    for spacing, axis in (
        ([1.0, 1.0, 3.0], 2),
        ([1.0, -1.0, -3.0], 2),  # a layer that napari shows the other way round
        ([1.0, 1.0, 10**400], 0),
        ([1.0, 1.0, np.inf], 0),
        ([1.0, 1.0, np.nan], 0),
    ):
        buffer = begin(theirs, volume[None], {"spacing": spacing})
        theirs.add_point_interaction((60, 61, 2), True)
        changed = np.argwhere(buffer)[:, axis]
        assert len(np.unique(changed)) == 1, spacing
        assert len(changed) > 1, spacing


def test_a_flat_image_is_an_image(theirs: Any) -> None:
    for value in (np.float64(1e308), np.int64(2**62), np.int16(-1024), np.float32(0)):
        buffer = begin(theirs, np.full((1, 1, 30, 40), value))
        theirs.add_point_interaction((0, 10, 20), True)
        assert buffer[0, 10, 20] == 1


def test_a_buffer_may_be_big_endian(theirs: Any) -> None:
    theirs.set_image(FLAT.astype(">i2"))
    buffer = np.zeros(FLAT.shape[1:], ">i2")
    theirs.set_target_buffer(buffer)
    theirs.add_point_interaction((0, 60, 61), True)
    assert np.unique(buffer).tolist() == [0, 1]
    assert buffer[0, 60, 61] == 1


def test_a_reset_needs_no_image(theirs: Any) -> None:
    """napari's plug-in resets when another image is chosen, also before the first one was sent."""
    theirs.reset_interactions()
    buffer = begin(theirs, FLAT)
    theirs.add_point_interaction((0, 60, 61), True)
    assert buffer[0, 60, 61] == 1


def test_a_scribble_comes_in_a_box(theirs: Any) -> None:
    buffer = begin(theirs, FLAT)
    drawn = np.ones((1, 1, 20), np.uint8)
    theirs.add_scribble_interaction(drawn, True, interaction_bbox=[[0, 1], [60, 61], [50, 70]])
    assert buffer[0, 60, 50] == 1
    assert buffer[0, 60, 69] == 1


def test_an_initial_segmentation_is_the_start(theirs: Any, engine: Engine) -> None:
    buffer = begin(theirs, FLAT)
    start = np.zeros(FLAT.shape[1:], np.uint8)
    start[0, 20:70, 30:110] = 1
    theirs.add_point_interaction((0, 60, 61), True)
    clicked = buffer.copy()
    theirs.add_initial_seg_interaction(start)
    assert np.array_equal(buffer, start)
    theirs.add_point_interaction((0, 80, 40), True)
    session = Session(engine=engine)
    session.set_image(picture())
    session.load_mask(start[0] != 0)
    session.click(40.5, 80.5)
    assert np.array_equal(buffer[0] != 0, session.mask)
    assert theirs.undo()
    assert np.array_equal(buffer, start)
    assert theirs.undo(), "the segmentation itself is a step: what it replaced is not lost"
    assert np.array_equal(buffer, clicked)
    theirs.add_point_interaction((0, 70, 48), True)
    for mask in (clicked, np.zeros_like(clicked)):
        assert theirs.undo()
        assert np.array_equal(buffer, mask)
    assert not theirs.undo()


def test_boxes_are_those_of_a_session(theirs: Any, engine: Engine) -> None:
    buffer = begin(theirs, FLAT)
    session = Session(engine=engine)
    session.set_image(picture())
    theirs.add_bbox_interaction([[0, 1], [30, 90], [20, 110]], True)
    session.box(20, 30, 110, 90)
    assert np.array_equal(buffer[0] != 0, session.mask)
    theirs.add_point_interaction((0, 60, 61), True)
    session.click(61.5, 60.5)
    assert buffer.any()
    assert np.array_equal(buffer[0] != 0, session.mask)
    kept = session.mask.copy()
    theirs.add_bbox_interaction([[0, 1], [40, 95], [100, 140]], True)  # a further one adds to what there is
    session.lasso([(100, 40), (140, 40), (140, 95), (100, 95)])
    assert np.array_equal(buffer[0] != 0, session.mask)
    theirs.add_bbox_interaction([[0, 1], [30, 60], [20, 110]], False)
    assert not buffer[0, 30:60, 20:110].any()
    assert theirs.undo()
    assert np.array_equal(buffer[0] != 0, session.mask)
    assert theirs.undo()
    assert np.array_equal(buffer[0] != 0, kept)
    assert theirs.undo()
    assert theirs.undo()
    assert not buffer.any()


def test_places_between_voxels(theirs: Any, engine: Engine) -> None:
    """napari's plug-in sends fractions, and boxes that reach out of the image."""
    buffer = begin(theirs, FLAT)
    session = Session(engine=engine)
    session.set_image(picture())
    theirs.add_point_interaction(np.array([0.0, 59.6, 61.49]), True)
    session.click(61.5, 60.5)
    assert np.array_equal(buffer[0] != 0, session.mask)
    theirs.reset_interactions()
    theirs.add_bbox_interaction([[0.0, 1.0], [-7.3, 89.7], [20.4, WIDTH + 3.2]], True)
    session.box(20, 0, WIDTH, 90)
    assert np.array_equal(buffer[0] != 0, session.mask)
    for refused in ([-0.6, 5, 5], [0, HEIGHT - 0.4, 5], [0, 1e300, 5]):
        with pytest.raises(httpx.HTTPStatusError, match=r"\b(422|400)\b"):
            theirs.add_point_interaction(refused, True)
    with pytest.raises(httpx.HTTPStatusError, match=r"\b(422|400)\b"):
        theirs.add_bbox_interaction([[0, 1], [HEIGHT + 1.0, HEIGHT + 9.0], [20, 40]], True)
    for number in ("1e999", "NaN", "-Infinity", "9" * 400):
        body = f'{{"coordinates": [0, 5, {number}], "include_interaction": true}}'
        answer = theirs._http.post("/add_point_interaction", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text


def test_lassos_are_those_of_a_session(theirs: Any, engine: Engine) -> None:
    buffer = begin(theirs, FLAT)
    session = Session(engine=engine)
    session.set_image(picture())
    filled = np.zeros(FLAT.shape[1:], np.uint8)
    filled[0, 30:90, 20:110] = 1
    line = filled.copy()
    line[0, 31:89, 21:109] = 0
    session.lasso([(20, 30), (110, 30), (110, 90), (20, 90)])
    for drawn in (filled, line):
        theirs.add_lasso_interaction(drawn, True)
        assert np.array_equal(buffer[0] != 0, session.mask)
        assert theirs.undo()
        assert not buffer.any()
    theirs.add_lasso_interaction(filled, True)
    theirs.add_point_interaction((0, 60, 61), True)
    session.click(61.5, 60.5)
    assert buffer[0, 50:60, 60:72].any()
    theirs.add_lasso_interaction(np.ones((1, 10, 12), np.uint8), False, interaction_bbox=[[0, 1], [50, 60], [60, 72]])
    assert not buffer[0, 50:60, 60:72].any()
    theirs.undo()
    assert np.array_equal(buffer[0] != 0, session.mask)


def test_pixels_under_a_stroke_take_its_sign(theirs: Any) -> None:
    buffer = begin(theirs, FLAT)
    drawn = np.zeros(FLAT.shape[1:], np.uint8)
    cv2.polylines(drawn[0], [np.array([[30, 40], [90, 45], [60, 80], [62, 20]])], False, 1)  # it crosses itself
    theirs.add_scribble_interaction(drawn, True)
    assert buffer[0][drawn[0] != 0].mean() > 0.97
    assert theirs.undo()
    assert not buffer.any()


def test_strokes_are_followed_along_their_length(rng: np.random.Generator) -> None:
    for _ in range(20):
        height, width = (int(n) for n in rng.integers(30, 300, 2))
        drawn = np.zeros((height, width), np.uint8)
        points = (rng.random((rng.integers(1, 6), 2)) * [width, height]).astype(np.int32)
        thickness = int(rng.integers(1, 7))
        cv2.polylines(drawn, [points], False, 1, thickness)
        drawn[points[:, 1], points[:, 0]] = 1
        lines = paths(drawn.view(np.bool_))
        near = np.ones_like(drawn)
        for line in lines:
            at = np.array(line)
            assert (np.abs(np.diff(at, axis=0)).max(initial=0)) <= 1
            assert drawn[at[:, 1], at[:, 0]].all()
            near[at[:, 1], at[:, 0]] = 0
        if len(lines) < MOST_LINES:
            assert cv2.distanceTransform(near, cv2.DIST_L2, 5)[drawn != 0].max() <= 2 * thickness + 3
    assert len(paths(np.ones((700, 500), bool))) <= MOST_LINES  # an area is no stroke, and takes no time


def test_what_is_not_supported_is_said(theirs: Any) -> None:
    begin(theirs, np.ascontiguousarray(np.repeat(FLAT, 3, axis=1)))
    assert theirs.supports_undo
    assert not theirs.supports_zero_shot_label_refinement
    assert theirs.supported_interactions == {
        "points": True, "scribble": True, "bbox2d": True, "bbox3d": False, "lasso": True
    }  # fmt: skip
    deep = np.ones((3, HEIGHT, WIDTH), np.uint8)
    for ask in (
        lambda: theirs.add_bbox_interaction([[0, 1], [10, 20], [WIDTH, WIDTH + 1]], True),
        lambda: theirs.add_bbox_interaction([[0, 1], [10, 10], [10, 20]], True),
        lambda: theirs.add_bbox_interaction([[0, 2], [10, 12], [10, 20]], True, override_capability_checks=True),
        lambda: theirs.add_lasso_interaction(deep, True),
        lambda: theirs.add_lasso_interaction(0 * deep, True),
        lambda: theirs.add_point_interaction((0, HEIGHT, 0), True),
        lambda: theirs.add_scribble_interaction(0 * deep, True),
        lambda: theirs.set_image(np.zeros((2, 1, 5, 5), np.uint8)),
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            ask()
        assert refused.value.response.status_code == 400
        assert len(refused.value.response.json()["detail"]) > 10


def test_leases_end_and_are_counted(engine: Engine) -> None:
    server = Server(engine, limits=Limits(sessions=2, idle_s=60))
    new = remote.nnInteractiveRemoteInferenceSession
    try:
        with new(server.url) as one:
            assert 0 < one.heartbeat() <= 60
            assert one.lease_status()["idle_timeout_seconds"] == 60
            with new(server.url):
                with pytest.raises(ServerAtCapacityError, match="places"):
                    new(server.url)
                assert httpx.post(f"{server.url}/v1/sessions").status_code == 503
            begin(one, FLAT)
            (lease,) = server.sessions.others._leases.values()
            lease.acted -= 61
            with pytest.raises(SessionExpiredError):
                one.add_point_interaction((0, 60, 61), True)
        with new(server.url) as gone:
            (lease,) = server.sessions.others._leases.values()
            lease.alive -= 61
            with pytest.raises(SessionExpiredError):
                gone.heartbeat()
        assert len(server.sessions) == 0
    finally:
        server.close()


def test_a_lease_ends_after_what_came_before(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on, click = threading.Event(), threading.Event(), batches.click_batch

    def slow(*arguments: Any) -> Any:
        started.set()
        go_on.wait(PATIENCE)
        return click(*arguments)

    server = Server(engine)
    try:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http, ThreadPoolExecutor(3) as pool:
            http.headers["X-Lease-Token"] = http.post("/claim").json()["lease_token"]
            assert http.post("/set_image", content=packing.pack(FLAT)).status_code == 200
            (lease,) = server.sessions.others._leases.values()
            monkeypatch.setattr(batches, "click_batch", slow)
            try:
                asked = []
                for y in (60, 20):
                    point = {"coordinates": [0, y, 60], "include_interaction": True}
                    asked.append(pool.submit(http.post, "/add_point_interaction", json=point))
                    assert started.wait(PATIENCE)
                while not lease.lock._waiters:
                    time.sleep(0.01)
                released = pool.submit(http.post, "/release")
                while server.sessions.others._leases:
                    time.sleep(0.01)
                assert http.post("/heartbeat").status_code == 410
            finally:
                go_on.set()
            assert [answer.result().status_code for answer in asked] == [200, 200]
            assert released.result().json() == {"released": True}
            assert lease.volume is None
    finally:
        server.close()


def test_an_image_of_one_huge_value_is_clicked_in(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        http.headers["X-Lease-Token"] = http.post("/claim").json()["lease_token"]
        assert http.post("/set_image", content=packing.pack(np.full((1, 1, 9, 9), -1e300))).status_code == 200
        point = {"coordinates": [0, 4, 4], "include_interaction": True}
        assert http.post("/add_point_interaction", json=point).status_code == 200
        http.post("/release")


def test_the_token_is_their_api_key(engine: Engine) -> None:
    server = Server(engine, token="the-key-of-this-test")
    try:
        with pytest.raises(httpx.HTTPStatusError):
            remote.nnInteractiveRemoteInferenceSession(server.url)
        with remote.nnInteractiveRemoteInferenceSession(server.url, api_key="the-key-of-this-test") as client:
            assert begin(client, FLAT).shape == (1, HEIGHT, WIDTH)
    finally:
        server.close()


@pytest.mark.parametrize("name", sorted(packing.DTYPES))
def test_arrays_pack_as_theirs_do(name: str, rng: np.random.Generator) -> None:
    array = (rng.random((3, 1, 17, 5)) * 100).astype(name)
    for found in (unpack_array(packing.pack(array)), packing.unpack(pack_array(array), 10**6)):
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    with pytest.raises(ActiveFreqError, match="takes"):
        packing.unpack(pack_array(array), array.nbytes - 1)


WHOLE = pack_array(np.arange(300, dtype=np.uint16).reshape(10, 30))


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda b: WHOLE[:8] + b),
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)).map(
            lambda t: WHOLE[: t[0]] + bytes([t[1]]) + WHOLE[t[0] + 1 :]
        ),
        st.integers(0, len(WHOLE) - 1).map(lambda n: WHOLE[:n]),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2).map(
            lambda s: WHOLE[:14] + struct.pack("<2q", *s) + WHOLE[30:]
        ),
    )
)
def test_packed_rubbish_is_refused(data: bytes) -> None:
    try:
        found = packing.unpack(data, 10_000)
    except ActiveFreqError:
        return
    assert found.nbytes <= 10_000


def test_rubbish_in_the_protocol_is_refused_in_words(server: Server) -> None:
    with server.http() as http:
        token = {"X-Lease-Token": http.post("/claim").json()["lease_token"]}
        for path, kwargs, status in (
            ("/set_image", {"content": b"rubbish"}, 400),
            ("/set_image", {"content": WHOLE, "headers": {"X-Meta": "{"}}, 400),
            ("/set_image", {"content": WHOLE}, 400),
            ("/add_point_interaction", {"json": {"coordinates": [0, 1, 2], "include_interaction": True}}, 409),
            ("/add_point_interaction", {"json": {"coordinates": [0, 1], "include_interaction": True}}, 422),
            ("/set_target_buffer", {"json": {"shape": [1, 2, 3], "dtype": "__import__('os')"}}, 409),
            ("/undo", {}, 409),
            ("/predict", {}, 409),
        ):
            headers = {**token, **kwargs.pop("headers", {})}
            answer = http.post(path, headers=headers, **kwargs)
            assert answer.status_code == status, (path, answer.text)
            assert isinstance(answer.json()["detail"], str), json.dumps(answer.json())
        assert http.post("/undo", headers={"X-Lease-Token": "unknown"}).status_code == 410
        assert http.post("/undo").status_code == 410
