"""nnInteractive's protocol, version 2, on the same port: its clients (napari, 3D Slicer, MITK ...) connect unchanged.

Own code and own weights behind a protocol that others speak; `/capabilities` says what this engine can do.  Points,
flat boxes, scribbles and lassos, an initial segmentation and undo of any depth.  A lease ends when the
client releases it, does nothing for long, or gives no sign of life; it is not journaled, for the client has the mask.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Header, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from activefreq_engine.serve import packing
from activefreq_engine.serve.errors import ConflictError, GoneError, ServeError, TooLargeError
from activefreq_engine.serve.sessions import Sessions
from activefreq_engine.serve.volume import Changed, PromptedVolume, SlicePrompt
from activefreq_engine.values import finite

LIVENESS_S = 60.0
"""Seconds without a sign of life after which a client counts as gone."""
PROTOCOL = "2.6.0"
"""The version of nnInteractive's own server whose answers these are."""
ARRAY_PATHS = (
    "/set_image",
    "/add_scribble_interaction",
    "/add_lasso_interaction",
    "/add_initial_seg_interaction",
)
"""Paths of requests whose bodies are packed arrays."""
BUFFERS = {str(t): dtype for dtype in packing.DTYPES.values() for t in (dtype, dtype.newbyteorder(">"))}
"""Types of a client's array for the mask, by NumPy's name for them.  The client exchanges the bytes itself where its
own order is another."""

Body = Callable[[Request, int], Awaitable[bytes]]
Token = Annotated[str | None, Header(alias="X-Lease-Token")]
Meta = Annotated[str, Header(alias="X-Meta")]


class Lease:
    """One client."""

    def __init__(self) -> None:
        self.volume: PromptedVolume | None = None
        self.dtype: np.dtype[Any] | None = None
        self.lock = asyncio.Lock()
        self.acted = self.alive = time.monotonic()

    def opened(self) -> PromptedVolume:
        """The client's image."""
        if self.volume is None:
            raise ConflictError("there is no image yet; call set_image first")
        return self.volume

    def close(self) -> None:
        """Let go of the image."""
        if self.volume is not None:
            self.volume.close()
            self.volume = None


class Leases:
    """The clients."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._leases: dict[str, Lease] = {}
        sessions.others = self

    def __len__(self) -> int:
        return len(self._leases)

    def claim(self) -> str:
        """A new lease; raises FullError when all places are taken."""
        self.sweep()
        self._sessions.make_room()
        token = secrets.token_urlsafe(24)
        self._leases[token] = Lease()
        return token

    def get(self, token: str | None, *, acts: bool = True) -> Lease:
        """The lease of a request.  A sign of life keeps the client from being gone; only what a person does keeps the
        lease from becoming idle."""
        self.sweep()
        lease = self._leases.get(token or "")
        if lease is None:
            raise GoneError("the lease is unknown or over; claim a new one")
        lease.alive = time.monotonic()
        if acts:
            lease.acted = lease.alive
        return lease

    async def release(self, token: str | None) -> bool:
        """End a lease, after the requests that came before; False when there was none."""
        lease = self._leases.pop(token or "", None)
        if lease is None:
            return False
        async with lease.lock:
            lease.close()
        return True

    def remaining(self, lease: Lease) -> float:
        """Seconds until a lease is idle."""
        return max(0.0, lease.acted + self._sessions.limits.idle_s - time.monotonic())

    def sweep(self) -> None:
        """End the leases of clients that are idle or gone."""
        now = time.monotonic()
        for token, lease in list(self._leases.items()):
            over = now - lease.acted > self._sessions.limits.idle_s or now - lease.alive > LIVENESS_S
            if over and not lease.lock.locked():
                del self._leases[token]
                lease.close()


def _voxel(value: float) -> int:
    """The voxel at a position; voxel i reaches from i - 0.5 to i + 0.5, as in napari, whose plug-in sends fractions."""
    return math.floor(value + 0.5)


Position = Annotated[float, Field(allow_inf_nan=False)]


class VoxelPoint(BaseModel):
    """A voxel, in array order."""

    coordinates: Annotated[list[Position], Field(min_length=3, max_length=3)]
    include_interaction: bool
    run_prediction: bool = True
    override_capability_checks: bool = False


class VoxelBox(BaseModel):
    """A box in array order, half-open; flat along one axis."""

    bbox_coords: Annotated[
        list[Annotated[list[Position], Field(min_length=2, max_length=2)]], Field(min_length=3, max_length=3)
    ]
    include_interaction: bool
    run_prediction: bool = True
    override_capability_checks: bool = False


class Buffer(BaseModel):
    """The client's array for the mask."""

    shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    dtype: str


