"""Journals that somebody changed or a disk damaged: an error in words or what is left of them, and the server lives."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from activefreq_engine import Engine, InvalidArgumentError
from activefreq_engine.serve import ops, work
from activefreq_engine.serve.errors import ConflictError, NotFoundError
from activefreq_engine.serve.journal import Journals
from activefreq_engine.serve.pictures import Planes
from activefreq_engine.serve.progress import Progress
from activefreq_engine.serve.sessions import Limits, Sessions
from activefreq_engine.serve.work import Work

from .client import picture, png


class Seen(NamedTuple):
    image: torch.Tensor


class Answer(NamedTuple):
    logits: torch.Tensor
    embedding: torch.Tensor


class AroundClicks(torch.nn.Module):
    """In place of a network: whatever lies near a positive click."""

    refiner = None
    config = SimpleNamespace(refine_size=64, click_radius=5.0)

    def encode_image(self, image: torch.Tensor) -> Seen:
        return Seen(image)

    def decode_clicks(self, features: Seen, clicks: torch.Tensor) -> Answer:
        wide, flat = ((1, 31), 1, (0, 15)), ((31, 1), 1, (15, 0))
        inside, outside = (F.max_pool2d(F.max_pool2d(clicks[:, k : k + 1], *wide), *flat) for k in (1, 2))
        near = inside - 2 * outside
        logits = 6 * near - 3 + 0.1 * features.image.mean(1, keepdim=True) + clicks[:, :1]
        return Answer(logits, logits)


ENGINE = Engine(AroundClicks())
CLICKS: list[dict[str, Any]] = [
    {"op": "click", "x": 60.0, "y": 60.0, "positive": True},
    {"op": "click", "x": 20.0, "y": 30.0, "positive": False},
    {"op": "undo"},
    {"op": "next"},
    {"op": "box", "x0": 5.0, "y0": 5.0, "x1": 50.0, "y1": 40.0},
    {"op": "scribble", "points": [[100.0, 20.0], [120.0, 30.0]], "positive": True},
    {"op": "select", "object": 1},
    {"op": "rename", "object": 2, "name": "b"},
]
Masks = dict[int, NDArray[np.bool_]]


def served(root: Path) -> Sessions:
    return Sessions(ENGINE, Limits(sessions=4), journals=Journals(root), folder=None, fsync=False)


async def masks_of(session: Work) -> Masks:
    return {n: (await session.mask(n)).copy() for n in session.objects}


def made(root: Path, steps: list[dict[str, Any]]) -> tuple[str, Masks]:
    """A session with these steps in its journal, and its masks."""

    async def make() -> tuple[str, Masks]:
        sessions = served(root)
        session = await sessions.create()
        await sessions.put_picture(session, png(picture()), "a.png")
        for seq, step in enumerate(steps, 1):
            await session.perform(ops.parse({**step, "seq": seq}))
        found = await masks_of(session)
        sessions.close()
        return session.id, found

    return asyncio.run(make())


def opened(root: Path, identity: str) -> Masks:
    async def find() -> Masks:
        sessions = served(root)
        try:
            return await masks_of(await sessions.get(identity))
        finally:
            assert len(sessions) <= 1
            sessions.close()

    return asyncio.run(find())


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[bytes], Masks]:
    root = tmp_path_factory.mktemp("journals")
    identity, found = made(root, CLICKS)
    return root, identity, (root / identity / "events.jsonl").read_bytes().splitlines(keepends=True), found


def line(**event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


def head(**changes: Any) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [line(**{**json.loads(lines[0]), **changes}), *lines[1:]]


def added(*more: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines, *more]


WRONG: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "empty": lambda lines: [],
    "blank lines": added(b"\n"),
    "half a line in the middle": lambda lines: [*lines[:4], lines[4][:20] + b"\n", *lines[5:]],
    "a line twice": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "two lines swapped": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "turned round": lambda lines: [lines[0], *lines[:0:-1]],
    "no head": lambda lines: lines[1:],
    "no picture": lambda lines: [lines[0], *lines[2:]],
    "another version": head(version=2),
    "a version of huge length": head(version="9" * 1_000_000),
    "another format": head(format=["x"] * 1000),
    "another model": head(model="x" * 100_000),
    "another size": head(size=10**4000),
    "a list for a line": added(b"[1,2]\n"),
    "text for a line": added(b'"void"\n'),
    "no UTF-8": added(b'{"op":"\xff\xfe"}\n'),
    "zeros": added(bytes(4096) + b"\n"),
    "nested": added(b"[" * 200_000 + b"\n"),
    "a number of many digits": added(b'{"op":"select","object":' + b"9" * 5000 + b"}\n"),
    "unknown": added(line(op="format_disk")),
    "nothing to take back": lambda lines: [lines[0], line(op="void"), *lines[1:]],
    "an object that is none": added(line(op="select", object=99)),
    "a huge object": added(line(op="delete", object=10**300)),
    "a slice that is none": added(line(op="slice", index=10**9)),
    "a window for 8 bits": added(line(op="window", low=1, high=2)),
    "a click outside": added(line(op="click", x=1e9, y=1)),
    "NaN": added(b'{"op":"click","x":NaN,"y":1}\n'),
    "nothing to undo": added(*[line(op="undo")] * 2),
    "a picture without a sum": added(line(op="picture", name="a.png")),
    "a picture of a wrong kind": added(line(op="picture", name=3, path=[], sha256="")),
    "a region of a wrong kind": added(line(op="picture", name="a", path="a", box="wide", sha256="")),
    "another picture": lambda lines: [lines[0], line(op="picture", name="a.png", sha256="0" * 64), *lines[2:]],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_journal_that_cannot_be(journal: Any, name: str) -> None:
    root, identity, lines, found = journal
    file = root / identity / "events.jsonl"
    wrong = b"".join(WRONG[name](lines))
    file.write_bytes(wrong)
    with pytest.raises((ConflictError, NotFoundError)) as raised:
        opened(root, identity)
    assert len(str(raised.value)) < 1200
    if name == "a line twice":
        assert "delete line 4 and all lines after it" in str(raised.value)
    assert file.read_bytes() == wrong, "nothing was lost of what somebody may repair"
    file.write_bytes(b"".join(lines))
    again = opened(root, identity)
    assert all(np.array_equal(again[n], found[n]) for n in found)


def test_a_journal_cut_anywhere_opens_or_says_why(journal: Any, rng: np.random.Generator) -> None:
    root, identity, lines, _ = journal
    file, whole = root / identity / "events.jsonl", b"".join(lines)
    for at in [0, len(lines[0]) - 1, len(lines[0]), *rng.integers(len(lines[0]) + len(lines[1]), len(whole), 8)]:
        file.write_bytes(whole[:at])
        begun = whole[:at].count(b"\n")
        if begun == 0:
            with pytest.raises(ConflictError, match="it is empty"):
                opened(root, identity)
        elif begun > 1:
            opened(root, identity)
        assert file.read_bytes() == whole[: whole[:at].rfind(b"\n") + 1]
    file.write_bytes(whole)


def test_a_step_that_could_not_be_carried_out_is_taken_back(journal: Any) -> None:
    """As a server leaves it that ended in the middle of one."""
    root, identity, lines, found = journal
    file, whole = root / identity / "events.jsonl", b"".join(lines)
    for bad in (
        line(op="lasso", points=[[1, 3], [4, 3], [2, 3]], seq=99),
        line(op="scribble", points=[[1e6, 3]]),
        line(op="box", x0=5, y0=5, x1=5, y1=9),
        line(op="mask", png="AAAA"),
        line(op="mask", png="%"),
    ):
        file.write_bytes(whole + bad)
        for _ in range(2):
            again = opened(root, identity)
            assert all(np.array_equal(again[n], found[n]) for n in found)
            assert file.read_bytes() == whole + bad + b'{"op":"void"}\n'
    file.write_bytes(whole)


IMPOSSIBLE = (
    line(op="lasso", points=[[1, 3], [4, 3], [2, 3]]),
    line(op="scribble", points=[[1e6, 3]]),
    line(op="box", x0=5, y0=5, x1=5, y1=9),
    line(op="mask", png="AAAA"),
)


@pytest.mark.parametrize("bad", IMPOSSIBLE, ids=["lasso", "scribble", "box", "mask"])
def test_an_impossible_step_in_the_middle_is_left_out_and_said_once(
    journal: Any, rng: np.random.Generator, caplog: pytest.LogCaptureFixture, bad: bytes
) -> None:
    root, identity, lines, found = journal
    file = root / identity / "events.jsonl"
    at = int(rng.integers(2, len(lines)))
    while b'"undo"' in lines[at] or b'"undo"' in lines[at - 1]:  # an undo there would take back the impossible step
        at = int(rng.integers(2, len(lines)))
    file.write_bytes(b"".join([*lines[:at], bad, *lines[at:]]))
    caplog.clear()
    again = opened(root, identity)
    assert all(np.array_equal(again[n], found[n]) for n in found)
    assert caplog.text.count("is left out") == 1
    file.write_bytes(b"".join([*lines, bad, line(op="undo"), line(op="redo"), line(op="undo")]))
    again = opened(root, identity)
    assert all(np.array_equal(again[n], found[n]) for n in found)
    file.write_bytes(b"".join(lines))


def test_the_work_before_a_damaged_line_can_be_kept_as_the_error_says(journal: Any) -> None:
    root, identity, lines, found = journal
    file = root / identity / "events.jsonl"
    file.write_bytes(b"".join([*lines[:-1], b"damaged\n", lines[-1]]))
    with pytest.raises(ConflictError, match=f"delete line {len(lines)} and all lines after it"):
        opened(root, identity)
    kept = file.read_bytes().splitlines(keepends=True)[: len(lines) - 1]
    file.write_bytes(b"".join(kept))
    again = opened(root, identity)
    assert all(np.array_equal(again[n], found[n]) for n in found)
    file.write_bytes(b"".join(lines))


def test_links_and_things_without_an_end_are_not_followed(tmp_path: Path) -> None:
    identity, _ = made(tmp_path, CLICKS)
    folder, secret = tmp_path / identity, tmp_path / "secret"
    picture_file, events = folder / "picture", folder / "events.jsonl"
    secret.write_bytes(events.read_bytes() + b"no end")
    data = picture_file.read_bytes()
    for put in (
        lambda: picture_file.symlink_to(secret),
        lambda: picture_file.symlink_to("/dev/zero"),
        lambda: os.mkfifo(picture_file),
        picture_file.mkdir,
        lambda: None,
    ):
        if picture_file.is_dir():
            picture_file.rmdir()
        else:
            picture_file.unlink(missing_ok=True)
        put()
        with pytest.raises(ConflictError, match="cannot be read"):
            opened(tmp_path, identity)
    picture_file.write_bytes(data)
    events.unlink()
    events.symlink_to(secret)
    with pytest.raises(ConflictError, match="cannot be opened"):
        opened(tmp_path, identity)
    events.unlink()
    events.write_bytes(secret.read_bytes())
    other = "l" * 20
    (tmp_path / other).symlink_to(folder)
    with pytest.raises(ConflictError, match="is a link"):
        opened(tmp_path, other)
    Journals(tmp_path).drop(other)
    assert secret.read_bytes().endswith(b"no end")
    assert not (tmp_path / other).exists()
    opened(tmp_path, identity)


def test_limits_of_a_journal(journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, identity, lines, _ = journal
    for name, match in (("LARGEST", "allowed are 300"), ("LONGEST", "has 300 bytes and more")):
        file = root / identity / "events.jsonl"
        file.write_bytes(b"".join(lines) + line(op="rename", object=1, name="x" * 400))
        with monkeypatch.context() as patch:
            patch.setattr(f"activefreq_engine.serve.journal.{name}", 300)
            with pytest.raises(ConflictError, match=match):
                opened(root, identity)
        file.write_bytes(b"".join(lines))


def test_progress_that_was_damaged_is_read_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(tmp_path / "images", tmp_path)
    progress.begin("a.png", "s" * 20)
    progress.begin("b.svs", "t" * 20, (1, 2, 3, 4))
    progress.mark("a.png", "done")
    with pytest.raises(InvalidArgumentError, match=r"another server has the folder .*--journal"):
        Progress(tmp_path / "images", tmp_path)
    progress.close()
    file = next(tmp_path.glob("folder-*.jsonl"))
    good = file.read_bytes()
    bad = [b"[]", b"{", b"\xff", b'{"picture":3,"session":"x"}', b'{"picture":"a.png","session":[]}', b"[" * 100_000]
    bad += [b'{"picture":"a.png","status":"gone"}', b'{"picture":"a","box":"wide","session":"x"}', b'{"status":"done"}']
    file.write_bytes(b"\n".join(bad) + b"\n" + good + b'{"pic')
    again = Progress(tmp_path / "images", tmp_path)
    for name in ("sessions", "regions", "status"):
        assert getattr(again, name) == getattr(progress, name)
    again.close()
    assert "9 lines" in caplog.text
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConflictError, match="move it away"):
        Progress(tmp_path / "images", tmp_path)


def test_slices_are_let_go_by_bytes_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clicks, masks, undo and redo survive; the engine's part of a slice used long ago does not."""
    volume = Planes("v", np.stack([picture(seed=i) for i in range(6)]))
    drawn = np.zeros((volume.height, volume.width), np.uint8)
    drawn[10:30, 20:70] = 255
    mask = {"op": "mask", "png": base64.b64encode(png(drawn)).decode()}

    async def annotate(limit: int) -> tuple[list[NDArray[np.bool_]], int, list[dict[str, Any]]]:
        monkeypatch.setattr(work, "SLICE_BYTES", limit)
        sessions = served(tmp_path / str(limit))
        session = await sessions.create()
        await session.set_picture(volume, {"sha256": ""})
        most = 0
        for index in range(6):
            for op in ({"op": "slice", "index": index}, mask if index % 2 else CLICKS[0], CLICKS[1], CLICKS[2]):
                await session.perform(ops.parse(op))
                most = max(most, len(session._slices))
        seen = [(await session.mask(1, index)).copy() for index in range(6)]
        for op in ({"op": "slice", "index": 0}, {"op": "redo"}, {"op": "slice", "index": 3}, {"op": "undo"}):
            await session.perform(ops.parse(op))
        seen += [(await session.mask(1, index)).copy() for index in range(6)]
        states = [session.describe(1)]
        sessions.close()
        return seen, most, states

    many, kept, state = asyncio.run(annotate(2**40))
    one = volume.height * volume.width * 5 + 2 * work.STEP_BYTES
    few, least, again = asyncio.run(annotate(2 * one))
    single, alone, _ = asyncio.run(annotate(1))
    assert (kept, least, alone) == (6, 2, 1)
    assert state == again
    assert many[0].any()
    for a, b, c in zip(many, few, single, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)
