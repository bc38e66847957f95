"""The widget: takes mouse and keys from the viewer and shows the result in layers.  The network runs in its own
thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from napari.layers import Image
from napari.utils.notifications import show_warning
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QGridLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from activefreq_engine import Engine, Suggestion, list_models
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.errors import ActiveFreqError
from activefreq_engine.napari.annotation import Annotation, Change, Plane

_TOOLS = ("Point", "Box", "Scribble")
_STILL = 4
"""Pixels of the screen: a mouse that moves less between press and release has clicked, not dragged."""
_COLOURS = {True: "deepskyblue", False: "orange"}
_log = logging.getLogger(__name__)


class SegmentWidget(QWidget):  # type: ignore[misc]
    """The dock widget.  A click of the left button says that a place belongs to the object, one of the right that it
    does not.

    Args:
        napari_viewer (napari.Viewer): the viewer; napari itself passes it, by this name.
    """

    _finished = Signal(object)

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.annotation: Annotation | None = None
        self.image: Any = None
        """The layer that is being segmented."""
        self.labels: Any = None
        self.suggestions: Any = None
        self.uncertainty: Any = None
        self.pending = 0
        """Jobs that the thread has not finished."""
        self._hint: tuple[Plane, Suggestion] | None = None
        self._beginning: object = None
        """Stands for the last time that `start` was called and nothing was closed since."""
        self._thread = ThreadPoolExecutor(1, "activefreq-napari")
        self._finished.connect(self._deliver)
        self._build()
        self.viewer.mouse_drag_callbacks.append(self._on_mouse)
        self.viewer.dims.events.current_step.connect(self._look_again)
        self.viewer.dims.events.order.connect(self._look_again)
        images = [layer for layer in self.viewer.layers if isinstance(layer, Image)]
        if len(images) == 1:
            self.start(images[0])

    def _build(self) -> None:
        def button(text: str, tip: str, act: Callable[[], None]) -> QPushButton:
            made = QPushButton(text)
            made.setToolTip(tip)
            made.clicked.connect(lambda _=False: act())
            return made

        self.model, self.tool = QComboBox(), QComboBox()
        self.model.addItems(list_models())
        self.model.setCurrentText(DEFAULT_MODEL)
        self.tool.addItems(_TOOLS)
        self.tool.setToolTip("Right button: outside. A box starts the object anew.")
        self.begin = button("Segment the selected image", "Begins anew", self.start)
        self.undo_button = button("Undo", "Ctrl+Z", self.undo)
        self.redo_button = button("Redo", "Ctrl+Shift+Z", self.redo)
        self.next_button = button("New object", "N", self.next_object)
        self.inside = button("Inside", "The suggested click: Enter", lambda: self.accept(True))
        self.outside = button("Outside", "The suggested click: Shift+Enter", lambda: self.accept(False))
        self.show_hints, self.show_doubt = QCheckBox("Suggest the next click"), QCheckBox("Show uncertainty")
        self.show_hints.setChecked(True)
        self.show_hints.toggled.connect(self._look_again)
        self.show_doubt.toggled.connect(self._look_again)
        self.status = QLabel("Open an image, then press the button.")
        self.status.setWordWrap(True)
        grid = QGridLayout()
        for i, w in enumerate((self.undo_button, self.redo_button, self.inside, self.outside)):
            grid.addWidget(w, i // 2, i % 2)
        layout = QVBoxLayout(self)
        for w in (QLabel("Weights"), self.model, self.begin, QLabel("Tool"), self.tool):
            layout.addWidget(w)
        layout.addLayout(grid)
        for w in (self.next_button, self.show_hints, self.show_doubt, self.status):
            layout.addWidget(w)
        layout.addStretch()

    # --- what a person does ---

    def start(self, layer: Any = None) -> None:
        """Begin to segment an image layer: the given one, else the active one.  What was segmented before stays as
        labels."""
        layer = self.viewer.layers.selection.active if layer is None else layer
        if not isinstance(layer, Image):
            show_warning("Select an image layer first.")
            return
        self._close()
        data = layer.data[0] if layer.multiscale else layer.data
        window = tuple(float(v) for v in layer.contrast_limits)
        model = self.model.currentText()
        self.image = layer
        beginning = self._beginning = object()
        self.status.setText("Loading the weights ...")

        def make() -> Annotation:
            return Annotation(data, rgb=layer.rgb, window=window, engine=Engine.shared(model))  # type: ignore[arg-type]

        self._do(make, lambda annotation: self._started(annotation, beginning))

    def _started(self, annotation: Annotation, beginning: object) -> None:
        if beginning is not self._beginning:  # begun again, or closed, while the weights were loaded
            return
        self.annotation = annotation
        place = {n: getattr(self.image, n) for n in ("scale", "translate", "rotate", "shear", "affine", "units")}
        self.labels = self.viewer.add_labels(annotation.labels, name="objects", opacity=0.5, **place)
        empty = np.zeros(annotation.shape, np.uint8)  # memory only where something is written
        self.uncertainty = self.viewer.add_image(
            empty, name="uncertainty", colormap="magma", blending="additive", contrast_limits=(0, 255), visible=False,
            **place,
        )  # fmt: skip
        self.suggestions = self.viewer.add_points(
            np.empty((0, len(annotation.shape))), ndim=len(annotation.shape), name="suggestion", symbol="ring",
            size=max(2, max(annotation.shape) / 40), **place,
        )  # fmt: skip
        for layer in (self.image, self.labels, self.suggestions, self.uncertainty):
            for key, act in self._keys().items():
                layer.bind_key(key, act, overwrite=True)
        self.viewer.layers.selection.active = self.image
        self.status.setText("Click on the object.")
        self._prepare(self._plane())

    def _keys(self) -> dict[str, Callable[[Any], None]]:
        return {
            "Control-Z": lambda _: self.undo(),
            "Control-Shift-Z": lambda _: self.redo(),
            "N": lambda _: self.next_object(),
            "Enter": lambda _: self.accept(True),
            "Shift-Enter": lambda _: self.accept(False),
        }

    def undo(self) -> None:
        """Take back the last step."""
        if self.annotation is not None:
            self._do(self.annotation.undo, self._changed)

    def redo(self) -> None:
        """Repeat the step that was taken back last."""
        if self.annotation is not None:
            self._do(self.annotation.redo, self._changed)

    def next_object(self) -> None:
        """Go to a new object."""
        if self.annotation is not None:
            self._do(self.annotation.next_object, self._begun)

    def _begun(self, number: int) -> None:
        self._said(f"Object {number}: click on it.")
        self._look_again()

    def accept(self, inside: bool) -> None:
        """Click where the suggestion is, positive if `inside`."""
        if self.annotation is not None and self._hint is not None:
            plane, hint = self._hint
            self._hint = None
            self._do(self.annotation.click, self._changed, plane, hint.x + 0.5, hint.y + 0.5, inside)

    def _on_mouse(self, viewer: Any, event: Any) -> Iterator[None]:
        """Take a click, a box or a scribble from the mouse, unless one of the active layer's own tools is in use."""
        active = viewer.layers.selection.active
        ours = self.annotation is not None and active is not None and str(active.mode) == "pan_zoom"
        plain = event.button in (1, 2) and not event.modifiers
        plane = self._plane() if ours and plain else None
        if self.annotation is None or plane is None or not self.isVisible():
            return
        tool, positive = self.tool.currentText(), event.button == 1
        start, path = np.asarray(event.pos), [self._xy(plane, event)]
        free = viewer.camera.mouse_pan, viewer.camera.mouse_zoom
        if tool != "Point":
            viewer.camera.mouse_pan = viewer.camera.mouse_zoom = False
        yield
        moved, held = False, True
        while held:
            held = event.type == "mouse_move"
            moved = moved or bool(np.abs(np.asarray(event.pos) - start).max() >= _STILL)
            # where the button is let go counts too: napari leaves out some moves of a fast hand
            path.append(self._xy(plane, event))
            if held:
                yield
        viewer.camera.mouse_pan, viewer.camera.mouse_zoom = free
        height, width = (self.annotation.shape[a] for a in plane.axes)
        if not moved:
            x, y = path[0]
            if 0 <= x < width and 0 <= y < height:
                self._do(self.annotation.click, self._changed, plane, x, y, positive)
        elif tool == "Box":
            (x0, y0), (x1, y1) = path[0], path[-1]
            corners = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
            self._do(self.annotation.box, self._changed, plane, *corners)
        elif tool == "Scribble":
            inside = [(x, y) for x, y in path if 0 <= x < width and 0 <= y < height]
            if inside:
                self._do(self.annotation.scribble, self._changed, plane, inside, positive)

    # --- where ---

    def _plane(self) -> Plane | None:
        """The slice of the image that the viewer shows; None where it shows none."""
        dims = self.viewer.dims
        more = dims.ndim - self.image.ndim
        axes = sorted(a - more for a in dims.displayed)
        if dims.ndisplay != 2 or axes[0] < 0:
            return None
        where = np.rint(self.image.world_to_data(np.asarray(dims.point)[-self.image.ndim :])).astype(int)
        index = tuple(int(w) for a, w in enumerate(where) if a not in axes)
        sides = [n for a, n in enumerate(self.image.data.shape[: self.image.ndim]) if a not in axes]
        if not all(0 <= i < n for i, n in zip(index, sides, strict=True)):
            return None
        return Plane((axes[0], axes[1]), index)

    def _xy(self, plane: Plane, event: Any) -> tuple[float, float]:
        """Where the mouse is on the slice, (x, y) in pixels; napari's 0 is the middle of the first pixel, ours its
        corner."""
        where = self.image.world_to_data(np.asarray(event.position)[-self.image.ndim :])
        return float(where[plane.axes[1]]) + 0.5, float(where[plane.axes[0]]) + 0.5

    # --- the thread ---

    def _do(self, job: Callable[..., Any], then: Callable[[Any], None], *arguments: Any) -> None:
        """Queue a job for the worker thread; call `then` with its result in this thread, that of the window."""
        self.pending += 1
        future = self._thread.submit(job, *arguments)
        future.add_done_callback(lambda done: self._finished.emit((done, then)))

    def _deliver(self, finished: tuple[Future[Any], Callable[[Any], None]]) -> None:
        future, then = finished
        self.pending -= 1
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, ActiveFreqError):
            self._said(str(error))
            show_warning(str(error))
        elif error is not None:
            raise error
        else:
            then(future.result())

    def _changed(self, change: Change | None) -> None:
        if change is None or self.annotation is None:
            self._said("There is nothing to undo or redo.")
            return
        if self.labels.data.shape == self.annotation.shape:  # napari's menu puts labels of another type in their place
            self.annotation.labels = self.labels.data
        self.annotation.paint(change)
        self.labels.refresh()
        self._said(f"Object {self.annotation.number}, {change.elapsed_ms:.0f} ms")
        if self.labels not in self.viewer.layers:
            show_warning("The layer with the objects is gone. To begin anew, press 'Segment the selected image'.")
        dims = self.viewer.dims
        if self._plane() != change.plane and self._plane() is not None:  # undone elsewhere: show it
            # the viewer may have more axes than the image; those stay where they are
            axes = range(dims.ndim - self.image.ndim, dims.ndim)
            dims.set_point(axes, self.image.data_to_world(change.plane.point(0, 0)))
        idle = not self.pending
        self._look_again()
        if idle:
            self._prepare(change.plane)

    def _prepare(self, plane: Plane | None) -> None:
        if self.annotation is not None and plane is not None:
            self._do(self.annotation.prepare, self._prepared, plane)

    def _prepared(self, plane: Plane) -> None:
        if self._plane() != plane:  # the person went on meanwhile
            self._look_again()

    def _look_again(self, _: Any = None) -> None:
        """Ask for suggestion and uncertainty of the slice that is shown, unless a job is still waiting or running."""
        annotation, plane = self.annotation, self._plane() if self.annotation is not None else None
        if annotation is None or plane is None or self.pending:
            return
        hints, doubt = self.show_hints.isChecked(), self.show_doubt.isChecked()

        def ask() -> tuple[Plane, list[Suggestion], Any]:
            return plane, annotation.suggest(plane) if hints else [], annotation.uncertainty(plane) if doubt else None

        self._do(ask, self._hinted)

    def _hinted(self, found: tuple[Plane, list[Suggestion], Any]) -> None:
        plane, hints, doubt = found
        if self.annotation is None:
            return
        if self._plane() != plane:  # the person went on meanwhile
            self._look_again()
            return
        self._hint = (plane, hints[0]) if hints else None
        self.suggestions.data = np.array([plane.point(h.y, h.x) for h in hints]).reshape(-1, self.image.ndim)
        if hints:
            self.suggestions.border_color = self.suggestions.face_color = _COLOURS[hints[0].positive]
            self.suggestions.selected_data = set()
        self.uncertainty.visible = self.show_doubt.isChecked()
        if doubt is not None:
            plane.of(self.uncertainty.data)[...] = np.rint(doubt * 255)
            self.uncertainty.refresh()

    def _said(self, text: str) -> None:
        self.status.setText(text)

    # --- the end ---

    def _close(self) -> None:
        if self.annotation is not None:
            self._thread.submit(self.annotation.close)
            for layer in (self.suggestions, self.uncertainty):  # the objects stay
                if layer in self.viewer.layers:
                    self.viewer.layers.remove(layer)
        self.annotation, self._hint, self._beginning = None, None, None

    def closeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Let go of the viewer and of the sessions; the objects stay."""
        if self._on_mouse in self.viewer.mouse_drag_callbacks:
            self.viewer.mouse_drag_callbacks.remove(self._on_mouse)
        for event_ in (self.viewer.dims.events.current_step, self.viewer.dims.events.order):
            event_.disconnect(self._look_again)
        self._close()
        self._thread.shutdown(wait=False)
        super().closeEvent(event)
