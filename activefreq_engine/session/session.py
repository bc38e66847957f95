"""The session: prompts in, masks out.  It holds the image, the objects and their histories; the engine holds the
model."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import masks
from activefreq_engine.conventions import DEFAULT_MODEL, THRESHOLD, network_shapes
from activefreq_engine.ending import halt
from activefreq_engine.errors import (
    ActiveFreqError,
    ClickCancelledError,
    InvalidArgumentError,
    MemoryShortageError,
    NoImageError,
    SessionBusyError,
    SessionClosedError,
    SessionStateError,
)
from activefreq_engine.images import MAX_PIXELS, Window, check_window, image_digest, load_image
from activefreq_engine.memory import typed
from activefreq_engine.runtime.engine import Engine
from activefreq_engine.runtime.timing import Stopwatch
from activefreq_engine.session import boxes
from activefreq_engine.session.arguments import check_box, check_click, check_mark, click_list, object_index, view_box
from activefreq_engine.session.canvas import changed_bbox
from activefreq_engine.session.click import Outcome, advance, loaded_step, prepare_next
from activefreq_engine.session.history import History, Pass, Picture, Points, Scene, SessionSettings, Step
from activefreq_engine.session.lookahead import propose_ahead
from activefreq_engine.session.packed_mask import PackedMask
from activefreq_engine.session.prompts import Mark, at_once
from activefreq_engine.session.replay import matching_engine, replay
from activefreq_engine.session.state import dump as dump_state
from activefreq_engine.session.state import parse as parse_state
from activefreq_engine.session.suggest import propose
from activefreq_engine.session.zoom import network_shape
from activefreq_engine.types import BoxPrompt, Click, ClickResult, Lasso, Prompt, Scribble, Suggestion
from activefreq_engine.values import finite, is_number, truth

if TYPE_CHECKING:
    from activefreq_engine.acselect import AcSelect
    from activefreq_engine.models import FreqFormer

_log = logging.getLogger(__name__)
_UNREADY = "not everything is ready ahead; first clicks may take longer: %s"

MOST_SESSIONS = 500  # in one `click_batch`
_POLL = 0.001  # seconds between two checks whether the session is free


class Session:
    """Interactive segmentation of one image at a time, one or more objects in it.

    Coordinates are (x, y) in image pixels; pixel column i spans ``i <= x < i + 1``, and a click means the pixel that
    it lies in.  Every step can be undone and redone, to any depth, without running the network again; a restored mask
    is the same bit by bit.  A call that raises leaves the session exactly as it was; one that is interrupted (Ctrl-C)
    has either happened as a whole or not at all, and the session can be used on.

    A session is not re-entrant: while one thread is in a call that changes it, other such calls wait for their turn
    as long as `wait` says and then raise `SessionBusyError`.  Reading (`mask`, `probs`, `clicks`, `labels`, `suggest`
    ...) is always allowed and sees the last finished step.  Any number of sessions can share one engine.

    Besides the errors that each method lists, every call raises `SessionClosedError` after `close`; a call that needs
    an image raises `NoImageError` before the first `set_image`; and a call that changes the session may raise
    `SessionBusyError`, or `MemoryShortageError` where memory runs out.

    Args:
        model (str | path | FreqFormer): see `Engine`. Default: "freqformer_b0_guided", shipped, for pictures of all
            kinds.
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
        wait (float): seconds that a call waits for another thread's call to end, before it raises `SessionBusyError`;
            ``math.inf``: as long as it takes. Default: 0.

    Example:
        >>> picture = np.full((90, 120, 3), 220, np.uint8)
        >>> picture[30:60, 40:80] = (120, 60, 50)
        >>> with Session(device="cpu") as session:
        ...     session.set_image(picture)
        ...     result = session.click(60, 45)  # this is inside
        ...     outside = session.click(10, 10, positive=False)  # and this is not
        ...     hints = session.suggest(k=3)  # where a third click would help most
        ...     undone = session.undo()
        ...     session.clicks
        (Click(x=60.0, y=45.0, positive=True),)
        >>> bool(result.mask[45, 60]), result.mask.shape
        (True, (90, 120))

    Raises:
        ModelLoadError, BackendUnavailableError, InvalidArgumentError: see `Engine`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | FreqFormer = DEFAULT_MODEL,
        *,
        device: str = "auto",
        precision: str = "auto",
        size: int | None = None,
        engine: Engine | None = None,
        threshold: float = THRESHOLD,
        zoom: bool = True,
        refine: bool = True,
        acselect: AcSelect | None = None,
        wait: float = 0.0,
    ) -> None:
        level = finite(threshold)
        if level is None or not 0 < level < 1:
            raise InvalidArgumentError(f"threshold is {threshold!r}; expected a number above 0 and below 1")
        if not is_number(wait) or not wait >= 0 or (finite(wait) is None and wait != math.inf):
            raise InvalidArgumentError(f"wait is {wait!r}; expected seconds, at least 0")
        if engine is not None and not isinstance(engine, Engine):
            raise InvalidArgumentError(f"engine is a {type(engine).__name__}; expected an Engine")
        given = ((model, DEFAULT_MODEL), (device, "auto"), (precision, "auto"), (size, None))
        if engine is not None and any(type(got) is not type(none) or got != none for got, none in given):
            raise InvalidArgumentError(
                "engine= was given together with model, device, precision or size; give either the engine or these"
            )
        if acselect is not None and not hasattr(acselect, "suggest_by"):
            raise InvalidArgumentError(f"acselect is a {type(acselect).__name__}; expected an AcSelect")
        self._settings = SessionSettings(level, truth("zoom", zoom), truth("refine", refine))
        self._acselect = acselect
        self._engine: Engine | None = engine or Engine.shared(model, device, precision, size)
        self._scene: Scene | None = None
        self._wait = float(wait)
        self._lock = threading.Lock()
        self._line: deque[int] = deque()  # the threads that wait for their turn, in order
        _sessions.add(self)
        self._cancelled = False

    @property
    def threshold(self) -> float:
        """A pixel is in the mask when its probability is above this."""
        return self._settings.threshold

    # --- the image ---

    @typed
    def set_image(
        self,
        image: Any,
        *,
        window: Window | None = None,
        copy: bool = True,
        max_pixels: int = MAX_PIXELS,
        alpha: bool | None = None,
        bgr: bool = False,
    ) -> None:
        """Start on an image; everything about the previous one is forgotten.

        On a CPU the first image of a new shape also makes the engine ready for this shape, so that the first click does
        not take several times as long as later ones; `warmup` does this for every shape.

        Args:
            image: a path, the bytes of a file, a file object, a PIL image, or an array or tensor `[H, W]`, `[H, W, 1]`,
                `[H, W, 3]` or `[H, W, 4]` of uint8, other integers or floats.  `load_image` says how each is read.
            window ((float, float), optional): the values that are shown as black and as white; not for uint8.
                Default: chosen from the values, see `load_image`; [0, 1] for floats that all lie in it.
            copy (bool): False saves the copy of a uint8 array, which must then stay unchanged while it is in use.
            max_pixels (int): larger images are refused. Default: 134 megapixels.
            alpha (bool, optional): whether the fourth channel is alpha. Default: as the file says, or as it looks.
            bgr (bool): an array's channels come in the order of OpenCV. Default: False.

        Raises:
            InvalidImageError: the image cannot be used.
        """
        with self._turn():
            self._engine_in_use()
            window = None if window is None else check_window(window)
            pixels = load_image(image, window=window, copy=copy, max_pixels=max_pixels, alpha=alpha, bgr=bgr)
            scene = Scene.of(Picture(pixels, window, self._settings))
            engine = self._engine_in_use()
            with contextlib.suppress(MemoryShortageError):  # if memory is still short then, the click says so
                engine.get_ready(*network_shape(scene.picture.bounds, engine.size))
            self._scene = scene

    @typed
    def warmup(self, *, background: bool = False) -> None:
        """Make the engine ready for every shape of region that a click may look at, so that no first click takes longer
        than the others.  Once for each engine is enough.  It takes seconds on a CPU and may take a minute on a GPU.

        Args:
            background (bool): return at once and let another thread do the work, one shape after the other, beginning
                with the shapes most like the image's.  A click made meanwhile waits at most for the shape at hand.  The
                thread ends early when the session is closed or the program ends; if it fails, the log says so.
                Default: False.

        Raises:
            MemoryShortageError: there is not enough memory.
        """
        engine = self._engine_in_use()
        shapes = network_shapes(engine.size)
        scene = self._scene
        if scene is not None:
            height, width = network_shape(scene.picture.bounds, engine.size)
            shapes.sort(key=lambda shape: abs(shape[0] - height) + abs(shape[1] - width))
        if truth("background", background):
            _in_background(lambda: self._warm(engine, shapes), "activefreq-warmup")
            return
        for shape in shapes:
            engine.warmup(*shape)

    def _warm(self, engine: Engine, shapes: Sequence[tuple[int, int]]) -> None:
        for shape in shapes:
            if self._engine is not engine or not threading.main_thread().is_alive():  # closed, or the program ends
                return
            try:
                engine.warmup(*shape)
            except ActiveFreqError as error:
                _log.warning(_UNREADY, error)
                return

    @typed
    def prepare(self, *, background: bool = False) -> None:
        """Work out what the next click needs of the image, so that the click need not wait for it: the network's
        features of the region that it will look at.

        That region is the view, else the surroundings of the present mask, else the whole image.  A click that is
        answered from another region (a positive one far from the mask, say) takes as long as without this call.  No
        mask changes.  It is worth most with "freqformer_b0_guided", where the first click in a region takes 0.2 s more
        of a CPU core than others: call it after `set_image`, and after each step once the mask is shown.  It does
        nothing where the features are known already.

        Args:
            background (bool): return at once and let another thread do the work.  A step made meanwhile waits until the
                features are there; work that has not begun when the next step is made is left undone.  If it fails, the
                log says so. Default: False.

        Raises:
            NoImageError: there is no image yet.
            MemoryShortageError: there is not enough memory.
        """
        engine, scene = self._engine_in_use(), self._opened()
        if truth("background", background):
            _in_background(lambda: self._prepare_or_log(engine, scene), "activefreq-prepare")
        else:
            self._prepare(engine, scene)

    def _prepare_or_log(self, engine: Engine, scene: Scene) -> None:
        try:
            self._prepare(engine, scene)
        except ActiveFreqError as error:
            _log.warning(_UNREADY, error)

    @typed
    def _prepare(self, engine: Engine, scene: Scene) -> None:
        def go_on() -> None:
            if self._scene is not scene:
                raise ClickCancelledError("the session has moved on")

        with contextlib.suppress(ClickCancelledError):
            go_on()
            prepare_next(engine, scene.picture, scene.history.step, scene.view, go_on)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self._opened().picture.shape

    @typed
    def look(self, x0: float | None, y0: float | None = None, x1: float | None = None, y1: float | None = None) -> None:
        """Say which part of the image the user is looking at: ``look(x0, y0, x1, y1)``; ``look(None)`` for automatic.

        Clicks inside it are answered from that part alone, at its own resolution, and change nothing outside of it: a
        small object in a large photograph is then as easy as a large one.  A viewer passes what it has on screen.  The
        view is not a step: undo and redo do not move it.  All objects share it, and `set_image` forgets it.  A click
        outside of it is answered as if there were no view.

        Args:
            x0, y0, x1, y1 (float): corners in image pixels; what lies outside the image is cut off.

        Raises:
            InvalidArgumentError: not four finite numbers with x0 < x1 and y0 < y1, or all outside the image.
            NoImageError: there is no image yet.
        """
        with self._turn():
            scene = self._opened()
            corners = (x0, y0, x1, y1)
            view = None if all(c is None for c in corners) else view_box(scene, corners)
            self._scene = replace(scene, view=view)

    # --- prompts ---

    @typed
    def click(self, x: float, y: float, positive: bool = True, profile: bool = False) -> ClickResult:
        """Click on the current object.

        Every clicked pixel takes its click's label in the mask, whatever the network says; where several clicks hit the
        same pixel, the newest one decides.

        A click that agrees with the mask changes no pixel, and the network does not run for it: a positive click on a
        pixel inside the mask, a negative one on a pixel outside of it, so also a repeated click, or a negative first
        one.  Such a click is a step all the same, and the network sees it together with the next click that does not
        agree.  Only if the user looks at another part than before (`look`) does the network answer it at once.

        Args:
            x, y (float): position, ``0 <= x < width``, ``0 <= y < height``.
            positive (bool): True: this belongs to the object; False: it does not.
            profile (bool): measure each stage, see `ClickResult.timings`.

        Raises:
            InvalidClickError: not a finite position inside the image, or `positive` is not a bool.
            NoImageError: there is no image yet.
            ClickCancelledError: `cancel` was called meanwhile.
        """
        start = perf_counter()
        watch = Stopwatch() if truth("profile", profile) else None
        with self._turn():
            self._cancelled = False
            scene = self._opened()
            history = scene.history
            new = Pass((check_click(scene.picture, x, y, positive),), scene.view)
            outcome = self._advance(scene, history.step, new, watch)
            after = scene.having(history.push(outcome.step))
            timings = None if watch is None else watch.timings
            clicks = outcome.step.canvas.count
            result = ClickResult(outcome.mask, outcome.changed, _since(start), clicks, timings)
            self._scene = after
            return result

    @typed
    def box(self, x0: float, y0: float, x1: float, y1: float) -> ClickResult:
        """Draw a box around the current object and start it anew from the box.  One step, which can be undone.

        Earlier prompts on the object no longer count; later ones correct the mask.  The network looks at the box and a
        margin around it, wherever the user looks (`look`); where `zoom` is off, at the whole image.

        Args:
            x0, y0, x1, y1 (float): its edges in image pixels; what lies outside the image is cut off.

        Raises:
            InvalidPromptError: not four finite numbers with x0 < x1 and y0 < y1, or all outside the image.
            NoImageError, ClickCancelledError: as for `click`.
        """
        return click_batch([self], [BoxPrompt(x0, y0, x1, y1)])[0]

    @typed
    def scribble(self, points: Any, positive: bool = True) -> ClickResult:
        """Draw a line over what belongs to the object, or over what does not.  One step, which can be undone.

        The line is one pixel wide.  Each pixel under it takes the scribble's label in the mask, as a clicked pixel
        takes its click's.  The network sees the scribble as up to eight clicks along the part of it that lies in the
        region it looks at.  As with clicks, a scribble that agrees with the mask changes no pixel.

        Args:
            points: `[N, 2]` (x, y) in image pixels, in the order of drawing, each inside the image; 1 to 10,000.
            positive (bool): True: this belongs to the object; False: it does not.

        Raises:
            InvalidPromptError: not such points, or `positive` is not a bool.
            NoImageError, ClickCancelledError: as for `click`.
        """
        return click_batch([self], [Scribble(points, positive)])[0]

    @typed
    def lasso(self, points: Any, positive: bool = True) -> ClickResult:
        """Draw a closed line around the object, around a missing part of it, or around something that does not belong
        to it.  One step, which can be undone.

        A positive lasso says that the object may fill it; the network decides.  On an empty mask it also tells where to
        look, as `box` does.  A negative lasso takes all its pixels out of the mask, and keeps them out until a later
        positive prompt touches one of them.  As with clicks, a lasso that agrees with the mask changes no pixel.

        Args:
            points: `[N, 2]` (x, y) in image pixels, ``0 <= x <= width``, ``0 <= y <= height``; 3 to 10,000.  The last
                is joined to the first.  Where the line crosses itself, all that it goes around counts as inside.
            positive (bool): True: the object, or a missing part of it, lies in here; False: nothing in here belongs to
                it.

        Raises:
            InvalidPromptError: not such points, no pixel's centre is enclosed, or `positive` is not a bool.
            NoImageError, ClickCancelledError: as for `click`.
        """
        return click_batch([self], [Lasso(points, positive)])[0]

    @typed
    def predict(self, point_coords: Any, point_labels: Any, mask_input: Any = None, box: Any = None) -> ClickResult:
        """The mask for a whole list of clicks, for tools that send all clicks each time.

        A call is one step, however long the list: one undo takes it back.  A list equal to the present one makes no
        step.  Only what is new is computed: the call continues from the longest beginning of the list that was seen
        before, and shows all further clicks to the network in one pass, or in one for each 24 of a sign, since it sees
        no more at once.  A shorter list than before may take no pass at all.  So the mask may differ from that of
        single clicks, each of which is answered before the next is made.  A box takes a pass of its own, before the
        clicks.

        Args:
            point_coords: `[N, 2]` (x, y).  May be empty.
            point_labels: `[N]`, 1 (or True) for positive and 0 (or False) for negative clicks.
            mask_input (optional): bool `[H, W]`, the mask to start from, as in `load_mask`.
            box (optional): ``(x0, y0, x1, y1)``, the box to start from, as in `box`.

        Raises:
            InvalidClickError, InvalidMaskError, InvalidPromptError, NoImageError, ClickCancelledError: as `click`,
                `load_mask` and `box`.
            InvalidArgumentError: `mask_input` and `box` were both given.
        """
        start = perf_counter()
        with self._turn():
            self._cancelled = False
            scene = self._opened()
            wanted: tuple[Mark, ...] = tuple(click_list(scene, point_coords, point_labels))
            if box is not None:
                if mask_input is not None:
                    raise InvalidArgumentError("mask_input and box are both a start; give only one of them")
                wanted = (check_box(scene.picture, box), *wanted)
            mask = None if mask_input is None else masks.as_mask(mask_input, scene.picture.shape)
            loaded = None if mask is None else PackedMask.of(mask)
            history = scene.history
            known = [history.step, *reversed(history.done), *history.undone]
            known = [s for s in known if s.start == loaded and s.canvas.marks == wanted[: len(s.canvas.marks)]]
            first = history.blank if mask is None or loaded is None else loaded_step(scene.picture, mask, loaded)
            best = max([*known, first], key=lambda s: len(s.canvas.marks))
            if best is history.step and len(best.canvas.marks) == len(wanted):
                return ClickResult(scene.mask(), None, _since(start), best.canvas.count)
            before = scene.mask()
            step, rest = best, wanted[len(best.canvas.marks) :]
            if rest and isinstance(rest[0], BoxPrompt):
                step, rest = self._advance(scene, step, Pass(rest[:1])).step, rest[1:]
            for marks in at_once(rest):
                step = self._advance(scene, step, Pass(marks, scene.view)).step
            step = replace(step, event=Points(wanted))
            after = scene.picture.mask(step.canvas)
            changed = changed_bbox(before, after, boxes.union(history.step.canvas.extent, step.canvas.extent))
            result = ClickResult(after, changed, _since(start), step.canvas.count)
            self._scene = scene.having(history.push(step))
            return result

    @typed
    def load_mask(self, mask: Any) -> ClickResult:
        """Go on from a given mask, as one step that can be undone.  Earlier prompts on the object no longer count.

        Further prompts then correct the mask piece by piece: a click that disagrees with it changes only the connected
        piece of the network's change that holds the click; a click that agrees changes nothing.  `box` starts anew.

        Args:
            mask: bool `[H, W]` of the image's size; integers 0 and 1, or 0 and 255, will do.

        Raises:
            InvalidMaskError: wrong type, shape or values.
            NoImageError: there is no image yet.
        """
        start = perf_counter()
        with self._turn():
            scene = self._opened()
            array = masks.as_mask(mask, scene.picture.shape).copy()
            before = scene.mask()
            step = loaded_step(scene.picture, array, PackedMask.of(array))
            changed = changed_bbox(before, array, scene.picture.bounds)
            result = ClickResult(scene.picture.show(step.canvas, array), changed, _since(start), 0)
            self._scene = scene.having(scene.history.push(step))
            return result

    @property
    @typed
    def clicks(self) -> tuple[Click, ...]:
        """Clicks on the current object, oldest first, since the last loaded mask or box; see `prompts`."""
        return self._opened().history.clicks

    @property
    @typed
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts on the current object that count, oldest first: each a `Click`, a `BoxPrompt`, a `Scribble` or a
        `Lasso`.  A loaded mask and a box make a fresh start, so the list begins after the last loaded mask, or with
        the last box."""
        return self._opened().history.prompts

    # --- history ---

    @typed
    def undo(self) -> ClickResult | None:
        """Take back the current object's last step (a prompt, a list of clicks, or a loaded mask).

        Returns:
            The object's mask without that step, and the box of the pixels that changed; None if there was no step.
        """
        start = perf_counter()
        with self._turn():
            scene = self._opened()
            if not scene.history.done:
                return None
            return self._show(scene, scene.having(scene.history.undo()), start)

    @typed
    def redo(self) -> ClickResult | None:
        """Do the last undone step again.  Once a new step is made, undone steps are forgotten.

        Returns:
            As for `undo`; None when there is nothing to redo.
        """
        start = perf_counter()
        with self._turn():
            scene = self._opened()
            if not scene.history.undone:
                return None
            return self._show(scene, scene.having(scene.history.redo()), start)

    @typed
    def reset(self) -> None:
        """Make the current object blank and forget its history; this cannot be undone.  Other objects stay."""
        with self._turn():
            scene = self._opened()
            self._scene = scene.having(History(scene.blank))

    def cancel(self) -> bool:
        """Stop the call that another thread is making on this session.  That call raises `ClickCancelledError` as soon
        as possible, mostly after the present pass of the network, and changes nothing.

        Returns:
            Whether a call was under way.  It may still have finished before it could be stopped.
        """
        running = self._lock.locked()
        if running:
            self._cancelled = True
        return running

    # --- objects ---

    @typed
    def next_object(self) -> int:
        """Go to a new, blank object and return its number; objects are numbered from 1.

        While the newest object is untouched, that one is returned, so calling this twice leaves no gap.
        """
        with self._turn():
            scene = self._opened()
            if not scene.objects[-1].untouched:
                scene = replace(scene, objects=(*scene.objects, History(scene.blank)))
            number = len(scene.objects)
            self._scene = scene.selecting(number - 1)
            return number

    @typed
    def select_object(self, number: int) -> ClickResult:
        """Go back to an object and work on: its clicks, its undo and its redo are as they were left.

        Returns:
            Its mask, and the box of the pixels in which it differs from the object that was current.

        Raises:
            InvalidArgumentError: there is no such object.
        """
        start = perf_counter()
        with self._turn():
            scene = self._opened()
            return self._show(scene, scene.selecting(object_index(scene, number)), start)

    @typed
    def delete_object(self, number: int) -> int:
        """Remove an object with its history; this cannot be undone.  The numbers of those after it go down by one.

        If it is the only object, a blank one takes its place.  If it is the current object, the next object becomes
        current, or the last one if there is no next.

        Returns:
            The number of the current object.

        Raises:
            InvalidArgumentError: there is no such object.
        """
        with self._turn():
            scene = self._opened()
            index = object_index(scene, number)
            left = (*scene.objects[:index], *scene.objects[index + 1 :]) or (History(scene.blank),)
            selected = min(scene.selected - (index < scene.selected), len(left) - 1)
            self._scene = replace(scene, objects=left, selected=selected)
            return selected + 1

    @typed
    def mask_of(self, number: int) -> NDArray[np.bool_]:
        """bool `[H, W]`, read-only: the mask of an object, also where other objects overlap it; see `labels`.

        Raises:
            InvalidArgumentError: there is no such object.
        """
        scene = self._opened()
        history = scene.objects[object_index(scene, number)]
        if history is scene.history:
            return scene.mask()
        mask = history.step.canvas.mask()
        mask.flags.writeable = False
        return mask

    @property
    def object_number(self) -> int:
        """Number of the current object, from 1."""
        return self._opened().selected + 1

    @property
    def object_count(self) -> int:
        """How many objects there are, the current one and blank ones included; at least 1."""
        return len(self._opened().objects)

    @property
    @typed
    def labels(self) -> NDArray[np.int32]:
        """int32 `[H, W]`: the number of the object at each pixel, 0 for none; the current object is included.

        Where masks overlap the higher number wins; `mask_of` has each object whole.  Painted at each access.
        """
        scene = self._opened()
        out = np.zeros(scene.picture.shape, np.int32)
        for number, history in enumerate(scene.objects, 1):
            canvas = history.step.canvas
            if canvas.extent is not None:
                out[scene.mask() if history is scene.history else canvas.mask()] = number
        return out

    # --- what is known about the current object ---

    @property
    @typed
    def mask(self) -> NDArray[np.bool_]:
        """bool `[H, W]`, read-only: the current object."""
        return self._opened().mask()

    @property
    @typed
    def probs(self) -> NDArray[np.float32]:
        """float32 `[H, W]`: each pixel's probability to belong to the object; painted at each access.

        0 outside the region that the network looked at.  Clicked pixels, and pixels in which a loaded mask overrules
        the network, have the 1 or 0 that the mask has there.  ``probs > threshold`` is `mask`.
        """
        return self._opened().history.step.canvas.probs()

    @property
    @typed
    def uncertainty(self) -> NDArray[np.float32]:
        """float32 `[H, W]`: entropy of `probs` in bits, 0 (certain) to 1; painted at each access."""
        return self._opened().history.step.canvas.uncertainty()

    @typed
    def suggest(self, k: int = 3, *, look_ahead: bool = False) -> list[Suggestion]:
        """Where the next click is worth most, best first: at most `k` places, and none before the first click.

        The suggestions are for a person to accept or ignore; nothing is clicked.  Uncertain regions are looked for on
        a grid of at most 512 pixels a side over the region that the network looked at.  A suggestion's sign is the
        opposite of the mask there.

        Args:
            k (int): most suggestions, at least 1. Default: 3.
            look_ahead (bool): rank by what the network would answer to each click, not by AcSelect's score alone
                (`session.lookahead`).  This is better, but takes up to eight answers of the network, so ask after the
                mask is shown.  A click made meanwhile waits for one pass at most; then the list is empty.

        Raises:
            InvalidArgumentError: `k` is not an integer of at least 1.
            NoImageError: there is no image yet.
        """
        scene, engine = self._opened(), self._engine_in_use()
        if not truth("look_ahead", look_ahead):
            return propose(scene, self._selector(), k, engine.uncertain_regions)
        return propose_ahead(engine, scene, self._selector(), k, lambda: self._scene is scene)

    # --- export ---

    @typed
    def save_mask(self, path: str | os.PathLike[str], *, number: int | None = None) -> None:
        """Write a mask as an 8-bit grey PNG with the values 0 and 255.

        Args:
            path: the file; an existing one is replaced whole or not at all.
            number (int, optional): the object's number, as in `mask_of`. Default: the current one.

        Raises:
            FileWriteError: the file cannot be written.
            InvalidArgumentError: there is no such object, or `path` is no path, or ends like another format's, as .jpg.
        """
        masks.save_png(path, self._exported(number))

    @typed
    def save_labels(self, path: str | os.PathLike[str]) -> None:
        """Write `labels` as an indexed PNG; from 256 objects on as a 16-bit grey one.

        Raises:
            FileWriteError: the file cannot be written.
            InvalidArgumentError: `path` is no path, or ends like another format's, as .jpg.
        """
        masks.save_labels_png(path, self.labels)

    @typed
    def to_coco_rle(self, *, compressed: bool = True, number: int | None = None) -> dict[str, Any]:
        """A mask as COCO run lengths, see `masks.to_coco_rle`; `number` as for `save_mask`."""
        return masks.to_coco_rle(self._exported(number), compressed=compressed)

    @typed
    def to_polygons(self, *, holes: Literal["keep", "drop"] = "keep", number: int | None = None) -> list[masks.Polygon]:
        """A mask as polygons, see `masks.to_polygons`; `number` as for `save_mask`."""
        return masks.to_polygons(self._exported(number), holes=holes)

    def _exported(self, number: int | None) -> NDArray[np.bool_]:
        return self.mask if number is None else self.mask_of(number)

    # --- a session survives its process ---

    @typed
    def state_dict(self) -> dict[str, Any]:
        """Everything that `restore` needs, beside the image, to rebuild the session: plain JSON values with the image's
        hash, the objects with their steps (done and undone), the settings, and the sha256 of the weights.  No pixels
        and no probabilities."""
        return dump_state(self._opened(), self._engine_in_use())

    @classmethod
    @typed
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
        max_pixels: int = MAX_PIXELS,
        alpha: bool | None = None,
        bgr: bool = False,
    ) -> Session:
        """Rebuild a session by making its clicks again on the same image.

        The network runs again.  With the same processor, versions, engine settings and number of threads the masks are
        the same bit by bit; elsewhere the network may round differently, and pixels at the threshold may flip.

        Args:
            state: from `state_dict`, also after a round trip through JSON.
            image: the same image, in any form that `set_image` takes.
            engine (Engine, optional): use this one.
            model (optional): a name, a checkpoint's path or a model, as for `Session`.  Default: the shipped model that
                the state names.
            device, precision, acselect: as for `Session`.
            max_pixels, alpha, bgr: as for `set_image`.

        Raises:
            SessionStateError: the state is damaged or of an unknown version, or belongs to another image, model or
                other weights.
            InvalidImageError: the image cannot be used.
            InvalidArgumentError: `engine` and `model` were both given.
            ModelLoadError, BackendUnavailableError: see `Engine`.
        """
        saved = parse_state(state, None if engine is None else engine.size)
        engine = matching_engine(saved, engine, model, device, precision)
        how = saved.settings
        session = cls(engine=engine, threshold=how.threshold, zoom=how.zoom, refine=how.refine, acselect=acselect)
        session.set_image(image, window=saved.window, max_pixels=max_pixels, alpha=alpha, bgr=bgr)
        scene = session._opened()
        digest = scene.picture.digest = image_digest(scene.picture.image)
        if digest != saved.digest:
            raise SessionStateError(
                f"the image is not the one the state belongs to: sha256 {digest[:12]}..., expected "
                f"{saved.digest[:12]}...; pass the original image"
            )
        session._scene = replay(saved, scene, engine)
        return session

    # --- lifetime ---

    def close(self) -> None:
        """Let go of image, history and engine.  It may be called again; every other call then raises
        `SessionClosedError`."""
        with self._turn():
            self._engine = None
            self._scene = None

    def __enter__(self) -> Session:
        self._engine_in_use()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close; if another thread is in a call, wait for its end first."""
        with self._turn(math.inf):
            self._engine = None
            self._scene = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidArgumentError(
            "a session cannot be copied or pickled: keep its state_dict() and rebuild it with Session.restore"
        )

    def __repr__(self) -> str:
        scene = self._scene
        if scene is None:
            return "Session(closed)" if self._engine is None else "Session(no image)"
        height, width = scene.picture.shape
        return f"Session({width}x{height}, object {scene.selected + 1} of {len(scene.objects)})"

    # --- inside ---

    def _turn(self, wait: float | None = None) -> threading.Lock:
        """The session's lock, for `with`, once no other call holds it and those that came before have had it.

        Taken by `with` itself, since an interrupt cannot come between the taking and the promise to give it back.  A
        thread that takes it in between does not make this raise: `with` waits then.

        Raises:
            SessionBusyError: other calls held it all the time.
        """
        until, thread = time.monotonic() + (self._wait if wait is None else wait), threading.get_ident()
        try:
            self._line.append(thread)  # more than once, if a signal's handler makes a call while its thread waits
            while self._line[0] != thread or self._lock.locked():
                if time.monotonic() >= until:
                    raise SessionBusyError(
                        "the session is at work in another call; wait for it (wait=), or use a session per thread"
                    )
                halt()
                time.sleep(_POLL)
        finally:
            self._line.remove(thread)
        return self._lock

    def _go_on(self) -> None:
        if self._cancelled:
            raise ClickCancelledError("the click was cancelled; the session is as it was before")

    def _advance(self, scene: Scene, step: Step, new: Pass, watch: Stopwatch | None = None) -> Outcome:
        """The outcome of new prompts on one state of an object."""
        return advance(self._engine_in_use(), [(scene.picture, step)], [new], watch, self._go_on)[0]

    def _show(self, before: Scene, after: Scene, start: float) -> ClickResult:
        """Make `after` the present scene, and say what changed."""
        old, new = before.history.step.canvas, after.history.step.canvas
        mask, reach = before.mask(), boxes.union(old.extent, new.extent)
        result = ClickResult(
            after.mask(), changed_bbox(mask, after.mask(), reach), _since(start), after.history.step.canvas.count
        )
        self._scene = after
        return result

    def _engine_in_use(self) -> Engine:
        if self._engine is None:
            raise SessionClosedError("the session was closed; make a new Session")
        return self._engine

    def _opened(self) -> Scene:
        self._engine_in_use()
        scene = self._scene
        if scene is None:
            raise NoImageError("the session has no image; call set_image first")
        return scene

    def _selector(self) -> AcSelect:
        if self._acselect is None:
            from activefreq_engine.acselect import AcSelect

            self._acselect = AcSelect(threshold=self.threshold)
        return self._acselect


