"""The WebSocket of a session: requests in as JSON, masks out as frames.

The page says hello (with the token, if one is needed), and the server sends the state and every mask.  Then the page
sends requests with rising numbers, beginning with those that an earlier connection left unanswered.  Each is answered,
in order, by a mask frame if the mask changed, then by "done" or "error".  Suggestions and the uncertainty follow when
no request waits.  What was received is carried out, also if the page has gone away by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from numpy.typing import NDArray

from activefreq_engine.errors import ActiveFreqError, NoImageError, SessionClosedError
from activefreq_engine.serve import frames, ops
from activefreq_engine.serve.errors import GoneError, ServeError
from activefreq_engine.serve.pictures import Planes
from activefreq_engine.serve.security import FAILED, Gate
from activefreq_engine.serve.sessions import Sessions
from activefreq_engine.serve.work import Work

HELLO_S = 10.0
"""Seconds within which a new connection must say hello."""
WAITING = 64
"""Most requests that are read ahead; further ones stay in the network's buffers."""
REST_S = 0.1
"""Seconds without a request after which what is shown is prepared for a click: not every slice that scrolls by."""
LARGE = 2**16
"""After a request of more characters, the next one is read when all before it are answered."""
UNAUTHORISED, NO_SESSION, TAKEN_OVER, BROKEN, AGAIN = 4401, 4404, 4409, 4400, 1012
"""Close codes; at `AGAIN` the page connects anew."""

_ON_STEPS = (
    "click",
    "box",
    "scribble",
    "lasso",
    "mask",
    "undo",
    "redo",
    "reset",
)  # requests that change the current object only
_log = logging.getLogger(__name__)


