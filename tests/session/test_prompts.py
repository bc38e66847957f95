"""Boxes, scribbles and lassos: what the network is shown of them, and what they make of a mask."""

import json
import threading

import cv2
import numpy as np
import pytest
from torch import Tensor

from activefreq_engine import (
    BoxPrompt,
    Click,
    ClickCancelledError,
    Engine,
    InvalidArgumentError,
    InvalidPromptError,
    Lasso,
    Scribble,
    Session,
    SessionBusyError,
    SessionStateError,
    click_batch,
)
from activefreq_engine.masks import Polygon, from_polygons
from activefreq_engine.masks.outlines import enclosed
from activefreq_engine.session import boxes
from activefreq_engine.session.prompts import DISK, MOST_DISKS, area_on, disks, mark_of
from activefreq_engine.session.zoom import outlined_roi

from .fakes import FakeModel, SquareModel, random_image, widen

TRIANGLE = [(60.3, 40.2), (140.1, 50.4), (90.2, 120.3)]  # no edge passes through a pixel's centre


class OutlineModel(FakeModel):
    """Where the previous answer says maybe, and squares around clicks."""

    def answer(self, image: Tensor, clicks: Tensor) -> Tensor:
        return 6 * clicks[:, :1] + 8 * widen(clicks[:, 1:2], 6) - 9 * widen(clicks[:, 2:3], 6) - 2


@pytest.fixture
def outlines() -> Engine:
    return Engine(OutlineModel())


def shown(engine: Engine) -> np.ndarray:
    """The three maps that the network saw last: float32 `[3, h, w]`."""
    return engine._executor.model.seen["clicks"][0].numpy()


def opened(engine: Engine, rng: np.random.Generator, height: int = 173, width: int = 211, **how) -> Session:
    session = Session(engine=engine, **how)
    session.set_image(random_image(rng, height, width))
    return session


def inside_line(points, height, width):
    """bool `[height, width]`, pixel by pixel: the winding number of a closed line around each centre is not 0."""
    out = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            turns = 0.0
            for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
                a, b = np.array([ax - x - 0.5, ay - y - 0.5]), np.array([bx - x - 0.5, by - y - 0.5])
                turns += np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b)
            out[y, x] = abs(turns) > 3
    return out


# --- what the network is shown ---


def test_a_box_is_shown_as_a_previous_answer_of_a_half(outlines, rng):
    session = opened(outlines, rng)
    session.click(5, 5)
    session.click(200, 160, positive=False)
    result = session.box(60.2, 40, 139.7, 90)
    previous, positive, negative = shown(outlines)
    assert not positive.any()
    assert not negative.any()
    # pixels 60 to 139 and 40 to 89; the region is 1.4 times as large, on 256 x 160 network pixels
    assert previous.shape == (160, 256)
    x0, y0, x1, y1 = session._scene.history.step.roi
    assert (x0, y0, x1, y1) == (44, 30, 156, 100)
    xs, ys = x0 + (np.arange(256) + 0.5) * 112 / 256, y0 + (np.arange(160) + 0.5) * 70 / 160
    expected = ((xs > 60) & (xs < 140)) & ((ys > 40) & (ys < 90))[:, None]
    assert np.array_equal(previous, np.where(expected, np.float32(0.5), np.float32(0)))
    assert result.clicks == 0
    assert session.clicks == ()
    assert session.prompts == (BoxPrompt(60.2, 40, 139.7, 90),)
    assert not result.mask[5, 5]  # a fresh start


def test_boxes_of_all_sizes_fill_their_region(rng):
    for _ in range(200):
        height, width = rng.integers(40, 3000, 2)
        x0, x1 = np.sort(rng.choice(width + 1, 2, replace=False))
        y0, y1 = np.sort(rng.choice(height + 1, 2, replace=False))
        box = outlined_roi((x0, y0, x1, y1), (0, 0, width, height))
        assert boxes.union(box, (x0, y0, x1, y1)) == box
        for low, high, a, b, side in ((x0, x1, box[0], box[2], width), (y0, y1, box[1], box[3], height)):
            if low > 0.2 * (high - low) + 20 and high + 0.2 * (high - low) + 20 < side and high - low > 24:
                assert 0.45 <= (high - low) / (b - a) <= 0.9


