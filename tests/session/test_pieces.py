"""An object of several pieces: a late click on one of them is answered from near, and the others stay."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from activefreq_engine import Engine, Session
from activefreq_engine.session import zoom
from activefreq_engine.session.canvas import Canvas, Layer
from activefreq_engine.types import Box, Click
from tests.session.fakes import SquareModel

HEIGHT, WIDTH = 500, 700
MIDDLES = ((110, 100), (590, 110), (330, 400))
BESIDE = 95
"""Pixels from the middle of a piece to a place a little outside of it."""
BEFORE = zoom.PIECEWISE - 1
"""Clicks that are answered from the region of the whole object in any case."""


class Fickle(SquareModel):
    """Squares around positive clicks; once `fickle`, it denies all but a square around the middle of what it sees."""

    fickle = False

    def answer(self, image: Tensor, clicks: Tensor) -> Tensor:
        if not self.fickle:
            return super().answer(image, clicks)
        out = torch.full_like(clicks[:, :1], -9.0)
        h, w = out.shape[2:]
        out[:, :, h // 3 : -(h // 3), w // 3 : -(w // 3)] = 9.0
        return out


@pytest.fixture
def model() -> Fickle:
    return Fickle()


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture
def engine(model: Fickle) -> Engine:
    return Engine(model, "cpu", size=256, plan=False)


@pytest.fixture
def session(engine: Engine, image: np.ndarray) -> Iterator[Session]:
    with Session(engine=engine) as session:
        session.set_image(image)
        yield session


def three_pieces(session: Session) -> None:
    """A click on each of three pieces, and as many more as it takes for the next one to be late."""
    for x, y in MIDDLES:
        session.click(x, y)
    for k in range(BEFORE - len(MIDDLES)):
        session.click(20 + 30 * k, HEIGHT - 20, False)  # on the ground
    assert cv2.connectedComponents(session.mask.view(np.uint8))[0] == 1 + len(MIDDLES)


def test_a_late_click_changes_its_piece_alone(session: Session, model: Fickle) -> None:
    three_pieces(session)
    before, encoded = session.mask.copy(), model.count["encode"]
    model.fickle = True  # seen as a whole, all three pieces would be another thing now
    x, y = MIDDLES[0]
    found = session.click(x + BESIDE, y)
    assert model.count["encode"] == encoded + 1
    elsewhere = np.ones(before.shape, bool)
    elsewhere[: y + 150, : x + 150] = False
    assert np.array_equal(found.mask[elsewhere], before[elsewhere])
    assert not np.array_equal(found.mask, before)
    assert found.mask[y, x + BESIDE]


def test_an_early_click_is_answered_from_all_of_the_object(session: Session, model: Fickle) -> None:
    for x, y in MIDDLES:
        session.click(x, y)
    encoded, decoded = model.count["encode"], model.count["decode"]
    assert len(session.clicks) + 1 < zoom.PIECEWISE
    session.click(MIDDLES[0][0] + BESIDE, MIDDLES[0][1])
    assert model.count["encode"] == encoded
    assert model.count["decode"] == decoded + 1


def test_what_a_piece_became_is_undone_and_restored_bit_by_bit(
    engine: Engine, session: Session, image: np.ndarray
) -> None:
    three_pieces(session)
    masks = [session.mask.copy()]
    for x, y in (*MIDDLES, *MIDDLES):
        masks.append(session.click(x + BESIDE, y + 10 * len(masks)).mask.copy())
    probs = session.probs.copy()
    again = Session.restore(session.state_dict(), image, engine=engine)
    assert np.array_equal(again.mask, masks[-1])
    assert np.array_equal(again.probs, probs)
    for mask in reversed(masks[:-1]):
        session.undo()
        assert np.array_equal(session.mask, mask)
    for mask in masks[1:]:
        session.redo()
        assert np.array_equal(session.mask, mask)
    assert np.array_equal(session.probs, probs)


def test_a_piece_is_looked_at_in_the_same_region_again(session: Session, model: Fickle) -> None:
    three_pieces(session)
    for x, y in MIDDLES:
        session.click(x + BESIDE, y)
    encoded = model.count["encode"]
    for x, y in MIDDLES:
        session.click(x + 60, y + 20, False)
    assert model.count["encode"] == encoded


def test_pieces_are_looked_at_before_they_are_clicked(session: Session, model: Fickle) -> None:
    three_pieces(session)
    session.prepare()
    encoded = model.count["encode"]
    assert encoded == 1 + len(MIDDLES)
    for x, y in MIDDLES:
        session.click(x + 60, y + 10, False)
    assert model.count["encode"] == encoded


def test_work_ahead_ends_when_the_next_step_is_made(session: Session, model: Fickle, monkeypatch) -> None:
    three_pieces(session)
    encoded, prepare = model.count["encode"], Engine.prepare

    def interrupted(engine: Engine, *given: object) -> object:
        features = prepare(engine, *given)
        session.undo()
        return features

    monkeypatch.setattr(Engine, "prepare", interrupted)
    session.prepare()
    assert model.count["encode"] == encoded + 1


def test_a_click_far_from_all_pieces_begins_another(session: Session, model: Fickle) -> None:
    three_pieces(session)
    session.click(MIDDLES[0][0] + BESIDE, MIDDLES[0][1])
    found = session.click(100, 420)
    assert found.mask[420, 100]
    assert cv2.connectedComponents(found.mask.view(np.uint8))[0] == 2 + len(MIDDLES)
    assert all(found.mask[y, x] for x, y in MIDDLES)


def test_a_look_ahead_compares_all_of_the_object(session: Session, model: Fickle) -> None:
    three_pieces(session)
    encoded = model.count["encode"]
    session.suggest(look_ahead=True)
    assert model.count["encode"] == encoded


# --- the region ---


def levels_with(*boxes: Box, side: int = 256) -> np.ndarray:
    out = np.zeros((side, side), np.uint16)
    for x0, y0, x1, y1 in boxes:
        out[y0:y1, x0:x1] = 60000
    return out


LIMIT = 0.49 * 65535
BOX = (100, 50, 612, 562)
"""Two image pixels to a network pixel."""
BOUNDS = (0, 0, 900, 700)
TWO = levels_with((20, 30, 60, 50), (180, 190, 230, 240))


def region(previous: np.ndarray, x: float, y: float, positive: bool = True, known: tuple[Box, ...] = ()) -> Box | None:
    click = Click(x, y, positive)
    found = zoom.Pieces(previous, LIMIT, BOX, BOUNDS, known).region(click)
    probs = previous.astype(np.float32) / np.float32(65535)
    assert zoom.Pieces(probs, LIMIT / 65535, BOX, BOUNDS, known).region(click) == found
    return found


def test_the_region_holds_the_piece_with_its_surroundings() -> None:
    piece = (140, 110, 220, 150)
    for at in ((180, 130), (141, 149), (225, 130), (181, 105)):
        found = region(TWO, *at)
        assert found is not None
        assert zoom.union(found, piece) == found
        width, height = found[2] - found[0], found[3] - found[1]
        assert 1.4 * 80 <= width <= 1.4 * 104
        assert height >= zoom.MIN_CROP
    assert region(TWO, 180, 105, positive=False) == region(TWO, 180, 130)  # a negative click adds nothing to the piece


def test_no_region_where_all_of_the_object_should_be_seen() -> None:
    assert region(levels_with(), 180, 130) is None
    assert region(levels_with((20, 30, 60, 50)), 180, 130) is None
    assert region(TWO, 400, 120) is None  # far from both
    assert region(levels_with((20, 30, 60, 50), (63, 30, 90, 50)), 180, 130) is None  # too near to each other
    assert region(levels_with((4, 4, 240, 200), (4, 220, 20, 240)), 300, 200) is None  # hardly smaller than all


def test_a_region_that_was_looked_at_is_used_again() -> None:
    found = region(TWO, 180, 130)
    assert found is not None
    x0, y0, x1, y1 = found
    wider = (x0 - 8, y0 - 4, x1 + 12, y1 + 4)
    assert region(TWO, 180, 130, known=(wider,)) == wider
    assert region(TWO, 180, 130, known=((x0 - 200, y0, x1 + 200, y1 + 300),)) == found
    assert region(TWO, 180, 130, known=((x0 + 40, y0, x1 + 40, y1),)) == found  # it cuts the piece


def test_pieces_of_any_shape_give_regions_within_the_image(rng: np.random.Generator) -> None:
    chosen = 0
    for _ in range(200):
        h, w = (32 * int(rng.integers(1, 9)) for _ in range(2))
        previous = np.zeros((h, w), np.uint16)
        for _ in range(int(rng.integers(0, 6))):
            x, y = rng.integers(0, (w, h)).tolist()
            cv2.circle(previous, (x, y), int(rng.integers(0, 20)), 65535, -1)
        click = Click(float(rng.uniform(0, 900)), float(rng.uniform(0, 700)), bool(rng.integers(2)))
        pieces = zoom.Pieces(previous, LIMIT, BOX, BOUNDS, ())
        found = pieces.region(click)
        if found is not None:
            chosen += 1
            x0, y0, x1, y1 = found
            assert 0 <= x0 < x1 <= 900
            assert 0 <= y0 < y1 <= 700
            assert (
                not click.positive
                or zoom.union(found, (int(click.x), int(click.y), int(click.x) + 1, int(click.y) + 1)) == found
            )
    assert chosen


def test_steps_that_share_a_layer_share_its_packed_form(rng: np.random.Generator) -> None:
    layer = Layer.of((0, 0, 40, 30), rng.uniform(size=(30, 40)).astype(np.float32))
    assert layer.packed() is layer.packed()
    assert layer.packed().packed() is layer.packed()
    assert np.array_equal(layer.packed().values, layer.values)


def test_what_several_layers_say_together_is_a_probability(rng: np.random.Generator) -> None:
    for _ in range(100):
        layers = tuple(
            Layer.of(box, np.full(rng.integers(3, 90, 2).tolist(), 65535, np.uint16))
            for box in ((0, 0, 100, 90), (10, 20, 70, 80))
        )
        h, w = rng.integers(3, 120, 2).tolist()
        found = Canvas(90, 100, 0.5, layers).sample((0, 0, 100, 90), h, w)
        assert found.min() >= 0
        assert found.max() <= 1