class _MaskMeta(BaseModel):
    """What comes with the array of a scribble or an initial segmentation."""

    include_interaction: bool = True
    run_prediction: bool = True
    override_capability_checks: bool = False
    interaction_bbox: Annotated[list[tuple[int, int]], Field(min_length=3, max_length=3)] | None = None


class _ImageMeta(BaseModel):
    image_properties: dict[str, Any] | None = None


def add_routes(app: FastAPI, sessions: Sessions, read: Body) -> None:
    """Add the protocol's routes to an application; `read` takes a body of limited length."""
    leases = Leases(sessions)
    limits = sessions.limits
    tagged: dict[str, Any] = {"tags": ["nnInteractive"]}

    async def threads(function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(sessions.threads, function, *arguments)

    async def array(request: Request) -> NDArray[Any]:
        data = await read(request, limits.upload)
        found: NDArray[Any] = await threads(packing.unpack, data, limits.bytes)
        return found

    async def answer(lease: Lease, ran: bool, box: Changed | None) -> Response:
        meta: dict[str, Any] = {"ran_prediction": ran, "bbox": box}
        body = b""
        if box is not None:
            part = lease.opened().mask[tuple(slice(*b) for b in box)].astype(lease.dtype or np.uint8)
            meta.update(dtype=str(part.dtype), shape=list(part.shape))
            body = await threads(packing.pack, part)
        return Response(body, media_type="application/octet-stream", headers={"X-Meta": json.dumps(meta)})

    async def prompted(lease: Lease, prompt: SlicePrompt, run: bool) -> Response:
        volume = lease.opened()
        volume.queued.append(prompt)
        return await predict_queued(lease) if run else await answer(lease, False, None)

    async def predict_queued(lease: Lease) -> Response:
        volume = lease.opened()
        prompts, volume.queued = volume.queued, []
        box = await volume.run(prompts, threads)
        return await answer(lease, bool(prompts), box)

    @app.get("/healthz", **tagged)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/capabilities", **tagged)
    async def capabilities() -> dict[str, Any]:
        """What this engine can do, in nnInteractive's terms."""
        size = sessions.engine.size
        return {
            "supported_interactions": {
                "points": True,
                "bbox2d": True,
                "bbox3d": False,
                "scribble": True,
                "lasso": True,
            },
            "channel_mapping": {"points": [0, 1], "scribble": [2, 3]},
            "num_interaction_channels": 4,
            "supports_initial_label": True,
            "supports_zero_shot_label_refinement": False,  # a segmentation stays as it is until a prompt comes
            "preferred_scribble_thickness": [1, 1, 1],
            "interaction_decay": 1.0,
            "patch_size": [1, size, size],
            "do_autozoom": True,
            "inference_session_version": PROTOCOL,
            "license": "Apache-2.0",
            "supports_undo": True,
        }

    @app.post("/claim", **tagged)
    async def claim() -> dict[str, Any]:
        """A lease, to be sent as X-Lease-Token."""
        return {
            "lease_token": leases.claim(),
            "idle_timeout_seconds": limits.idle_s,
            "liveness_timeout_seconds": LIVENESS_S,
            "max_sessions": limits.sessions,
        }

    @app.post("/release", **tagged)
    async def release(token: Token = None) -> dict[str, bool]:
        return {"released": await leases.release(token)}

    @app.post("/heartbeat", **tagged)
    async def heartbeat(token: Token = None) -> dict[str, float]:
        return {"remaining_seconds": leases.remaining(leases.get(token, acts=False))}

    @app.get("/lease_status", **tagged)
    async def lease_status(token: Token = None) -> dict[str, float]:
        remaining = leases.remaining(leases.get(token, acts=False))
        return {"remaining_seconds": remaining, "idle_timeout_seconds": limits.idle_s}

    @app.post("/set_image", **tagged)
    async def set_image(request: Request, meta: Meta = "{}", token: Token = None) -> dict[str, Any]:
        """An image [C, X, Y, Z], packed."""
        lease = leases.get(token)
        spacing = _spacing(_parse(_ImageMeta, meta).image_properties)
        async with lease.lock:
            image = await array(request)
            if image.size > limits.pixels:
                raise TooLargeError(f"the image has {image.size} values; this server takes {limits.pixels}")
            volume = await threads(PromptedVolume, image, spacing, sessions.engine, sessions.batches)
            lease.close()
            lease.volume = volume
        return {"original_image_shape": list(image.shape)}

    @app.post("/set_target_buffer", **tagged)
    async def set_target_buffer(body: Buffer, token: Token = None) -> dict[str, Any]:
        """The shape and type of the client's array for the mask; the mask is empty then."""
        lease = leases.get(token)
        async with lease.lock:
            volume = lease.opened()
            if tuple(body.shape) != volume.shape or body.dtype not in BUFFERS:
                raise ServeError(
                    f"the buffer is {body.dtype} {body.shape}; expected {list(volume.shape)} of one of "
                    f"{', '.join(packing.DTYPES)}"
                )
            lease.dtype = BUFFERS[body.dtype]
            volume.reset()
        return {}

    @app.post("/add_point_interaction", **tagged)
    async def add_point(body: VoxelPoint, token: Token = None) -> Response:
        lease = leases.get(token)
        async with lease.lock:
            prompt = lease.opened().point([_voxel(c) for c in body.coordinates], body.include_interaction)
            return await prompted(lease, prompt, body.run_prediction)

    async def drawn(request: Request, token: str | None, meta: str, what: str) -> Response:
        lease, how = leases.get(token), _parse(_MaskMeta, meta)
        async with lease.lock:
            volume, pixels = lease.opened(), (await array(request)) != 0
            box = how.interaction_bbox or [(0, n) for n in volume.shape]
            inside = all(0 <= low < high <= n for (low, high), n in zip(box, volume.shape, strict=True))
            if not inside or pixels.shape != tuple(high - low for low, high in box):
                raise ServeError(
                    f"the {what} has shape {list(pixels.shape)} and the box {box}; expected the image's shape "
                    f"{list(volume.shape)}, or a box inside it with the {what}'s shape"
                )
            make = volume.scribble if what == "scribble" else volume.lasso
            prompt = await threads(make, pixels, [low for low, _ in box], how.include_interaction)
            return await prompted(lease, prompt, how.run_prediction)

    @app.post("/add_scribble_interaction", **tagged)
    async def add_scribble(request: Request, meta: Meta = "{}", token: Token = None) -> Response:
        """A scribble in one slice, packed."""
        return await drawn(request, token, meta, "scribble")

    @app.post("/add_lasso_interaction", **tagged)
    async def add_lasso(request: Request, meta: Meta = "{}", token: Token = None) -> Response:
        """A lasso in one slice, packed: the voxels that it encloses, or its line."""
        return await drawn(request, token, meta, "lasso")

    @app.post("/add_bbox_interaction", **tagged)
    async def add_bbox(body: VoxelBox, token: Token = None) -> Response:
        """A box in one slice: around the object, around a missing part of it, or around what does not belong to it."""
        lease = leases.get(token)
        async with lease.lock:
            corners = [(_voxel(low), _voxel(high)) for low, high in body.bbox_coords]
            prompt = lease.opened().box(corners, body.include_interaction)
            return await prompted(lease, prompt, body.run_prediction)

    @app.post("/add_initial_seg_interaction", **tagged)
    async def add_initial_seg(request: Request, token: Token = None) -> Response:
        """A mask to begin with, packed; everything but 0 is inside."""
        lease = leases.get(token)
        async with lease.lock:
            lease.opened().start_from(await array(request))
            return await answer(lease, False, None)

    @app.post("/predict", **tagged)
    async def predict(token: Token = None) -> Response:
        """Carry out the prompts that were added without a prediction."""
        lease = leases.get(token)
        async with lease.lock:
            return await predict_queued(lease)

    @app.post("/undo", **tagged)
    async def undo(token: Token = None) -> Response:
        """Take back the last prompt."""
        lease = leases.get(token)
        async with lease.lock:
            ran, box = lease.opened().undo()
            return await answer(lease, ran, box)

    @app.post("/reset_interactions", **tagged)
    async def reset_interactions(token: Token = None) -> dict[str, Any]:
        """An empty mask, and nothing to undo."""
        lease = leases.get(token)
        async with lease.lock:
            if lease.volume is not None:  # napari's plug-in resets when another image is chosen, sent or not
                lease.volume.reset()
        return {}

    @app.post("/set_do_autozoom", **tagged)
    async def set_do_autozoom(token: Token = None) -> dict[str, Any]:
        """Accepted, but without effect: this engine always looks at the region around the object."""
        leases.get(token)
        return {}


def _parse(kind: Any, meta: str) -> Any:
    try:
        return kind.model_validate_json(meta)
    except ValueError as error:
        raise ServeError("the header X-Meta is missing, or does not hold the JSON that this request needs") from error


def _spacing(properties: dict[str, Any] | None) -> list[float] | None:
    """Spacing by array axis, if it is told and makes sense."""
    found = (properties or {}).get("spacing")
    if not isinstance(found, list) or len(found) != 3:
        return None
    # napari's plug-in sends the layer's scale, which is negative on an axis that is shown the other way round
    spacing = [abs(number) for s in found if (number := finite(s)) is not None]
    return spacing if len(spacing) == 3 else None