def test_without_zoom_a_box_is_shown_in_the_whole_image(outlines, rng):
    session = opened(outlines, rng, zoom=False)
    session.box(60, 40, 61, 41)  # far less than a network pixel would be if the image were larger
    assert session._scene.history.step.roi is None
    assert shown(outlines)[0].shape == (224, 256)
    assert shown(outlines)[0].max() == 0.5
    large = opened(outlines, rng, 1300, 2600, zoom=False)
    large.box(1001, 700, 1002, 701)
    assert (shown(outlines)[0] == 0.5).sum() == 1


def test_a_scribble_is_shown_as_disks_along_it(engine, rng):
    session = opened(engine, rng)
    session.scribble([(20, 30), (190, 30)])
    previous, positive, negative = shown(engine)
    assert not previous.any()
    assert not negative.any()
    count, _, _, middles = cv2.connectedComponentsWithStats(positive.astype(np.uint8))
    assert count - 1 == MOST_DISKS
    at = np.sort(middles[1:, 0]) + 0.5
    assert np.allclose(at, np.linspace(20.5, 190.5, MOST_DISKS) * 256 / 211, atol=1)
    assert np.allclose(middles[1:, 1] + 0.5, 30.5 * 224 / 173, atol=1)
    assert session.clicks == ()
    assert session.prompts == (Scribble(((20.0, 30.0), (190.0, 30.0))),)


def test_disks_of_scribbles_keep_their_distance(rng):
    for _ in range(100):
        height, width = (int(n) for n in rng.integers(20, 900, 2))
        points = rng.random((rng.integers(1, 12), 2)) * [width, height]
        mark = mark_of(Scribble(tuple(map(tuple, points.tolist())), bool(rng.integers(2))), height, width)
        x0, x1 = np.sort(rng.choice(width + 1, 2, replace=False))
        y0, y1 = np.sort(rng.choice(height + 1, 2, replace=False))
        box = int(x0), int(y0), int(x1), int(y1)
        found = disks([mark], box, 256, 128)
        assert len(found) <= MOST_DISKS
        pixels = np.zeros((height + 2, width + 2), bool)
        left, top, right, bottom = mark.box
        pixels[top + 1 : bottom + 1, left + 1 : right + 1] = mark.inside()
        if pixels[y0 + 2 : y1, x0 + 2 : x1].any():  # more than a corner of it
            assert found
        for c in found:
            assert boxes.contains(box, c)
            assert c.positive == mark.positive
            assert pixels[int(c.y) : int(c.y) + 3, int(c.x) : int(c.x) + 3].any()
    straight = mark_of(Scribble(((3.0, 7.0), (90.0, 7.0)), True), 40, 100)
    for side in (32, 64, 128, 256, 512):
        at = [
            boxes.to_network(c.x, c.y, (0, 0, 100, 40), side, side)[0]
            for c in disks([straight], (0, 0, 100, 40), side, side)
        ]
        assert len(at) == 1 or np.diff(at).min() >= 2 * DISK - 1e-6


def test_a_lasso_on_nothing_is_shown_as_a_box_is(outlines, rng):
    session = opened(outlines, rng)
    session.click(5, 5, positive=False)
    session.lasso(TRIANGLE)
    previous, positive, negative = shown(outlines)
    roi = session._scene.history.step.roi
    assert roi == (44, 24, 156, 136)
    assert not positive.any()
    assert not negative.any()
    xs, ys = roi[0] + (np.arange(256) + 0.5) * 112 / 256, roi[1] + (np.arange(256) + 0.5) * 112 / 256
    expected = inside_line(TRIANGLE, 173, 211)[ys.astype(int)][:, xs.astype(int)]
    assert np.array_equal(previous, np.where(expected, np.float32(0.5), np.float32(0)))


