"""Label Studio's protocol for ML backends: key points and rectangles in, a brush region out.

Label Studio sends all prompts of a task each time.  Each task has a session, which computes only what is new.  Pictures
are fetched from the one address that the server was started with, whatever a request says.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import math
import secrets
import string
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from fastapi import FastAPI, Request

from activefreq_engine import Session, masks
from activefreq_engine.cvat import edge_inside
from activefreq_engine.errors import ActiveFreqError
from activefreq_engine.serve.errors import NotFoundError, ServeError, TooLargeError
from activefreq_engine.serve.sessions import Sessions

PREFIX = "/label-studio"
"""Prefix of the routes: Label Studio is given this server's address with this after it."""
KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
TASKS = 16
"""Most tasks whose sessions are kept."""
FETCH_S = 20.0
"""Seconds to wait for one answer of Label Studio."""

_RECTANGLES = ("rectanglelabels", "rectangle")
_KINDS = ("keypointlabels", "keypoint", *_RECTANGLES)
"""Kinds of results that are prompts."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _TaskPrompts:
    """What a person marked in a task, in pixels."""

    points: list[tuple[float, float]]
    signs: list[int]
    box: tuple[float, float, float, float] | None
    label: str | None


@dataclass(slots=True, eq=False)
class _Task:
    """A picture that is being annotated."""

    session: Session
    lock: threading.Lock = field(default_factory=threading.Lock)


class LabelStudio:
    """One Label Studio server, and the tasks that it asked about.

    Args:
        sessions (Sessions): for the engine and the limits.
        url (str): the server's address.
        key (str, optional): a token of its API, legacy or personal.  Default: the one that Label Studio sends along
            when it is connected, which newer versions take only if legacy tokens are allowed.
    """

    def __init__(self, sessions: Sessions, url: str, key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ServeError(f"the address of Label Studio is {url!r}; expected http://HOST:PORT or https://HOST")
        self.url = url.rstrip("/")
        self._sessions, self._key, self._sent_key = sessions, key, ""
        self._tasks: OrderedDict[tuple[str, str], _Task] = OrderedDict()
        self._lock = threading.Lock()
        self._opener = urllib.request.build_opener(_SameHost(self.url))

    def set_up(self, key: str) -> None:
        """Label Studio was connected; `key` is what it sent."""
        self._sent_key = key

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """A brush region for the prompts of the request's task, in the form that Label Studio expects; no region where
        the mask is empty.

        Raises:
            ServeError: the request cannot be understood.
            InvalidImageError, InvalidClickError ...: the engine refuses the picture or the prompts.
        """
        context = _read(request, "params", "context")
        if not isinstance(context, dict):  # predictions for many tasks: nobody has said what to segment
            return {"results": []}
        listed = context.get("result")
        results = [r for r in listed if isinstance(r, dict)] if isinstance(listed, list) else []
        brush, target, variable = _tags(str(request.get("label_config", "")), results)
        task = _read(request, "tasks", 0) or {}
        source = _read(task, "data", variable)
        if not isinstance(source, str) or not source:
            raise ServeError(f"the task has no picture under {variable!r}, which the label config names")
        found = self._task(str(request.get("project", "")), source)
        with found.lock:
            height, width = found.session.shape
            prompts = _prompts(results, target, width, height)
            mask = found.session.predict(prompts.points, prompts.signs, box=prompts.box).mask
        self._sessions.batches.prepare(found.session)
        region = {
            "id": secrets.token_urlsafe(7),
            "from_name": brush,
            "to_name": target,
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "readonly": False,
            "value": {
                "format": "rle",
                "rle": masks.to_label_studio_rle(mask),
                "brushlabels": [prompts.label] if prompts.label else [],
            },
        }
        name = self._sessions.engine.name
        return {"results": [{"result": [region] if mask.any() else [], "model_version": name, "score": 1.0}]}

    def close(self) -> None:
        """Let go of the sessions."""
        with self._lock:
            for task in self._tasks.values():
                task.session.close()
            self._tasks.clear()

    # --- inside ---

    def _task(self, project: str, source: str) -> _Task:
        """The task's session; the picture is fetched when it is new."""
        key = (project.partition(".")[0], source)
        with self._lock:
            task = self._tasks.get(key)
            if task is not None:
                self._tasks.move_to_end(key)
                return task
        session = Session(engine=self._sessions.engine, wait=math.inf)
        session.set_image(self._fetch(source), max_pixels=self._sessions.limits.pixels)
        with self._lock:
            task = self._tasks.setdefault(key, _Task(session))
            while len(self._tasks) > TASKS:
                self._tasks.popitem(last=False)  # whoever is at work in it finishes
        return task

    def _fetch(self, source: str) -> bytes:
        """A picture's file from Label Studio."""
        try:
            scheme = urllib.parse.urlsplit(source).scheme
            url = urllib.parse.urljoin(self.url + "/", source.strip())
        except ValueError as error:
            raise ServeError(f"the picture is at {source[:200]!r}, which is no address: {error}") from error
        if scheme not in ("", "http", "https"):
            raise ServeError(f"the picture is at {source[:200]!r}; only those that Label Studio serves itself are read")
        # file names that people write into their tasks have spaces and other letters, which a browser takes as well
        url = urllib.parse.quote(url, safe=string.punctuation)
        if _place(url) != _place(self.url):
            raise ServeError(
                f"the picture is at {url[:200]!r}; this server takes pictures from {self.url} alone. Upload it there, "
                "or give its right address to --label-studio"
            )
        return self._get(url, self._authorization())

    def _authorization(self) -> str:
        key = self._key or self._sent_key
        if key.count(".") != 2:
            return f"Token {key}" if key else ""
        # a personal token has to be exchanged for one that holds for some minutes
        body = json.dumps({"refresh": key}).encode()
        answer = self._get(self.url + "/api/token/refresh", "", body)
        try:
            return f"Bearer {json.loads(answer)['access']}"
        except (ValueError, KeyError, TypeError) as error:
            raise ServeError(
                f"Label Studio at {self.url} gives no token for the personal one; make a new one, and give it in "
                f"{KEY_VARIABLE}"
            ) from error

    def _get(self, url: str, authorization: str, body: bytes | None = None) -> bytes:
        headers = {"User-Agent": "activefreq", **({"Authorization": authorization} if authorization else {})}
        if body is not None:
            headers["Content-Type"] = "application/json"
        most = self._sessions.limits.upload
        try:
            with self._opener.open(urllib.request.Request(url, body, headers), timeout=FETCH_S) as answer:
                data: bytes = answer.read(most + 1)
        except urllib.error.HTTPError as error:
            hint = f"; give the server a token of its API in {KEY_VARIABLE}" if error.code in (401, 403) else ""
            raise ServeError(f"Label Studio answers {error.code} for {url[:200]}{hint}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServeError(f"Label Studio at {self.url} cannot be reached: {error}") from error
        if len(data) > most:
            raise TooLargeError(f"the picture has more than {most} bytes, which is what this server takes")
        return data


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one server only: another server must not get our token, nor make us fetch from
    elsewhere."""

    def __init__(self, url: str) -> None:
        self._place = _place(url)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if _place(newurl) != self._place:
            raise ServeError(
                "Label Studio redirects to another server for the picture; pictures are taken from its own address only"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def add_routes(
    app: FastAPI, sessions: Sessions, studio: LabelStudio | None, body: Callable[[Request, int], Awaitable[bytes]]
) -> None:
    """The routes of an ML backend, under `PREFIX`."""

    def here() -> LabelStudio:
        if studio is None:
            raise NotFoundError("this server was started without a Label Studio; give --label-studio ADDRESS")
        return studio

    async def document(request: Request) -> dict[str, Any]:
        try:
            found = json.loads(await body(request, sessions.limits.upload))
        except ValueError as error:
            raise ServeError("the request is not JSON") from error
        if not isinstance(found, dict):
            raise ServeError("the request is not a JSON object")
        return found

    @app.get(PREFIX + "/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        here()
        return {"status": "UP", "model_class": "activefreq"}

    @app.post(PREFIX + "/setup", include_in_schema=False)
    async def setup(request: Request) -> dict[str, str]:
        key = (await document(request)).get("access_token")
        here().set_up(key if isinstance(key, str) else "")
        return {"model_version": sessions.engine.name}

    @app.post(PREFIX + "/predict", include_in_schema=False)
    async def predict(request: Request) -> dict[str, Any]:
        studio, asked = here(), await document(request)
        try:
            return await asyncio.get_running_loop().run_in_executor(sessions.threads, studio.answer, asked)
        except ActiveFreqError as error:
            _log.warning("Label Studio asked for a mask: %s", error)  # its page shows the status alone
            raise

    @app.post(PREFIX + "/webhook", include_in_schema=False)
    async def webhook() -> dict[str, str]:
        here()
        return {}  # nothing is trained from annotations


def _tags(config: str, results: list[dict[str, Any]]) -> tuple[str, str, str]:
    """What a label config says: the name of its brush tag, the name of the image that this tag is for, and the name of
    the task's data that the image shows.  Of several brush tags it is the first for the image of the newest prompt."""
    if "<!" in config.replace("<!--", ""):
        raise ServeError("the label config has a document type or entities, which are not read; remove them")
    try:
        tags = list(ElementTree.fromstring(config).iter())
    except ElementTree.ParseError as error:
        raise ServeError(f"the label config cannot be read: {error}") from error
    brushes = [t for t in tags if t.tag.lower() in ("brushlabels", "brush")]
    if not brushes:
        raise ServeError("the label config has no BrushLabels tag; add one, since the mask is shown in it")
    newest = next((r.get("to_name") for r in reversed(results) if r.get("type") in _KINDS), None)
    brush = next((b for b in brushes if b.get("toName") == newest), brushes[0])
    target = brush.get("toName", "")
    image = next((t for t in tags if t.tag.lower() == "image" and t.get("name") == target), None)
    if image is None:
        raise ServeError(f"the label config has no Image tag of the name {target!r}, which its BrushLabels names")
    return brush.get("name", ""), target, image.get("value", "").lstrip("$")


def _prompts(results: list[dict[str, Any]], target: str, width: int, height: int) -> _TaskPrompts:
    """Key points and the newest rectangle on the image, from percent to pixels.  Of a rotated rectangle it is the box
    around it."""
    points: list[tuple[float, float]] = []
    signs: list[int] = []
    box, label = None, None
    for result in results:
        kind = result.get("type")
        if result.get("to_name", target) != target or kind not in _KINDS:
            continue
        size = result.get("original_width"), result.get("original_height")
        if size != (width, height):
            raise ServeError(
                f"Label Studio says that the picture has (width, height) {size}, but it has {(width, height)}"
            )
        try:
            value = result["value"]
            x, y = float(value["x"]) * width / 100, float(value["y"]) * height / 100
            if kind in _RECTANGLES:
                w, h = float(value["width"]) * width / 100, float(value["height"]) * height / 100
                turn = math.radians(float(value.get("rotation") or 0))  # clockwise, around the corner (x, y)
                along, down = (w * math.cos(turn), w * math.sin(turn)), (-h * math.sin(turn), h * math.cos(turn))
                xs = [x, x + along[0], x + down[0], x + along[0] + down[0]]
                ys = [y, y + along[1], y + down[1], y + along[1] + down[1]]
                box = min(xs), min(ys), max(xs), max(ys)
            else:
                points.append((edge_inside(x, width), edge_inside(y, height)))  # 100 percent is the far edge
                signs.append(int(bool(result.get("is_positive", True))))
            label = str(value[kind][0]) if value.get(kind) else label
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise ServeError(f"a {kind} cannot be read: {type(error).__name__} {error}") from error
    return _TaskPrompts(points, signs, box, label)


def _place(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def _read(document: Any, *path: str | int) -> Any:
    """A value inside nested JSON; None where it ends early."""
    for step in path:
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int) and len(document) > step:
            document = document[step]
        else:
            return None
    return document
