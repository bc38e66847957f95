import copy
import json
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import activefreq_engine
from activefreq_engine import (
    ActiveFreqError,
    Click,
    ClickCancelledError,
    Engine,
    InvalidArgumentError,
    InvalidClickError,
    InvalidImageError,
    InvalidMaskError,
    NoImageError,
    Session,
    SessionBusyError,
    SessionClosedError,
    SessionStateError,
    click_batch,
    masks,
)
from activefreq_engine.session import history, packing
from activefreq_engine.session import session as session_module
from activefreq_engine.session.features import Budget, FeatureCache

from .fakes import BrightModel, SquareModel, random_image, widen

PATIENCE = 300  # seconds until something is taken to hang: a busy machine may be slow


@pytest.fixture
def session(engine, rng):
    """On a noise image 70 wide and 50 high."""
    with Session(engine=engine) as s:
        s.set_image(random_image(rng, 50, 70))
        yield s


def counts(session):
    return session._engine._executor.model.count


def fresh(engine, image, clicks, **settings):
    s = Session(engine=engine, **settings)
    s.set_image(image)
    for c in clicks:
        s.click(c.x, c.y, c.positive)
    return s


# --- clicks ---


def test_click_result(session):
    result = session.click(20, 10)
    assert result.mask.shape == session.shape == (50, 70)
    assert result.mask.dtype == bool
    assert not result.mask.flags.writeable
    assert result.mask is session.mask
    assert result.mask[10, 20]
    assert not result.mask[49, 69]
    assert result.clicks == 1
    assert result.elapsed_ms > 0
    ys, xs = np.nonzero(result.mask)
    assert result.changed_bbox == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert session.clicks == (Click(20.0, 10.0, True),)


def test_changed_bbox_is_against_the_mask_before(session):
    first = session.click(20, 10).mask
    result = session.click(60.9, 44.2)
    ys, xs = np.nonzero(first ^ result.mask)
    assert result.changed_bbox == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert session.click(60, 44).changed_bbox is None


def test_asymmetric_click_goes_where_it_should(session):
    """x is the column: a click in the right top corner marks the right top corner."""
    session.click(69.5, 0)
    mask = session.mask
    assert mask[0, 69]
    assert not mask[:, :30].any()
    assert not mask[30:].any()


def test_numpy_numbers_are_numbers(session):
    session.click(np.int64(3), np.float32(4.5), np.bool_(False))
    assert session.clicks == (Click(3.0, 4.5, False),)
    json.dumps(session.state_dict())


@pytest.mark.parametrize(
    "click",
    [
        (-0.001, 5),
        (5, -1),
        (70, 5),
        (5, 50),
        (50, 60),
        (float("nan"), 5),
        (5, float("inf")),
        ("5", 5),
        (None, 5),
        (5, 5j),
        (True, 5),
        (5, 5, 1),
        (5, 5, None),
        (5, 5, "positive"),
    ],
)
def test_bad_click_changes_nothing(session, click):
    session.click(9, 9)
    session.click(8, 30)
    session.undo()
    before, state = session.mask.copy(), session.state_dict()
    with pytest.raises(InvalidClickError):
        session.click(*click)
    assert np.array_equal(session.mask, before)
    assert session.state_dict() == state
    assert session.redo()


def test_click_message_says_got_allowed_and_cure(session):
    with pytest.raises(InvalidClickError, match=r"x=20, y=60.*width 70, height 50; x comes first"):
        session.click(20, 60)


def test_clicked_pixels_take_their_label(rng):
    """Whatever the network says: here it ignores clicks."""
    s = Session(BrightModel())
    image = np.where(random_image(rng, 1, 1, 1) > 300, 0, random_image(rng, 90, 123, 1))
    s.set_image(image)
    clicks = {}
    for _ in range(12):
        x, y, positive = int(rng.integers(123)), int(rng.integers(90)), bool(rng.integers(2))
        s.click(x + 0.5, y + 0.25, positive)
        clicks[x, y] = positive
        assert all(s.mask[y, x] == p for (x, y), p in clicks.items())
        assert all(s.probs[y, x] == p for (x, y), p in clicks.items())
    s.click(x, y, not positive)
    assert s.mask[y, x] != positive


def test_what_the_network_sees(engine, rng):
    model = engine._executor.model
    image = random_image(rng, 128, 256)
    s = fresh(engine, image, [Click(100, 50, True)], zoom=False, refine=False)
    assert model.seen["clicks"].shape == (1, 3, 128, 256)
    previous, positive, negative = model.seen["clicks"][0].numpy()
    assert not previous.any()
    assert not negative.any()
    ys, xs = np.nonzero(positive)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (95, 105, 45, 55)
    probs = s.probs
    s.click(90, 40, False)
    previous, positive, negative = model.seen["clicks"][0].numpy()
    probs[50, 100] = previous[50, 100]  # the clicked pixel is enforced in what is shown, not in what is fed back
    assert np.abs(previous - probs).max() < 1e-4
    assert np.nonzero(negative)[1].min() == 85
    seen = model.seen["image"][0].numpy().transpose(1, 2, 0) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    assert np.abs(seen * 255 - image).max() < 1e-3
    assert model.count["encode"] == 1


def test_grey_and_rgb_of_the_same_content_agree(engine, rng):
    grey = random_image(rng, 40, 61, 1)
    a = fresh(engine, grey, [Click(5, 6, True)])
    b = fresh(engine, np.dstack([grey] * 3), [Click(5, 6, True)])
    assert np.array_equal(a.probs, b.probs)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3), (33, 31)])