def test_a_positive_lasso_on_a_mask_says_maybe(outlines, rng):
    session = opened(outlines, rng)
    session.click(30, 30)
    before = session.mask
    last = session._scene.history.step.canvas
    session.lasso(TRIANGLE)
    previous, positive, _ = shown(outlines)
    assert positive.any()
    box = session._scene.history.step.roi or (0, 0, 211, 173)
    mark = session._scene.history.step.canvas.marks[-1]
    inside = area_on(mark, box, *previous.shape, (0, 0, 211, 173))
    own = last.sample(box, *previous.shape)
    assert np.array_equal(previous, np.where(inside, np.maximum(own, np.float32(0.5)), own))
    assert session.mask[inside_line(TRIANGLE, 173, 211)].mean() > 0.9
    assert (session.mask & before).any()


def test_a_negative_lasso_takes_its_pixels_out(outlines, rng):
    session = opened(outlines, rng)
    session.box(50, 30, 160, 140)
    assert session.mask[inside_line(TRIANGLE, 173, 211)].any()
    last = session._scene.history.step.canvas
    session.lasso(TRIANGLE, positive=False)
    previous, positive, negative = shown(outlines)
    box = session._scene.history.step.roi
    mark = session._scene.history.step.canvas.marks[-1]
    inside = area_on(mark, box, *previous.shape, (0, 0, 211, 173))
    assert np.array_equal(previous, np.where(inside, np.float32(0), last.sample(box, *previous.shape)))
    assert not positive.any()
    deepest = boxes.to_network(mark.deepest.x, mark.deepest.y, box, *previous.shape)
    rows, columns = np.nonzero(negative)
    assert (columns.mean(), rows.mean()) == pytest.approx((deepest[0] - 0.5, deepest[1] - 0.5), abs=0.5)
    assert not session.mask[inside_line(TRIANGLE, 173, 211)].any()
    assert session.mask.any()


def test_a_negative_lasso_holds_until_something_positive_touches_it(outlines, rng):
    inside = inside_line(TRIANGLE, 173, 211)
    for lift in (
        lambda s: s.click(95, 70),
        lambda s: s.scribble([(20, 70), (100, 70)]),
        lambda s: s.lasso([(90, 60), (110, 60), (110, 80)]),
    ):
        session = opened(outlines, rng)
        session.box(50, 30, 160, 140)
        session.lasso(TRIANGLE, positive=False)
        session.click(155, 135, positive=True)
        session.click(155, 160, positive=True)
        assert not session.mask[inside].any()
        held = session.probs
        assert not held[inside].any()
        lift(session)
        assert session.mask[inside].sum() > 30
        assert isinstance(session.prompts[1], Lasso)
        while session.undo():
            pass
        session.redo(), session.redo(), session.redo(), session.redo()
        assert np.array_equal(session.probs, held)


# --- pixels ---


def test_a_line_encloses_what_it_goes_around(rng):
    for _ in range(15):
        height, width = (int(n) for n in rng.integers(1, 14, 2))
        points = rng.random((rng.integers(3, 9), 2)) * [width, height]
        assert np.array_equal(enclosed(points, height, width), inside_line(points.tolist(), height, width))
    circle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    simple = np.stack([25 + 19.3 * np.cos(circle), 20 + 14.2 * np.sin(circle)], 1)
    assert np.array_equal(enclosed(simple, 41, 53), from_polygons([Polygon(simple, ())], 41, 53))


def test_a_line_that_crosses_itself_encloses_both_loops(outlines, rng):
    session = opened(outlines, rng)
    session.box(10, 10, 200, 160)
    session.lasso([(20, 20), (100, 100), (100, 20), (20, 100)], positive=False)
    assert not session.mask[60, 30]
    assert not session.mask[60, 90]
    session.undo()
    session.lasso([(20, 20), (100, 20), (100, 100), (20, 100)] * 2, positive=False)  # twice around
    assert not session.mask[20:100, 20:100].any()
    assert session.mask[20:100, 100].all()


