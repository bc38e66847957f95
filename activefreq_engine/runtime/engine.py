"""The model at work: devices, batches, and the only place where a session's arrays become tensors.

An engine holds one model on one device.  Any number of sessions may share it; a lock lets one batch in at a time.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray

from activefreq_engine.conventions import DEFAULT_MODEL, SLOTS, SUGGESTION_SIDE
from activefreq_engine.ending import halt
from activefreq_engine.errors import (
    ActiveFreqError,
    BackendUnavailableError,
    InvalidArgumentError,
    ModelLoadError,
)
from activefreq_engine.host import settings_aside
from activefreq_engine.kernels import cupy_impl
from activefreq_engine.memory import typed
from activefreq_engine.models import FreqFormer, create_model, list_models, load_checkpoint, read_metadata
from activefreq_engine.models.checkpoint import weights_digest
from activefreq_engine.models.registry import WEIGHTS
from activefreq_engine.runtime import cpu, levels, shortage
from activefreq_engine.runtime.executor import executor_for
from activefreq_engine.runtime.graphs import regions
from activefreq_engine.runtime.levels import Found, Stretched
from activefreq_engine.runtime.modules import ClickModel, Modules
from activefreq_engine.runtime.painting import Painted, PaintRequest
from activefreq_engine.runtime.plan import PRECISIONS
from activefreq_engine.runtime.timing import Stopwatch

_LOOK = 0.05  # seconds between two checks whether a waiting click is still wanted

SIZES = (256, 384, 448, 512)
"""Allowed lengths of the long side of the network input."""


@dataclass(frozen=True, slots=True)
class StepRequest:
    """One click of one session.  All its arrays are on one network grid of h x w pixels, both multiples of 32."""

    crop: NDArray[np.uint8] | None
    """uint8 RGB `[h, w, 3]`; may be None when `features` is given."""
    features: Any | None
    """`StepAnswer.features` of an earlier step on the same crop."""
    previous: NDArray[np.float32] | NDArray[np.uint16]
    """`[h, w]`: the answer before this click, as probabilities (float32) or as levels (uint16); zeros at first."""
    points: NDArray[np.float32]
    """float32 `[2N, 2]`: click slots as `click_maps` takes them."""
    paint: PaintRequest | None = None
    """The mask that the engine is to paint, if it can; see `Engine.paints`."""
    meanwhile: Callable[[], Any | None] | None = None
    """Asked for features where there are none, once the engine is free: another thread may just have prepared them."""


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """The coarse answer.  `features` and `coarse` are handles: keep them, pass them back, do not look inside."""

    levels: NDArray[np.uint16]
    """uint16 `[h, w]`: probability times 65535."""
    features: Any
    """What depends on the image alone; saves that part of the work on the next click."""
    coarse: Any
    """What `RefineRequest` needs."""
    painted: Painted | None = None
    """The mask, if it was asked for and painted; otherwise the caller paints it from `levels`."""

    @property
    def probs(self) -> NDArray[np.float32]:
        """float32 `[h, w]`."""
        return levels.probabilities(self.levels)


@dataclass(frozen=True, slots=True)
class RefineRequest:
    """One focus box to redraw.  S is `Engine.refine_size`."""

    coarse: Any
    """`StepAnswer.coarse`."""
    box: tuple[float, float, float, float]
    """The focus box in network pixels."""
    crop: NDArray[np.uint8]
    """uint8 RGB `[S, S, 3]`, resampled from the original image."""
    points: NDArray[np.float32]
    """float32 `[2N, 2]`: click slots on the crop."""


class Engine:
    """A model, ready to answer clicks.

    Args:
        model (str | path | FreqFormer): a name from `list_models()` (its shipped weights are loaded), the path of a
            checkpoint, or a model; the latter is moved to the device and put in evaluation mode.
            Default: "freqformer_b0_guided".
        device (str): "auto" (CUDA if there is one, else CPU) or anything `torch.device` takes.
        precision (str): one of `PRECISIONS`; "auto" is the fastest that holds the stated accuracy on the device: fp16
            on CUDA, bf16 on CPUs that multiply it natively, else fp32.
        size (int, optional): long side of the network input, one of `SIZES`. Default: 256.
        plan (bool): run compiled plans, see `runtime.plan`. False runs the model's own modules, for comparison; so does
            a model that is not a FreqFormer.
        graph (bool): on CUDA replay each plan as a graph, captured on first use or by `warmup`; see `runtime.graphs`.
            False launches its operations one by one, for comparison.

    Example:
        >>> engine = Engine("freqformer_b0", device="cpu", precision="fp32")
        >>> engine.size, engine.precision
        (256, 'fp32')

    Raises:
        ModelLoadError: the model cannot be loaded.
        BackendUnavailableError: the device is not there.
        InvalidArgumentError: a bad device, precision or size.
        MemoryShortageError: there is not enough memory.
    """

    _named: ClassVar[dict[tuple[Any, ...], tuple[Any, Engine]]] = {}
    _given: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], Engine]] = weakref.WeakValueDictionary()
    _registry_lock: ClassVar = threading.RLock()

    @typed
    def __init__(
        self,
        model: str | os.PathLike[str] | FreqFormer = DEFAULT_MODEL,
        device: str = "auto",
        precision: str = "auto",
        size: int | None = None,
        *,
        plan: bool = True,
        graph: bool = True,
    ) -> None:
        self.size = check_size(size)
        _check_precision(precision)
        self.device = resolve_device(device)
        cpu.take_note_of_threads()
        with _forking, settings_aside():
            self.name, module = resolve_model(model)
            self._module = module = module.to(self.device).eval()
            self._sha256 = stored_digest(model) if isinstance(model, (str, os.PathLike)) else None
            self._executor = shortage.guarded(
                lambda: executor_for(module, self.name, self.device, precision, plan=plan, graph=graph)
            )
        self.precision = self._executor.precision
        self._regions: regions.Regions | None = None
        self._lock = threading.RLock()  # which knows whether this thread holds it
        self._line: deque[tuple[int, threading.Event]] = deque()
        """The threads that wait for the engine, in order, and what each is told by that it is the first."""
        self._ready: set[tuple[int, int]] = set()
        with _forking:
            _engines.add(self)

    @classmethod
    def shared(
        cls,
        model: str | os.PathLike[str] | FreqFormer = DEFAULT_MODEL,
        device: str = "auto",
        precision: str = "auto",
        size: int | None = None,
    ) -> Engine:
        """The engine for these arguments, made on first use: weights are loaded once per process and device.

        Engines of named models and checkpoints live until the process ends (a checkpoint that changed on disk is
        loaded anew); the engine of a model object lives as long as somebody holds it.
        """
        _check_precision(precision)
        rest = (str(resolve_device(device)), precision, check_size(size))
        with cls._registry_lock:
            if not isinstance(model, (str, os.PathLike)):
                key: tuple[Any, ...] = (id(model), *rest)
                engine = cls._given.get(key)
                if engine is None:
                    engine = cls._given[key] = cls(model, device, precision, size)
                return engine
            stamp = _stamp(model)
            key = (str(model) if stamp is None else os.path.abspath(model), *rest)
            known = cls._named.get(key)
            if known is None or known[0] != stamp:
                known = cls._named[key] = stamp, cls(model, device, precision, size)
            return known[1]

    @property
    def weights(self) -> str:
        """sha256 of the weights: of a shipped model or a checkpoint as in its file, see `activefreq info`; of a model
        object by its present values."""
        return self._sha256 or weights_digest(self._module.state_dict())

    @property
    def paints(self) -> bool:
        """Whether this engine can paint masks on its device."""
        return self._executor.paints

    @property
    def refine_size(self) -> int | None:
        """Side of the refiner's image crop; None when the model has no refiner."""
        model = self._executor.model
        return None if model.refiner is None else model.config.refine_size

    @typed
    def run(
        self,
        requests: Sequence[StepRequest],
        watch: Stopwatch | None = None,
        go_on: Callable[[], None] | None = None,
    ) -> list[StepAnswer]:
        """Answer clicks, one batched pass for each network shape among them.  The answers come in request order.

        Args:
            requests: the clicks.
            watch (Stopwatch, optional): told the time of "prepare" (what depends on the image alone, where it is not
                known yet) and of "click".
            go_on (callable, optional): called while this call waits for the engine; it raises if nobody wants the
                answers any more.

        Raises:
            MemoryShortageError: there is not enough memory.
            ActiveFreqError: the network returned NaN; the message says why, as far as that can be found out.
            InvalidArgumentError: a request has neither crop nor features.
        """
        return shortage.guarded(lambda: self._run(requests, watch, go_on), ask=self._executor.unclear)

    def _run(
        self, requests: Sequence[StepRequest], watch: Stopwatch | None, go_on: Callable[[], None] | None
    ) -> list[StepAnswer]:
        answers: list[StepAnswer | None] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, r in enumerate(requests):
            groups[r.previous.shape].append(i)

        def work() -> None:
            for members in groups.values():
                group = [requests[i] for i in members]
                features = self._features(group, watch)
                clicked = self._executor.click(
                    features, [r.previous for r in group], [r.points for r in group], [r.paint for r in group]
                )
                for i, item, (found, coarse) in zip(members, features, clicked, strict=True):
                    answers[i] = StepAnswer(self._checked(found, requests[i]), item, coarse, found.painted)
                self._lap(watch, "click")

        self._alone(work, go_on)
        return [a for a in answers if a is not None]

    @typed
    def prepare(self, crop: NDArray[np.uint8], go_on: Callable[[], None] | None = None) -> Any:
        """The features of an image region, for the `features` of later requests: what a click would have to wait for if
        it were the first one there.

        Args:
            crop (uint8 `[h, w, 3]`): as in `StepRequest`.
            go_on (callable, optional): as for `run`.

        Raises:
            MemoryShortageError: there is not enough memory.
        """
        found: list[Any] = []

        def work() -> None:
            found.extend(self._executor.prepare([crop]))

        shortage.guarded(lambda: self._alone(work, go_on), ask=self._executor.unclear)
        return found[-1]

    @typed
    def refine(
        self,
        requests: Sequence[RefineRequest],
        watch: Stopwatch | None = None,
        go_on: Callable[[], None] | None = None,
    ) -> list[NDArray[np.uint16]]:
        """Redraw focus boxes: uint16 `[S, S]`, probability times 65535, on each box, in request order.

        `watch` is told the time of "refine"; `go_on` and errors as for `run`.
        """
        return shortage.guarded(lambda: self._refine(requests, watch, go_on), ask=self._executor.unclear)

    def _refine(
        self, requests: Sequence[RefineRequest], watch: Stopwatch | None, go_on: Callable[[], None] | None
    ) -> list[NDArray[np.uint16]]:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, r in enumerate(requests):
            groups[tuple(r.coarse.logits.shape)].append(i)
        out: list[NDArray[np.uint16]] = [np.empty((0, 0), np.uint16)] * len(requests)

        def work() -> None:
            for members in groups.values():
                group = [requests[i] for i in members]
                refined = self._executor.refine(
                    [r.coarse for r in group],
                    [r.box for r in group],
                    [r.crop for r in group],
                    [r.points for r in group],
                )
                for i, found in zip(members, refined, strict=True):
                    out[i] = self._checked(found)
                self._lap(watch, "refine")

        self._alone(work, go_on)
        return out

    def _alone(self, work: Callable[[], None], go_on: Callable[[], None] | None) -> None:
        """Do the work while no other thread has the engine; wait for it first."""
        halt()
        owned = self._lock._is_owned  # type: ignore[attr-defined]
        try:
            if (self._line and not owned()) or not self._lock.acquire(blocking=False):
                self._wait(go_on)
            with torch.inference_mode(), settings_aside(), self._executor.active():
                work()
        except BaseException:
            if owned():  # an interrupt may have come before it was
                self._lock.release()
            raise
        self._lock.release()  # at once: an interrupt is dealt with after a call, and so after this one

    def _wait(self, go_on: Callable[[], None] | None) -> None:
        """Take the engine after all threads that came before.  By itself the lock goes to any of those that wait."""

        own = thread, told = threading.get_ident(), threading.Event()
        try:
            self._line.append(own)
            while self._line[0][0] != thread:  # not `is not own`: a signal's handler may click while its thread waits
                told.wait(_LOOK)
                if go_on is not None:
                    go_on()
            while not self._lock.acquire(timeout=_LOOK):
                if go_on is not None:
                    go_on()
        finally:
            self._line.remove(own)
            for _, following in list(self._line)[:1]:
                following.set()

    @typed
    def uncertain_regions(
        self,
        probs: NDArray[np.float32] | Stretched,
        before: NDArray[np.float32] | Stretched | None,
        valid: NDArray[np.bool_],
        rules: tuple[float, float, float],
    ) -> NDArray[np.float64] | None:
        """Regions of a mask that `AcSelect` may propose, found on the device in one graph.

        Args:
            probs, before: `[h, w]`, probabilities now and one step earlier, if there was one: float32, or `Stretched`,
                with which there is less to do on the host.
            valid: bool `[h, w]`; where false nothing is proposed.
            rules: threshold, tau and tau_flipped of `AcSelect.suggest`.

        Returns:
            The table of `kernels.uncertain.uncertain_regions`; None where the host finds them itself: on a CPU, without
            CuPy, or for more than 512 pixels a side.
        """
        replayer = self._executor.replayer
        if replayer is None or max(probs.shape) > SUGGESTION_SIDE:
            return None
        if self.device.type == "cuda" and not cupy_impl.verify_machine()[0]:
            return None
        found: list[NDArray[np.float64]] = []

        def work() -> None:
            if self._regions is None:
                self._regions = regions.Regions(replayer, self._executor.holding)
            found.append(self._regions(probs, before, valid, rules))

        self._alone(work, None)
        return found[0]

    @typed
    def warmup(self, height: int | None = None, width: int | None = None) -> None:
        """Run one empty click, so that one-time costs are paid before the first real one.

        On CUDA each network shape has such costs: its graphs are captured, and where Triton's cache on the disk lacks
        its kernels they are compiled, which takes seconds for each; other threads may click on other shapes meanwhile.
        A region of the image has the shape that `zoom.network_shape` gives it.

        Args:
            height, width (int, optional): network grid, multiples of 32. Default: square of `size`.
        """
        h, w = height or self.size, width or self.size
        with torch.inference_mode(), settings_aside():
            self._executor.verify(h, w)
        none = np.full((2 * SLOTS, 2), -1, np.float32)
        request = StepRequest(np.zeros((h, w, 3), np.uint8), None, np.zeros((h, w), np.float32), none)
        answer = self.run([request])[0]
        if self.refine_size is not None:
            side = self.refine_size
            self.refine([RefineRequest(answer.coarse, (0, 0, w, h), np.zeros((side, side, 3), np.uint8), none)])
        self._ready.add((h, w))

    @typed
    def get_ready(self, height: int, width: int) -> None:
        """Pay the one-time costs of a network shape, unless they were paid before: on a CPU oneDNN compiles some 60
        kernels, which takes several times as long as a click; for CUDA see `warmup`.

        Args:
            height, width (int): network grid, multiples of 32.
        """
        if self._executor.compiles and (height, width) not in self._ready:
            self.warmup(height, width)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidArgumentError(
            "an engine cannot be copied or pickled: it has locks, and weights in the memory of its device. Share it "
            "between threads; in another process make one from the same arguments, or call Engine.shared there"
        )

    def _features(self, group: list[StepRequest], watch: Stopwatch | None) -> list[Any]:
        """Features of each request: those that it brought; the missing ones are computed in one batch."""
        features = [r.features for r in group]
        crops: list[tuple[int, NDArray[np.uint8]]] = []
        for i, r in enumerate(group):
            if features[i] is None and r.meanwhile is not None:
                features[i] = r.meanwhile()
            if features[i] is None:
                if r.crop is None:
                    raise InvalidArgumentError("a StepRequest has neither crop nor features; give one of them")
                crops.append((i, r.crop))
        if crops:
            for (i, _), item in zip(crops, self._executor.prepare([c for _, c in crops]), strict=True):
                features[i] = item
            self._lap(watch, "prepare")
        return features

    def _lap(self, watch: Stopwatch | None, stage: str) -> None:
        if watch is not None:
            self._executor.wait()
            watch.lap(stage)

    def _checked(self, found: Found, request: StepRequest | None = None) -> NDArray[np.uint16]:
        if math.isnan(found.total):
            why = self._why_nan(request)
            raise ActiveFreqError(f"model {self.name!r} returned NaN in {self.precision} on {self.device}: {why}")
        return found.levels

    def _why_nan(self, request: StepRequest | None) -> str:
        """Why NaN came out, as far as that can be found out, and what to do."""
        damaged = [name for name, t in self._module.state_dict().items() if not bool(torch.isfinite(t).all())]
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            return f"its weights are damaged: {damaged[0]}{more} hold NaN or infinity; load them again"
        if self.precision == "fp32":
            return "its weights are finite, so numbers overflow between its layers; it must be trained differently"
        advice = "Use precision='fp32'; `activefreq info --verify` tries the kernels of this machine"
        if request is None or request.crop is None:
            return f"its weights are finite, so the precision or a kernel may be at fault. {advice}"
        plain = Modules(cast(ClickModel, self._module), self.device)
        ((again, _),) = plain.click(plain.prepare([request.crop]), [request.previous], [request.points])
        if math.isnan(again.total):
            return "its weights are finite, but it returns NaN in fp32 too; it must be trained differently"
        return f"its weights are right, in fp32 they give numbers: the precision or a kernel is at fault. {advice}"


