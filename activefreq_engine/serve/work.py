"""One served session: a picture, its objects, and every step on them.

What counts are the steps.  The engine's sessions are made from them: one for each slice when it is first touched, and
again if it was closed meanwhile.  So a journal needs to hold only the steps, and nothing is lost with the process.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import Engine, Session, click_batch
from activefreq_engine.errors import InvalidClickError, InvalidImageError, InvalidMaskError, InvalidPromptError
from activefreq_engine.images import Window, image_size, load_labels
from activefreq_engine.serve import ops
from activefreq_engine.serve.batches import Batches
from activefreq_engine.serve.errors import ConflictError, GoneError, NotFoundError, ServeError, TooLargeError
from activefreq_engine.serve.journal import Journal
from activefreq_engine.serve.pictures import Planes

_log = logging.getLogger(__name__)

OBJECTS = 1000
"""Most objects of a session."""
SLICE_BYTES = 2**27
"""Limit on the bytes that the engine keeps for the slices of a session.  Beyond it, the slices that were not used for
longest are dropped, and rebuilt from their steps when they are needed."""
STEP_BYTES = 2**17
"""Bytes that one step of an object takes, roughly: the network's answer, in levels."""

PromptStep = ops.PromptOp | ops.MaskOp


@dataclass(slots=True)
class Steps:
    """What was done to one object on one slice; the next step to redo is the last of `undone`."""

    done: list[PromptStep] = field(default_factory=list)
    undone: list[PromptStep] = field(default_factory=list)

    def prompts(self) -> list[ops.PromptOp]:
        """The prompts in effect since the last loaded mask, or from the last box on."""
        found: list[ops.PromptOp] = []
        for step in reversed(self.done):
            if isinstance(step, ops.MaskOp):
                break
            found.append(step)
            if isinstance(step, ops.BoxOp):
                break
        return found[::-1]


@dataclass(slots=True)
class _EngineSlice:
    """The engine's side of a slice."""

    session: Session
    numbers: dict[int, int] = field(default_factory=dict)
    """Our number of an object -> the number that the engine's session has for it."""

    def select(self, number: int) -> None:
        """Make an object the session's current one; an object that the session does not have yet is begun."""
        if number not in self.numbers:
            fresh = self.session.next_object()
            for other in [n for n, mine in self.numbers.items() if mine == fresh]:  # begun, but never clicked
                del self.numbers[other]
            self.numbers[number] = fresh
        self.session.select_object(self.numbers[number])

    def mask(self, number: int) -> NDArray[np.bool_] | None:
        """The mask of an object, None where it was never touched."""
        return self.session.mask_of(self.numbers[number]) if number in self.numbers else None

    def delete(self, number: int) -> None:
        """Remove an object, if it was ever touched."""
        gone = self.numbers.pop(number, None)
        if gone is not None:
            self.session.delete_object(gone)
            self.numbers = {n: mine - (mine > gone) for n, mine in self.numbers.items()}