def test_pixels_under_a_scribble_take_its_sign(engine, rng):
    session = opened(engine, rng)
    session.click(100, 80)
    session.scribble([(100.9, 80.9), (3, 170), (3, 4.5)], positive=False)
    line = session._scene.history.step.canvas.marks[-1]
    x0, y0, x1, y1 = line.box
    assert (x0, y0, x1, y1) == (3, 4, 101, 171)
    for mask in (session.mask, session.probs > 0, session.probs > session.threshold):
        assert not mask[y0:y1, x0:x1][line.inside()].any()
    assert not session.mask[80, 100]  # the newest prompt wins
    session.scribble([(4, 20), (2, 20)])
    assert session.mask[20, 2:5].all()
    session.click(3, 20, positive=False)
    assert session.mask[20, 2:5].tolist() == [True, False, True]


def test_what_a_later_prompt_denies_is_not_shown(engine, rng):
    session = opened(engine, rng)
    session.click(100, 80)
    session.scribble([(90, 80), (110, 80)], positive=False)
    assert not shown(engine)[1].any()
    session.lasso([(80, 70), (120, 70), (120, 90), (80, 90)])
    session.lasso([(80, 70), (120, 70), (120, 90), (80, 90)], positive=False)
    assert len(disks(session._scene.history.step.canvas.marks, (0, 0, 211, 173), 256, 256)) >= 2
    session.click(100, 81)
    assert shown(engine)[1].any()


def test_a_prompt_that_agrees_changes_nothing(engine, rng):
    session = opened(engine, rng)
    session.scribble([(3, 3), (9, 9)], positive=False)
    session.lasso(TRIANGLE, positive=False)
    assert engine._executor.model.count["decode"] == 0  # there is no object yet
    session.click(100, 80)
    mask = session.mask
    seen = engine._executor.model.count["decode"]
    for result in (
        session.scribble([(98, 80), (102, 82)]),
        session.lasso([(98, 78), (104, 78), (104, 84), (98, 84)]),
        session.scribble([(3, 3), (9, 9)], positive=False),
    ):
        assert result.changed_bbox is None
        assert np.array_equal(result.mask, mask)
    assert engine._executor.model.count["decode"] == seen
    assert len(session.prompts) == 6


# --- with the rest of a session ---


def test_a_loaded_mask_is_corrected_piece_by_piece(outlines, rng):
    session = opened(outlines, rng)
    given = np.zeros((173, 211), bool)
    given[20:60, 20:60] = given[100:140, 150:200] = True
    session.load_mask(given)
    session.scribble([(170, 110), (180, 120)], positive=False)
    assert np.array_equal(session.mask[:90], given[:90])
    assert not session.mask[110, 170]
    assert session.mask[100:140, 150:200].sum() < 40 * 50
    session.lasso([(15, 15), (40, 15), (40, 70), (15, 70)], positive=False)
    assert not session.mask[20:60, 20:40].any()
    assert session.mask[20:60, 50:60].all()
    session.scribble([(100, 150)])
    assert session.mask[150, 100]
    kept = session.mask
    session.box(60, 60, 120, 120)
    assert not session.mask[20:60, 50:60].any()  # a box begins anew
    session.undo()
    assert np.array_equal(session.mask, kept)


def test_a_view_holds_for_lines_and_not_for_boxes(engine, rng):
    session = opened(engine, rng, 700, 900)
    session.click(450, 350)
    before = session.mask
    session.look(400, 300, 500, 400)
    session.scribble([(410, 310), (420, 320)], positive=False)
    assert session._scene.history.step.roi == (400, 300, 500, 400)
    outside = np.ones_like(before)
    outside[300:400, 400:500] = False
    assert np.array_equal(session.mask[outside], before[outside])
    session.scribble([(390, 310), (410, 340)])  # partly outside: as if there were no view
    assert session._scene.history.step.roi != (400, 300, 500, 400)
    session.box(100, 100, 300, 280)
    assert session._scene.history.step.roi == (60, 64, 340, 316)


