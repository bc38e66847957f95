"""The routes: the page, the REST interface under /v1, the WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
from fastapi import Body, FastAPI, Query, Request, Response, WebSocket
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from activefreq_engine import __version__, masks
from activefreq_engine.errors import ActiveFreqError, FileWriteError
from activefreq_engine.overlay import heat_colours
from activefreq_engine.serve import exports, label_studio, nninteractive, ops, samapi, x_anylabeling
from activefreq_engine.serve.errors import (
    ConflictError,
    GoneError,
    NotFoundError,
    ServeError,
    StorageError,
    TooLargeError,
)
from activefreq_engine.serve.live import AGAIN, NO_SESSION, Lives
from activefreq_engine.serve.pictures import readable
from activefreq_engine.serve.progress import PictureState
from activefreq_engine.serve.security import FAILED, JSON_BYTES, Gate, Guard
from activefreq_engine.serve.sessions import Sessions
from activefreq_engine.serve.work import Work

PAGE = Path(__file__).parent / "page"
SWEEP_S = 5.0
"""Seconds between two checks for idle sessions."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PAGE_FILES = {f.name for f in PAGE.iterdir() if f.suffix in _TYPES}


class Problem(BaseModel):
    """What went wrong, in words."""

    detail: str


_WORDS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Problem}
    for status, text in {
        400: "The request cannot be understood, or not be carried out",
        401: "The token is missing or wrong",
        403: "From another site, or by a name that is not this server's",
        404: "No such thing",
        408: "The body of the request did not come in time",
        409: "Not in the session's present state",
        410: "The session is over",
        413: "Too large",
        422: "A parameter is not of the right kind",
        503: "All places are taken",
        507: "The disk takes nothing more",
    }.items()
}

_EXPORTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file",
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/png", "application/gzip")},
            **{kind: {"schema": {"type": "object"}} for kind in ("application/json", "application/geo+json")},
        },
    }
}

Pixel = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class NewSession(BaseModel):
    """How a session begins."""

    model_config = ConfigDict(extra="forbid")
    picture: str | None = None
    """A picture of the server's folder, by its name in `GET /v1/pictures`; it keeps its session."""
    box: tuple[Pixel, Pixel, Pixel, Pixel] | None = None
    """The region of a slide, (x0, y0, x1, y1) in pixels of its full size.  Default: the whole slide, coarsely."""


class PictureStatus(BaseModel):
    """Whether a picture of the folder is open, done or skipped."""

    model_config = ConfigDict(extra="forbid")
    picture: str
    status: PictureState


class StepReply(BaseModel):
    """The current object after a request."""

    changed: bool
    """False when there was nothing to do."""
    object: dict[str, Any]
    area: int
    """Pixels inside."""
    rle: dict[str, Any] | None
    """The mask in COCO's compressed run lengths; null if the request said `rle=false`."""


Rle = Annotated[bool, Query(description="Send the mask along as run lengths")]
Identity = Annotated[str, PathParameter(description="The session's id", max_length=64)]


