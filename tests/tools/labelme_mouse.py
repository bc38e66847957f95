"""Run in labelme's environment: its own window with our models in it, under a real mouse.

python labelme_mouse.py PICTURE FOLDER      keeps what it saw in the folder, as pictures
"""

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from activefreq_engine import Session
from activefreq_engine.labelme import add_models

add_models()  # as the command does, before anything of Qt
add_models()

from labelme.app import MainWindow  # noqa: E402
from PyQt5.QtCore import QEvent, QPoint, QPointF, Qt, QTimer  # noqa: E402
from PyQt5.QtGui import QMouseEvent  # noqa: E402
from PyQt5.QtTest import QTest  # noqa: E402
from PyQt5.QtWidgets import QApplication, QComboBox  # noqa: E402

picture, folder = sys.argv[1], Path(sys.argv[2])
app = QApplication(sys.argv[:1])
app.setStyle("Fusion")
overrides = {"ai": {"default": "ActiveFreq (skin lesions)"}, "auto_save": False}
window = MainWindow(config_file=None, config_overrides=overrides, file_or_dir=picture, output_dir=str(folder))
window.resize(1100, 760)
window.show()
assert QTest.qWaitForWindowExposed(window, 300_000)  # its size, and so the picture's scale, is settled then
canvas = window._canvas_widgets.canvas


clicked = []


def settle() -> None:
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        app.processEvents()


def at(x: float, y: float) -> QPoint:
    """Where a picture's point is on the canvas."""
    return ((QPointF(x, y) + canvas._compute_image_origin_offset()) * canvas.scale).toPoint()


def pixel(x: float, y: float) -> tuple[float, float]:
    """The picture's point that labelme finds there."""
    point = canvas._transform_point_widget_to_image(QPointF(at(x, y)))
    return point.x(), point.y()


def move(x: float, y: float, keys: Qt.KeyboardModifiers = Qt.NoModifier) -> None:
    event = QMouseEvent(QEvent.MouseMove, QPointF(at(x, y)), Qt.NoButton, Qt.NoButton, keys)  # QTest's has no keys
    app.sendEvent(canvas, event)
    settle()


def click(x: float, y: float, keys: Qt.KeyboardModifiers = Qt.NoModifier) -> None:
    move(x, y, keys)
    clicked.append(pixel(x, y))
    QTest.mouseClick(canvas, Qt.LeftButton, keys, at(x, y))
    settle()


def name_it() -> None:
    """Answer the question for the new shape's label, which stands in the way of everything else."""
    dialog = window._label_dialog
    if dialog.isVisible():
        QTest.keyClicks(dialog.edit, "lesion")
        QTest.keyClick(dialog.edit, Qt.Key_Return)


naming = QTimer()
naming.timeout.connect(name_it)
naming.start(50)


def clear() -> None:
    canvas.shapes.clear()  # labelme leaves out what overlaps with shapes that are there
    window._docks.label_list.clear()


def shapes(kind: str) -> list:
    return [s for s in canvas.shapes if s.shape_type == kind]


def keep(name: str) -> None:
    settle()
    window.grab().save(str(folder / name))


settle()
models = window._ai_annotation._model_combo
assert [models.itemText(i) for i in range(models.count())].count("ActiveFreq") == 1
assert models.currentData() == "activefreq:lesions"
formats = next(c for c in window._ai_annotation.findChildren(QComboBox) if c.findData("mask") >= 0)
formats.setCurrentIndex(formats.findData("mask"))

session = Session("freqformer_b0")
session.set_image(picture)
points = [(160, 230), (40, 60), (250, 200)]
signs = [True, False, True]

window._actions.create_ai_points_to_shape_mode.trigger()
click(*points[0])
click(*points[1], Qt.ShiftModifier)
keep("points.png")
click(*points[2], Qt.ControlModifier)
(shape,) = shapes("mask")
(x0, y0), (x1, y1) = ((round(p.x()), round(p.y())) for p in shape.points)
found = np.zeros(session.shape, bool)
found[y0 : y1 + 1, x0 : x1 + 1] = shape.mask
for count in (1, 2, 3):
    wanted = session.predict(clicked[:count], signs[:count]).mask
assert wanted.sum() > 1000
assert (found == wanted).all(), (found != wanted).sum()
keep("mask.png")

clear()
formats.setCurrentIndex(formats.findData("polygon"))
window._actions.create_ai_box_to_shape_mode.trigger()
click(70, 130)
move(310, 330)
keep("box.png")
QTest.mouseClick(canvas, Qt.LeftButton, Qt.NoModifier, at(310, 330))
settle()
(shape,) = shapes("polygon")
wanted = session.predict(np.zeros((0, 2)), [], box=(*pixel(70, 130), *pixel(310, 330))).mask
drawn = np.zeros(session.shape, np.uint8)
cv2.fillPoly(drawn, [np.rint([(p.x(), p.y()) for p in shape.points]).astype(np.int32)], 1)
assert (drawn & wanted).sum() > 0.95 * (drawn | wanted).sum()  # labelme draws the outline coarser, of one piece
keep("polygon.png")

clear()
window._actions.create_ai_points_to_shape_mode.trigger()
click(5, 5, Qt.ShiftModifier | Qt.ControlModifier)  # nothing is inside: no shape, and labelme goes on
assert not canvas.shapes
print(json.dumps({"pixels": int(found.sum()), "corners": len(shape.points)}))
