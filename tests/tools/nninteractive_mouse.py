"""nnInteractive's own plug-in in a real napari, asking a server of ours, under a real mouse.

Runs in its own environment; see test_nninteractive.py.  Its arguments: the server's address, and a folder for
screenshots.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest

SIGNS, TOOLS = ["positive", "negative"], ["point", "box", "scribble", "lasso"]
EXAMPLES = Path(__file__).parents[2] / "examples"
url, folder = sys.argv[1], Path(sys.argv[2])
colour = np.asarray(Image.open(EXAMPLES / "images" / "ISIC_0014809.jpg"))[:300]
truth = np.asarray(Image.open(EXAMPLES / "masks" / "ISIC_0014809.png"))[:300] > 0
picture = colour.mean(2).astype(np.uint8)[None]  # its images are of one channel, and have three axes

viewer = napari.Viewer(show=True)
viewer.add_image(picture, name="lesion")
window = viewer.window._qt_window
window.resize(1280, 900)
_, widget = viewer.window.add_plugin_dock_widget("napari-nninteractive", "nnInteractive")
canvas = viewer.window._qt_viewer.canvas.native
app = napari.qt.get_qapp()


def until(happened: Callable[[], bool], seconds: float = 120) -> None:
    for _ in range(int(seconds * 50)):
        if happened():
            break
        QTest.qWait(20)
    assert happened(), f"never happened: {happened}"
    QTest.qWait(100)


def at(x: float, y: float) -> QPoint:
    """Where a point of the picture is on the screen."""
    world = np.asarray(viewer.layers["lesion"].data_to_world((0, y - 0.5, x - 0.5)))[list(viewer.dims.displayed)]
    size = np.array([canvas.height(), canvas.width()])
    down, right = (world - np.asarray(viewer.scene.camera.center)[1:]) * viewer.scene.camera.zoom + size / 2
    return QPoint(round(right), round(down))


def send(kind: QMouseEvent.Type, point: QPoint, held: Qt.MouseButton) -> None:
    button = Qt.MouseButton.NoButton if kind == QMouseEvent.Type.MouseMove else Qt.MouseButton.LeftButton
    where = QPointF(point), QPointF(canvas.mapToGlobal(point))
    app.sendEvent(canvas, QMouseEvent(kind, *where, button, held, Qt.KeyboardModifier.NoModifier))
    QTest.qWait(50)


def drag(points: list[tuple[float, float]]) -> None:
    """Press at the first point, go through the others, let go at the last; one point is a click."""
    send(QMouseEvent.Type.MouseMove, at(*points[0]), Qt.MouseButton.NoButton)
    send(QMouseEvent.Type.MouseButtonPress, at(*points[0]), Qt.MouseButton.LeftButton)
    for point in points[1:]:
        send(QMouseEvent.Type.MouseMove, at(*point), Qt.MouseButton.LeftButton)
    send(QMouseEvent.Type.MouseButtonRelease, at(*points[-1]), Qt.MouseButton.NoButton)


def mask() -> np.ndarray:
    return np.asarray(viewer.layers[widget.label_layer_name].data)[0] > 0


def changed(act: Callable[[], None]) -> np.ndarray:
    """The mask after something that must change it."""
    before = mask().copy()
    act()
    until(lambda: bool((mask() != before).any()))
    return mask().copy()


def overlap(found: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def keep(name: str) -> None:
    QTest.qWait(300)
    viewer.window.screenshot(str(folder / name), canvas_only=False, flash=False)


def choose(tool: str, sign: str = "positive") -> None:
    for button in (
        widget.prompt_button.buttons[SIGNS.index(sign)],
        widget.interaction_button.buttons[TOOLS.index(tool)],
    ):
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
    QTest.qWait(200)


widget.server_url_edit.setText(url)
QTest.mouseClick(widget.init_button, Qt.MouseButton.LeftButton)
# its window stands in a person's way until the picture is sent; what is sent to the canvas goes past it
until(lambda: widget.label_layer_name in viewer.layers and widget._upload_dialog is None)
viewer.reset_view()
QTest.qWait(300)

print(widget.prompt_button.options, widget.interaction_button.options)
choose("point")
clicked = changed(lambda: drag([(160, 230)]))
keep("point.png")
assert clicked[230, 160]
assert overlap(clicked) > 0.5, overlap(clicked)
QTest.mouseClick(widget.undo_button, Qt.MouseButton.LeftButton)
until(lambda: not mask().any())
print(f"a point: IoU {overlap(clicked):.2f}, and undone")

choose("box")
boxed = changed(lambda: drag([(50, 115), (120, 200), (200, 280), (296, 295)]))
keep("box.png")
print(f"a box: IoU {overlap(boxed):.2f}")
assert overlap(boxed) > 0.6
choose("scribble", "negative")
less = changed(lambda: drag([(250, 180), (262, 200), (270, 230)]))
keep("scribble.png")
print("pixels less", int(boxed.sum()) - int(less.sum()))
assert less.sum() < boxed.sum()
QTest.mouseClick(widget.reset_interaction_button, Qt.MouseButton.LeftButton)
until(lambda: not mask().any())
choose("lasso")
around = changed(lambda: drag([(60, 180), (160, 115), (290, 170), (280, 270), (150, 290), (60, 250), (60, 180)]))
assert overlap(around) > 0.6, overlap(around)
print(f"a lasso: IoU {overlap(around):.2f}")
viewer.close()