class Work:
    """A session as clients see it.  All methods run in the event loop's thread, except those that say otherwise."""

    def __init__(
        self,
        identity: str,
        engine: Engine,
        batches: Batches,
        threads: ThreadPoolExecutor,
        *,
        journal: Journal | None,
        fsync: bool,
        most_steps: int,
    ) -> None:
        self.id = identity
        self.picture: Planes | None = None
        self.objects: dict[int, str] = {1: ""}
        """Number -> name, oldest first."""
        self.current = 1
        self.index = 0
        """The current slice."""
        self.window: Window | None = None
        self.seq = 0
        """Number of the last request of a page that was dealt with."""
        self.version = 0
        """Goes up with every request that may change a mask."""
        self.touched = time.monotonic()
        self.connections = 0
        """Pages and requests that keep the session in memory."""
        self._closed = False
        self.lock = asyncio.Lock()
        self._newest = 1
        self._steps: dict[tuple[int, int], Steps] = {}
        self._slices: OrderedDict[int, _EngineSlice] = OrderedDict()
        self._answered: tuple[int, NDArray[np.bool_]] | None = None
        """The version that the last prompt made, and the mask that it gave to the current object."""
        self._engine, self._batches, self._threads = engine, batches, threads
        self._journal, self._fsync, self._most_steps = journal, fsync, most_steps

    # --- the picture ---

    async def set_picture(self, picture: Planes, source: dict[str, Any], data: bytes | None = None) -> None:
        """Start on a picture.

        Args:
            picture: decoded.
            source: what the journal keeps of where it came from.
            data: the file's content, for the journal to keep; None if the picture lies in the server's folder.

        Raises:
            GoneError: the session has ended.
            StorageError: the disk does not take it.
        """
        async with self.lock:  # of two that come at once, the second's event and bytes follow the first's
            self._alive()
            if self._journal is not None:
                if data is not None:
                    await self.run(self._journal.write_picture, data)
                self._journal.append({"op": "picture", "name": picture.name, **source})
                await self.run(self._journal.sync)
            self.begin(picture)

    def begin(self, picture: Planes) -> None:
        """Put a picture in place, without any steps."""
        self.let_go()
        self.picture = picture
        self.objects, self.current, self._newest, self.index = {1: ""}, 1, 1, 0
        self._steps = {}
        self.window = picture.default_window() if picture.windowed else None
        self.version += 1

    def opened(self) -> Planes:
        """The picture.

        Raises:
            GoneError: the session has ended.
            ConflictError: there is none yet.
        """
        self._alive()
        if self.picture is None:
            raise ConflictError("the session has no picture yet; send one first")
        return self.picture

    def _alive(self) -> None:
        if self._closed:
            raise GoneError("the session was ended or left memory while this waited; open it again")

    # --- requests ---

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the session in memory, though nobody may hold its lock."""
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1
            self.touched = time.monotonic()

    async def perform(self, op: ops.AnyOp, picture: Planes | None = None) -> bool:
        """Carry out a request.  Returns False if there was nothing to do or the request was carried out before.

        When this returns, the request is in the journal.  A caller that goes away does not stop it half way.

        Args:
            op: the request.
            picture: what it was made for, if that is known; on another picture it is refused.
        """
        with self.kept():
            return await asyncio.shield(asyncio.ensure_future(self._perform(op, picture)))

    async def _perform(self, op: ops.AnyOp, picture: Planes | None) -> bool:
        async with self.lock:
            self.touched = time.monotonic()
            if op.seq is not None and op.seq <= self.seq:
                return False
            try:
                if picture not in (None, self.opened()):
                    raise ConflictError("the session was given another picture")
                if not self._possible(op):
                    return False
                if self._journal is None:
                    await self._carry_out(op)
                    self.fold(op)
                    return True
                self._journal.append(op.model_dump(exclude_none=True))
                # the disk and the network work at the same time; the answer waits for both
                safe = asyncio.ensure_future(self._sync())
                try:
                    await self._carry_out(op)
                except BaseException:
                    self._journal.append({"op": "void"})
                    await asyncio.wait([safe])
                    await self._sync()
                    raise
                try:
                    await safe
                except Exception:
                    self.let_go()  # the engine has it; what is made anew from the steps has not
                    self._journal.append({"op": "void"})
                    raise
                self.fold(op)
                return True
            finally:
                self.seq = max(self.seq, op.seq or 0)

    async def _sync(self) -> None:
        """Sync the journal, if that is wanted: what it holds then survives a power cut."""
        if self._fsync and self._journal is not None:
            await self.run(self._journal.sync)

    def _possible(self, op: ops.AnyOp, *, decode: bool = True) -> bool:
        """Whether a request has anything to do.

        Refuses a request that cannot be carried out, so that it is not written down.  Whether a mask can be decoded is
        checked only with `decode`, since that takes long.
        """
        picture = self.opened()
        steps = self.steps()
        match op:
            case ops.ClickOp() | ops.BoxOp() | ops.ScribbleOp() | ops.LassoOp() | ops.MaskOp():
                if sum(len(s.done) + len(s.undone) for s in self._steps.values()) >= self._most_steps:
                    raise TooLargeError(
                        f"the session has {self._most_steps} steps, the most that this server takes; begin another"
                    )
                if isinstance(op, ops.MaskOp):
                    if decode:
                        _decode(op, picture)
                elif isinstance(op, ops.ClickOp) and not (0 <= op.x < picture.width and 0 <= op.y < picture.height):
                    raise ServeError(
                        f"click (x={op.x}, y={op.y}) is outside the picture of width {picture.width}, height "
                        f"{picture.height}; x comes first"
                    )
            case ops.UndoOp() | ops.ResetOp():
                return bool(steps.done)
            case ops.RedoOp():
                return bool(steps.undone)
            case ops.NextOp():
                if len(self.objects) >= OBJECTS:
                    raise TooLargeError(
                        f"the session has {OBJECTS} objects, the most that it can hold; begin another session"
                    )
            case ops.SelectOp() | ops.DeleteOp() | ops.RenameOp():
                if op.object not in self.objects:
                    raise NotFoundError(
                        f"there is no object {op.object}; there are {', '.join(map(str, self.objects))}"
                    )
            case ops.SliceOp():
                if not 0 <= op.index < picture.slices:
                    raise ServeError(f"there is no slice {op.index}; slices are 0 to {picture.slices - 1}")
                return op.index != self.index
            case ops.WindowOp():
                if not picture.windowed:
                    raise ConflictError("the picture has 8 bits a channel; a window is for deeper ones")
                if not op.low < op.high:
                    raise ServeError(f"the window is ({op.low}, {op.high}); low must be below high")
        return True

    async def _carry_out(self, op: ops.AnyOp) -> None:
        """The engine's part of a request."""
        self._answered = None
        match op:
            case ops.ClickOp() | ops.BoxOp() | ops.ScribbleOp() | ops.LassoOp():
                part = await self._slice()
                part.select(self.current)
                result = await asyncio.wrap_future(self._batches.submit(part.session, op.prompt()))
                self._answered = self.version + 1, result.mask
            case ops.MaskOp():
                part = await self._slice()
                part.select(self.current)
                await self.run(part.session.load_mask, _decode(op, self.opened()))
            case ops.UndoOp() | ops.RedoOp() | ops.ResetOp():
                part = await self._slice()
                part.select(self.current)
                if isinstance(op, ops.RedoOp):
                    part.session.redo()
                else:
                    while part.session.undo() and isinstance(op, ops.ResetOp):
                        continue
            case ops.DeleteOp():
                for part in self._slices.values():
                    part.delete(op.object)
            case ops.WindowOp():
                self.let_go()

    def replay(self, op: ops.AnyOp) -> None:
        """Note a request that an earlier process carried out.

        Raises:
            ServeError: the request is not possible here.
        """
        self._follows(op)
        self.fold(op)

    def count(self, op: ops.AnyOp) -> None:
        """Note the number of a request that has no effect any more.

        Raises:
            ConflictError: it does not follow the number before it.
        """
        if op.seq is not None and op.seq <= self.seq:
            raise ConflictError(f"request {op.seq} comes after request {self.seq}")
        self.seq = max(self.seq, op.seq or 0)

    def _follows(self, op: ops.AnyOp) -> None:
        self.count(op)
        if not self._possible(op, decode=False):
            raise ConflictError(f"there is nothing to {op.op}")

    async def finish(self, op: PromptStep) -> bool:
        """Carry out the last request that an earlier process wrote down.

        That process may have stopped before it knew whether the request can be carried out.

        Returns:
            False if it cannot; then nothing has changed.

        Raises:
            ServeError: it does not fit the requests before it.
        """
        self._follows(op)
        await self._slice()
        try:
            await self._carry_out(op)
        except (InvalidClickError, InvalidPromptError, InvalidMaskError, InvalidImageError):
            return False
        self.fold(op)
        return True

    def fold(self, op: ops.AnyOp) -> None:
        """Note a request that was carried out, now or in an earlier process."""
        self.version += 1
        self.seq = max(self.seq, op.seq or 0)
        steps = self.steps()
        match op:
            case ops.ClickOp() | ops.BoxOp() | ops.ScribbleOp() | ops.LassoOp() | ops.MaskOp():
                steps.done.append(op)
                steps.undone.clear()
                self._steps[self.index, self.current] = steps
            case ops.UndoOp():
                steps.undone.append(steps.done.pop())
            case ops.RedoOp():
                steps.done.append(steps.undone.pop())
            case ops.ResetOp():
                while steps.done:
                    steps.undone.append(steps.done.pop())
            case ops.NextOp():
                last = max(self.objects)
                if any(s.done or s.undone for (_, n), s in self._steps.items() if n == last):
                    self._newest += 1
                    self.objects[self._newest] = ""
                self.current = max(self.objects)
            case ops.SelectOp():
                self.current = op.object
            case ops.DeleteOp():
                del self.objects[op.object]
                self._steps = {key: s for key, s in self._steps.items() if key[1] != op.object}
                if not self.objects:
                    self._newest += 1
                    self.objects[self._newest] = ""
                if self.current not in self.objects:
                    self.current = max((n for n in self.objects if n < op.object), default=min(self.objects))
            case ops.RenameOp():
                self.objects[op.object] = op.name
            case ops.SliceOp():
                self.index = op.index
            case ops.WindowOp():
                self.window = (op.low, op.high)

    # --- reading: under `lock`, so that no request comes between ---

    def steps(self, number: int | None = None, index: int | None = None) -> Steps:
        """The steps of an object on a slice.  Default: the current object, the current slice."""
        key = (self.index if index is None else index, self.current if number is None else number)
        return self._steps.get(key) or Steps()

    def touched_slices(self, number: int | None = None) -> list[int]:
        """Slices on which this object, or with None any object, has steps in effect."""
        return sorted({i for (i, n), s in self._steps.items() if s.done and number in (None, n)})

    async def mask(self, number: int, index: int | None = None) -> NDArray[np.bool_]:
        """bool `[H, W]`, read-only: an object on a slice."""
        picture = self.opened()
        if self._answered is not None and self._answered[0] == self.version and (number, index) == (self.current, None):
            return self._answered[1]  # without a thread's detour: somebody waits for it
        if self.steps(number, index).done:
            part = await self._slice(index)
            found = await self.run(part.mask, number)
            if found is not None:
                return found
        return np.zeros((picture.height, picture.width), np.bool_)

    async def labels(self, index: int | None = None) -> NDArray[np.int32]:
        """int32 `[H, W]`: the number of the object at each pixel of a slice; where masks overlap the higher wins."""
        picture = self.opened()
        out = np.zeros((picture.height, picture.width), np.int32)
        for number in sorted(self.objects):
            if self.steps(number, index).done:
                out[await self.mask(number, index)] = number
        return out

    async def looked_at(self) -> Session | None:
        """The engine's session with the current object selected; None if the object has no steps on this slice.

        Reading it needs no lock and sees the last finished step; compare `version` before and after.
        """
        if self.picture is None or not self.steps().done:
            return None
        part = await self._slice()
        part.select(self.current)
        return part.session

    async def prepare(self) -> None:
        """Have the network look at what is shown, before the first click comes."""
        async with self.lock:
            if self.picture is not None:
                part = await self._slice()
                part.select(self.current)
                self._batches.prepare(part.session)

    async def pixels(self, index: int | None = None) -> NDArray[np.uint8]:
        """uint8 `[H, W]` or `[H, W, 3]`: a slice as it is shown."""
        return await self.run(self.opened().pixels, self.index if index is None else index, self.window)

    def state(self) -> dict[str, Any]:
        """Everything that a client has to know, apart from the masks, as JSON values."""
        picture = self.picture
        return {
            "id": self.id,
            "picture": None
            if picture is None
            else {
                "name": picture.name,
                "width": picture.width,
                "height": picture.height,
                "slices": picture.slices,
                "range": picture.range() if picture.windowed else None,
                "region": None if picture.region is None else asdict(picture.region),
            },
            "slice": self.index,
            "window": self.window,
            "object": self.current,
            "objects": [self.describe(number) for number in self.objects],
            "seq": self.seq,
        }

    def describe(self, number: int) -> dict[str, Any]:
        """An object's part of `state`."""
        steps = self.steps(number)
        return {
            "number": number,
            "name": self.objects[number],
            "clicks": [[c.x, c.y, c.positive] for c in steps.prompts() if isinstance(c, ops.ClickOp)],
            "prompts": [p.model_dump(exclude={"seq"}) for p in steps.prompts()],
            "undo": len(steps.done),
            "redo": len(steps.undone),
            "slices": self.touched_slices(number),
        }

    # --- lifetime ---

    def close(self) -> None:
        """Let go of everything in memory; the journal stays.  Requests that still wait are refused."""
        self._closed = True
        self.let_go()
        self.picture = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def let_go(self) -> None:
        """Drop what the engine keeps for the slices; nothing that a person made is lost."""
        for part in self._slices.values():
            part.session.close()
        self._slices.clear()
        self._answered = None

    async def _slice(self, index: int | None = None) -> _EngineSlice:
        index = self.index if index is None else index
        if index not in self._slices:
            self._slices[index] = await self.run(self._build, index)
        self._slices.move_to_end(index)
        kept = sum(map(self._bytes_of, self._slices))
        while kept > SLICE_BYTES and len(self._slices) > 1:
            oldest = next(iter(self._slices))
            kept -= self._bytes_of(oldest)
            self._slices.pop(oldest).session.close()
        return self._slices[index]

    def _bytes_of(self, index: int) -> int:
        """About what the engine keeps for a slice: its pixels, two masks, and its steps."""
        picture = self.opened()
        channels = 3 if picture.planes.ndim == 4 else 1
        steps = sum(len(s.done) + len(s.undone) for (where, _), s in self._steps.items() if where == index)
        return picture.height * picture.width * (channels + 2) + STEP_BYTES * steps

    def _build(self, index: int) -> _EngineSlice:
        """The engine's session of a slice, with the slice's steps carried out on it.  Runs in a worker thread.

        A step that the engine refuses, because its line in the journal was damaged or an older version was less strict,
        is left out, which the log says.  The steps around it stay.
        """
        picture = self.opened()
        session = Session(engine=self._engine, wait=math.inf)  # who ends a session waits for the click under way
        session.set_image(picture.pixels(index, self.window), copy=False)
        part = _EngineSlice(session)
        for (where, number), steps in self._steps.items():
            if where == index:
                part.select(number)
                steps.done[:] = [s for s in steps.done if self._repeated(session, s, number, index)]
                again = [s for s in reversed(steps.undone) if self._repeated(session, s, number, index)]
                steps.undone[:] = again[::-1]
                for _ in steps.undone:
                    session.undo()
        return part

    def _repeated(self, session: Session, step: PromptStep, number: int, index: int) -> bool:
        """Carry out a step that was carried out before; False if that is not possible."""
        try:
            if isinstance(step, ops.MaskOp):
                session.load_mask(_decode(step, self.opened()))
            else:
                click_batch([session], [step.prompt()])
        except (InvalidClickError, InvalidPromptError, InvalidMaskError, InvalidImageError) as error:
            _log.warning(
                "session %s, slice %d, object %d: a %s cannot be carried out and is left out: %s",
                self.id,
                index,
                number,
                step.op,
                error,
            )
            return False
        return True

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Call a function in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _decode(op: ops.MaskOp, picture: Planes) -> NDArray[np.bool_]:
    try:
        data = base64.b64decode(op.png, validate=True)
    except ValueError as error:
        raise InvalidMaskError("the mask is not base64") from error
    height, width = image_size(data)
    if (height, width) == (picture.height, picture.width):
        found: NDArray[np.bool_] = load_labels(data, any_colour=True) != 0
        return found
    raise InvalidMaskError(
        f"the mask is {width} wide and {height} high, the picture {picture.width} and {picture.height}; "
        "they must be the same"
    )