@typed
def click_batch(sessions: Sequence[Session], clicks: Sequence[Prompt]) -> list[ClickResult]:
    """One prompt on each of several sessions, in one batched pass of the engine that they share.

    Each session ends in the state that its own `click`, `box`, `scribble` or `lasso` would have led to: the same bit by
    bit on an AMD CPU, where this was tried, and up to floating-point noise elsewhere.  If anything raises, no session
    changes.

    Args:
        sessions: different sessions with the same engine, each with an image; at most 500.
        clicks: one for each session: a `Click`, a `BoxPrompt`, a `Scribble` or a `Lasso`; kinds may be mixed.

    Raises:
        InvalidArgumentError: the lists do not fit together, a session appears twice, or engines differ.
        InvalidClickError, InvalidPromptError, NoImageError, SessionBusyError, ClickCancelledError: as `Session.click`
            and the like, for any of them.
    """
    start = perf_counter()
    try:
        sessions, prompts = list(sessions), list(clicks)
    except TypeError as error:
        raise InvalidArgumentError(f"sessions and clicks must both be lists: {error}") from error
    if len(sessions) != len(prompts):
        raise InvalidArgumentError(f"got {len(sessions)} sessions and {len(prompts)} clicks; give one click to each")
    if len(sessions) > MOST_SESSIONS:
        raise InvalidArgumentError(f"got {len(sessions)} sessions; allowed are {MOST_SESSIONS}: click in parts")
    for kinds, items in (((Session,), sessions), ((Click, BoxPrompt, Scribble, Lasso), prompts)):
        for item in items:
            if not isinstance(item, kinds):
                raise InvalidArgumentError(f"got {item!r}; expected a {' or '.join(k.__name__ for k in kinds)}")
    if len({id(s) for s in sessions}) != len(sessions):
        raise InvalidArgumentError("a session appears twice in the batch; its clicks depend on one another")
    if len({id(s._engine_in_use()) for s in sessions}) > 1:
        raise InvalidArgumentError("the sessions use different engines; make them with the same engine=")

    def go_on() -> None:
        for session in sessions:
            session._go_on()

    def work() -> list[ClickResult]:
        scenes = [s._opened() for s in sessions]
        new = [_pass(s, p) for s, p in zip(scenes, prompts, strict=True)]
        states = [(s.picture, s.history.step) for s in scenes]
        outcomes = advance(sessions[0]._engine_in_use(), states, new, None, go_on)
        after = [s.having(s.history.push(o.step)) for s, o in zip(scenes, outcomes, strict=True)]
        elapsed = _since(start)
        results = [ClickResult(o.mask, o.changed, elapsed, o.step.canvas.count) for o in outcomes]
        try:
            for session, scene in zip(sessions, after, strict=True):
                session._scene = scene
        except BaseException:  # an interrupt between two of them
            for session, scene in zip(sessions, scenes, strict=True):
                session._scene = scene
            raise
        return results

    # in one order for all, so that no two batches wait for each other
    return _holding(sorted(sessions, key=id), work) if sessions else []