def create_app(sessions: Sessions, gate: Gate, studio: label_studio.LabelStudio | None = None) -> Any:
    """The server as an ASGI application, guarded by `gate`.  It closes `sessions` and `studio` when it shuts down."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.ensure_future(_sweep(sessions))
        try:
            yield
        finally:
            sweeper.cancel()
            sessions.close()
            if studio is not None:
                studio.close()

    app = FastAPI(
        title="activefreq",
        version=__version__,
        description="Click-based interactive image segmentation. Coordinates are (x, y) in image pixels.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere; ours is /api.html
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses=_WORDS,
    )
    app.add_exception_handler(ActiveFreqError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    lives = Lives(sessions, gate)

    @app.websocket("/v1/sessions/{identity}/live")
    async def live(socket: WebSocket, identity: str) -> None:
        await lives.serve(socket, identity)

    _server_routes(app, sessions)
    _session_routes(app, sessions, lives)
    _reading_routes(app, sessions)
    _folder_routes(app, sessions)
    nninteractive.add_routes(app, sessions, _body)
    label_studio.add_routes(app, sessions, studio, _body)
    samapi.add_routes(app, sessions)
    x_anylabeling.add_routes(app, sessions)
    _page_routes(app)
    limits = sessions.limits
    return Guard(app, gate, is_open=_is_open, most=lambda path: limits.upload if _is_large(path) else JSON_BYTES)


def _server_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.get("/v1/health")
    async def health() -> dict[str, bool]:
        """Whether the server answers; needs no token."""
        return {"ok": True}

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        """Versions, model, limits, and the kinds of files that can be read here."""
        limits = sessions.limits
        return {
            "version": __version__,
            "model": sessions.engine.name,
            "size": sessions.engine.size,
            "device": str(sessions.engine.device),
            "precision": sessions.engine.precision,
            "sessions": len(sessions),
            "folder": sessions.folder is not None,
            "journal": sessions.journals is not None,
            "reads": readable(),
            "exports": list(exports.FORMATS),
            "limits": {name: getattr(limits, name) for name in limits.__slots__},
        }


def _session_routes(app: FastAPI, sessions: Sessions, lives: Lives) -> None:
    @app.post("/v1/sessions", status_code=201)
    async def create_session(body: NewSession | None = None) -> dict[str, Any]:
        """Begin a session, with a picture of the server's folder if one is named."""
        if body is None or body.picture is None:
            if body is not None and body.box is not None:
                raise ServeError("a box was given without a picture; name the picture of the folder as well")
            work = await sessions.create()
        else:
            work = await sessions.of_picture(body.picture, body.box)
        return work.state()

    @app.get("/v1/sessions/{identity}")
    async def get_session(identity: Identity) -> dict[str, Any]:
        """The state: picture, objects and their clicks."""
        work = await sessions.get(identity)
        async with work.lock:
            return work.state()

    @app.delete("/v1/sessions/{identity}", status_code=204)
    async def delete_session(identity: Identity) -> None:
        """End a session and delete its journal."""
        work = await sessions.get(identity)
        async with work.lock:  # a click under way ends first, and nobody else waits for it
            sessions.drop(identity)
        await lives.hang_up(identity, NO_SESSION, "the session is over")

    @app.put(
        "/v1/sessions/{identity}/image",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def put_image(
        request: Request, identity: Identity, name: Annotated[str, Query(max_length=200)] = "picture"
    ) -> dict[str, Any]:
        """Send a picture: the file's bytes as the body, its name in the query.  Earlier steps are forgotten."""
        work = await sessions.get(identity)
        with work.kept():  # a slow upload keeps its session
            await sessions.put_picture(work, await _body(request, sessions.limits.upload), name)
        await lives.hang_up(identity, AGAIN, "the session was given another picture")
        async with work.lock:
            return work.state()

    async def step(identity: str, op: ops.AnyOp, rle: bool) -> StepReply:
        work = await sessions.get(identity)
        changed = await work.perform(op)
        async with work.lock:
            mask = await work.mask(work.current)
            found = await work.run(masks.to_coco_rle, mask) if rle else None
            return StepReply(
                changed=changed, object=work.describe(work.current), area=int(np.count_nonzero(mask)), rle=found
            )

    @app.post("/v1/sessions/{identity}/clicks")
    async def click(identity: Identity, body: ops.ClickOp, rle: Rle = True) -> StepReply:
        """Click on the current object."""
        return await step(identity, body, rle)

    @app.post("/v1/sessions/{identity}/prompts")
    async def prompt(identity: Identity, body: ops.PromptBody, rle: Rle = True) -> StepReply:
        """A click, a box, a scribble or a lasso on the current object; `op` says which, and may be left out for a
        click."""
        return await step(identity, body, rle)

    @app.post("/v1/sessions/{identity}/mask")
    async def load_mask(identity: Identity, body: ops.MaskOp, rle: Rle = True) -> StepReply:
        """Start the current object anew from a mask."""
        return await step(identity, body, rle)

    @app.post("/v1/sessions/{identity}/undo")
    async def undo(identity: Identity, rle: Rle = True) -> StepReply:
        """Take back the current object's last step."""
        return await step(identity, ops.UndoOp(), rle)

    @app.post("/v1/sessions/{identity}/redo")
    async def redo(identity: Identity, rle: Rle = True) -> StepReply:
        """Do the last undone step again."""
        return await step(identity, ops.RedoOp(), rle)

    @app.post("/v1/sessions/{identity}/reset")
    async def reset(identity: Identity, rle: Rle = True) -> StepReply:
        """Undo all of the current object's steps; redo brings them back."""
        return await step(identity, ops.ResetOp(), rle)

    async def perform(identity: str, op: ops.AnyOp) -> dict[str, Any]:
        work = await sessions.get(identity)
        await work.perform(op)
        async with work.lock:
            return work.state()

    @app.post("/v1/sessions/{identity}/objects")
    async def next_object(identity: Identity) -> dict[str, Any]:
        """Go to a new object."""
        return await perform(identity, ops.NextOp())

    @app.post("/v1/sessions/{identity}/objects/{number}/select")
    async def select_object(identity: Identity, number: int) -> dict[str, Any]:
        """Go back to an object."""
        return await perform(identity, ops.SelectOp(object=number))

    @app.put("/v1/sessions/{identity}/objects/{number}/name")
    async def rename_object(
        identity: Identity, number: int, name: Annotated[str, Body(embed=True, max_length=100)]
    ) -> dict[str, Any]:
        """Name an object."""
        return await perform(identity, ops.RenameOp(object=number, name=name))

    @app.delete("/v1/sessions/{identity}/objects/{number}")
    async def delete_object(identity: Identity, number: int) -> dict[str, Any]:
        """Remove an object with all its steps."""
        return await perform(identity, ops.DeleteOp(object=number))

    @app.put("/v1/sessions/{identity}/slice")
    async def go_to_slice(identity: Identity, index: Annotated[int, Body(embed=True)]) -> dict[str, Any]:
        """Go to a slice of a volume, counted from 0."""
        return await perform(identity, ops.SliceOp(index=index))

    @app.put("/v1/sessions/{identity}/window")
    async def set_window(identity: Identity, body: ops.WindowOp) -> dict[str, Any]:
        """Set the values that are shown as black and as white; all clicks are then made anew."""
        return await perform(identity, body)


def _reading_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.get("/v1/sessions/{identity}/image", response_class=Response, responses=_file("image/png"))
    async def get_image(
        identity: Identity, slice_: Annotated[int | None, Query(alias="slice", ge=0)] = None
    ) -> Response:
        """The picture, or a slice of it, as the network sees it."""
        work = await sessions.get(identity)
        if slice_ is not None and slice_ >= work.opened().slices:
            raise NotFoundError(f"there is no slice {slice_}; slices are 0 to {work.opened().slices - 1}")
        data = await work.run(_png, await work.pixels(slice_))
        return Response(data, media_type="image/png", headers={"cache-control": "no-store"})

    @app.get("/v1/sessions/{identity}/suggestions")
    async def suggestions(identity: Identity, k: Annotated[int, Query(ge=1, le=20)] = 3) -> list[dict[str, Any]]:
        """Where the next click is worth most, best first."""
        work = await sessions.get(identity)
        async with work.lock:
            session = await work.looked_at()
            found = [] if session is None else await work.run(session.suggest, k)
        return [
            {"x": s.x, "y": s.y, "positive": s.positive, "score": s.score, "box": s.region_bbox, "area": s.area}
            for s in found
        ]

    @app.get("/v1/sessions/{identity}/uncertainty", response_class=Response, responses=_file("image/png"))
    async def uncertainty(identity: Identity, colours: bool = False) -> Response:
        """Entropy of the current object, 0 to 1 bit: grey 0 to 255, or a heat map in colours."""
        work = await sessions.get(identity)
        async with work.lock:
            picture, session = work.opened(), await work.looked_at()
            values = np.zeros((picture.height, picture.width), np.float32)
            if session is not None:
                values = await work.run(lambda: session.uncertainty)
        shown = heat_colours(values) if colours else np.rint(values * 255).astype(np.uint8)
        return Response(await work.run(_png, shown), media_type="image/png")

    @app.get("/v1/sessions/{identity}/exports/{format_}", response_class=Response, responses=_EXPORTS)
    async def export(identity: Identity, format_: Literal["png", "labels", "coco", "geojson", "nifti"]) -> Response:
        """The masks as a file; `png` is the current object alone."""
        work = await sessions.get(identity)
        async with work.lock:
            data, media, ending = await exports.FORMATS[format_](work)
            name = _stem(work) + ending
        disposition = f"attachment; filename*=UTF-8''{quote(name)}"
        return Response(data, media_type=media, headers={"content-disposition": disposition})


def _folder_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.get("/v1/pictures")
    async def pictures() -> list[dict[str, Any]]:
        """The pictures of the server's folder, with their sessions and whether they are done."""
        folder, progress = sessions.folder_or_refuse()
        names = await asyncio.to_thread(folder.names)
        return [
            {
                "name": n,
                "status": progress.status.get(n, "open"),
                "session": progress.sessions.get(n),
                "regions": [{"box": b, "session": s} for b, s in progress.regions.get(n, {}).items()],
            }
            for n in names
        ]

    @app.put("/v1/pictures/status")
    async def set_status(body: PictureStatus) -> dict[str, str]:
        """Say that a picture is done, skipped, or open again."""
        folder, progress = sessions.folder_or_refuse()
        if body.picture not in await asyncio.to_thread(folder.names):
            raise NotFoundError(f"there is no picture {body.picture!r} in the folder")
        progress.mark(body.picture, body.status)
        return {"picture": body.picture, "status": body.status}

    @app.get("/v1/pictures/coco")
    async def folder_coco() -> Response:
        """All pictures of the folder that are done, as one COCO file."""
        folder, progress = sessions.folder_or_refuse()
        document = exports.empty_coco()
        for name in await asyncio.to_thread(folder.names):
            if progress.status.get(name) != "done":
                continue
            for identity in progress.all_sessions(name):
                try:
                    work = await sessions.get(identity)
                except (NotFoundError, GoneError) as error:
                    raise ConflictError(
                        f"{name} is done, but its session is gone; open the picture anew, or take the mark back"
                    ) from error
                async with work.lock:
                    document = await exports.coco_document(work, name, document)
        headers = {"content-disposition": "attachment; filename*=UTF-8''annotations.json"}
        return JSONResponse(document, headers=headers)

    @app.get("/v1/pictures/geojson")
    async def slide_geojson(picture: str) -> Response:
        """The outlines of all objects in a slide and in its regions, in pixels of the slide's full size."""
        _, progress = sessions.folder_or_refuse()
        found = []
        for identity in progress.all_sessions(picture):
            work = await sessions.get(identity)
            async with work.lock:
                found += await exports.features(work)
        name = quote(f"{Path(picture).stem}.geojson")
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{name}"}
        return JSONResponse(exports.feature_collection(found), headers=headers)


def _page_routes(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return await page_file("index.html")

    @app.get("/{name}", include_in_schema=False)
    async def page_file(name: str) -> FileResponse:
        if name not in _PAGE_FILES:
            raise NotFoundError(f"there is no page {name!r}")
        headers = {"cache-control": "no-cache"}
        return FileResponse(PAGE / name, media_type=_TYPES[Path(name).suffix], headers=headers)


async def _sweep(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        sessions.sweep()


async def _problem(_: Request, error: Exception) -> Response:
    status = StorageError.status if isinstance(error, FileWriteError) else 400
    return JSONResponse({"detail": str(error)}, getattr(error, "status", status))


async def _failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"detail": FAILED}, 500)  # the exception goes on to the guard, which logs it


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)


async def _body(request: Request, most: int) -> bytes:
    """The whole body; raises as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    out = bytearray()
    if not (announced.isdecimal() and int(announced) > most):
        async for chunk in request.stream():
            out += chunk
            if len(out) > most:
                break
        else:
            return bytes(out)
    raise TooLargeError(f"the request has more than {most} bytes, which is what this server takes")


def _file(media: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "The file", "content": {media: {"schema": {"type": "string", "format": "binary"}}}}}


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _stem(work: Work) -> str:
    name = work.opened().name
    lowered = name.lower()
    for ending in (".nii.gz", ".ome.tif", ".ome.tiff"):
        if lowered.endswith(ending):
            return name[: -len(ending)]
    return Path(name).stem or "picture"


def _is_open(path: str) -> bool:
    return path in ("/", "/v1/health", "/healthz") or path.removeprefix("/") in _PAGE_FILES


def _is_large(path: str) -> bool:
    if path in (*nninteractive.ARRAY_PATHS, samapi.PATH, x_anylabeling.PREDICT):
        return True
    if path.startswith(label_studio.PREFIX + "/"):
        return True
    return path.startswith("/v1/sessions/") and path.endswith(("/image", "/mask"))