def test_objects_have_their_own_prompts(outlines, rng):
    session = opened(outlines, rng)
    session.box(50, 30, 100, 90)
    first = session.mask
    session.next_object()
    assert session.prompts == ()
    session.lasso([(120, 20), (180, 20), (180, 90)])
    assert session.select_object(1).mask is session.mask
    assert np.array_equal(session.mask, first)
    session.delete_object(1)
    assert session.prompts == (Lasso(((120.0, 20.0), (180.0, 20.0), (180.0, 90.0))),)
    session.reset()
    assert session.prompts == ()


def test_the_refiner_redraws_what_a_prompt_changed(rng):
    engine = Engine(SquareModel(refine_size=64))
    session = opened(engine, rng, 900, 1300)
    model = engine._executor.model
    for call in (
        lambda: session.box(100, 100, 900, 800),
        lambda: session.scribble([(100, 100), (600, 500)]),
        lambda: session.scribble([(300, 300), (500, 300)], positive=False),
        lambda: session.lasso([(200, 200), (400, 200), (400, 500)]),
    ):
        before = model.count["refine"], model.count["decode"]
        result = call()
        if result.mask.any():
            assert (model.count["refine"], model.count["decode"]) == (before[0] + 1, before[1] + 1)
        disabled = Session(engine=engine, refine=False)
        disabled.set_image(session._scene.picture.image)
    before = model.count["refine"]
    disabled.scribble([(100, 100), (600, 500)])
    assert model.count["refine"] == before


def test_prompts_wait_and_can_be_cancelled(rng):
    class Slow(SquareModel):
        def decode_clicks(self, features, clicks):
            begun.set()
            assert go_on.wait(30)
            return super().decode_clicks(features, clicks)

    for name, arguments in (("box", (5, 5, 50, 60)), ("scribble", ([(4, 4), (9, 9)],)), ("lasso", (TRIANGLE,))):
        begun, go_on, caught = threading.Event(), threading.Event(), []
        session = opened(Engine(Slow(), plan=False), rng)

        def work(session=session, name=name, arguments=arguments, caught=caught):
            with pytest.raises(ClickCancelledError):
                getattr(session, name)(*arguments)
            caught.append(True)

        thread = threading.Thread(target=work)
        go_on.set()
        session.click(100, 100)
        before = session.state_dict()
        go_on.clear()
        begun.clear()
        thread.start()
        assert begun.wait(30)
        with pytest.raises(SessionBusyError):
            getattr(session, name)(*arguments)
        assert session.cancel()
        go_on.set()
        thread.join(30)
        assert caught
        assert session.state_dict() == before
        getattr(session, name)(*arguments)
        assert len(session.state_dict()["objects"][0]["steps"]) == 2


def test_one_batch_mixes_kinds(rng):
    engine = Engine(SquareModel(refine_size=64))
    prompts = [
        Click(90, 60),
        BoxPrompt(20, 30, 90, 140),
        Scribble([(20, 30), (90, 30)], False),
        Lasso(np.array(TRIANGLE), True),
        Lasso(TRIANGLE, False),
    ]
    together, apart = [], []
    for _ in prompts:
        image = random_image(rng, 173, 211)
        for sessions in (together, apart):
            session = Session(engine=engine)
            session.set_image(image)
            session.click(80, 70)
            sessions.append(session)
    results = click_batch(together, prompts)
    apart[0].click(90, 60)
    apart[1].box(20, 30, 90, 140)
    apart[2].scribble([(20, 30), (90, 30)], False)
    apart[3].lasso(TRIANGLE)
    apart[4].lasso(TRIANGLE, positive=False)
    for one, other, result in zip(together, apart, results, strict=True):
        assert one.prompts == other.prompts
        assert np.array_equal(one.mask, other.mask)
        assert result.mask is one.mask
    for bad in (None, (1, 2), "box", Lasso([(1, 2)], True)):
        states = [s.state_dict() for s in together]
        with pytest.raises((InvalidArgumentError, InvalidPromptError)):
            click_batch(together, [bad, *prompts[1:]])
        assert [s.state_dict() for s in together] == states


