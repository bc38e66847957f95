"""Which sessions there are, how much each may hold, and when they are let go."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from activefreq_engine import Engine
from activefreq_engine.errors import ActiveFreqError, InvalidClickError, InvalidMaskError, InvalidPromptError
from activefreq_engine.serve import ops
from activefreq_engine.serve.batches import Batches
from activefreq_engine.serve.errors import (
    ConflictError,
    FullError,
    GoneError,
    NotFoundError,
    ServeError,
    TooLargeError,
)
from activefreq_engine.serve.journal import DamagedLineError, Journal, Journals, damaged
from activefreq_engine.serve.pictures import Folder, Planes, is_slide, read_picture, read_region
from activefreq_engine.serve.progress import Progress
from activefreq_engine.serve.work import PromptStep, Work

_log = logging.getLogger(__name__)
_REMEMBERED = 10_000  # most ended sessions that are remembered, so that clients are told that theirs has ended


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one server holds."""

    sessions: int = 32
    """Sessions in memory at once."""
    pixels: int = 2**27
    """Pixels of a picture, all slices together."""
    bytes: int = 2**30
    """Bytes of a session: the picture's file and the decoded picture together."""
    upload: int = 2**28
    """Bytes of one request with a picture."""
    steps: int = 10_000
    """Steps (prompts and masks) of a session."""
    idle_s: float = 600.0
    """Seconds without a request or a connection after which a session leaves memory; if it has a journal, it comes back
    when it is asked for."""


