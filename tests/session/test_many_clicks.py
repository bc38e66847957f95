"""An object with many clicks: each further one costs the same work, and older ones keep what is around them."""

import statistics
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from activefreq_engine import BoxPrompt, Click, Engine, Scribble, Session
from activefreq_engine.conventions import SLOTS
from activefreq_engine.runtime.levels import ONE, probabilities
from activefreq_engine.session import boxes
from activefreq_engine.session.click import _forgotten, _held, _keeping
from activefreq_engine.session.click_tally import ClickTally
from activefreq_engine.session.prompts import DISK, disks, mark_of

from .fakes import SquareModel, random_image

SIDE = 300


def work_of(call):
    """How many bytecodes Python runs in a call: what a loop over all clicks would make more of."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("refine_size", [None, 64], ids=["plain", "refined"])
@pytest.mark.parametrize("start", ["clicks", "a box", "a mask"])
def test_a_click_is_no_more_work_after_many(rng, start, refine_size):
    session = Session(engine=Engine(SquareModel(refine_size)))
    session.set_image(random_image(rng, SIDE, SIDE))
    places = np.argwhere(np.ones((SIDE, SIDE), bool))[:, ::-1]
    places = rng.permutation(places[np.hypot(*(places - SIDE / 2).T) < SIDE / 3])
    how = {"box": (50, 50, 250, 250)} if start == "a box" else {}
    if start == "a mask":
        how["mask_input"] = rng.random((SIDE, SIDE)) < 0.5
    signs = rng.random(len(places)) < 0.5
    found = []
    for number in (60, 600):
        session.predict(places[:number], signs[:number], **how)
        work = {True: [], False: []}
        for k, (x, y) in enumerate(places[number : number + 24]):
            agrees = k % 3 == 0
            positive = bool(session.mask[y, x]) == agrees
            work[agrees].append(work_of(lambda x=x, y=y, positive=positive: session.click(x, y, positive)))
        found.append({agrees: statistics.median(own) for agrees, own in work.items()})
    for agrees in (True, False):
        assert found[1][agrees] < 1.2 * found[0][agrees]


@pytest.fixture(scope="module")
def parts():
    """An object of 34 round parts on even ground, and their middles (x, y)."""
    rng = np.random.default_rng(1)  # a draw in which what was not held used to be lost
    image = np.full((640, 640, 3), 225, np.uint8)
    middles: list[tuple[int, int]] = []
    while len(middles) < 34:
        x, y = rng.integers(19, 621, 2).tolist()
        if all(np.hypot(x - a, y - b) > 42 for a, b in middles):
            middles.append((x, y))
            cv2.circle(image, (x, y), 14, (60, 50, 80), -1)
    return image, middles


def there(mask, middle):
    """The share of a part that is in the mask."""
    x, y = middle
    return mask[y - 7 : y + 8, x - 7 : x + 8].mean()


def test_the_refiner_does_not_empty_what_has_no_slot(parts):
    image, middles = parts
    session = Session(engine=Engine("freqformer_b0", device="cpu"))
    session.set_image(image)
    for number, (x, y) in enumerate(middles, 1):
        before = [there(session.mask, m) for m in middles[: max(0, number - SLOTS)]]
        mask = session.click(x, y).mask
        for share, middle in zip(before, middles, strict=False):
            assert share < 0.9 or there(mask, middle) > 0.5


def test_a_list_of_more_clicks_than_slots_is_seen_whole(parts, rng):
    image, middles = parts
    session = Session(engine=Engine("freqformer_b0", device="cpu"))
    session.set_image(image)
    mask = session.predict(middles, [1] * len(middles)).mask
    assert sum(there(mask, m) > 0.5 for m in middles) >= 30
    assert len(session._scene.history.done) == 1
    restored = Session.restore(session.state_dict(), image)
    assert np.array_equal(restored.mask, mask)
    session.undo()
    assert not session.mask.any()


def test_how_many_passes_a_list_takes(rng):
    session = Session(engine=Engine(SquareModel()))
    session.set_image(random_image(rng, SIDE, SIDE))
    places = rng.permutation(np.argwhere(np.ones((SIDE, SIDE), bool)))[:100]
    for positive, negative, passes in ((24, 24, 1), (25, 0, 2), (3, 49, 3)):
        labels = rng.permutation([1] * positive + [0] * negative)
        session.reset()
        session.predict(places[: len(labels)], labels)
        assert len(session._scene.history.step.passes) == passes


class ForgetfulModel(SquareModel):
    """Denies the left half once there is a click in the right half."""

    def answer(self, image, clicks):
        logits = super().answer(image, clicks)
        half = logits.shape[3] // 2
        if clicks[:, 1, :, half:].any():
            logits[:, :, :, :half] = -3
        return logits


@pytest.mark.parametrize("refine_size", [None, 64], ids=["plain", "refined"])
def test_what_the_network_forgets_stays_while_its_click_does(rng, refine_size):
    engine = Engine(ForgetfulModel(refine_size))
    session = Session(engine=engine, zoom=False)
    image = random_image(rng, 256, 256)
    session.set_image(image)
    session.click(50, 120)
    first = session.mask[:, :128].copy()
    session.click(200, 60)
    assert session.mask[60, 200]
    assert np.array_equal(session.mask[:, :128], first)
    session.click(200, 200)
    assert np.array_equal(session.mask[:, :128], first)
    restored = Session.restore(session.state_dict(), image, engine=engine)
    assert np.array_equal(restored.mask, session.mask)
    session.click(50, 130, positive=False)  # the answer counts where a click asks for it
    assert session.mask[:, :128].sum() == 1  # the clicked pixel


@pytest.mark.parametrize(("left", "stays"), [(0.2, True), (0.4, False)])
def test_a_piece_that_the_network_moves_is_moved(left, stays):
    """A part of the piece is in the answer, its clicked pixel is not."""
    previous = np.zeros((32, 32), np.uint16)
    previous[2:12, 5:15] = ONE
    found = np.zeros_like(previous)
    found[2 : 2 + round(10 * left), 5:15] = ONE
    found[20:25, 20:25] = ONE
    box, old, new = (0, 0, 32, 32), Click(10, 11), Click(22, 22)
    turn = SimpleNamespace(
        marks=(old, new), clicked=ClickTally.of((old, new)), new=SimpleNamespace(marks=(new,)), box=box,
        picture=SimpleNamespace(settings=SimpleNamespace(threshold=0.49)), request=SimpleNamespace(previous=previous),
    )  # fmt: skip
    kept = _forgotten(turn, found)
    assert (kept is not None) == stays
    assert kept is None or np.array_equal(kept > 0, previous > 0)


def held_one_by_one(turn, box, found, previous):
    """`click._held` as its docstring says it, click by click, and what comes of it."""
    h, w = found.shape
    clicks = disks(turn.marks, box, h, w)
    newest = {}
    for c in clicks:
        if boxes.contains(box, c):
            newest.pop((int(c.x), int(c.y)), None)
            newest[int(c.x), int(c.y)] = c
    old = [c for sign in (True, False) for c in [c for c in newest.values() if c.positive == sign][:-SLOTS]]
    before = probabilities(previous)
    mask = before > turn.picture.settings.threshold
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    shown = [c for c in clicks if c not in old and boxes.contains(box, c)]

    def at(c):
        return boxes.network_pixel(c.x, c.y, box, h, w)

    touched = {int(pieces[v, u]) for u, v in map(at, shown)}
    held = np.zeros((h, w), np.uint8)
    for c in old:
        u, v = at(c)
        if c.positive and mask[v, u] and int(pieces[v, u]) not in touched:
            held[pieces == pieces[v, u]] = 1
        else:
            cv2.circle(held, (u, v), DISK, 1, -1)
    for c in shown:
        cv2.circle(held, at(c), DISK, 0, -1)
    return np.where(held > 0, np.rint(before * float(ONE)).astype(np.uint16), found)


@pytest.mark.parametrize("kind", ["clicks", "a box first", "a scribble among them"])
@pytest.mark.parametrize("side", [24, 200], ids=["pixels are clicked again", "most pixels are clicked once"])
def test_what_has_no_slot_keeps_its_surroundings(rng, side, kind):
    """One tally goes on from click to click, through two regions; previous answers have many pieces."""
    h, w = 96, 64
    whole, inner = (0, 0, side, side), (side // 4, side // 5, side - 1, side)
    marks = (BoxPrompt(1, 2, 9, 9),) if kind == "a box first" else ()
    known = ClickTally.of(marks)
    kept = 0
    for k in range(340):
        mark = Click(
            *rng.choice([rng.uniform(0, side, 2), rng.integers(0, side, 2)]).tolist(), bool(rng.random() < 0.6)
        )
        if rng.random() < 0.5:  # clicks now here, now there, so that some pieces have old ones only
            mark = Click((mark.x + side * (k // 60 % 2)) / 2, mark.y, mark.positive)
        if kind == "a scribble among them" and k == 200:
            mark = mark_of(Scribble([(1, 1), (side / 2, side / 2)], False), side, side)
        marks = (*marks, mark)
        known = known and known.then([mark])
        box = whole if k < 170 else inner
        if known is not None:
            known.points(box, h, w)
        if k % 7 and k > 60:
            continue
        coarse = rng.random((12, 8), np.float32)
        probs = np.clip(cv2.resize(coarse, (w, h)), 0, 1)
        previous = probs if rng.random() < 0.3 else np.rint(probs * ONE).astype(np.uint16)
        found = rng.integers(0, ONE + 1, (h, w)).astype(np.uint16)
        turn = SimpleNamespace(
            marks=marks,
            clicked=known,
            picture=SimpleNamespace(settings=SimpleNamespace(threshold=0.49)),
            box=box,
            request=SimpleNamespace(previous=previous),
        )
        expected = held_one_by_one(turn, box, found, previous)
        assert np.array_equal(_keeping(found, _held(turn, found), previous), expected)
        kept += bool((expected != found).any())
    assert kept > 20
    assert (known is None) == (kind == "a scribble among them")
