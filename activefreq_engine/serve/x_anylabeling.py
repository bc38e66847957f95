"""The protocol of X-AnyLabeling's "Remote-Server": a picture and all marks in, polygons out.

The contract is what X-AnyLabeling 4.2's client (`anylabeling/services/auto_labeling/remote_server.py`) sends and reads;
its own server is github.com/CVHub520/X-AnyLabeling-Server.  All marks of an object come each time; the picture's
session computes only what is new.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, Field

from activefreq_engine import masks
from activefreq_engine.cvat import Prompted
from activefreq_engine.serve.errors import NotFoundError, ServeError
from activefreq_engine.serve.ops import Finite
from activefreq_engine.serve.recent import Recent
from activefreq_engine.serve.sessions import Sessions

PREDICT = "/v1/predict"
OBJECT = "AUTOLABEL_OBJECT"
"""X-AnyLabeling's name for the unfinished object: each answer replaces it, and the person names it when it is
finished."""
WIDGETS = (
    "button_add_point",
    "button_remove_point",
    "button_add_rect",
    "button_clear",
    "button_finish_object",
    "mask_fineness_slider",
    "mask_fineness_value_label",
)
"""What X-AnyLabeling shows for the model."""


class ClientMark(BaseModel):
    """A point (x, y) or a rectangle (x0, y0, x1, y1), in pixels; `label` 1 is inside, 0 outside."""

    type: Literal["point", "rectangle"]
    data: Annotated[list[Finite], Field(min_length=2, max_length=4)]
    label: Literal[0, 1] = 1


class ClientSettings(BaseModel):
    """The part of X-AnyLabeling's settings that means something here."""

    marks: Annotated[list[ClientMark], Field(max_length=1000)] = []
    epsilon_factor: Annotated[float, Field(ge=0, le=1)] = 0.001
    """How far corners of a polygon may move, as a share of the outline's length."""


class XAnyLabelingRequest(BaseModel):
    """A picture, as a data URI, and what is marked on it."""

    model: str
    image: str
    params: ClientSettings = ClientSettings()


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Add the protocol's routes to an application."""
    recent = Recent(partial(Prompted, sessions.engine), sessions.limits.pixels)
    tagged: dict[str, Any] = {"tags": ["X-AnyLabeling"]}

    def answer(ask: XAnyLabelingRequest) -> dict[str, Any]:
        points, box = _prompts(ask.params.marks)
        if not points[1] and box is None:  # nothing is inside yet
            return {"shapes": [], "replace": False}
        mask, score = recent.of(ask.image).mask(points[1], points[0], box)
        longest = max((np.abs(np.diff(p.exterior, axis=0)).sum() for p in masks.to_polygons(mask)), default=0)
        pieces = masks.to_polygons(mask, holes="drop", tolerance=ask.params.epsilon_factor * float(longest))
        shapes = [
            {
                "label": OBJECT,
                "shape_type": "polygon",
                "points": [*piece.exterior.tolist(), piece.exterior[0].tolist()],
                "score": round(score, 4),
            }
            for piece in pieces
        ]
        return {"shapes": shapes, "replace": False}  # what is there already stays

    @app.get("/v1/models", **tagged)
    async def models() -> dict[str, Any]:
        """The model, and the controls that X-AnyLabeling is to show for it."""
        model: dict[str, Any] = {
            "display_name": f"activefreq ({sessions.engine.name})",
            "widgets": [{"name": name, "value": None} for name in WIDGETS],
            "params": {},
            "batch_processing_mode": None,
        }
        return {"success": True, "data": {sessions.engine.name: model}}

    @app.post(PREDICT, **tagged)
    async def predict(body: XAnyLabelingRequest) -> dict[str, Any]:
        """Polygons around what is marked."""
        if body.model != sessions.engine.name:
            raise NotFoundError(f"there is no model {body.model!r} here; this server runs {sessions.engine.name}")
        found = await asyncio.get_running_loop().run_in_executor(sessions.threads, answer, body)
        return {"success": True, "data": found}


def _prompts(marks: list[ClientMark]) -> tuple[dict[int, list[list[float]]], list[list[float]] | None]:
    """Points by their sign, and the newest box as two corners.  X-AnyLabeling counts pixels by whole numbers, so a
    point is moved by 0.5 to the middle of its pixel."""
    points: dict[int, list[list[float]]] = {0: [], 1: []}
    box = None
    for mark in marks:
        if len(mark.data) != (2 if mark.type == "point" else 4):
            raise ServeError(f"a {mark.type} has {len(mark.data)} numbers; a point has 2, a rectangle 4")
        if mark.type == "point":
            points[mark.label].append([v + 0.5 for v in mark.data])
        elif mark.label:
            box = [mark.data[:2], mark.data[2:]]
        else:
            raise ServeError("a negative rectangle is not supported; use points outside the object")
    return points, box