def check_size(size: Any) -> int:
    """The long side of the network input as an int; None means 256.

    Raises:
        InvalidArgumentError: not one of `SIZES`.
    """
    if size is None:
        return SIZES[0]
    if isinstance(size, Real) and not isinstance(size, (bool, np.bool_)) and size in SIZES:
        return int(float(size))
    raise InvalidArgumentError(f"size is {size!r}; allowed are {', '.join(map(str, SIZES))}")


def _check_precision(precision: Any) -> None:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InvalidArgumentError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}")


def stored_digest(model: str | os.PathLike[str]) -> str:
    """The sha256 in the file of a shipped model or a checkpoint; it identifies the weights, whatever the file's
    name."""
    shipped = str(model) in list_models()
    return str(read_metadata(WEIGHTS / f"{model}.safetensors" if shipped else Path(model))["sha256"])


def _stamp(model: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """Changes whenever a checkpoint's file changes, or another one of its size and time takes its place; None where
    there is no such file."""
    try:
        found = Path(model).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size


def resolve_device(name: str) -> torch.device:
    """The device for a name, "auto" being CUDA where there is one.  A CUDA device comes with its number: which one
    "cuda" means depends on the thread.

    Raises:
        InvalidArgumentError: no such name.
        BackendUnavailableError: the device is not there.
    """
    if not isinstance(name, (str, torch.device)):
        raise InvalidArgumentError(
            f"device is a {type(name).__name__}; allowed are 'auto', 'cpu', 'cuda', 'cuda:0', ..."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(f"device is {name!r}; allowed are 'auto', 'cpu', 'cuda', 'cuda:0', ...") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise BackendUnavailableError(
                f"device {name!r} is not available: torch {torch.__version__} sees {count} CUDA devices. "
                "Use device='auto' or 'cpu', or install a CUDA build of torch"
            )
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    elif device.type != "cpu":
        raise BackendUnavailableError(f"device {name!r} is not supported; supported are 'cpu' and 'cuda'")
    return device


def resolve_model(model: Any) -> tuple[str, torch.nn.Module]:
    """The name and the module of what users give as `model`: a shipped model's name, a checkpoint's path, or a module.

    Raises:
        ModelLoadError: none of these, or weights that cannot be loaded.
    """
    if isinstance(model, (str, os.PathLike)):
        name = str(model)
        if name in list_models():
            return name, create_model(name, pretrained=True)
        if _stamp(model) is not None and Path(model).is_file():
            return Path(model).name, load_checkpoint(Path(model))
        raise ModelLoadError(
            f"model {name[:200]!r} is neither a known name nor a file; known names: {', '.join(list_models())}"
        )
    if not isinstance(model, torch.nn.Module):
        raise ModelLoadError(f"model is a {type(model).__name__}; expected a name, a checkpoint path or a FreqFormer")
    return type(model).__name__, model


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_forking = threading.RLock()
"""Held while an engine is made, and during a fork: the child would find locks of libraries at work as they are."""
_inner: list[AbstractContextManager[Any]] = []
_held = ExitStack()
"""What is held during a fork, beside the registry."""


def hold_in_forks(lock: AbstractContextManager[Any]) -> None:
    """Have a lock taken during each fork, so that no child finds it held by a thread that it does not have.

    A click takes such a lock while it has its engine, so a fork takes the engines first: the other way round, each of
    the two would wait for the other.

    Args:
        lock: one of `threading`'s, which nobody holds while they wait for an engine or for another lock given here.
    """
    _inner.append(lock)


def _before_fork() -> None:
    """Wait until no click is under way.  Otherwise the child would find its engine locked by a thread that it does not
    have, and torch in the middle of an operation."""
    Engine._registry_lock.acquire()  # it keeps other threads' forks out, too
    _held.enter_context(_forking)
    for engine in list(_engines):
        _held.enter_context(engine._lock)
    for lock in _inner:
        _held.enter_context(lock)


def _after_fork() -> None:
    _held.close()  # first: another thread that is about to fork adds to it as soon as the registry is free
    Engine._registry_lock.release()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._line.clear()  # of threads that the child does not have
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
