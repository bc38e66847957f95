"""samapi's protocol, which QuPath's extension for Segment Anything speaks: a picture and prompts in, GeoJSON out.

The contract is what github.com/ksugar/samapi (0.6) and github.com/ksugar/qupath-extension-sam have in their code: the
extension sends the part of the slide that is on the screen, at the screen's resolution, as base64 PNG with each
request, and moves the outlines to where they belong itself.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from activefreq_engine import masks
from activefreq_engine.compat.sam import AtOncePredictor, Sam
from activefreq_engine.serve.errors import ServeError
from activefreq_engine.serve.recent import Recent
from activefreq_engine.serve.sessions import Sessions

VERSION = "0.6.1"
"""The version of samapi whose answers these are."""
PATH = "/sam/"

PixelNumber = Annotated[int, Field(ge=-(2**31), lt=2**31)]
PixelPair = Annotated[list[PixelNumber], Field(min_length=2, max_length=2)]


class SamApiRequest(BaseModel):
    """Prompts for one object; coordinates are (x, y) in pixels of the picture that comes along."""

    type: str | None = None
    """The kind of SAM that was chosen; this server's own model answers whatever it is."""
    b64img: str
    bbox: Annotated[list[PixelNumber], Field(min_length=4, max_length=4)] | None = None
    """x0, y0, x1, y1."""
    point_coords: Annotated[list[PixelPair], Field(max_length=1000)] | None = None
    point_labels: Annotated[list[Annotated[int, Field(ge=0, le=1)]], Field(max_length=1000)] | None = None
    b64mask: str | None = None
    multimask_output: bool = False
    checkpoint_url: str | None = None
    """Accepted, but without effect: nothing is fetched from addresses in requests."""


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Add the protocol's routes to an application."""
    sam = Sam(sessions.engine)

    def opened(image: NDArray[np.uint8]) -> tuple[AtOncePredictor, threading.Lock]:
        predictor = AtOncePredictor(sam)
        predictor.set_image(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
        return predictor, threading.Lock()

    recent = Recent(opened, sessions.limits.pixels)

    def answer(ask: SamApiRequest) -> list[dict[str, Any]]:
        if ask.b64mask is not None:
            raise ServeError("a mask to begin with (b64mask) is not supported; give points or a box")
        if not ask.point_coords and ask.bbox is None:
            raise ServeError("there are neither points nor a box; give at least one of them")
        predictor, lock = recent.of(ask.b64img)
        with lock:
            found, scores, _ = predictor.predict(
                point_coords=np.array(ask.point_coords, np.float64) + 0.5 if ask.point_coords else None,
                point_labels=np.array(ask.point_labels) if ask.point_labels else None,
                box=None if ask.bbox is None else np.array(ask.bbox),
                multimask_output=ask.multimask_output,
            )
        features = []
        for mask, score in zip(found, scores, strict=True):
            geometry = masks.to_geojson(mask)
            if geometry["coordinates"]:
                properties = {"objectType": "annotation", "label": "object", "quality": round(float(score), 4)}
                properties["sam_model"] = sessions.engine.name
                features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        return features

    tagged: dict[str, Any] = {"tags": ["samapi"]}

    @app.post(PATH, **tagged)
    async def predict(body: SamApiRequest) -> list[dict[str, Any]]:
        """Outlines for a point, some points or a box; one, or three if `multimask_output`."""
        return await asyncio.get_running_loop().run_in_executor(sessions.threads, answer, body)

    @app.get(PATH + "version/", response_class=Response, **tagged)
    async def version() -> Response:
        return Response(VERSION, media_type="text/plain")

    @app.get(PATH + "weights/", **tagged)
    async def weights(type: str = "vit_h") -> list[dict[str, str]]:
        """The weights to choose from: those that this server runs, under any kind's name."""
        return [{"type": type, "name": sessions.engine.name, "url": ""}]
