"""The session: clicks in, masks out.  It holds the image, the objects and their histories; tensors are the engine's."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from numbers import Real
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import masks
from activefreq_engine.conventions import THRESHOLD
from activefreq_engine.errors import (
    InvalidArgumentError,
    InvalidClickError,
    InvalidMaskError,
    NoImageError,
    SessionBusyError,
    SessionClosedError,
    SessionStateError,
)
from activefreq_engine.images import MAX_PIXELS, Window, image_digest, load_image
from activefreq_engine.models import list_models
from activefreq_engine.runtime.engine import Engine
from activefreq_engine.runtime.timing import Stopwatch
from activefreq_engine.session import boxes
from activefreq_engine.session.canvas import Canvas, PackedMask, changed_bbox
from activefreq_engine.session.click import advance, loaded_step
from activefreq_engine.session.history import History, Scene, SessionSettings, Step
from activefreq_engine.session.state import dump as dump_state
from activefreq_engine.session.state import parse as parse_state
from activefreq_engine.session.suggest import propose
from activefreq_engine.types import Click, ClickResult, Suggestion

if TYPE_CHECKING:
    from activefreq_engine.acselect import AcSelect
    from activefreq_engine.models import FreqFormer


class Session:
    """Interactive segmentation of one image at a time, one or more objects in it.

    Coordinates are (x, y) in image pixels; pixel column i spans ``i <= x < i + 1``, and a click means the pixel that
    it lies in.  Every step can be undone and redone, to any depth, without running the network again; a restored mask
    is the same bit by bit.  A call that raises leaves the session exactly as it was.

    A session is not re-entrant: while one thread is in a call that changes it, other such calls raise
    `SessionBusyError`.  Reading (`mask`, `probs`, `clicks`, `labels`, `suggest` ...) is always allowed and sees the
    last finished step.  Any number of sessions share one engine.

    Args:
        model (str | path | FreqFormer): see `Engine`. Default: the shipped "freqformer_b0".
        device (str): "auto", "cpu", "cuda", "cuda:0", ... Default: "auto".
        precision (str): see `Engine`. Default: "auto".
        size (int, optional): long side of the network input: 256, 384, 448 or 512. Default: 256.
        engine (Engine, optional): use this one; the four arguments above must then keep their defaults.
        threshold (float): a pixel is in the mask when its probability is above it. Default: 0.49, as in RITM and
            its successors.
        zoom (bool): look at the region around the object instead of the whole image once there is a mask.
        refine (bool): redraw, at the image's own resolution, the part that the last click changed, wherever the
            network saw less than two thirds of that resolution.
        acselect (AcSelect, optional): how `suggest` ranks regions. Default: ``AcSelect(threshold=threshold)``.

    Raises:
        ModelLoadError, BackendUnavailableError, InvalidArgumentError: see `Engine`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | FreqFormer = "freqformer_b0",
        *,
        device: str = "auto",
        precision: str = "auto",
        size: int | None = None,
        engine: Engine | None = None,
        threshold: float = THRESHOLD,
        zoom: bool = True,
        refine: bool = True,
        acselect: AcSelect | None = None,
    ) -> None:
        if not _is_number(threshold) or not 0 < threshold < 1:
            raise InvalidArgumentError(f"threshold is {threshold!r}; expected a number above 0 and below 1")
        if engine is not None and (model, device, precision, size) != ("freqformer_b0", "auto", "auto", None):
            raise InvalidArgumentError("engine= was given along with model, device, precision or size; choose one way")
        self._settings = SessionSettings(float(threshold), bool(zoom), bool(refine))
        self._acselect = acselect
        self._engine: Engine | None = engine or Engine.shared(model, device, precision, size)
        self._scene: Scene | None = None
        self._lock = threading.Lock()

    @property
    def threshold(self) -> float:
        """A pixel is in the mask when its probability is above this."""
        return self._settings.threshold

    # --- the image ---

    def set_image(
        self, image: Any, *, window: Window | None = None, copy: bool = True, max_pixels: int = MAX_PIXELS
    ) -> None:
        """Start on an image; everything about the one before is forgotten.

        Args:
            image: a path, a PIL image, or an array `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]` of uint8, other
                integers or floats.  `load_image` says how each is read.
            window ((float, float), optional): values shown as black and white, for other types than uint8.
                Default: the 0.5 and 99.5 percentiles; [0, 1] for floats within it.
            copy (bool): False saves the copy of a uint8 array, which must then stay unchanged while it is in use.
            max_pixels (int): larger images are refused. Default: 134 megapixels.

        Raises:
            InvalidImageError: the image cannot be used.
        """
        with self._exclusive():
            pixels = load_image(image, window=window, copy=copy, max_pixels=max_pixels)
            blank = Step(None, Canvas(pixels.shape[0], pixels.shape[1], self._settings.threshold))
            self._scene = Scene(pixels, window, self._settings, blank, [History(blank)])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the image."""
        height, width = self._opened().image.shape[:2]
        return height, width

    # --- clicks ---

    def click(self, x: float, y: float, positive: bool = True, profile: bool = False) -> ClickResult:
        """Click on the current object.

        The clicked pixel itself always takes the click's label in the mask, whatever the network says; so does every
        earlier click's, the newest one winning where two hit the same pixel.

        Args:
            x, y (float): position, ``0 <= x < width``, ``0 <= y < height``.
            positive (bool): True: this belongs to the object; False: it does not.
            profile (bool): measure each stage, see `ClickResult.timings`.

        Raises:
            InvalidClickError: not a finite position inside the image, or `positive` is not a bool.
            NoImageError: there is no image yet.
        """
        watch = Stopwatch() if profile else None
        result = _click_batch([self], [Click(x, y, positive)], watch)[0]
        return result if watch is None else replace(result, timings=watch.timings)

    def predict(self, point_coords: Any, point_labels: Any, mask_input: Any = None) -> ClickResult:
        """The mask for a list of clicks, for tools that send all of them each time.

        The outcome is that of making these clicks one after the other on a blank object.  Only what differs from the
        last list is computed: one more click costs one step, a shorter list is an undo, a click that was undone is a
        redo; from the first difference on, clicks are made anew.

        Args:
            point_coords: `[N, 2]` (x, y).  May be empty.
            point_labels: `[N]`, 1 (or True) for positive and 0 (or False) for negative clicks.
            mask_input (optional): bool `[H, W]`, the mask to start from, as in `load_mask`.

        Raises:
            InvalidClickError, InvalidMaskError, NoImageError: as `click` and `load_mask`.
        """
        start = perf_counter()
        with self._exclusive():
            scene = self._opened()
            clicks = _click_list(scene, point_coords, point_labels)
            mask = None if mask_input is None else masks.as_mask(mask_input, self.shape)
            loaded = None if mask is None else PackedMask.of(mask)
            history = scene.history
            before, done, undone = history.step.canvas, list(history.done), list(history.undone)
            mask_before = scene.mask(before)
            try:
                current = history.loaded
                if (current and current.data) != (loaded and loaded.data):
                    history.clear()
                    if mask is not None and loaded is not None:
                        history.push(loaded_step(scene, mask, loaded))
                common = _common_prefix(history.clicks, clicks)
                while len(history.clicks) > common:
                    history.undo()
                for click in clicks[common:]:
                    if not (history.undone and history.undone[-1].event == click and history.redo()):
                        advance(self._engine_in_use(), [scene], [click])
                step = history.step
                mask_after = scene.mask(step.canvas)
                changed = changed_bbox(mask_before, mask_after, boxes.union(before.extent, step.canvas.extent))
            except BaseException:
                history.done[:], history.undone[:] = done, undone
                raise
            return ClickResult(mask_after, changed, (perf_counter() - start) * 1e3, len(clicks))

    def load_mask(self, mask: Any) -> ClickResult:
        """Go on from a given mask, as one step that can be undone.  Earlier clicks on the object no longer count.

        Further clicks then correct the mask piece by piece: a click that disagrees with it changes only the connected
        piece of the network's change that holds the click; a click that agrees changes nothing.

        Args:
            mask: bool `[H, W]` of the image's size; integers 0 and 1, or 0 and 255, will do.

        Raises:
            InvalidMaskError: wrong type, shape or values.
            NoImageError: there is no image yet.
        """
        start = perf_counter()
        with self._exclusive():
            scene = self._opened()
            array = masks.as_mask(mask, self.shape).copy()
            before = scene.mask(scene.history.step.canvas)
            step = loaded_step(scene, array, PackedMask.of(array))
            changed = changed_bbox(before, array, scene.bounds)
            scene.history.push(step)
            scene.show(step.canvas, array)
            return ClickResult(array, changed, (perf_counter() - start) * 1e3, 0)

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Clicks on the current object, oldest first, since the last loaded mask."""
        return self._opened().history.clicks

    # --- history ---

    def undo(self) -> bool:
        """Take back the current object's last step (a click or a loaded mask).  False when there is none."""
        with self._exclusive():
            return self._opened().history.undo()

    def redo(self) -> bool:
        """Do the last undone step again.  False when there is none; a new step forgets what was undone."""
        with self._exclusive():
            return self._opened().history.redo()

    def reset(self) -> None:
        """Make the current object blank and forget its history; this cannot be undone.  Other objects stay."""
        with self._exclusive():
            self._opened().history.clear()

    # --- objects ---

    def next_object(self) -> int:
        """Go to a new, blank object and return its number; objects are numbered from 1.

        While the newest object is untouched, that one is returned, so calling this twice leaves no gap.
        """
        with self._exclusive():
            scene = self._opened()
            if not scene.objects[-1].untouched:
                scene.objects.append(History(scene.blank))
            scene.selected = len(scene.objects) - 1
            return scene.selected + 1

    def select_object(self, number: int) -> None:
        """Go back to an object and work on: its clicks, its undo and its redo are as they were left.

        Raises:
            InvalidArgumentError: there is no such object.
        """
        with self._exclusive():
            scene = self._opened()
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
                raise InvalidArgumentError(f"object number is {number!r}; expected an integer")
            if not 1 <= number <= len(scene.objects):
                raise InvalidArgumentError(f"there is no object {number}; objects are 1 to {len(scene.objects)}")
            scene.selected = int(number) - 1

    @property
    def object_number(self) -> int:
        """Number of the current object, from 1."""
        return self._opened().selected + 1

    @property
    def object_count(self) -> int:
        """How many objects there are, the current one and blank ones included; at least 1."""
        return len(self._opened().objects)

    @property
    def labels(self) -> NDArray[np.int32]:
        """int32 `[H, W]`: the number of the object at each pixel, 0 for none; the current object is included.

        Where masks overlap the higher number wins.  Painted at each access.
        """
        scene = self._opened()
        out = np.zeros(self.shape, np.int32)
        current = scene.history
        for number, history in enumerate(scene.objects, 1):
            canvas = history.step.canvas
            if canvas.extent is not None:
                out[scene.mask(canvas) if history is current else canvas.mask()] = number
        return out

    # --- what is known about the current object ---

    @property
    def mask(self) -> NDArray[np.bool_]:
        """bool `[H, W]`, read-only: the current object."""
        scene = self._opened()
        return scene.mask(scene.history.step.canvas)

    @property
    def probs(self) -> NDArray[np.float32]:
        """float32 `[H, W]`: probability of each pixel to belong to the object; painted at each access.

        0 outside the region that the network looked at; 1 or 0 at clicked pixels and, where a loaded mask overrules
        the network, as in the mask.  ``probs > threshold`` is `mask`.
        """
        return self._opened().history.step.canvas.probs()

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """float32 `[H, W]`: entropy of `probs` in bits, 0 (certain) to 1; painted at each access."""
        return self._opened().history.step.canvas.uncertainty()

    def suggest(self, k: int = 3) -> list[Suggestion]:
        """Where the next click is worth most, best first; at most `k` places, none before the first click.

        For a person to accept or ignore: nothing is clicked.  Regions are looked for on a grid of at most 512 pixels
        a side over the region that the network looked at; a suggestion's sign is the opposite of the mask there.

        Raises:
            InvalidArgumentError: `k` is not an integer of at least 1.
            NoImageError: there is no image yet.
        """
        return propose(self._opened(), self._selector(), k)

    # --- export ---

    def save_mask(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as an 8-bit grey PNG, 0 and 255."""
        masks.save_png(path, self.mask)

    def save_labels(self, path: str | os.PathLike[str]) -> None:
        """Write `labels` as an indexed PNG (16-bit grey from 256 objects on)."""
        masks.save_labels_png(path, self.labels)

    def to_coco_rle(self, *, compressed: bool = True) -> dict[str, Any]:
        """The mask as COCO run-length encoding, see `masks.to_coco_rle`."""
        return masks.to_coco_rle(self.mask, compressed=compressed)

    def to_polygons(self, *, holes: Literal["keep", "drop"] = "keep") -> list[masks.Polygon]:
        """The mask as polygons, see `masks.to_polygons`."""
        return masks.to_polygons(self.mask, holes=holes)

    # --- a session survives its process ---

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to rebuild the session from the same image, as plain JSON values: image hash, objects
        with their steps (done and undone), settings.  No pixels, no probabilities."""
        return dump_state(self._opened(), self._engine_in_use())

    @classmethod
    def restore(
        cls,
        state: Mapping[str, Any],
        image: Any,
        *,
        engine: Engine | None = None,
        model: str | os.PathLike[str] | FreqFormer | None = None,
        device: str = "auto",
        precision: str = "auto",
        acselect: AcSelect | None = None,
    ) -> Session:
        """Rebuild a session by making its clicks again on the same image.

        Args:
            state: from `state_dict`, also after a round trip through JSON.
            image: the same image, in any form that `set_image` takes.
            engine (Engine, optional): use this one.
            model (optional): where the model is. Default: the shipped model of the name in the state.
            device, precision, acselect: as for `Session`.

        Raises:
            SessionStateError: the state is damaged or of another version, or image or model are not the ones it
                belongs to.
            InvalidImageError: the image cannot be used.
        """
        saved = parse_state(state)
        if engine is None:
            if model is None and saved.model not in list_models():
                # the state is not trusted to name files
                raise SessionStateError(f"the state belongs to model {saved.model!r}, not one of ours; pass model=")
            engine = Engine.shared(saved.model if model is None else model, device, precision, saved.size)
        elif model is not None:
            raise InvalidArgumentError("engine= was given along with model; choose one way")
        if (engine.name, engine.size) != (saved.model, saved.size):
            raise SessionStateError(
                f"the state belongs to model {saved.model!r} at size {saved.size}, the engine holds {engine.name!r} at "
                f"size {engine.size}; pass the state's model"
            )
        how = saved.settings
        session = cls(engine=engine, threshold=how.threshold, zoom=how.zoom, refine=how.refine, acselect=acselect)
        session.set_image(image, window=saved.window)
        scene = session._opened()
        scene.digest = image_digest(scene.image)
        if scene.digest != saved.digest:
            raise SessionStateError(
                f"the image is not the one the state belongs to: sha256 {scene.digest[:12]}..., expected "
                f"{saved.digest[:12]}...; pass the original image"
            )
        scene.objects = [History(scene.blank) for _ in saved.objects]
        try:
            for scene.selected, item in enumerate(saved.objects):
                for event in item.events:
                    if isinstance(event, Click):
                        session.click(event.x, event.y, event.positive)
                    else:
                        session.load_mask(event)
                for _ in item.events[item.done :]:
                    session.undo()
        except (InvalidClickError, InvalidMaskError) as error:
            raise SessionStateError(f"the state is damaged: {error}") from error
        session.select_object(saved.selected)
        return session

    # --- lifetime ---

    def close(self) -> None:
        """Let go of image, history and engine.  May be called twice; any other call then raises
        `SessionClosedError`."""
        with self._exclusive(closed=True):
            self._scene = None
            self._engine = None

    def __enter__(self) -> Session:
        self._engine_in_use()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        scene = self._scene
        if scene is None:
            return "Session(closed)" if self._engine is None else "Session(no image)"
        height, width = scene.image.shape[:2]
        return f"Session({width}x{height}, object {scene.selected + 1} of {len(scene.objects)})"

    # --- inside ---

    @contextmanager
    def _exclusive(self, *, closed: bool = False) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise SessionBusyError("the session is at work in another call; wait for it, or use a session per thread")
        try:
            if not closed:
                self._engine_in_use()
            yield
        finally:
            self._lock.release()

    def _engine_in_use(self) -> Engine:
        if self._engine is None:
            raise SessionClosedError("the session was closed; make a new Session")
        return self._engine

    def _opened(self) -> Scene:
        self._engine_in_use()
        if self._scene is None:
            raise NoImageError("the session has no image; call set_image first")
        return self._scene

    def _selector(self) -> AcSelect:
        if self._acselect is None:
            from activefreq_engine.acselect import AcSelect

            self._acselect = AcSelect(threshold=self.threshold)
        return self._acselect


def click_batch(sessions: Sequence[Session], clicks: Sequence[Click]) -> list[ClickResult]:
    """One click on each of several sessions, in one batched pass of the engine that they share.

    Each session ends in the state that its own `click` would have led to, up to floating-point noise.  If anything
    raises, none of them changes.

    Args:
        sessions: different sessions with the same engine, each with an image.
        clicks: one for each session.

    Raises:
        InvalidArgumentError: the lists do not fit together, a session appears twice, or engines differ.
        InvalidClickError, NoImageError, SessionBusyError: as `Session.click`, for any of them.
    """
    return _click_batch(list(sessions), list(clicks), None)


def _click_batch(sessions: list[Session], clicks: list[Click], watch: Stopwatch | None) -> list[ClickResult]:
    start = perf_counter()
    if len(sessions) != len(clicks):
        raise InvalidArgumentError(f"got {len(sessions)} sessions and {len(clicks)} clicks; give one click to each")
    if len({id(s) for s in sessions}) != len(sessions):
        raise InvalidArgumentError("a session appears twice in the batch; its clicks depend on one another")
    if len({id(s._engine_in_use()) for s in sessions}) > 1:
        raise InvalidArgumentError("the sessions use different engines; make them with the same engine=")
    with ExitStack() as stack:
        for session in sessions:
            stack.enter_context(session._exclusive())
        checked = [_check_click(s._opened(), c) for s, c in zip(sessions, clicks, strict=True)]
        changed = (
            advance(sessions[0]._engine_in_use(), [s._opened() for s in sessions], checked, watch) if sessions else []
        )
        elapsed = (perf_counter() - start) * 1e3
        return [ClickResult(s.mask, box, elapsed, len(s.clicks)) for s, box in zip(sessions, changed, strict=True)]


def scene_of(session: Session) -> Scene:
    """What a session holds, for benchmarks and tests that bring one into a state by hand.  Not for its callers.

    Raises:
        SessionClosedError, NoImageError: it holds nothing.
    """
    return session._opened()


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def _check_click(scene: Scene, click: Click) -> Click:
    """The click with plain Python values, if it is one inside the image."""
    x, y, positive = click.x, click.y, click.positive
    height, width = scene.image.shape[:2]
    if not (_is_number(x) and _is_number(y)):
        raise InvalidClickError(f"click is (x={x!r}, y={y!r}); expected two numbers")
    if not isinstance(positive, (bool, np.bool_)):
        raise InvalidClickError(f"positive is {positive!r}; expected True (object) or False (background)")
    if not (math.isfinite(x) and math.isfinite(y) and 0 <= x < width and 0 <= y < height):
        raise InvalidClickError(
            f"click (x={x}, y={y}) is outside the image of width {width}, height {height}; x comes first and must be "
            f"at least 0 and below {width}, y at least 0 and below {height}"
        )
    return Click(float(x), float(y), bool(positive))


def _click_list(scene: Scene, coords: Any, labels: Any) -> list[Click]:
    """`predict`'s arrays as checked clicks."""
    try:
        points, signs = np.asarray(coords, dtype=np.float64), np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise InvalidClickError(f"point_coords cannot be read as numbers [N, 2]: {error}") from error
    if points.size == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2 or signs.shape != (len(points),):
        raise InvalidClickError(
            f"point_coords has shape {points.shape} and point_labels {signs.shape}; expected [N, 2] (x, y) and [N]"
        )
    if signs.size and not np.isin(signs, (0, 1)).all():
        raise InvalidClickError(
            f"point_labels has values {np.unique(signs).tolist()}; allowed are 1 (object) and 0 (background), no boxes"
        )
    return [
        _check_click(scene, Click(x, y, bool(s))) for (x, y), s in zip(points.tolist(), signs.tolist(), strict=True)
    ]


def _common_prefix(a: Sequence[Click], b: Sequence[Click]) -> int:
    return next((i for i, (p, q) in enumerate(zip(a, b, strict=False)) if p != q), min(len(a), len(b)))
