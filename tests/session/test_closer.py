"""A small object in a large photograph: the first click looks a second time, from nearer."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from activefreq_engine import Engine, Session
from activefreq_engine.session import click

SIDE, RADIUS = (1120, 1500), 12


@pytest.fixture(scope="module")
def lesions() -> Engine:
    return Engine("freqformer_b0", device="cpu")


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Dark disks on a light ground; the truth is the one in the middle."""
    rng = np.random.default_rng(0)  # always the same: what a network makes of a draw has no bound
    image = np.full((*SIDE, 3), 190, np.uint8)
    middle = np.array([SIDE[1] // 3, SIDE[0] // 2])
    for _ in range(20):
        at = rng.integers((RADIUS, RADIUS), (SIDE[1] - RADIUS, SIDE[0] - RADIUS))
        if np.hypot(*(at - middle)) > 15 * RADIUS:
            cv2.circle(image, at.tolist(), RADIUS, (90, 60, 70), -1)
    truth = np.zeros(SIDE, np.uint8)
    cv2.circle(truth, middle.tolist(), RADIUS, 1, -1)
    image[truth > 0] = (90, 60, 70)
    return np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8), truth > 0


def test_a_small_object_is_found_by_one_click(lesions: Engine) -> None:
    image, truth = scene()
    x, y = SIDE[1] // 3, SIDE[0] // 2
    with Session(engine=lesions) as session:
        session.set_image(image)
        mask = session.click(x, y).mask
        assert (mask & truth).sum() / (mask | truth).sum() > 0.5
        again = Session.restore(session.state_dict(), image, engine=lesions)
        assert np.array_equal(again.mask, mask)
        session.undo()
        assert not session.mask.any()
        session.redo()
        assert np.array_equal(session.mask, mask)
    with Session(engine=lesions, zoom=False) as session:
        session.set_image(image)
        far = session.click(x, y).mask
    assert far.sum() > click.LARGER * truth.sum(), "without a second look the mask is the ground, so this test can fail"


def test_a_second_look_needs_a_large_image_and_an_unlike_spot(
    lesions: Engine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    run = Engine.run
    monkeypatch.setattr(
        Engine, "run", lambda self, requests, *rest: asked.append(len(requests)) or run(self, requests, *rest)
    )
    image, _ = scene()
    large = np.clip(np.full((*SIDE, 3), 190) + rng.normal(0, 5, (*SIDE, 3)), 0, 255).astype(np.uint8)
    cv2.circle(large, (SIDE[1] // 3, SIDE[0] // 2), 350, (90, 60, 70), -1)
    for picture, passes in ((image[:900, :1000], 1), (large, 1), (image, 2)):
        with Session(engine=lesions) as session:
            session.set_image(picture)
            asked.clear()
            session.click(SIDE[1] // 3, SIDE[0] // 2)
        assert asked == [1] * passes


@pytest.mark.parametrize("channels", [1, 3])
def test_an_object_has_an_edge_in_the_picture(rng: np.random.Generator, channels: int) -> None:
    """A part of an even ground, of a ramp of light, or of a texture is no object, however whole its mask is."""
    shape = (96, 128)
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, (60, 50), 14, 1, -1)
    ground = np.full(shape, 150.0)
    ramp = np.broadcast_to(np.linspace(60, 220, shape[1]), shape)
    texture = rng.choice([60.0, 200.0], shape)
    for picture, edged in (
        (ground, False),
        (ramp, False),
        (texture, False),
        (ground - 40 * mask, True),
        (ramp + 60 * mask, True),
        (ground + rng.normal(0, 5, shape) - 12 * mask, True),
    ):
        grey = np.clip(picture, 0, 255).astype(np.uint8)
        image = grey if channels == 1 else np.stack([grey] * 3, axis=2)
        turn = SimpleNamespace(
            picture=SimpleNamespace(image=image), box=(0, 0, 128, 96), request=SimpleNamespace(crop=None)
        )
        assert click._edged(turn, mask > 0) == edged
    turn.request.crop = np.zeros((*shape, 3), np.uint8)
    assert not click._edged(turn, np.ones(shape, bool)), "all of the region: there is no edge to see"
