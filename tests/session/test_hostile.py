"""Hostile input at every door: it is read right or refused by an `ActiveFreqError`, and nothing else happens.

``make fuzz`` draws many more examples than the test suite does (FUZZ_EXAMPLES, for each door).  What has failed once
belongs below a door as an ``@example``.
"""

import copy
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from activefreq_engine import ActiveFreqError, Click, Engine, Session, click_batch, create_model, masks
from activefreq_engine.eval import Report, load_dataset
from activefreq_engine.images import load_image
from activefreq_engine.models import load_checkpoint, save_checkpoint
from activefreq_engine.segment.prompts import read_prompts
from activefreq_engine.session.state import dump_prompt

from .fakes import SquareModel

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "750"))
HEIGHT, WIDTH = 12, 17
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ENGINE = Engine(SquareModel(refine_size=32))

fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)

numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, -(2**31), 2**63, 2**64, 10**30, 10**400, -(10**400)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(["", "\x00", "0" * 5000]))
hostile = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def holds(call: Any) -> Any:
    """What it returns; None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except ActiveFreqError as error:
            refusal = str(error)
    assert len(refusal) < 20_000  # it is read by people
    return None


def worked() -> Session:
    session = Session(engine=ENGINE)
    session.set_image(IMAGE)
    session.click(3, 4)
    session.look(2, 2, 12, 10)
    session.click(9, 8)
    session.look(None)
    session.predict([[3, 4], [14, 2]], [1, 1])
    session.next_object()
    session.load_mask(IMAGE[..., 0] > 99)
    session.click(1, 1, not session.mask[1, 1])
    session.undo()
    return session


STATE = json.loads(json.dumps(worked().state_dict()))


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(p for key, inner in items for p in paths(inner, (*here, key)))]


def changed(value: Any, where: tuple[Any, ...], new: Any, how: str) -> Any:
    """A copy with another value in one place, or without it."""
    if not where:
        return new
    value = copy.deepcopy(value)
    inside = value
    for key in where[:-1]:
        inside = inside[key]
    if how == "remove":
        del inside[where[-1]]
    elif how == "repeat" and isinstance(inside, list):
        inside.insert(0, copy.deepcopy(inside[where[-1]]))
    else:
        inside[where[-1]] = new
    return value


edits = st.tuples(st.sampled_from(paths(STATE)), hostile, st.sampled_from(["set", "set", "remove", "repeat"]))


@fuzzed
@given(st.lists(edits, min_size=1, max_size=3))
@example([(("objects", 0, "steps", 0, "x"), 10**400, "set")])
@example([(("settings", "threshold"), 10**400, "set")])
@example([(("image", "window"), [0, 10**400], "set")])
@example([(("version",), True, "set")])
@example([(("objects", 0, "steps", 1, "view"), [0, 0, 0, 0], "set")])
@example([(("objects", 0, "steps", 2, "passes"), [], "set")])
def test_states(changes):
    state = STATE
    for where, new, how in changes:
        if where in paths(state):
            state = changed(state, where, new, how)
    restored = holds(lambda: Session.restore(state, IMAGE, engine=ENGINE))
    if restored is not None:
        again = json.loads(json.dumps(restored.state_dict()))
        assert Session.restore(again, IMAGE, engine=ENGINE).state_dict() == again
        assert restored.click(3, 4).mask.shape == (HEIGHT, WIDTH)


@fuzzed
@given(hostile, st.sampled_from(["size", "counts", None]))
@example([np.int32(65536), np.int32(65536)], "size")
@example("P" * 50, "counts")
@example([["0" * 5000] * 2] * 2, "size")
def test_run_lengths(value, key):
    rle = value if key is None else {**masks.to_coco_rle(IMAGE[..., 0] > 99), key: value}
    mask = holds(lambda: masks.from_coco_rle(rle))
    assert mask is None or (mask.dtype == bool and mask.ndim == 2)


@fuzzed
@given(hostile, hostile, hostile, hostile)
@example([[1, 2], [1]], None, None, None)
@example(["0" * 5000], ["0" * 5000] * 3, None, None)
def test_calls(a, b, c, d):
    session = Session(engine=ENGINE)
    session.set_image(IMAGE)
    session.click(3, 4)
    state = session.state_dict()
    calls = [
        lambda: session.click(a, b, c),
        lambda: session.look(a, b, c, d),
        lambda: session.predict(a, b),
        lambda: session.predict([[1, 2]], [1], a),
        lambda: session.load_mask(a),
        lambda: session.select_object(a),
        lambda: session.delete_object(a),
        lambda: session.mask_of(a),
        lambda: session.set_image(a, window=b, max_pixels=c),
        lambda: session.suggest(a),
        lambda: click_batch(a, b),
        lambda: click_batch([session], [Click(a, b, c)]),
        lambda: Session(engine=ENGINE, threshold=a, wait=b),
        lambda: Engine.shared(ENGINE._module, precision=a, size=b),
    ]
    for call in calls:
        before = session.state_dict()
        if holds(call) is None and call not in calls[1:2]:
            assert session.state_dict() == before
    assert state["image"] == session.state_dict()["image"] or session.shape


def encoded(name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, name, **options)
    return buffer.getvalue()


FILES = [
    *(encoded(name) for name in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")),
    encoded("JPEG", progressive=True),
    encoded("TIFF", compression="tiff_lzw"),
    encoded("TIFF", compression="tiff_adobe_deflate"),
]
damage = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.sampled_from(["set", "cut", "insert", "double"])
    ),
    min_size=1,
    max_size=6,
)


def damaged(content: bytes, changes: Any) -> bytes:
    data = bytearray(content)
    for place, value, how in changes:
        at = int(place * len(data))
        if how == "set" and data:
            data[at] = value
        elif how == "cut":
            del data[at : at + 1 + value]
        elif how == "insert":
            data[at:at] = bytes([value])
        elif how == "double":
            data[at:at] = data[at : at + value]
    return bytes(data)


@fuzzed
@given(st.sampled_from(FILES), damage)
def test_pictures(content, changes):
    image = holds(lambda: load_image(damaged(content, changes), max_pixels=1_000_000))
    assert image is None or (image.dtype == np.uint8 and image.ndim in (2, 3) and image.size)


@fuzzed
@given(
    st.sampled_from(["c.json", "c.csv"]), st.one_of(hostile.map(repr), hostile.map(json.dumps), st.text(max_size=80))
)
@example("c.json", "[" * 100_000)
@example("c.json", '{"a": {"clicks": [[1, 1e999]]}}')
@example("c.csv", "image,x,y\na,1,2,3\n")
@example("c.csv", 'image,x,y\na,"1\n')
@example("c.csv", "\r0")
@example("c.csv", "image,x,y\ra,1,2\r")
@example("c.csv", "image,x0,y0,x1,y1\na,nan,1,2,3\n")
def test_files_of_clicks(name, text):
    found = holds(lambda: read_prompts(Path(name), text))
    for prompts in (found or {}).values():
        for prompt in prompts.prompts:
            assert all(np.isfinite(value).all() for value in dump_prompt(prompt).values())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_checkpoint(create_model(), path)
    return path


@settings(fuzzed, max_examples=max(5, EXAMPLES // 6))
@given(changes=damage, head=st.booleans())
def test_checkpoints(checkpoint, changes, head):
    """Most damage is done to the header, where a byte means something."""
    content = checkpoint.read_bytes()
    if head:
        split = 8 + int.from_bytes(content[:8], "little")
        content = damaged(content[:split], changes) + content[split:]
    else:
        content = damaged(content, changes)
    target = checkpoint.with_name("damaged.safetensors")
    target.write_bytes(content)
    holds(lambda: load_checkpoint(target))


REPORT = {
    "format": "activefreq-eval-1",
    "clicker": "ritm",
    "model": "m",
    "shard": None,
    "seconds": 1.0,
    "settings": {
        "max_clicks": 2,
        "stop_at": None,
        "seed": 0,
        "batch_size": 1,
        "about": {},
        "dataset": "d",
        "layout": "masks",
        "dataset_samples": 1,
        "dataset_digest": "0",
        "versions": {},
    },
    "per_sample": [
        {"number": 0, "id": "a", "object": 1, "iou": [0.5, 0.6], "clicks": [[1, 2, 1], [3, 4, 0]], "ms": [1, 2]}
    ],
}


@fuzzed
@given(st.sampled_from(paths(REPORT)), hostile, st.sampled_from(["set", "remove", "repeat"]))
def test_reports(where, new, how):
    holds(lambda: Report.from_json(changed(REPORT, where, new, how)))


names = st.sampled_from(
    ["a.png", "b.png", "._a.png", "a.PNG", "a.jpg", "a_mask.png", "x.txt", "\u3042.png", "a.b.png", "c"]
)
contents = st.one_of(
    st.sampled_from([*FILES, b"", b"text"]), st.tuples(st.sampled_from(FILES), damage).map(lambda t: damaged(*t))
)


@settings(fuzzed, max_examples=max(10, EXAMPLES // 2))
@given(
    files=st.lists(st.tuples(st.sampled_from(["images", "masks", "labels", "."]), names, contents), max_size=6),
    broken=st.sampled_from(["raise", "keep"]),
)
def test_data_folders(tmp_path_factory, files, broken):
    root = tmp_path_factory.mktemp("data")
    for folder, name, content in files:
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).write_bytes(content)
    data = holds(lambda: load_dataset(root, broken=broken))
    for sample in data.samples if data is not None else ():
        holds(sample.load_image)
        holds(sample.load_mask)
