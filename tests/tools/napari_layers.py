"""The plug-in's layers in napari's own model of a viewer, without a screen: where they lie, and what becomes of them
when a person handles them.  Runs in napari's own environment; see test_napari.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QApplication

from activefreq_engine import Engine
from activefreq_engine.napari import widget
from activefreq_engine.napari.widget import SegmentWidget

INSIDE = (52, 36)


def blob(seed: int = 0) -> np.ndarray:
    """A dark blob, low and left."""
    y, x = np.mgrid[:80, :120]
    inside = ((x - 36) / 24) ** 2 + ((y - 52) / 16) ** 2 < 1
    noise = np.random.default_rng(seed).normal(0, 6, (80, 120))
    return np.clip(np.where(inside, 60, 190) + noise, 0, 255).astype(np.uint8)


class Desk:
    """A viewer without a window, and a hand on its mouse."""

    def __init__(self) -> None:
        self.viewer = ViewerModel()
        self.widget = SegmentWidget(self.viewer)
        self.widget.model.setCurrentText("freqformer_b0")
        self.widget.show()

    def start(self, layer: Any) -> Any:
        self.viewer.layers.selection.active = layer
        self.widget.start(layer)
        self.settle()
        return layer

    @contextmanager
    def busy(self) -> Iterator[None]:
        """What is asked for meanwhile waits.  The weights are there already, so loading could be over at once."""
        end = threading.Event()
        self.widget._thread.submit(end.wait, 300)
        try:
            yield
        finally:
            end.set()

    def settle(self) -> None:
        deadline = time.monotonic() + 300
        calm = 0
        while calm < 3:
            assert time.monotonic() < deadline
            QApplication.processEvents()
            calm = 0 if self.widget.pending else calm + 1
            time.sleep(0.002)

    def click(self, *at: float) -> None:
        """A click of the left button on a place of the image."""
        where = np.asarray(self.viewer.dims.point, float)
        data = self.widget.image.data_to_world(at)
        where[-len(data) :] = data
        event = SimpleNamespace(button=1, modifiers=[], position=tuple(where), pos=np.zeros(2), type="mouse_press")
        hand = self.widget._on_mouse(self.viewer, event)
        next(hand)
        event.type = "mouse_release"
        next(hand, None)
        self.settle()


@pytest.fixture(scope="session", autouse=True)
def application() -> Any:
    Engine.shared("freqformer_b0")
    return QApplication.instance() or QApplication([])


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.widget.close()


AFFINE = np.array([[0, 2, 0, 10], [-3, 0, 0, 5], [0, 0, 1.5, 7], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    "place",
    [
        {"scale": (-3, 0.5, 0.7), "translate": (10, -20, 30)},
        {"rotate": (0, 0, 30), "shear": (0, 0, 0.3)},
        {"affine": AFFINE},
        {"affine": AFFINE, "scale": (1, 0.5, 0.5)},
    ],
)
def test_the_layers_lie_on_the_image(desk: Desk, place: dict[str, Any]) -> None:
    layer = desk.start(desk.viewer.add_image(np.stack([blob(i) for i in range(4)]), **place))
    desk.viewer.dims.point = layer.data_to_world((2, *INSIDE))
    desk.click(2, *INSIDE)
    w = desk.widget
    assert np.unique(np.argwhere(w.labels.data)[:, 0]).tolist() == [2]
    assert w.labels.data[2][INSIDE] == 1
    for other in (w.labels, w.suggestions, w.uncertainty):
        for point in np.random.default_rng(0).uniform(-5, 90, (4, 3)):
            np.testing.assert_allclose(other.data_to_world(point), layer.data_to_world(point))


def test_undo_elsewhere_leaves_the_axes_that_the_image_does_not_have(desk: Desk) -> None:
    desk.viewer.add_image(np.zeros((5, 4, 80, 120), np.uint8))
    desk.start(desk.viewer.add_image(np.stack([blob(i) for i in range(4)])))
    desk.viewer.dims.point = (2, 1, *INSIDE)
    desk.click(1, *INSIDE)
    desk.viewer.dims.point = (3, 3, *INSIDE)
    desk.settle()
    desk.widget.undo()
    desk.settle()
    assert desk.viewer.dims.point[:2] == (3, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_may_be_given_another_type(desk: Desk, dtype: Any) -> None:
    """As napari's menu does."""
    desk.start(desk.viewer.add_image(blob()))
    desk.click(*INSIDE)
    layer = desk.widget.labels
    layer.data = layer.data.astype(dtype)
    desk.click(8, 100)
    assert layer.data[8, 100] == 1
    for _ in range(2):
        desk.widget.undo()
        desk.settle()
    assert not layer.data.any()


def test_a_click_without_the_layer_of_objects_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(widget, "show_warning", said.append)
    layer = desk.start(desk.viewer.add_image(blob()))
    desk.click(*INSIDE)
    assert said == []
    desk.viewer.layers.remove(desk.widget.labels)
    desk.viewer.layers.selection.active = layer
    desk.click(8, 100)
    assert len(said) == 1
    assert "gone" in said[0]


@pytest.mark.parametrize("again", [lambda w: w.start(), lambda w: w.start(w.viewer.layers["other"])])
def test_begun_again_while_it_loads(desk: Desk, again: Callable[[SegmentWidget], None]) -> None:
    layer = desk.viewer.add_image(blob(), name="picture")
    desk.viewer.add_image(np.stack([blob(i) for i in range(3)]), name="other")
    desk.viewer.layers.selection.active = layer
    with desk.busy():
        desk.widget.start(layer)
        again(desk.widget)
    desk.settle()
    assert desk.widget.annotation is not None
    assert desk.widget.annotation.shape == desk.widget.image.data.shape
    assert [x.name for x in desk.viewer.layers] == ["picture", "other", "objects", "uncertainty", "suggestion"]


def test_closed_while_it_loads(desk: Desk) -> None:
    layer = desk.viewer.add_image(blob(), name="picture")
    with desk.busy():
        desk.widget.start(layer)
        desk.widget.close()
    desk.settle()
    assert [x.name for x in desk.viewer.layers] == ["picture"]