def test_predict_takes_a_box(outlines, rng):
    session = opened(outlines, rng)
    model = outlines._executor.model
    result = session.predict([[90, 60], [150, 100]], [1, 0], box=np.array([50, 30, 160, 140]))
    assert model.count["decode"] == 2  # the box, then both clicks together
    assert result.clicks == 2
    assert session.prompts == (BoxPrompt(50, 30, 160, 140), Click(90, 60), Click(150, 100, False))
    twin = opened(outlines, rng)
    twin.set_image(session._scene.picture.image)
    twin.box(50, 30, 160, 140)
    twin.predict([[90, 60], [150, 100]], [1, 0], box=(50, 30, 160, 140))
    assert np.array_equal(twin.mask, session.mask)
    seen = model.count["decode"]
    assert np.array_equal(twin.predict([], [], box=(50, 30, 160, 140)).mask, twin._scene.history.done[0].canvas.mask())
    assert model.count["decode"] == seen
    assert session.predict([[90, 60], [150, 100]], [1, 0], box=(50, 30, 160, 140)).changed_bbox is None
    session.undo()
    assert session.prompts == ()
    for wrong in ((1, 2, 3), "box", 7, (5, 5, 4, 9), (0, 0, np.inf, 4), (300, 0, 400, 9), [[1, 2, 3, 4]]):
        with pytest.raises(InvalidPromptError, match="box"):
            session.predict([], [], box=wrong)
    with pytest.raises(InvalidArgumentError, match="both"):
        session.predict([], [], np.zeros((173, 211), bool), (1, 2, 3, 4))


def test_a_state_brings_prompts_back(outlines, rng):
    session = opened(outlines, rng)
    session.click(80, 70)
    assert session.state_dict()["version"] == 1
    session.predict([[80, 70], [9, 9]], [1, 0])
    assert session.state_dict()["version"] == 2
    session.box(50, 30, 160.5, 140)
    session.look(40, 20, 180, 160)
    session.scribble([(60, 40), (90.25, 45)], positive=False)
    session.look(None)
    session.lasso(TRIANGLE, positive=False)
    session.next_object()
    session.lasso(TRIANGLE)
    session.predict([[90, 60]], [1], box=(50, 30, 160, 140))
    session.predict([[90, 60], [120, 55]], [1, 0], box=(50, 30, 160, 140))
    session.undo()
    state = json.loads(json.dumps(session.state_dict()))
    assert state["version"] == 3
    image = session._scene.picture.image
    again = Session.restore(state, image, engine=outlines)
    assert again.state_dict() == state
    for number in (1, 2):
        assert np.array_equal(again.mask_of(number), session.mask_of(number))
        again.select_object(number)
        session.select_object(number)
        assert again.prompts == session.prompts
    for path, value in (
        ("box", [1, 2, 3]),
        ("box", [1, 2, 3, "4"]),
        ("box", [9, 9, 1, 1]),
        ("scribble", []),
        ("scribble", [[1, 2], [3]]),
        ("scribble", [[1, 1e9]]),
        ("scribble", 7),
        ("lasso", [[1, 2], [3, 4]]),
        ("lasso", [[1, 2], [3, 4], [None, 4]]),
        ("lasso", [[1, 2], [9, 2], [4, 2]]),
    ):
        spoiled = json.loads(json.dumps(state))
        step = next(s for s in spoiled["objects"][0]["steps"] if path in s)
        step[path] = value
        with pytest.raises(SessionStateError):
            Session.restore(spoiled, image, engine=outlines)


def test_suggestions_keep_away_from_what_was_drawn(outlines, rng):
    session = opened(outlines, rng)
    session.box(50, 30, 160, 140)
    session.scribble([(60, 40), (150, 130)])
    session.lasso(TRIANGLE, positive=False)
    out = inside_line(TRIANGLE, 173, 211)
    for s in session.suggest(k=20):
        assert not out[s.y, s.x]


NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.box(NAN, 1, 5, 5), "box"),
        (lambda s: s.box(1, 1, float("inf"), 5), "box"),
        (lambda s: s.box(5, 1, 1, 5), "x0 < x1"),
        (lambda s: s.box(5, 1, 5, 5), "x0 < x1"),
        (lambda s: s.box(211, 1, 300, 5), "no part of the image"),
        (lambda s: s.box(-9, 1, 0, 5), "no part of the image"),
        (lambda s: s.box("1", 1, 5, 5), "box"),
        (lambda s: s.box(None, 1, 5, 5), "box"),
        (lambda s: s.box(10**400, 1, 5, 5), "box"),
        (lambda s: s.box(True, 1, 5, 5), "box"),
        (lambda s: s.box([1], 1, 5, 5), "box"),
        (lambda s: s.scribble([]), "at least 1"),
        (lambda s: s.scribble([[1, 2], [NAN, 3]]), "outside the image"),
        (lambda s: s.scribble([(1, 2), (211, 3)]), "outside the image"),
        (lambda s: s.scribble([(1, -0.1)]), "outside the image"),
        (lambda s: s.scribble(None), "expected numbers"),
        (lambda s: s.scribble("line"), "expected numbers"),
        (lambda s: s.scribble([1, 2]), "expected numbers"),
        (lambda s: s.scribble([(1, 2), (3,)]), "numbers"),
        (lambda s: s.scribble([("1", "2")]), "expected numbers"),
        (lambda s: s.scribble([(1, 2j)]), "expected numbers"),
        (lambda s: s.scribble([(True, False)]), "expected numbers"),
        (lambda s: s.scribble([(1, 10**30)]), "numbers"),
        (lambda s: s.scribble({(1, 2)}), "expected numbers"),
        (lambda s: s.scribble(np.zeros((10**6, 2))), "1000000 points; allowed are 10000"),
        (lambda s: s.scribble([(1, 2)], 1), "positive is 1"),
        (lambda s: s.lasso([(1, 2), (3, 4)]), "at least 3"),
        (lambda s: s.lasso(np.zeros((10**6, 2))), "1000000 points; allowed are 10000"),
        (lambda s: s.lasso([(1, 2), (9, 2), (4, 2)]), "encloses no pixel"),
        (lambda s: s.lasso([(5, 5)] * 3), "encloses no pixel"),
        (lambda s: s.lasso([(5.6, 5.6), (5.9, 5.6), (5.9, 5.9)]), "encloses no pixel"),
        (lambda s: s.lasso([(1, 2), (212, 2), (4, 9)]), "outside the image"),
        (lambda s: s.lasso(TRIANGLE, None), "positive is None"),
    ],
)
def test_bad_prompts_are_refused_in_words(engine, rng, call, words):
    session = opened(engine, rng)
    session.click(90, 60)
    before = json.dumps(session.state_dict())
    with pytest.raises(InvalidPromptError, match=words):
        call(session)
    assert json.dumps(session.state_dict()) == before


def test_a_lasso_too_long_to_be_filled_is_refused(engine, rng):
    session = opened(engine, rng, 900, 30)
    with pytest.raises(InvalidPromptError, match="up and down"):
        session.lasso([(i % 29, 900 * (i % 2)) for i in range(9999)])


def test_a_box_is_cut_off_at_the_image(outlines, rng):
    session = opened(outlines, rng)
    session.box(-40, -1e9, 80.5, 60)
    inside = session._scene.history.step.canvas.marks[0]
    assert inside == BoxPrompt(-40, -1e9, 80.5, 60)
    previous = shown(outlines)[0]
    area = area_on(inside, session._scene.history.step.roi, *previous.shape, (0, 0, 211, 173))
    assert np.array_equal(previous == 0.5, area)
    assert session._scene.history.step.roi == (0, 0, 98, 72)


@pytest.mark.parametrize(
    "box", [[[1, 1, 9, 9]], np.array([[1, 1, 9, 9], [2, 2, 5, 5]]), np.ones((2, 2)), [[1], [2], [3, 4], 5]]
)
def test_several_boxes_or_a_nested_one_are_named(engine, box):
    """As SAM's users pass them."""
    session = Session(engine=engine)
    session.set_image(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(InvalidPromptError, match="one box, for one object"):
        session.predict([[5, 5]], [1], box=box)