def _pass(scene: Scene, prompt: Prompt) -> Pass:
    """A prompt from outside, checked, as a pass.  A box says itself where to look, so it has no view."""
    return Pass((check_mark(scene.picture, prompt),), None if isinstance(prompt, BoxPrompt) else scene.view)


def _holding(sessions: list[Session], work: Callable[[], list[ClickResult]], index: int = 0) -> list[ClickResult]:
    """Do the work while all sessions' locks are held, each by a `with` of its own; see `Session._turn`."""
    if index == len(sessions):
        return work()
    with sessions[index]._turn():
        sessions[index]._cancelled = False
        return _holding(sessions, work, index + 1)


def _in_background(work: Callable[[], None], name: str) -> None:
    try:
        threading.Thread(target=work, name=name).start()
    except RuntimeError as error:  # no thread to be had
        _log.warning(_UNREADY, error)


def _since(start: float) -> float:
    """Milliseconds since `perf_counter` gave `start`."""
    return (perf_counter() - start) * 1e3


def push_step(session: Session, step: Step) -> None:
    """Add a ready-made step, for benchmarks and tests that need a session in a certain state.  Not for other use.

    Raises:
        SessionClosedError, NoImageError: the session is closed or has no image.
    """
    with session._turn():
        scene = session._opened()
        session._scene = scene.having(scene.history.push(step))


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child a call of another thread has ended without effect, since scenes never change: free its lock."""
    for session in _sessions:
        session._lock = threading.Lock()
        session._line = deque()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
