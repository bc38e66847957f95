"""The plug-in in a real napari under Xvfb, with real mouse and key events.  Runs in napari's own environment; see
test_napari.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

EXAMPLES = Path(__file__).parents[2] / "examples"
LEFT, RIGHT, PLAIN = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton, Qt.KeyboardModifier.NoModifier
PICTURES = os.environ.get("ACTIVEFREQ_PICTURES")
"""A folder for screenshots of the viewer."""


def lesion() -> tuple[np.ndarray, np.ndarray]:
    """A picture with W != H and its mask."""
    image = np.asarray(Image.open(EXAMPLES / "images" / "ISIC_0014809.jpg"))[:300]
    mask = np.asarray(Image.open(EXAMPLES / "masks" / "ISIC_0014809.png"))[:300] > 0
    return np.ascontiguousarray(image), mask


class Desk:
    """A viewer with the plug-in, and a hand on the mouse."""

    def __init__(self, viewer: Any, qtbot: Any) -> None:
        self.viewer, self.qtbot = viewer, qtbot
        _, self.widget = viewer.window.add_plugin_dock_widget("activefreq-engine", "Segment by clicks")
        self.widget.model.setCurrentText("freqformer_b0")
        self.canvas = viewer.window._qt_viewer.canvas.native
        viewer.window._qt_window.resize(1100, 800)
        viewer.show()
        qtbot.wait(200)

    def start(self) -> None:
        self.widget.start(self.viewer.layers[0])
        self.settle()
        assert self.widget.annotation is not None, self.widget.status.text()
        self.rest()
        self.viewer.reset_view()
        self.rest()

    def rest(self) -> None:
        """Wait until the window and the view have stopped changing: places on the screen follow from them."""
        seen: list[tuple[float, ...]] = []

        def still() -> bool:
            camera = self.viewer.camera
            seen.append((self.canvas.width(), self.canvas.height(), camera.zoom, *camera.center))
            return seen[-30:] == [seen[-1]] * 30

        self.qtbot.waitUntil(still, timeout=60_000)

    def settle(self) -> None:
        self.qtbot.waitUntil(lambda: self.widget.pending == 0, timeout=60_000)
        self.qtbot.wait(30)
        self.qtbot.waitUntil(lambda: self.widget.pending == 0, timeout=60_000)

    def at(self, x: float, y: float) -> QPoint:
        """Where a point of the slice, counted from the corner of the first pixel, is on the screen."""
        plane = self.widget._plane()
        world = self.widget.image.data_to_world(plane.point(y - 0.5, x - 0.5))
        shown = np.asarray(world)[list(self.viewer.dims.displayed)]
        camera, size = self.viewer.camera, (self.canvas.height(), self.canvas.width())
        middle = np.asarray(camera.center)[-2:]
        row, column = (shown - middle) * camera.zoom + np.array(size) / 2
        return QPoint(round(column), round(row))

    def click(self, x: float, y: float, button: Any = LEFT) -> None:
        QTest.mouseClick(self.canvas, button, PLAIN, self.at(x, y))
        self.settle()

    def drag(self, points: list[tuple[float, float]], button: Any = LEFT) -> None:
        places = [self.at(*p) for p in points]
        QTest.mousePress(self.canvas, button, PLAIN, places[0])
        for place in places:
            event_move(self.canvas, place, button)
            self.qtbot.wait(5)
        QTest.mouseRelease(self.canvas, button, PLAIN, places[-1])
        self.settle()

    def key(self, key: Any, modifier: Any = PLAIN) -> None:
        QTest.keyClick(self.canvas, key, modifier)
        self.settle()

    def picture(self, name: str) -> None:
        if PICTURES:
            self.qtbot.wait(300)
            self.viewer.screenshot(str(Path(PICTURES) / name), canvas_only=False)


def event_move(canvas: Any, place: QPoint, button: Any) -> None:
    """A move with the button held, which QTest.mouseMove does not send."""
    from qtpy.QtCore import QEvent, QPointF
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtWidgets import QApplication

    where = QPointF(place)
    event = QMouseEvent(QEvent.Type.MouseMove, where, QPointF(canvas.mapToGlobal(place)), button, button, PLAIN)
    QApplication.sendEvent(canvas, event)


@pytest.fixture
def desk(make_napari_viewer: Callable[[], Any], qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Desk]:
    # Triton and Mesa's software GL each bring an LLVM, and the second one to be loaded crashes
    monkeypatch.setitem(sys.modules, "triton", None)

    def make(image: np.ndarray, **how: Any) -> Desk:
        viewer = make_napari_viewer()
        viewer.add_image(image, **how)
        made = Desk(viewer, qtbot)
        made.start()
        return made

    return make


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def test_clicks_undo_and_suggestions(desk: Callable[..., Desk]) -> None:
    image, truth = lesion()
    d = desk(image, rgb=True)
    w = d.widget
    ys, xs = np.nonzero(truth)
    x, y = xs.mean(), ys.mean()
    d.click(x, y)
    first = w.labels.data.copy()
    assert first[int(y), int(x)] == 1
    assert iou(first == 1, truth) > 0.5
    assert len(w.suggestions.data) == 1
    d.click(8, 8, RIGHT)
    d.click(image.shape[1] - 20, 15, RIGHT)
    assert not w.labels.data[8, 8]
    before = w.labels.data.copy()
    assert len(w.suggestions.data) == 1
    row, column = (round(v) for v in w.suggestions.data[0])
    d.picture("suggestion.png")
    old = before[row, column]
    d.key(Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier if old else PLAIN)
    assert bool(w.labels.data[row, column]) != bool(old)
    d.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(w.labels.data, before)
    d.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    d.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(w.labels.data, first)
    d.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    d.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    np.testing.assert_array_equal(w.labels.data, before)
    w.show_doubt.setChecked(True)
    d.settle()
    assert w.uncertainty.visible
    assert w.uncertainty.data.max() > 100
    d.picture("uncertainty.png")
    # a second object, and dragging the picture is no click
    d.key(Qt.Key.Key_N)
    d.drag([(x, y), (x + 40, y + 10)])
    np.testing.assert_array_equal(w.labels.data, before)
    d.click(image.shape[1] - 20, 15)
    assert w.labels.data[15, image.shape[1] - 20] == 2
    assert ((w.labels.data == 1) | (w.labels.data == 2)).sum() > (before == 1).sum() * 0.5


def test_a_click_hits_the_pixel_under_the_mouse(desk: Callable[..., Desk]) -> None:
    """Few, large pixels, and the world's pixels neither square nor at the origin."""
    image = np.random.default_rng(3).integers(0, 255, (9, 14)).astype(np.uint8)
    d = desk(image, scale=(3.0, 0.5), translate=(7, -20))
    for x, y in ((0.2, 0.3), (13.6, 0.5), (4.5, 8.7), (11.3, 6.2)):
        d.click(x, y)
        (clicked,) = d.widget.annotation._slices.values()
        assert clicked.session.clicks[-1].x == pytest.approx(x, abs=0.05)
        assert clicked.session.clicks[-1].y == pytest.approx(y, abs=0.2)
        assert d.widget.labels.data[int(y), int(x)] == 1