class Sessions:
    """The sessions of a server."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        *,
        journals: Journals | None,
        folder: Folder | None,
        fsync: bool = True,
    ) -> None:
        self.engine, self.limits, self.journals, self.folder, self.fsync = engine, limits, journals, folder, fsync
        self.progress: Progress | None = None
        if folder is not None:
            self.progress = Progress(folder.root, None if journals is None else journals.root)
        self.others: Sized = ()
        """Other takers of places: nnInteractive's leases."""
        self.batches = Batches()
        self.threads = ThreadPoolExecutor(limits.sessions + 4, "activefreq-serve")
        # only one for all sessions: suggestions for many of them must not take the processor from clicks
        self.hint_thread = ThreadPoolExecutor(1, "activefreq-hints")
        self._works: OrderedDict[str, Work] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._opening: dict[str, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._works) + len(self.others)

    async def create(self) -> Work:
        """A new session without a picture.

        Raises:
            FullError: all places are taken by sessions in use.
        """
        self.make_room()
        identity = secrets.token_urlsafe(18)
        journal = None
        if self.journals is not None:
            journal = self.journals.create(identity, self.engine.name, self.engine.size)
        return self._add(identity, journal)

    async def get(self, identity: str) -> Work:
        """A session, from memory or from its journal.

        Raises:
            NotFoundError, GoneError: there was never such a session, or it has ended.
            ConflictError: its journal cannot be used here.
        """
        async with self._opening.setdefault(identity, asyncio.Lock()):
            try:
                work = self._works.get(identity) or await self._reopen(identity)
            finally:
                self._opening.pop(identity, None)
        work.touched = time.monotonic()
        self._works.move_to_end(identity)
        return work

    async def put_picture(self, work: Work, data: bytes, name: str) -> None:
        """Decode a picture from outside and start a session's work on it.

        Raises:
            InvalidImageError, TooLargeError: the bytes cannot be used.
            GoneError: the session ended meanwhile.
        """
        picture = await self._decode(data, name)
        await work.set_picture(picture, {"sha256": hashlib.sha256(data).hexdigest()}, data)

    async def of_picture(self, path: str, box: tuple[int, int, int, int] | None = None) -> Work:
        """The session of a picture of the folder, or of a region of a slide: the existing one, else a new one.

        Raises:
            ConflictError: a region was asked for, but the picture is no slide.
            NotFoundError: there is no folder, or no such picture in it.
            InvalidImageError, TooLargeError: it cannot be used.
            FullError: as `create`.
        """
        folder, progress = self.folder_or_refuse()
        known = progress.session(path, box)
        if known is not None:
            try:
                return await self.get(known)
            except (NotFoundError, GoneError):
                _log.info("the session of %s is gone; it gets a new one", path)
        if await self._run(is_slide, folder.path(path), self.limits.pixels):
            picture = await self._run(read_region, folder.path(path), path, box)
            source = {"path": path, "box": box, "sha256": await self._run(_fingerprint, picture)}
        elif box is not None:
            raise ConflictError(f"{path} is not a slide, so it is opened whole; leave out the box")
        else:
            data = await self._run(folder.read, path, self.limits.upload)
            picture = await self._decode(data, path)
            source = {"path": path, "sha256": hashlib.sha256(data).hexdigest()}
        work = await self.create()
        try:
            await work.set_picture(picture, source)
            progress.begin(path, work.id, box)
        except BaseException:  # nobody would find the session again
            self.drop(work.id)
            raise
        return work

    def folder_or_refuse(self) -> tuple[Folder, Progress]:
        """The folder of `--images`, and its progress.

        Raises:
            NotFoundError: the server was started without one.
        """
        if self.folder is None or self.progress is None:
            raise NotFoundError("this server was started without a folder of pictures; give --images DIR")
        return self.folder, self.progress

    def drop(self, identity: str) -> None:
        """End a session for good, journal included."""
        work = self._works.pop(identity, None)
        if work is not None:
            work.close()
        if self.journals is not None:
            self.journals.drop(identity)
        self._remember(identity)

    def sweep(self) -> None:
        """Let go of sessions that nobody has used for a long time."""
        limit = time.monotonic() - self.limits.idle_s
        for identity in [i for i, w in self._works.items() if _free(w) and w.touched < limit]:
            self._release(identity)

    def close(self) -> None:
        """Let go of everything; journals stay."""
        self.batches.close()
        for identity in list(self._works):
            self._works.pop(identity).close()
        if self.progress is not None:
            self.progress.close()
        self.threads.shutdown()
        self.hint_thread.shutdown(cancel_futures=True)

    # --- inside ---

    def make_room(self) -> None:
        """Make sure that there is a place for one more session.

        Raises:
            FullError: all places are taken by sessions in use.
        """
        if len(self) < self.limits.sessions:
            return
        self.sweep()
        if len(self) >= self.limits.sessions and self.journals is not None:
            for identity in [i for i, w in self._works.items() if _free(w)][:1]:  # the one used longest ago
                self._release(identity)
        if len(self) >= self.limits.sessions:
            raise FullError(f"all {self.limits.sessions} places of this server are taken; try again later")

    def _release(self, identity: str) -> None:
        self._works.pop(identity).close()
        if self.journals is None:
            self._remember(identity)

    def _remember(self, identity: str) -> None:
        self._gone[identity] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def _add(self, identity: str, journal: Journal | None) -> Work:
        work = Work(
            identity,
            self.engine,
            self.batches,
            self.threads,
            journal=journal,
            fsync=self.fsync,
            most_steps=self.limits.steps,
        )
        self._works[identity] = work
        return work

    async def _reopen(self, identity: str) -> Work:
        if identity in self._gone:
            raise GoneError("the session is over; begin a new one")
        if self.journals is None:
            raise NotFoundError(f"there is no session {identity!r}")
        self.make_room()
        journal = await self._run(self.journals.open, identity, self.engine.name, self.engine.size)
        try:
            self.make_room()  # others came back meanwhile
        except FullError:
            journal.close()
            raise
        work = self._add(identity, journal)
        try:
            async with work.lock:  # so that `make_room` does not close it meanwhile
                await self._replay(work, journal)
        except BaseException:
            self._works.pop(identity).close()
            raise
        journal.events = []
        _log.info("session %s is back from its journal", identity)
        return work

    async def _replay(self, work: Work, journal: Journal) -> None:
        """Carry out the events of a journal on a new session.

        Raises:
            ConflictError: the events are not possible in this order.
            ActiveFreqError: the picture of the session cannot be opened.
        """
        latest = max((n for n, event in enumerate(journal.events, 1) if event.get("op") == "picture"), default=0)
        for number, (line, event) in enumerate(zip(journal.lines, journal.events, strict=True), 1):
            try:
                if event.get("op") == "picture":
                    if number < latest:  # its bytes may be gone: the journal keeps those of one picture
                        continue
                    picture = await self._picture_of(journal, event)
                    work.begin(picture)
                    continue
            except ActiveFreqError:
                raise
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
                raise damaged(journal.folder, DamagedLineError(line, error)) from error
            try:
                op = ops.parse(event)
                if number < latest:  # a new picture forgets what was done before, but a page's numbers go on
                    work.count(op)
                elif number < len(journal.events) or not isinstance(op, PromptStep):
                    work.replay(op)
                elif not await work.finish(op):
                    _log.warning("the last step of session %s cannot be carried out; it is taken back", work.id)
                    journal.append({"op": "void"})
            except (ServeError, InvalidClickError, InvalidPromptError, InvalidMaskError) as error:
                raise damaged(journal.folder, DamagedLineError(line, error)) from error

    async def _picture_of(self, journal: Journal, event: dict[str, Any]) -> Planes:
        if "box" in event:
            path = self.folder_or_refuse()[0].path(event["path"])
            picture: Planes = await self._run(read_region, path, event["path"], event["box"] and tuple(event["box"]))
            if await self._run(_fingerprint, picture) != event["sha256"]:
                raise ConflictError(
                    f"the slide {event['name']} is not the one that was clicked on; bring that one back"
                )
            return picture
        if "path" in event:
            data = await self._run(self.folder_or_refuse()[0].read, event["path"], self.limits.upload)
        else:
            data = await self._run(journal.read_picture, self.limits.upload)
        if hashlib.sha256(data).hexdigest() != event["sha256"]:
            raise ConflictError(f"the picture {event['name']} is not the one that was clicked on; bring that one back")
        return await self._decode(data, event["name"])

    async def _decode(self, data: bytes, name: str) -> Planes:
        if len(data) > self.limits.upload:
            raise TooLargeError(f"the picture has {len(data)} bytes; this server takes {self.limits.upload}")
        picture: Planes = await self._run(read_picture, data, name, self.limits.pixels)
        if len(data) + picture.planes.nbytes > self.limits.bytes:
            raise TooLargeError(f"the picture needs {picture.planes.nbytes} bytes; a session takes {self.limits.bytes}")
        return picture

    async def _run(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)


def _fingerprint(picture: Planes) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture.planes).data).hexdigest()


def _free(work: Work) -> bool:
    """Whether nobody is connected and no request is under way."""
    return work.connections == 0 and not work.lock.locked()
