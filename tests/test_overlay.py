"""Drawings: the right pixels change, the input does not, and the two signs differ without colour."""

import numpy as np
import pytest
from numpy.typing import NDArray

from activefreq_engine import BoxPrompt, Click, Lasso, Scribble, Suggestion
from activefreq_engine.errors import InvalidArgumentError, InvalidImageError, InvalidMaskError
from activefreq_engine.overlay import draw_mask, draw_prompts, draw_suggestions, draw_uncertainty, heat_colours

WIDTH, HEIGHT = 141, 97
Picture = NDArray[np.uint8]


@pytest.fixture
def image(rng: np.random.Generator) -> Picture:
    pixels = rng.integers(60, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    return pixels


def suggestion(x: int, y: int, positive: bool) -> Suggestion:
    return Suggestion(x, y, positive, 1.0, (x, y, x + 1, y + 1), 1, 1.0, 1.0, 1.0)


def changed(before: Picture, after: Picture) -> NDArray[np.bool_]:
    return (before != after).any(axis=2)


def test_the_mask_is_tinted_and_outlined_with_its_hole(image: Picture) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:80, 30:120] = True
    mask[40:60, 60:90] = False
    picture = draw_mask(image, mask)
    outside = ~mask
    outside[17:83, 27:123] = False
    assert not changed(image, picture)[outside].any()
    assert not changed(image, picture)[45:55, 65:85].any()  # well inside the hole
    inside = mask.copy()
    inside[17:23], inside[77:83], inside[:, 27:33], inside[:, 117:123], inside[37:63, 57:93] = (False,) * 5
    mean = picture[inside].mean(axis=0) - image[inside].mean(axis=0)
    assert mean[2] > mean[0]  # bluer
    assert picture[20, 40:110].min() > 200  # the outline itself is light
    assert picture[39, 65:85].min() > 200  # around the hole too


def test_an_empty_mask_changes_nothing(image: Picture) -> None:
    assert np.array_equal(draw_mask(image, np.zeros((HEIGHT, WIDTH), bool)), image)


@pytest.mark.parametrize("positive", [True, False])
def test_clicks_are_drawn_where_they_are(image: Picture, positive: bool) -> None:
    for x, y in ((110.5, 30.0), (0.0, 96.9), (140.9, 0.0)):
        touched = changed(image, draw_prompts(image, [Click(x, y, positive)]))
        rows, columns = np.nonzero(touched)
        assert abs(columns - x).max() <= 11
        assert abs(rows - y).max() <= 11
        assert touched[int(y), int(x)]


def test_signs_differ_in_shape_and_not_only_in_colour(image: Picture) -> None:
    for draw, mark in ((draw_prompts, Click), (draw_suggestions, suggestion)):
        plus, minus = (changed(image, draw(image, [mark(70, 50, sign)])) for sign in (True, False))
        assert (plus != minus).sum() > 20


def test_boxes_and_lines_are_drawn_and_numbered(image: Picture) -> None:
    prompts = [
        BoxPrompt(10, 12, 60, 50),
        Scribble(((70, 20), (120, 60)), False),
        Lasso(((30, 60), (90, 60), (60, 90))),
        Click(100, 80),
    ]
    drawn = changed(image, draw_prompts(image, prompts))
    for x, y in ((35, 12), (60, 30), (95, 40), (60, 60), (45, 75), (100, 80)):
        assert drawn[y, x]
    assert not drawn[30, 35]
    plus, minus = (draw_prompts(image, [Scribble(((70, 20), (120, 60)), sign)]) for sign in (True, False))
    assert not np.array_equal(plus, minus)


def test_suggestions_differ_from_clicks(image: Picture) -> None:
    click = draw_prompts(image, [Click(70, 50, True)])
    hint = draw_suggestions(image, [suggestion(70, 50, True)])
    light = [(p[43:58, 63:78].min(axis=2) > 240).mean() for p in (click, hint)]
    assert light[1] > 2 * light[0]  # a suggestion is white, a click is filled


def test_uncertainty_runs_from_the_grey_image_to_the_brightest_colour(image: Picture) -> None:
    sure = draw_uncertainty(image, np.zeros((HEIGHT, WIDTH), np.float32))
    assert np.ptp(sure, axis=2).max() == 0
    unsure = draw_uncertainty(image, np.ones((HEIGHT, WIDTH), np.float32))
    assert np.array_equal(unsure, heat_colours(np.ones((HEIGHT, WIDTH))))
    ramp = heat_colours(np.linspace(0, 1, 50)[None]).astype(int).sum(axis=2)[0]
    assert (np.diff(ramp) > 0).all()  # readable without colour


def test_wrong_arrays_are_refused(image: Picture) -> None:
    mask = np.zeros((WIDTH, HEIGHT), bool)  # transposed
    with pytest.raises(InvalidMaskError, match=r"\(97, 141\)"):
        draw_mask(image, mask)
    with pytest.raises(InvalidMaskError, match="uint8"):
        draw_mask(image, mask.T.astype(np.uint8))
    for bad in (image[..., 0], image.astype(np.float32), image[:0], np.zeros((5, 5, 4), np.uint8)):
        with pytest.raises(InvalidImageError, match="uint8"):
            draw_prompts(bad, [])
    for uncertainty in (np.zeros((WIDTH, HEIGHT)), np.full((HEIGHT, WIDTH), 1.1), np.full((HEIGHT, WIDTH), np.nan)):
        with pytest.raises(InvalidArgumentError, match=r"0\.\.1"):
            draw_uncertainty(image, uncertainty)