def test_slices_of_a_volume_along_any_axis(desk: Callable[..., Desk]) -> None:
    image, truth = lesion()
    grey = image.mean(axis=2)
    volume = np.stack([grey, grey[:, ::-1], np.roll(grey, 30, 0)]).astype(np.float32) * 4 - 100  # float, 3 slices
    d = desk(volume)
    w = d.widget
    ys, xs = np.nonzero(truth)
    x, y = xs.mean(), ys.mean()
    d.viewer.dims.set_current_step(0, 1)
    d.settle()
    d.click(image.shape[1] - 1 - x, y)
    assert not w.labels.data[[0, 2]].any()
    assert iou(w.labels.data[1] == 1, truth[:, ::-1]) > 0.4
    d.picture("volume.png")
    d.viewer.dims.set_current_step(0, 0)
    d.settle()
    assert len(w.suggestions.data) == 0  # nothing was begun here
    d.click(x, y)
    assert iou(w.labels.data[0] == 1, truth) > 0.4
    d.viewer.dims.set_current_step(0, 2)
    d.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert not w.labels.data[0].any()
    assert w.labels.data[1].any()
    assert d.viewer.dims.current_step[0] == 0  # it shows what was undone
    # another axis: rows are slices now
    d.viewer.dims.order = (1, 0, 2)
    d.viewer.dims.set_current_step(1, int(y))
    d.viewer.reset_view()
    d.settle()
    d.click(x, 2.5)
    assert w.labels.data[2, int(y), int(x)] == 1
    d.viewer.dims.ndisplay = 3
    d.qtbot.wait(100)
    assert w._plane() is None


def test_boxes_and_scribbles(desk: Callable[..., Desk]) -> None:
    image, truth = lesion()
    d = desk(image, rgb=True)
    w = d.widget
    ys, xs = np.nonzero(truth)
    w.tool.setCurrentText("Box")
    centre = tuple(d.viewer.camera.center)
    d.drag([(xs.min(), ys.min()), (xs.mean(), ys.mean()), (xs.max() + 1, ys.max() + 1)])
    (slice_,) = w.annotation._slices.values()
    (box,) = slice_.session.prompts
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), abs=1)
    assert tuple(d.viewer.camera.center) == pytest.approx(centre)  # the picture did not move along
    w.tool.setCurrentText("Scribble")
    before = w.labels.data.copy()
    line = [(20 + 3 * i, 12.0) for i in range(20)]
    d.drag(line, RIGHT)
    assert not w.labels.data[12, 20:76].any()
    row = int(ys.mean())
    d.drag([(xs.mean() - 15 + i, row + 0.5) for i in range(0, 30, 2)])
    assert w.labels.data[row, int(xs.mean()) - 10 : int(xs.mean()) + 10].all()
    d.picture("scribble.png")
    for _ in range(2):
        d.key(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(w.labels.data, before)


def test_drawing_by_hand_is_left_alone(desk: Callable[..., Desk]) -> None:
    d = desk(lesion()[0], rgb=True)
    d.viewer.layers.selection.active = d.widget.labels
    d.widget.labels.mode = "paint"
    d.click(30, 40)
    assert d.widget.annotation._done == []
    assert d.widget.labels.data[40, 30] == 1
    d.widget.labels.mode = "pan_zoom"
    d.click(160, 230)
    assert len(d.widget.annotation._done) == 1


def test_closing_lets_go(desk: Callable[..., Desk]) -> None:
    d = desk(lesion()[0], rgb=True)
    d.click(160, 230)
    before = len(d.viewer.mouse_drag_callbacks)
    d.widget.close()
    assert len(d.viewer.mouse_drag_callbacks) == before - 1
    QTest.mouseClick(d.canvas, LEFT, PLAIN, d.canvas.rect().center())
    d.qtbot.wait(50)
