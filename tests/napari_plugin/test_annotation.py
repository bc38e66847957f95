"""Objects in images of two and more axes: which slice is clicked, what is painted, and undo across slices.

Mouse, keys and layers are tested in a real napari, tests/tools/napari_mouse.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from activefreq_engine import Engine, InvalidClickError, InvalidImageError, Session
from activefreq_engine.napari.annotation import Annotation, Plane


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.shared("freqformer_b0", "cpu")


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A dark blob, low and left, on light noise."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - 0.3 * width) / (0.2 * width)) ** 2 + ((y - 0.65 * height) / (0.2 * height)) ** 2 < 1
    return np.clip(np.where(inside, 60, 190) + rng.normal(0, 6, (height, width)), 0, 255).astype(np.uint8)


def test_planes_of_any_axes(rng: np.random.Generator) -> None:
    array = rng.integers(0, 255, (3, 4, 5, 6))
    np.testing.assert_array_equal(Plane((2, 3), (1, 2)).of(array), array[1, 2])
    np.testing.assert_array_equal(Plane((0, 2), (3, 5)).of(array), array[:, 3, :, 5])
    np.testing.assert_array_equal(Plane((0, 1), (2,)).of(array), array[:, :, 2])  # the last axis is colours
    assert Plane((0, 2), (3, 5)).point(1.5, 4) == [1.5, 3, 4, 5]


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
def test_a_click_is_on_the_slice_that_is_shown(axes: tuple[int, int], engine: Engine, rng: np.random.Generator) -> None:
    height, width = 71, 113
    sides = {axes[0]: height, axes[1]: width}
    volume = rng.integers(150, 220, tuple(sides.get(a, 4) for a in range(3))).astype(np.uint8)
    plane = Plane(axes, (2,))
    plane.of(volume)[...] = blob(rng, height, width)
    annotation = Annotation(volume, rgb=False, window=None, engine=engine)
    x, y = 0.3 * width, 0.65 * height
    annotation.paint(annotation.click(plane, x, y, True))
    with Session(engine=engine) as session:
        session.set_image(np.ascontiguousarray(plane.of(volume)))
        expected = session.click(x, y).mask
    np.testing.assert_array_equal(plane.of(annotation.labels), expected)
    assert annotation.labels.sum() == expected.sum() > 0
    assert plane.of(annotation.labels)[int(y), int(x)] == 1
    annotation.close()


def test_undo_goes_back_over_slices_and_objects(engine: Engine, rng: np.random.Generator) -> None:
    volume = np.stack([blob(rng, 64, 96) for _ in range(2)])
    annotation = Annotation(volume, rgb=False, window=None, engine=engine)
    first, second = Plane((1, 2), (0,)), Plane((1, 2), (1,))
    seen = [annotation.labels.copy()]

    def click(plane: Plane, x: float, y: float, positive: bool = True) -> None:
        annotation.paint(annotation.click(plane, x, y, positive))
        seen.append(annotation.labels.copy())

    click(first, 29, 42)
    click(second, 29, 42)
    assert annotation.next_object() == 2
    click(second, 80.5, 8.5)
    assert annotation.labels[1, 8, 80] == 2
    assert annotation.labels[1, 42, 29] == 1
    click(second, 29, 42)  # object 2 takes pixels of object 1 ...
    assert annotation.labels[1, 42, 29] == 2
    click(first, 90, 60)
    assert annotation.labels[0, 42, 29] == 1
    for expected in reversed(seen[:-1]):
        change = annotation.undo()
        assert change is not None
        annotation.paint(change)
        np.testing.assert_array_equal(annotation.labels, expected)  # ... and gives them back
    assert annotation.undo() is None
    assert annotation.number == 1
    for expected in seen[1:]:
        change = annotation.redo()
        assert change is not None
        annotation.paint(change)
        np.testing.assert_array_equal(annotation.labels, expected)
    assert annotation.redo() is None
    assert annotation.number == 2
    annotation.undo()
    click(first, 10, 10, False)
    assert annotation.redo() is None
    annotation.close()


def test_suggestions_and_uncertainty_are_of_the_current_object(engine: Engine, rng: np.random.Generator) -> None:
    annotation = Annotation(blob(rng, 64, 96), rgb=False, window=None, engine=engine)
    plane = Plane((0, 1), ())
    assert annotation.suggest(plane) == []
    assert annotation.uncertainty(plane) is None
    annotation.click(plane, 29, 42, True)
    doubt = annotation.uncertainty(plane)
    assert doubt is not None
    assert doubt.shape == (64, 96)
    assert 0 <= doubt.min() <= doubt.max() <= 1
    for hint in annotation.suggest(plane, 3):
        assert 0 <= hint.x < 96
        assert 0 <= hint.y < 64
    annotation.next_object()
    assert annotation.suggest(plane) == []
    annotation.close()


def test_colours_windows_and_what_is_refused(engine: Engine, rng: np.random.Generator) -> None:
    grey = blob(rng, 50, 80)
    plane, point = Plane((0, 1), ()), (24.0, 33.0)
    colour = Annotation(np.dstack([grey] * 3), rgb=True, window=(5, 6), engine=engine)  # 8 bits need no window
    wide = Annotation(grey.astype(np.float32) * 7 - 900, rgb=False, window=(-900, 7 * 255 - 900), engine=engine)
    a, b = colour.click(plane, *point, True), wide.click(plane, *point, True)
    assert (a.rows, a.columns) == (b.rows, b.columns)
    assert (a.labels != b.labels).mean() < 0.01  # a rounding of the window moves a grey level
    with pytest.raises(InvalidClickError):
        colour.click(plane, 80.5, 3, True)
    assert colour.undo() is not None  # the click that failed is no step
    assert colour.undo() is None
    with pytest.raises(InvalidImageError, match="two axes"):
        Annotation(np.zeros((5, 3), np.uint8), rgb=True, window=None, engine=engine)


def test_what_is_drawn_by_hand_stays_where_a_step_changes_nothing(engine: Engine, rng: np.random.Generator) -> None:
    annotation = Annotation(blob(rng, 64, 96), rgb=False, window=None, engine=engine)
    plane = Plane((0, 1), ())
    with Session(engine=engine) as session:
        session.set_image(np.ascontiguousarray(annotation._data))
        masks = [np.zeros((64, 96), bool), session.click(29, 42).mask.copy(), session.click(29, 58).mask.copy()]
        for _ in range(2):
            masks.append(session.undo().mask.copy())
        annotation.paint(annotation.click(plane, 29, 42, True))
        drawn = annotation.labels[36:48, :40]  # over a part of the object, and beside it
        drawn[...] = 7
        expected = annotation.labels.copy()
        for before, after, act in zip(
            masks[1:],
            masks[2:],
            (lambda: annotation.click(plane, 29, 58, True), annotation.undo, annotation.undo),
            strict=False,
        ):
            change = act()
            assert change is not None
            annotation.paint(change)
            expected[before != after] = after[before != after]
            np.testing.assert_array_equal(annotation.labels, expected)
        assert (drawn == 7).any()
    annotation.close()