def test_tiny_and_thin_images(engine, rng, height, width):
    s = fresh(engine, random_image(rng, height, width), [Click(width - 1, 0, True)])
    s.click(0, height - 1, False)
    s.click(width // 2, height // 2)
    assert s.mask.shape == s.probs.shape == s.uncertainty.shape == (height, width)
    assert s.mask[height // 2, width // 2]
    s.suggest()


def test_maps_agree(session):
    session.click(20, 10)
    session.click(40, 30, False)
    assert np.array_equal(session.probs > session.threshold, session.mask)
    p = session.probs.astype(np.float64).clip(1e-12, 1 - 1e-12)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert np.abs(session.uncertainty - entropy).max() < 1e-5
    assert session.uncertainty[10, 20] == 0


def test_threshold(engine, rng):
    image = random_image(rng, 50, 70)
    low = fresh(engine, image, [Click(20, 10, True)], threshold=0.05)
    high = fresh(engine, image, [Click(20, 10, True)], threshold=0.95)
    assert low.mask.all()  # the fake's background is at 0.12
    assert high.mask.sum() == 1  # its foreground at 0.88; the clicked pixel stays
    for threshold in (0, 1, -1, float("nan"), "0.5", None, True):
        with pytest.raises(InvalidArgumentError, match="threshold"):
            Session(engine=engine, threshold=threshold)


# --- clicks that say nothing new, and many clicks ---


def test_a_click_that_agrees_changes_no_pixel_and_is_a_step(session):
    first = session.click(20, 10).mask.copy()
    passes = counts(session)["decode"]
    inside, outside = np.argwhere(first)[::97], np.argwhere(~first)[::97]
    for places, positive in ((inside, True), (outside, False)):
        for y, x in places:
            result = session.click(x, y, bool(positive))
            assert result.changed_bbox is None
            assert np.array_equal(result.mask, first)
    assert counts(session)["decode"] == passes
    assert result.clicks == len(session.clicks) == 1 + len(inside) + len(outside)
    session.click(60, 40)  # the network is shown all of them now, as far as it has slots
    shown = session._engine._executor.model.seen["clicks"][0]
    assert shown[1].sum() > 100
    assert shown[2].sum() > 100
    for _ in range(1 + len(inside) + len(outside)):
        assert session.undo()
    assert np.array_equal(session.mask, first)


def test_a_negative_first_click_finds_nothing(session):
    for x, y in ((20, 10), (0, 0), (69, 49)):
        assert not session.click(x, y, False).mask.any()
    assert not session.probs.any()
    assert counts(session)["decode"] == 0
    assert session.click(20, 10).mask[12, 22]  # the newest click on a pixel counts, for the network as well


def test_many_parts_all_stay(engine, rng):
    """More parts than the network is shown clicks: those found first stay as they are."""

    class Near(SquareModel):
        def answer(self, image, clicks):  # only what is near a click that is shown
            return 8 * widen(clicks[:, 1:2], 4) - 16 * widen(clicks[:, 2:3], 1) - 4

    for refine_size in (None, 64):
        s = fresh(Engine(Near(refine_size)), random_image(rng, 640, 640), [])
        places = [(40 + k % 8 * 80, 30 + k // 8 * 90) for k in range(56)]
        for x, y in places:
            s.click(x, y)
        s.click(places[0][0] + 3, places[0][1], False)  # and can be corrected still
        parts = [s.mask[y - 6 : y + 7, x - 6 : x + 7] for x, y in places]
        assert not s.mask[places[0][1], places[0][0] + 3]
        assert min(part.mean() for part in parts[1:]) > 0.9
        s.click(*places[5], False)
        assert not s.mask[places[5][1], places[5][0]]


# --- where the user looks ---


def test_look_shows_the_network_that_part_alone(engine, rng):
    image = random_image(rng, 300, 500)
    s = fresh(engine, image, [Click(20, 20, True)], refine=False)
    before = s.mask.copy()
    assert s.look(400.2, 100, 464, 999) is None  # cut off at the image's border
    assert s.mask is s.mask
    s.click(430, 200)
    assert s._scene.history.step.roi == (400, 100, 464, 300)
    seen = engine._executor.model.seen["image"]
    assert seen.shape[2:] == (256, 96)
    assert np.array_equal(s.mask[:, :400], before[:, :400])  # nothing changes outside of it
    assert np.array_equal(s.mask[:100], before[:100])
    assert s.mask[200, 430]
    s.click(20, 20, False)  # outside of the view: as if there were none
    assert s._scene.history.step.roi is None
    s.look(None)
    s.click(480, 280)
    assert s._scene.history.step.roi is None


def test_the_refiner_keeps_to_the_view_too(rng):
    """Where it sees the image halved, its box has even corners; those of the view may be odd."""
    s = fresh(Engine(BrightModel(refine_size=64)), np.full((1200, 1201), 200, np.uint8), [])
    s.look(101, 203, 1003, 1101)
    mask = s.click(500, 700).mask
    assert counts(s)["refine"] == 1
    assert mask[203:1101, 101:1003].all()
    assert mask.sum() == 898 * 902


def test_a_new_view_is_looked_at_even_if_the_click_agrees(engine, rng):
    s = fresh(engine, random_image(rng, 300, 500), [Click(250, 150, True)])
    passes = counts(s)["decode"]
    s.look(200, 100, 300, 200)
    s.click(250, 150)
    assert counts(s)["decode"] == passes + 1
    s.click(250, 150)
    assert counts(s)["decode"] == passes + 1


def test_views_are_in_the_state(engine, rng):
    image = random_image(rng, 300, 500)
    s = fresh(engine, image, [Click(250, 150, True)])
    for k in range(25):
        s.look(20 * k, 10 * k, 20 * k + 15, 10 * k + 20)
        s.click(20 * k + 7, 10 * k + 9)
    s.predict([(100, 100), (7, 9)], [1, 0])
    assert len(s._scene.history.done[-2].canvas.layers) <= 40
    state = json.loads(json.dumps(s.state_dict()))
    r = Session.restore(state, image, engine=engine)
    assert r.state_dict() == state
    assert np.array_equal(r.probs, s.probs)
    assert s.undo()
    assert r.undo()
    assert np.array_equal(r.probs, s.probs)
    assert s.mask[9::10, 7::20][np.arange(25), np.arange(25)].all()


@pytest.mark.parametrize(
    "box",
    [
        *((5, 5, 5, 9), (9, 5, 5, 9), (-9, -9, 0, 0), (70, 0, 90, 9)),
        *((0, 0, np.nan, 9), (0, 0, "9", 9), (0, None, 3, 3), (0, 0, 10**400, 9), (0, 0, 10**5000, 9)),
    ],
    ids=range(9),
)
def test_bad_views_are_refused(session, box):
    with pytest.raises(InvalidArgumentError, match="look"):
        session.look(*box)
    assert session._scene.view is None


# --- zoom and refiner ---


def test_region_is_kept_while_it_fits():
    image = np.zeros((600, 800), np.uint8)
    image[100:200, 100:300] = 255
    s = fresh(Engine(BrightModel()), image, [Click(200, 150, True)])
    regions = []
    for x, y, positive in [(310, 150, True), (210, 150, False), (500, 400, True)]:
        s.click(x, y, positive)
        regions.append(s._scene.history.step.roi)
    assert regions[0] is not None
    assert regions[0] == regions[1]
    assert regions[2] is None  # around all positive clicks it would hardly be enlarged
    assert counts(s)["encode"] == 2  # the whole image was looked at first
    assert not s.mask[150, 210]


def test_outside_the_region_nothing(engine, rng):
    s = fresh(engine, random_image(rng, 600, 800), [Click(200, 150, True), Click(201, 150, False)])
    x0, y0, x1, y1 = s._scene.history.step.roi
    outside = np.ones((600, 800), bool)
    outside[y0:y1, x0:x1] = False
    assert not s.probs[outside].any()
    inside = s.probs[y0:y1, x0:x1]
    assert inside[150 - y0, 201 - x0] == 0
    assert (inside == 0).sum() == 1


def test_features_cache_is_bounded(engine, rng):
    s = fresh(engine, random_image(rng, 900, 900), [])
    budget = Budget(limit=4_000_000)
    s._scene.picture.features = FeatureCache(budget)
    sizes = []
    for i in range(12):
        s.next_object()
        for positive in (True, False):
            s.click(30 + 70 * i + positive, 400, positive)
            sizes.append(budget.nbytes)
    assert 2_000_000 < max(sizes) <= 4_000_000


def bright_ellipse(height, width):
    ys, xs = np.mgrid[:height, :width].astype(np.float32) + 0.5
    return ((xs - 0.53 * width) / (0.21 * width)) ** 2 + ((ys - 0.46 * height) / (0.27 * height)) ** 2 < 1


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_sharp_border_on_a_large_image():
    """The focus crop comes from the original pixels: the refined border is far closer than the coarse one."""
    truth = bright_ellipse(1500, 2000)
    truth[400:1000, 900:916] = False  # thin detail that the coarse grid, 8 pixels a cell, blurs
    image = np.where(truth, 255, 0).astype(np.uint8)
    coarse = fresh(Engine(BrightModel()), image, [Click(1300, 700, True)]).mask
    refined = fresh(Engine(BrightModel(refine_size=256)), image, [Click(1300, 700, True)])
    assert iou(coarse, truth) < iou(refined.mask, truth)
    assert iou(refined.mask, truth) > 0.985
    for positive, x in ((True, 1301), (False, 907)):
        refined.click(x, 700, positive)
    assert iou(refined.mask, truth) > 0.985
    off = np.argwhere(refined.mask & truth).mean(0) - np.argwhere(truth).mean(0)
    assert np.abs(off).max() < 0.5


def test_refiner_sees_the_focus_box(rng):
    model = BrightModel(refine_size=64)
    image = np.zeros((256, 512), np.uint8)
    image[80:120, 200:320] = 255
    s = fresh(Engine(model), image, [Click(260, 100, True)])
    # the object's box times 1.4, in network pixels, of which each is two image pixels wide
    assert np.allclose(model.seen["boxes"][0], [88, 36, 172, 64], atol=1.01)
    assert model.seen["image_crop"].shape == (1, 3, 64, 64)
    ys, xs = np.nonzero(model.seen["disks"][0, 0].numpy())
    assert abs(xs.mean() + 0.5 - (130.25 - 88) * 64 / 84) < 0.6
    assert abs(ys.mean() + 0.5 - (50.25 - 36) * 64 / 28) < 0.6
    assert iou(s.mask, image > 0) > 0.95
    off = fresh(Engine(BrightModel(refine_size=64)), image, [Click(260, 100, True)], refine=False)
    assert counts(off)["refine"] == 0


@pytest.mark.parametrize(("height", "width", "refined"), [(128, 384, 0), (384, 200, 0), (130, 390, 1), (402, 200, 1)])
def test_the_refiner_runs_where_the_network_saw_less_than_two_thirds(height, width, refined):
    image = np.zeros((height, width), np.uint8)
    image[40:100, 50:150] = 255
    s = fresh(Engine(BrightModel(refine_size=64)), image, [Click(100, 70, True)])
    assert counts(s)["refine"] == refined


# --- history ---


def test_undo_and_redo_are_bit_identical_and_run_nothing(session, rng):
    masks_seen, probs_seen = [session.mask.copy()], [session.probs]
    for _ in range(6):
        session.click(rng.uniform(0, 70), rng.uniform(0, 50), bool(rng.integers(2)))
        masks_seen.append(session.mask.copy())
        probs_seen.append(session.probs)
    before = dict(counts(session))
    for i in reversed(range(6)):
        assert session.undo()
        assert np.array_equal(session.mask, masks_seen[i])
        assert np.array_equal(session.probs, probs_seen[i])
        assert len(session.clicks) == i
    assert session.undo() is None
    for i in range(1, 7):
        assert session.redo()
        assert np.array_equal(session.mask, masks_seen[i])
    assert session.redo() is None
    assert dict(counts(session)) == before


def test_a_click_after_undo_equals_the_click_alone(engine, rng):
    image = random_image(rng, 50, 70)
    s = fresh(engine, image, [Click(5, 6, True), Click(60, 40, True)])
    s.undo()
    s.click(30, 20, False)
    assert not s.redo()
    assert np.array_equal(s.probs, fresh(engine, image, [Click(5, 6, True), Click(30, 20, False)]).probs)


def test_reset(session):
    session.click(5, 6)
    session.next_object()
    session.click(9, 9)
    session.undo()
    session.reset()
    assert not session.mask.any()
    assert session.clicks == ()
    assert not session.undo()
    assert not session.redo()
    session.select_object(1)
    assert session.mask.any()


def test_history_is_small(engine):
    s = fresh(engine, np.zeros((1500, 2000), np.uint8), [Click(100 * i + 5, 700, True) for i in range(10)])
    size = sum(layer.values.nbytes for step in s._scene.history.done for layer in step.canvas.layers)
    assert size < 10 * 2 * (256 * 256 + 64 * 64)


@pytest.mark.parametrize("left", [0, 3], ids=["in a pause", "while clicks go on"])
def test_a_long_history_is_packed_and_undone_bit_by_bit(engine, rng, monkeypatch, left):
    monkeypatch.setattr(history, "AT_HAND", 5)
    if left:
        monkeypatch.setattr(packing, "PAUSE", 1000)
        monkeypatch.setattr(packing, "BACKLOG", left)
    s, seen = fresh(engine, rng.integers(0, 256, (90, 130), np.uint8), []), []
    for k in range(12):  # the first one inside: before that a step has no layers, and nothing to pack
        s.click(rng.integers(130), rng.integers(90), k == 0 or bool(rng.integers(2)))
        seen.append((s.mask.copy(), s.probs))

    def unpacked():
        """Steps not packed, once there are no more of them than there may be."""
        scene = s._scene.history
        until = time.monotonic() + PATIENCE
        while True:
            steps = (*scene.done, *scene.undone)
            count = sum(any(not isinstance(x.data, bytes) for x in step.canvas.layers) for step in steps)
            waiting = len(s._scene.picture.packing.waiting)  # a step without layers has nothing to pack, and waits too
            if (count <= 5 + left and waiting <= left) or time.monotonic() > until:
                return count
            time.sleep(0.01)

    assert unpacked() == 5 + left
    assert len(s._scene.picture.packing.waiting) == left
    for mask, probs in reversed(seen):
        assert np.array_equal(s.mask, mask)
        assert np.array_equal(s.probs, probs)
        s.undo()
    for mask, probs in seen:
        s.redo()
        assert np.array_equal(s.mask, mask)
        assert np.array_equal(s.probs, probs)
    assert 5 <= unpacked() <= 5 + left


def test_one_thread_packs_for_all_sessions(engine, monkeypatch):
    monkeypatch.setattr(history, "AT_HAND", 2)
    names = {t.name for t in threading.enumerate()}
    sessions = [fresh(engine, np.zeros((60, 80), np.uint8), [Click(k + 5, 20, True) for k in range(6)]) for _ in "abc"]
    until = time.monotonic() + PATIENCE
    histories = [s._scene.history for s in sessions]
    queues = [s._scene.picture.packing for s in sessions]
    while any(q.process for q in queues) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(q.waiting or q.process for q in queues)
    packed = [[all(isinstance(x.data, bytes) for x in step.canvas.layers) for step in h.done] for h in histories]
    assert packed == [[True] * 4 + [False] * 2] * 3
    assert len([t for t in threading.enumerate() if t.name.startswith("activefreq-pack")]) == 1
    assert len({t.name for t in threading.enumerate()} - names) <= 1


# --- masks from elsewhere ---


def test_load_mask_is_one_step(session, rng):
    session.click(5, 6)
    clicked = session.mask.copy()
    given = np.zeros((50, 70), bool)
    given[20:40, 30:50] = True
    result = session.load_mask(given)
    assert np.array_equal(result.mask, given)
    assert result.clicks == 0
    ys, xs = np.nonzero(given ^ clicked)
    assert result.changed_bbox == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert np.array_equal(session.probs, given.astype(np.float32))
    given[:] = False  # the caller's array is the caller's
    assert session.mask[30, 40]
    assert session.undo()
    assert np.array_equal(session.mask, clicked)
    assert session.redo()
    assert session.mask.sum() == 400


def test_clicks_correct_a_given_mask_piece_by_piece(session):
    given = np.zeros((50, 70), bool)
    given[2:12, 2:12] = True
    given[40:48, 50:68] = True
    session.load_mask(given)
    agreeing = session.click(5, 5)
    assert np.array_equal(agreeing.mask, given)
    assert agreeing.changed_bbox is None
    merged = session.click(60, 20).mask
    assert merged[20, 60]
    assert (merged >= given).all()  # the network knows nothing of the first piece, but it stays
    assert np.array_equal(session.probs > session.threshold, merged)
    session.click(5, 5, False)
    assert not session.mask[5, 5]
    assert session.mask[44, 60]
    seen = session._engine._executor.model.seen["clicks"][0, 0]
    assert seen.max() > 0.9


@pytest.mark.parametrize(
    "mask",
    [np.zeros((70, 50), bool), np.zeros((50, 70)), np.zeros((50, 70, 1), bool), None, np.arange(3500).reshape(50, 70)],
)
def test_bad_mask_changes_nothing(session, mask):
    session.click(5, 6)
    state = session.state_dict()
    with pytest.raises(InvalidMaskError):
        session.load_mask(mask)
    with pytest.raises(InvalidMaskError):
        session.predict([[1, 2]], [1], np.zeros((70, 50), bool))
    assert session.state_dict() == state


# --- objects ---


def test_objects(session):
    assert (session.object_number, session.object_count) == (1, 1)
    assert session.next_object() == 1  # untouched: nothing to finish
    session.click(5, 6)
    one = session.mask.copy()
    assert session.next_object() == 2
    assert not session.mask.any()
    assert np.array_equal(session.labels, one.astype(np.int32))
    session.click(60, 40)
    two = session.mask.copy()
    assert session.labels.dtype == np.int32
    assert np.array_equal(session.labels, np.where(two, 2, one))
    session.select_object(1)
    assert np.array_equal(session.mask, one)
    assert session.clicks == (Click(5.0, 6.0, True),)
    assert session.undo()
    assert session.redo()
    assert session.next_object() == 3
    assert session.next_object() == 3
    session.select_object(2)
    assert session.next_object() == 3
    assert session.object_count == 3
    for bad in (0, 4, -1, 1.0, True, None):
        with pytest.raises(InvalidArgumentError):
            session.select_object(bad)
    assert session.object_number == 3


def test_later_objects_lie_on_top(session):
    session.click(5, 6)
    session.next_object()
    session.click(6, 6)
    both = session.mask
    assert (session.labels[both] == 2).all()
    session.select_object(1)
    assert (session.labels[both] == 2).all()


def test_overlapping_objects_are_whole_each(session):
    session.click(20, 20)
    one = session.mask.copy()
    session.next_object()
    session.click(30, 25)
    assert (one & session.mask).any()
    assert np.array_equal(session.mask_of(1), one)
    assert np.array_equal(session.mask_of(np.int64(2)), session.mask)
    assert not session.mask_of(1).flags.writeable
    for bad in (0, 3, 1.0, True, None):
        with pytest.raises(InvalidArgumentError):
            session.mask_of(bad)


def test_delete_object(session):
    masks_seen = []
    for x in (5, 30, 60):
        session.next_object()
        session.click(x, 25)
        masks_seen.append(session.mask.copy())
    session.select_object(2)
    assert session.delete_object(1) == 1  # still the same object, which is now the first
    assert np.array_equal(session.mask, masks_seen[1])
    assert np.array_equal(session.mask_of(2), masks_seen[2])
    assert session.delete_object(1) == 1  # the current one: the next takes its number
    assert np.array_equal(session.mask, masks_seen[2])
    assert session.delete_object(1) == 1  # the only one: a blank one
    assert session.object_count == 1
    assert not session.mask.any()
    assert session.undo() is None


def test_steps_of_an_object_that_is_left_are_packed(session):
    for x, y, positive in ((5, 6, True), (60, 40, True), (58, 40, False)):
        session.click(x, y, positive)
    session.undo()
    mask, steps = session.mask.copy(), (*session._scene.history.done, *session._scene.history.undone)
    session.next_object()
    until = time.monotonic() + PATIENCE
    packing = session._scene.picture.packing
    while time.monotonic() < until and (packing.waiting or packing.process):
        time.sleep(0.01)
    assert all(isinstance(layer.data, bytes) for step in steps for layer in step.canvas.layers)
    session.select_object(1)
    assert np.array_equal(session.mask, mask)
    assert session.redo()


# --- predict ---


def test_predict_computes_only_what_is_new(session):
    a, b, c, d = [5, 6], [60, 40], [30, 20], [10, 45]
    decoded = counts(session)

    def passes(points, labels, mask=None):
        before = decoded["decode"]
        result = session.predict(points, labels, mask)
        assert result.clicks == len(points)
        assert np.array_equal(result.mask, session.mask)
        return decoded["decode"] - before

    assert passes([a], [1]) == 1
    assert passes([a, b], [1, 1]) == 1
    assert passes([a, b, c], [1, 1, 0]) == 0  # c is outside already
    assert passes([a, b], [1, 1]) == 0  # seen before
    assert passes([a, b, d, c], [1, 1, 1, 1]) == 1  # two new ones together
    assert passes([a, b], [1, 0]) == 0  # from a alone: b is not in its mask
    assert passes([d, b], [1, 1]) == 1  # a fresh list
    assert passes([], []) == 0
    assert not session.mask.any()
    given = np.zeros((50, 70), bool)
    given[10:20, 10:20] = True
    assert passes([a], [1], given) == 1
    assert passes([a, b], [1, 1], given) == 1
    assert passes([a, b], [1, 1], ~given) == 0  # it agrees with that mask
    assert passes([a, b], [1, 1]) == 0  # seen before


def test_predict_is_one_step_that_keeps_the_history(session, rng):
    given = np.zeros((50, 70), bool)
    given[10:20, 10:20] = True
    session.click(5, 6)
    session.click(60, 40)
    seen = [(session.mask.copy(), session.clicks)]
    for points, labels, start in [
        ([[30, 20], [50, 10], [2, 45]], [1, 1, 1], None),
        ([[30, 20]], [1], None),
        ([[60, 45]], [1], given),
        ([], [], None),
    ]:
        result = session.predict(points, labels, start)
        ys, xs = np.nonzero(seen[-1][0] ^ result.mask)
        assert result.changed_bbox == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        seen.append((session.mask.copy(), session.clicks))
    before = session.state_dict()
    assert session.predict([], []).changed_bbox is None
    assert session.state_dict() == before  # nothing new: no step
    restored = Session.restore(json.loads(json.dumps(before)), session._scene.picture.image, engine=session._engine)
    for s in (session, restored):
        for mask, clicks in reversed(seen):
            assert np.array_equal(s.mask, mask)
            assert s.clicks == clicks
            assert s.undo()
        assert len(s.clicks) == 1


@pytest.mark.parametrize("inside", [True, False])
def test_a_click_that_was_taken_back_in_the_same_list_leaves_a_given_mask_alone(session, inside):
    given = np.zeros((50, 70), bool)
    given[10:20, 10:20] = True
    x, y = (15, 15) if inside else (50, 40)
    result = session.predict([[x, y], [x, y]], [not inside, inside], given)
    assert np.array_equal(result.mask, given)
    assert np.array_equal(session.probs > session.threshold, given)


def test_predict_of_a_fresh_list_is_one_pass_over_all_of_it(engine, rng):
    image = random_image(rng, 50, 70)
    points, labels = rng.uniform((0, 0), (70, 50), (6, 2)), [True, False, True, True, False, True]
    s = fresh(engine, image, [Click(3, 3, True)])
    before = s.mask.copy()
    result = s.predict(points, labels)
    shown = engine._executor.model.seen["clicks"]
    assert not shown[0, 0].any()  # no mask before it
    assert shown[0, 1].sum() > shown[0, 2].sum() > 0
    for (x, y), positive in zip(points.astype(int), labels, strict=True):
        assert s.mask[y, x] == positive
    ys, xs = np.nonzero(before ^ result.mask)
    assert result.changed_bbox == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([[1, 2]], [1, 0]),
        ([[1, 2]], 1),
        ([1, 2], [1, 1]),
        ([[1, 2, 3]], [1]),
        ([[1, 2]], [2]),
        ([[1, 2]], [-1]),
        ([[1, 2]], ["1"]),
        ([["a", 2]], [1]),
        ([[1, 2], [3]], [1, 1]),
        ([[5, 6], [70, 2]], [1, 1]),
        ([[5, 6], [np.nan, 2]], [1, 1]),
        (None, None),
    ],
)
def test_bad_predict_changes_nothing(session, points, labels):
    session.predict([[9, 9], [8, 7]], [1, 0])
    session.undo()
    state = session.state_dict()
    with pytest.raises(InvalidClickError):
        session.predict(points, labels)
    assert session.state_dict() == state


def test_predict_that_fails_changes_nothing(session, monkeypatch):
    session.predict([[9, 9], [8, 7], [30, 30]], [1, 0, 1])
    session.undo()
    mask, state = session.mask.copy(), session.state_dict()

    def fail(requests, watch, go_on):
        raise MemoryError

    monkeypatch.setattr(session._engine, "run", fail)
    for given in (None, mask):
        with pytest.raises(MemoryError):
            session.predict([[60, 10], [20, 40]], [1, 1], given)
        assert session.state_dict() == state
        assert np.array_equal(session.mask, mask)
    monkeypatch.undo()
    assert session.redo()


# --- suggestions ---


class Unsure(SquareModel):
    """Certain on the left of the network's grid, a guess in a block on the right."""

    def answer(self, image, clicks):
        out = super().answer(image, clicks) * 3
        h, w = out.shape[2:]
        out[..., h // 4 : h // 2, 5 * w // 8 : 7 * w // 8] = 0.1
        return out


@pytest.mark.parametrize(("height", "width"), [(60, 96), (1200, 1920)])
def test_suggestions_are_in_image_pixels(rng, height, width):
    s = Session(Unsure())
    s.set_image(random_image(rng, height, width))
    assert s.suggest() == []
    s.click(width // 10, height - height // 10)
    (found,) = s.suggest(k=1)
    x0, y0, x1, y1 = found.region_bbox
    cell = width / 256
    assert np.allclose((x0, x1), (5 * width / 8, 7 * width / 8), atol=3 * cell + 1)
    assert np.allclose((y0, y1), (height / 4, height / 2), atol=3 * cell + 1)
    assert abs(found.area - (x1 - x0) * (y1 - y0)) < 0.2 * found.area
    assert x0 <= found.x < x1
    assert y0 <= found.y < y1
    assert found.positive != s.mask[found.y, found.x]
    before = s.mask.copy()
    s.suggest(k=3)
    assert np.array_equal(s.mask, before)
    s.click(found.x, found.y, found.positive)
    assert all(abs(f.x - found.x) > cell or abs(f.y - found.y) > cell for f in s.suggest())
    for bad in (0, -1, 1.5, "3", True):
        with pytest.raises(InvalidArgumentError):
            s.suggest(k=bad)


# --- several sessions ---


def test_click_batch_equals_single_clicks(engine, rng):
    shapes = [(50, 70), (50, 70), (64, 31), (300, 400), (50, 70)]
    images = [random_image(rng, *shape) for shape in shapes]
    together = [fresh(engine, i, []) for i in images]
    alone = [fresh(engine, i, []) for i in images]
    batches = counts(together[0])
    for _ in range(4):
        clicks = [Click(rng.uniform(0, w), rng.uniform(0, h), bool(rng.integers(4))) for h, w in shapes]
        before = batches["decode batches"]
        results = click_batch(together, clicks)
        assert batches["decode batches"] - before < len(shapes)
        for s, other, c, result in zip(together, alone, clicks, results, strict=True):
            single = other.click(c.x, c.y, c.positive)
            assert np.abs(s.probs - other.probs).max() < 1e-3
            assert (result.mask ^ single.mask).sum() <= 2
            assert result.clicks == single.clicks
            assert s._scene.history.step.roi == other._scene.history.step.roi
    assert all(s.undo() for s in together)


def test_click_batch_is_all_or_none(engine, rng):
    sessions = [fresh(engine, random_image(rng, 50, 70), [Click(3, 4, True)]) for _ in range(3)]
    states = [s.state_dict() for s in sessions]
    good, bad = Click(5, 5, True), Click(70, 5, True)
    for batch, clicks, error in [
        (sessions, [good, good, bad], InvalidClickError),
        (sessions, [good, good], InvalidArgumentError),
        ([sessions[0], sessions[1], sessions[0]], [good] * 3, InvalidArgumentError),
        ([sessions[0], fresh(Engine(SquareModel()), random_image(rng, 9, 9), [])], [good] * 2, InvalidArgumentError),
        ([sessions[0], Session(engine=engine)], [good] * 2, NoImageError),
    ]:
        with pytest.raises(error):
            click_batch(batch, clicks)
    assert [s.state_dict() for s in sessions] == states
    assert click_batch([], []) == []
    click_batch(sessions, [good] * 3)  # every lock was given back


def test_sessions_do_not_disturb_each_other(engine, rng):
    a = fresh(engine, random_image(rng, 50, 70), [Click(5, 6, True)])
    mask = a.mask.copy()
    fresh(engine, random_image(rng, 50, 70), [Click(60, 6, True)])
    assert np.array_equal(a.mask, mask)


@pytest.fixture
def held(session, monkeypatch):
    """A click that another thread has under way, and what lets it go on."""
    started, proceed = threading.Event(), threading.Event()
    run, outcome = session._engine.run, []

    def slow(requests, watch, go_on):
        started.set()
        assert proceed.wait(20)
        return run(requests, watch, go_on)

    def click():
        try:
            outcome.append(session.click(5, 6))
        except ActiveFreqError as error:
            outcome.append(error)

    monkeypatch.setattr(session._engine, "run", slow)
    worker = threading.Thread(target=click)
    worker.start()
    assert started.wait(20)
    yield proceed, outcome
    proceed.set()
    worker.join()


def test_a_click_is_cancelled(session, held):
    proceed, outcome = held
    assert session.cancel()
    proceed.set()
    until = time.monotonic() + 20
    while not outcome and time.monotonic() < until:
        time.sleep(0.001)
    assert isinstance(outcome[0], ClickCancelledError)
    assert session.clicks == ()
    assert session.cancel() is False  # nothing is under way
    session.click(5, 6)
    assert len(session.clicks) == 1


@pytest.mark.parametrize("moment", ["check_mark", "click_list", "advance"])
def test_a_call_is_cancelled_at_any_moment(session, monkeypatch, moment):
    """While a prompt is checked (a large lasso takes half a second), and between the passes of a list."""
    work = getattr(session_module, moment)

    def cancelled(*args):
        found = work(*args)
        assert session.cancel()
        return found

    monkeypatch.setattr(session_module, moment, cancelled)
    before = session.state_dict()
    places = [(x, y) for x in range(0, 70, 5) for y in (5, 40)]
    with pytest.raises(ClickCancelledError):
        session.lasso(places) if moment == "check_mark" else session.predict(places, [1] * len(places))
    assert session.state_dict() == before


def test_a_click_is_cancelled_while_it_waits_for_the_engine(session):
    outcome = []

    def click():
        try:
            outcome.append(session.click(5, 6))
        except ActiveFreqError as error:
            outcome.append(error)

    worker = threading.Thread(target=click)
    with session._engine._lock:  # as while another session has it
        worker.start()
        until = time.monotonic() + PATIENCE
        while not outcome and time.monotonic() < until:
            session.cancel()
            time.sleep(0.01)
        assert isinstance(outcome[0], ClickCancelledError)
    worker.join()
    session.click(5, 6)
    assert len(session.clicks) == 1


def test_a_call_waits_for_its_turn(session, held):
    proceed, _ = held
    with pytest.raises(SessionBusyError):
        session.undo()
    session._wait = 0.05
    start = time.monotonic()
    with pytest.raises(SessionBusyError):
        session.undo()
    assert time.monotonic() - start >= 0.05
    session._wait = 20.0
    threading.Timer(0.1, proceed.set).start()
    assert session.undo()  # of the click it waited for
    assert session.clicks == ()


def test_calls_have_their_turn_in_the_order_of_coming(session):
    """Also where the thread that has the session calls again at once."""
    session._wait = 20.0
    other = threading.Thread(target=lambda: session.click(5, 6))
    with session._lock:
        other.start()
        while not session._line:
            time.sleep(0.001)
    session.click(30, 40)
    other.join()
    assert [(c.x, c.y) for c in session.clicks] == [(5, 6), (30, 40)]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_a_signals_handler_may_call_while_its_thread_waits(session):
    """It must not wait for what it interrupts."""
    session._wait = 5.0
    before = signal.signal(signal.SIGALRM, lambda *_: session.click(30, 40))
    taken, proceed = threading.Event(), threading.Event()

    def hold():
        with session._lock:
            taken.set()
            proceed.wait(20)

    threading.Thread(target=hold).start()
    assert taken.wait(20)
    threading.Timer(0.3, proceed.set).start()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        session.click(5, 6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [(c.x, c.y) for c in session.clicks] == [(30, 40), (5, 6)]


def test_wait_is_checked(engine):
    assert Session(engine=engine, wait=float("inf"))._wait == float("inf")
    for bad in (-1, float("nan"), "1", None, True):
        with pytest.raises(InvalidArgumentError, match="wait"):
            Session(engine=engine, wait=bad)


def test_the_end_of_a_with_block_waits_for_a_click(session, held):
    proceed, outcome = held
    threading.Timer(0.1, proceed.set).start()
    session.__exit__()
    time.sleep(0.05)
    assert outcome[0].clicks == 1
    with pytest.raises(SessionClosedError):
        session.click(1, 1)


def test_copies_are_refused_in_words(session):
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(InvalidArgumentError, match="state_dict"):
            attempt(session)
        with pytest.raises(InvalidArgumentError, match=r"Engine\.shared"):
            attempt(session._engine)


def test_states_name_the_weights(engine, rng):
    image = random_image(rng, 50, 70)
    state = json.loads(json.dumps(fresh(engine, image, [Click(5, 6, True)]).state_dict()))
    assert state["settings"]["weights"] == engine.weights
    state["settings"]["weights"] = "0" * 64
    with pytest.raises(SessionStateError, match="other weights"):
        Session.restore(state, image, engine=engine)
    del state["settings"]["weights"]  # as older packages wrote them
    assert Session.restore(state, image, engine=engine).clicks == (Click(5.0, 6.0, True),)


def test_reading_beside_changes_sees_one_moment(engine, rng):
    """Every state that a second thread reads is one that there was."""
    s = fresh(engine, random_image(rng, 50, 70), [Click(10, 10, True), Click(60, 40, True), Click(20, 40, True)])
    whole, stop, bad = [e["x"] for e in s.state_dict()["objects"][0]["steps"]], threading.Event(), []

    def read():
        while not stop.is_set():
            steps = s.state_dict()["objects"][0]
            if [e["x"] for e in steps["steps"]] != whole or steps["done"] > len(whole):
                bad.append(steps)

    def labels():
        while not stop.is_set():
            try:
                other.labels  # noqa: B018
            except ActiveFreqError as error:
                bad.append(error)

    other = fresh(engine, random_image(rng, 10, 12), [])
    threads = [threading.Thread(target=read), threading.Thread(target=labels)]
    for t in threads:
        t.start()
    images = [random_image(rng, 10, 12), random_image(rng, 8, 20)]
    for i in range(200):
        for _ in range(3):
            s.undo()
        for _ in range(3):
            s.redo()
        other.set_image(images[i % 2])
        other.load_mask(np.ones(other.shape, bool))
    stop.set()
    for t in threads:
        t.join()
    assert not bad


def test_busy(session, monkeypatch):
    started, proceed = threading.Event(), threading.Event()
    run = session._engine.run

    def slow(requests, watch, go_on):
        started.set()
        assert proceed.wait(20)
        return run(requests, watch, go_on)

    session.click(50, 40)
    mask = session.mask.copy()
    monkeypatch.setattr(session._engine, "run", slow)
    worker = threading.Thread(target=session.click, args=(5, 6))
    worker.start()
    assert started.wait(20)
    for call in (
        lambda: session.click(1, 1),
        session.undo,
        session.redo,
        session.reset,
        session.next_object,
        session.close,
        lambda: session.select_object(1),
        lambda: session.set_image(np.zeros((3, 3), np.uint8)),
        lambda: session.load_mask(mask),
        lambda: session.predict([], []),
        lambda: click_batch([session], [Click(1, 1, True)]),
    ):
        with pytest.raises(SessionBusyError):
            call()
    assert np.array_equal(session.mask, mask)  # reading sees the last finished step
    assert len(session.clicks) == 1
    proceed.set()
    worker.join()
    assert len(session.clicks) == 2
    session.undo()


# --- images ---


def test_set_image_starts_over(session, rng):
    session.click(5, 6)
    session.next_object()
    session.set_image(random_image(rng, 33, 21))
    assert session.shape == (33, 21)
    assert (session.object_count, session.clicks) == (1, ())
    assert not session.labels.any()


def test_bad_image_changes_nothing(session):
    session.click(5, 6)
    state = session.state_dict()
    for bad in (np.zeros((0, 3)), np.full((4, 4), np.nan), "/no/such/file", None):
        with pytest.raises(InvalidImageError):
            session.set_image(bad)
    assert session.state_dict() == state
    assert session.mask.any()


def test_the_image_is_the_sessions_own(engine, rng):
    image = random_image(rng, 50, 70)
    s = fresh(engine, image, [])
    original = image.copy()
    image[:] = 0
    s.click(5, 6)
    assert np.array_equal(s.probs, fresh(engine, original, [Click(5, 6, True)]).probs)


def test_image_from_a_file_with_orientation(engine, tmp_path, rng):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_image(rng, 20, 45)).save(tmp_path / "a.jpg", exif=exif)
    s = Session(engine=engine)
    s.set_image(tmp_path / "a.jpg")
    assert s.shape == (45, 20)


MEMORY_SCRIPT = """
import resource, sys
import numpy as np
from activefreq_engine import Session
sys.path.insert(0, {folder!r})
from fakes import BrightModel

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

with Session(BrightModel(refine_size=64)) as warm:  # libraries load and warm up
    warm.set_image(np.zeros((300, 300, 3), np.uint8))
    warm.click(5, 5)
image = np.zeros((8000, 12500, 3), np.uint8)
image[:] = 40
image[2000:6000, 3000:9000] = 230
before = peak()
with Session(BrightModel(refine_size=64)) as s:
    s.set_image(image)
    s.click(6000, 4000)
    s.click(2950, 4000)
    s.click(8990, 5990, False)
    s.undo()
    s.click(6500, 4000, False)
    s.suggest()
    area = int(s.mask.sum())
print((peak() - before) / image.nbytes, area / 24e6)
"""


def test_memory_of_a_100_megapixel_image(tmp_path):
    """At most twice the image's own memory on top, clicks, undo and suggestions included."""
    from pathlib import Path

    script = MEMORY_SCRIPT.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    times_image, share = map(float, done.stdout.split())
    assert times_image < 2
    assert 0.98 < share < 1.02


# --- state ---


def worked(engine, image, rng):
    s = fresh(engine, image, [Click(5, 6, True), Click(60, 40, False), Click(30, 20, True)])
    s.undo()
    s.undo()
    s.next_object()
    s.load_mask(rng.random((50, 70)) > 0.8)
    s.click(50.5, 10.25)
    s.next_object()
    s.click(10, 40)
    s.next_object()
    s.select_object(2)
    return s


def test_state_round_trip(engine, rng):
    image = random_image(rng, 50, 70)
    s = worked(engine, image, rng)
    state = json.loads(json.dumps(s.state_dict()))
    r = Session.restore(state, image, engine=engine)
    assert r.state_dict() == s.state_dict()
    for number in (2, 1, 3, 4):
        s.select_object(number)
        r.select_object(number)
        assert np.array_equal(r.probs, s.probs)
        assert bool(r.redo()) == bool(s.redo())
        while s.undo():
            assert r.undo()
            assert np.array_equal(r.mask, s.mask)
        assert not r.undo()
    assert np.array_equal(r.labels, s.labels)


def test_restore_uses_settings_and_window(engine, rng):
    image = rng.integers(0, 4000, (50, 70)).astype(np.uint16)
    s = Session(engine=engine, threshold=0.3, zoom=False, refine=False)
    s.set_image(image, window=(100, 2000))
    s.click(5, 6)
    r = Session.restore(s.state_dict(), image, engine=engine)
    assert r.threshold == 0.3
    assert r.state_dict() == s.state_dict()
    assert np.array_equal(r.probs, s.probs)


def test_restore_with_blank_objects_between(engine, rng):
    image = random_image(rng, 50, 70)
    s = fresh(engine, image, [Click(5, 6, True)])
    s.next_object()
    s.click(20, 20)
    s.select_object(1)
    s.reset()
    r = Session.restore(s.state_dict(), image, engine=engine)
    assert r.state_dict() == s.state_dict()


def test_restore_refuses_another_image_or_model(engine, rng):
    image = random_image(rng, 50, 70)
    state = worked(engine, image, rng).state_dict()
    other = image.copy()
    other[7, 7, 1] ^= 1
    with pytest.raises(SessionStateError, match="sha256"):
        Session.restore(state, other, engine=engine)
    with pytest.raises(SessionStateError, match="BrightModel"):
        Session.restore(state, image, engine=Engine(BrightModel()))
    with pytest.raises(SessionStateError, match="size 384"):
        Session.restore(state, image, engine=Engine(SquareModel(), size=384))
    with pytest.raises(SessionStateError, match="pass its file as model="):
        Session.restore(state, image)
    with pytest.raises(InvalidArgumentError):
        Session.restore(state, image, engine=engine, model=SquareModel())


def test_restore_takes_the_size_of_the_engine_that_is_given(rng):
    """Measurements use sizes below those that users may choose."""
    engine = Engine(SquareModel())
    engine.size = 128
    image = random_image(rng, 50, 70)
    session = worked(engine, image, rng)
    assert np.array_equal(Session.restore(session.state_dict(), image, engine=engine).mask, session.mask)
    with pytest.raises(SessionStateError, match="size 128 be one of 256"):
        Session.restore(session.state_dict(), image)


def spoil(state, path, value):
    state = json.loads(json.dumps(state))
    at = state
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "other"),
        (["version"], 4),
        (["version"], KeyError),
        (["image"], KeyError),
        (["image"], []),
        (["image", "sha256"], 7),
        (["image", "window"], [1]),
        (["image", "window"], "ab"),
        (["image", "window"], [2.0, 1.0]),
        (["objects"], 5),
        (["objects"], []),
        (["objects"], [None]),
        (["objects", 0, "steps"], {"x": 1}),
        (["objects", 0, "steps", 0, "x"], "5"),
        (["objects", 0, "steps", 0, "x"], 1e9),
        (["objects", 0, "steps", 0, "y"], float("nan")),
        (["objects", 0, "steps", 0, "positive"], 1),
        (["objects", 0, "done"], -1),
        (["objects", 0, "done"], 99),
        (["objects", 0, "done"], True),
        (["objects", 1, "steps", 0, "mask"], {"size": [70, 50], "counts": [3500]}),
        (["objects", 1, "steps", 0, "mask"], {"size": [50, 70], "counts": "~~~"}),
        (["selected"], 0),
        (["selected"], 9),
        pytest.param(["selected"], 10**5000, id="selected-huge"),  # Python prints no integer of that length
        (["settings", "threshold"], "high"),
        (["settings", "threshold"], 7.0),
        (["settings", "size"], 300),
        pytest.param(["settings", "size"], 10**5000, id="size-huge"),
        (["settings", "zoom"], None),
    ],
)
def test_damaged_state(engine, rng, path, value):
    image = random_image(rng, 50, 70)
    state = worked(engine, image, rng).state_dict()
    with pytest.raises(SessionStateError):
        Session.restore(spoil(state, path, value), image, engine=engine)
    for nonsense in (None, [], "state", {}):
        with pytest.raises(SessionStateError):
            Session.restore(nonsense, image, engine=engine)


# --- export ---


def test_one_object_of_several_is_exported(session, rng, tmp_path):
    wanted = [rng.random(session.shape) < 0.5 for _ in range(3)]
    for mask in wanted:
        session.next_object()
        session.load_mask(mask)
    for number, mask in enumerate(wanted, 1):
        assert np.array_equal(masks.from_coco_rle(session.to_coco_rle(number=number)), mask)
        assert np.array_equal(masks.from_polygons(session.to_polygons(number=number), *session.shape), mask)
        session.save_mask(tmp_path / "m.png", number=number)
        assert np.array_equal(masks.load_labels_png(tmp_path / "m.png") > 0, mask)
    for call in (session.to_coco_rle, session.to_polygons, lambda number: session.save_mask("x", number=number)):
        with pytest.raises(InvalidArgumentError, match="object"):
            call(number=4)


def test_export(session, tmp_path):
    session.click(20, 10)
    session.click(25, 15, False)
    session.save_mask(tmp_path / "m.png")
    assert np.array_equal(masks.load_labels_png(tmp_path / "m.png") > 0, session.mask)
    assert np.array_equal(masks.from_coco_rle(session.to_coco_rle()), session.mask)
    assert np.array_equal(masks.from_polygons(session.to_polygons(), 50, 70), session.mask)
    session.next_object()
    session.click(60, 40)
    session.save_labels(tmp_path / "l.png")
    assert np.array_equal(masks.load_labels_png(tmp_path / "l.png"), session.labels)


# --- lifetime ---


def test_nothing_works_without_an_image(engine):
    s = Session(engine=engine)
    for call in (
        lambda: s.click(1, 1),
        lambda: s.predict([[1, 1]], [1]),
        lambda: s.load_mask(np.zeros((3, 3), bool)),
        s.undo,
        s.redo,
        s.reset,
        s.next_object,
        s.suggest,
        s.state_dict,
        s.to_coco_rle,
        lambda: s.select_object(1),
        lambda: (s.mask, s.probs),
        lambda: s.labels,
        lambda: s.clicks,
        lambda: s.shape,
    ):
        with pytest.raises(NoImageError, match="set_image"):
            call()
    assert "no image" in repr(s)


def test_close(engine, rng):
    with Session(engine=engine) as s:
        s.set_image(random_image(rng, 9, 12))
        assert repr(s) == "Session(12x9, object 1 of 1)"
    s.close()
    for call in (lambda: s.click(1, 1), lambda: s.mask, s.undo, lambda: s.set_image(np.zeros((3, 3))), s.__enter__):
        with pytest.raises(SessionClosedError):
            call()
    with pytest.raises(SessionClosedError):
        click_batch([s], [Click(1, 1, True)])


def test_engine_and_model_are_alternatives(engine):
    with pytest.raises(InvalidArgumentError, match="engine="):
        Session("freqformer_b1", engine=engine)
    with pytest.raises(InvalidArgumentError, match="engine="):
        Session(engine=engine, size=384)


def test_all_errors_have_one_base():
    for name in activefreq_engine.__all__:
        value = getattr(activefreq_engine, name)
        if name.endswith("Error"):
            assert issubclass(value, ActiveFreqError)


def test_import_is_light_and_silent():
    heavy = ["torch", "triton", "cupy", "matplotlib", "scipy", "typer", "cv2", "PIL"]
    code = f"import sys, activefreq_engine; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr.strip()) == ("", "")
    code = (
        "import sys; from activefreq_engine import *; "
        f"sys.exit(str([m for m in {heavy[1:6]} if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr.strip()) == ("", "")


def test_a_package_without_its_kernels_says_what_to_do(tmp_path):
    from pathlib import Path

    package = tmp_path / "activefreq_engine"
    package.mkdir()
    package.joinpath("__init__.py").write_bytes(Path(activefreq_engine.__file__).read_bytes())
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import activefreq_engine"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install ." in done.stderr