class Live:
    """One connection to one session."""

    def __init__(self, socket: WebSocket, work: Work, hint_thread: Executor) -> None:
        self._socket, self._work, self._hint_thread = socket, work, hint_thread
        self._shown: dict[int, NDArray[np.bool_]] = {}
        """The mask of each object that the page has, on the current slice."""
        self._unsent: set[int] = set()
        """Objects whose masks changed since then."""
        self._requests: asyncio.Queue[tuple[dict[str, Any], float]] = asyncio.Queue(WAITING)
        self._uncertainty = False
        self._hints: asyncio.Task[None] | None = None
        self._picture: Planes | None = None
        """What the page shows."""
        self._gone = False
        """Nobody is there to be told anything."""
        self._hung_up = asyncio.Event()
        self.ended = asyncio.Event()
        """Everything that was received is carried out."""

    async def run(self) -> None:
        """Serve until the page goes away or is hung up on."""
        await self._send_all()
        self._hint()
        reader = asyncio.ensure_future(self._read())
        worker = asyncio.ensure_future(self._serve())
        tasks: list[asyncio.Future[Any]] = [reader, worker, asyncio.ensure_future(self._hung_up.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            tasks.append(rest := asyncio.ensure_future(self._requests.join()))
            await asyncio.wait([rest, worker], return_when=asyncio.FIRST_COMPLETED)
            for task in (worker, reader):
                if task.done():
                    task.result()
        finally:
            for ended in tasks if self._hints is None else [*tasks, self._hints]:
                ended.cancel()
                with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError, ServeError):
                    await ended

    async def hang_up(self, code: int, reason: str) -> None:
        """Close the connection; returns when what was received is carried out."""
        self._gone = True
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.close(code, reason)
        self._hung_up.set()  # who is cut off would not be heard to go
        await self.ended.wait()

    async def _read(self) -> None:
        try:
            while True:
                text = await receive(self._socket)
                await self._requests.put((decode(text), time.perf_counter()))
                if len(text) > LARGE:
                    await self._requests.join()
        except WebSocketDisconnect:
            self._gone = True
            raise

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        if self._gone:
            return
        try:
            if isinstance(message, bytes):
                await self._socket.send_bytes(message)
            else:
                await self._socket.send_json(message)
        except (WebSocketDisconnect, RuntimeError) as error:
            # RuntimeError is what the library raises for a socket that was closed from our side
            _log.debug("connection to %s ended: %r", self._work.id, error)
            self._gone = True

    async def _serve(self) -> None:
        while True:
            message, start = await self._requests.get()
            await self._answer(message, start)
            self._requests.task_done()

    async def _answer(self, message: dict[str, Any], start: float) -> None:
        work = self._work
        seq = message.get("seq")
        try:
            if message.get("op") == "uncertainty":
                self._uncertainty = message.get("on") is True
                self._hint()
                await self._catch_up(start)
                return
            op = ops.parse(message)
            if op.seq is None:
                raise ServeError("the request has no seq; number the requests upwards from 1")
            changed = await work.perform(op, self._picture)
        except GoneError:
            raise
        except ActiveFreqError as error:
            await self._catch_up(start)
            await self._send({"type": "error", "seq": seq, "message": str(error)})
            return
        except Exception:
            _log.exception("request %s of session %s failed", message.get("op"), work.id)
            await self._catch_up(start)
            await self._send({"type": "error", "seq": seq, "message": FAILED})
            return
        if self._gone:
            return
        async with work.lock:
            if changed and isinstance(op, (ops.SliceOp, ops.WindowOp)):
                await self._send_masks()
            else:
                self._unsent |= {work.current} if changed else set()
                await self._send_changes(op.seq, start)
            state = work.state() if op.op not in _ON_STEPS else {"objects": [work.describe(work.current)]}
        done = {"type": "done", "op": op.op, **state, "seq": op.seq, "ms": (time.perf_counter() - start) * 1e3}
        await self._send(done)
        if self._requests.empty():
            self._hint()

    async def _catch_up(self, start: float) -> None:
        async with self._work.lock:
            await self._send_changes(self._work.seq, start)

    async def _send_changes(self, seq: int, start: float) -> None:
        """Send the masks that changed, unless a request waits: they would be stale when they arrived, and its answer
        brings them, even if it changes nothing itself."""
        if not self._requests.empty() or self._gone:
            return
        self._shown = {n: m for n, m in self._shown.items() if n in self._work.objects}
        for number in sorted(self._unsent.intersection(self._work.objects)):
            mask = await self._work.mask(number)
            box = frames.changed_box(self._shown.get(number), mask)
            self._shown[number] = mask
            elapsed = (time.perf_counter() - start) * 1e3
            await self._send(frames.mask_frame(mask, box, number=number, seq=seq, elapsed_ms=elapsed))
        self._unsent.clear()

    async def _send_all(self) -> None:
        async with self._work.lock:
            self._picture = self._work.picture
            await self._send({"type": "state", **self._work.state()})
            if self._work.picture is not None:
                await self._send_masks()

    async def _send_masks(self) -> None:
        self._shown = {}
        self._unsent.clear()
        for number in self._work.objects:
            mask = self._shown[number] = await self._work.mask(number)
            box = frames.changed_box(None, mask)
            frame = frames.mask_frame(mask, box, number=number, seq=self._work.seq, elapsed_ms=0, whole=True)
            await self._send(frame)

    def _hint(self) -> None:
        """Begin to send suggestions and uncertainty for the present state; unfinished ones for an earlier state are
        dropped."""
        if self._gone:
            return
        if self._hints is not None:
            self._hints.cancel()
        self._hints = asyncio.ensure_future(self._send_hints())

    async def _send_hints(self) -> None:
        work = self._work
        try:
            async with work.lock:
                version, seq, number = work.version, work.seq, work.current
                session = await work.looked_at()
            if session is None:
                suggestions = []
            else:  # without the lock: the next click need not wait
                suggestions = await self._hinted(version, lambda: session.suggest(1))
            if suggestions is None or version != work.version:
                return
            items = [{"x": s.x, "y": s.y, "positive": s.positive, "score": s.score} for s in suggestions]
            await self._send({"type": "suggestions", "seq": seq, "object": number, "items": items})
            if self._uncertainty and session is not None:
                frame = await self._hinted(
                    version, lambda: frames.uncertainty_frame(session.uncertainty, number=number, seq=seq)
                )
                if frame is not None and version == work.version:
                    await self._send(frame)
            await asyncio.sleep(REST_S)
            await work.prepare()
        except (SessionClosedError, NoImageError):  # the slice or the window changed meanwhile
            _log.debug("suggestions of session %s came too late", work.id)
        except Exception:
            _log.exception("suggestions of session %s failed", work.id)

    async def _hinted(self, version: int, find: Callable[[], Any]) -> Any:
        """What `find` returns, run in the one thread for hints; None if there was a newer click before its turn
        came."""

        def unless_stale() -> Any:
            return find() if version == self._work.version else None

        return await asyncio.get_running_loop().run_in_executor(self._hint_thread, unless_stale)


class Lives:
    """The open connections: for each session the latest one."""

    def __init__(self, sessions: Sessions, gate: Gate) -> None:
        self._sessions, self._gate = sessions, gate
        self._open: dict[str, Live] = {}

    async def serve(self, socket: WebSocket, identity: str) -> None:
        """Greet a page and serve it to the end."""
        await socket.accept()
        try:
            hello = decode(await asyncio.wait_for(receive(socket), HELLO_S))
            if hello.get("type") != "hello":
                raise ServeError('the first message must be {"type": "hello"}, with the token if there is one')
            token = hello.get("token")
            self._gate.check_token(token if isinstance(token, str) else None)
            work = await self._sessions.get(identity)
        except (WebSocketDisconnect, RuntimeError):
            return
        except asyncio.TimeoutError:
            await socket.close(BROKEN, "no hello came")
            return
        except ActiveFreqError as error:
            await socket.close(_code(error), _reason(error))
            return
        live = Live(socket, work, self._sessions.hint_thread)
        before, self._open[identity] = self._open.get(identity), live
        try:
            with work.kept():
                if before is not None:
                    await before.hang_up(TAKEN_OVER, "the session was opened in another place")
                await live.run()
        except ServeError as error:
            with contextlib.suppress(RuntimeError):
                await socket.close(_code(error), _reason(error))
        except (WebSocketDisconnect, RuntimeError, asyncio.CancelledError) as error:
            _log.debug("connection to %s ended: %r", identity, error)
        finally:
            live.ended.set()
            if self._open.get(identity) is live:
                del self._open[identity]

    async def hang_up(self, identity: str, code: int, reason: str) -> None:
        """Hang up on the page that has a session open, if one has."""
        live = self._open.get(identity)
        if live is not None:
            await live.hang_up(code, reason)


async def receive(socket: WebSocket) -> str:
    """The next message.

    Raises:
        WebSocketDisconnect: there is none any more.
        ServeError: it is binary.
    """
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000), message.get("reason"))
    text = message.get("text")
    if text is None:  # `receive_text` would fail at it, with a trace in the log
        raise ServeError("the message is binary; requests are JSON, as text")
    return str(text)


def decode(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ServeError: it is none.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ServeError("the message is not JSON") from None
    if not isinstance(message, dict):
        raise ServeError("the message is not a JSON object")
    return message


def _code(error: Exception) -> int:
    return {401: UNAUTHORISED, 404: NO_SESSION, 410: NO_SESSION}.get(getattr(error, "status", 400), BROKEN)


def _reason(error: Exception) -> str:
    return str(error).encode()[:120].decode("utf-8", "ignore")  # all that a close frame holds
