"""A Nuclio function for CVAT's own server: points on a picture become a mask.  docs/cvat.md says how to deploy it."""

import base64
import hashlib
import json
import os
from collections import OrderedDict

import numpy as np

from activefreq_engine import ActiveFreqError, Engine
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.cvat import Prompted
from activefreq_engine.masks import to_polygons

PICTURES = 4  # CVAT sends the whole picture with each click: those that it sent last are remembered


def init_context(context):
    """Loads the weights, before the first click."""
    context.user_data.engine = Engine.shared(os.environ.get("ACTIVEFREQ_MODEL", DEFAULT_MODEL))
    context.user_data.engine.warmup()
    context.user_data.pictures = OrderedDict()


def handler(context, event):
    """`image` (base64), `pos_points`, `neg_points`, `obj_bbox` -> `mask` (rows of 0 and 1) and `points`, a polygon: the
    outline of the largest piece."""
    try:
        mask, _ = opened(context.user_data, event.body["image"]).mask(
            event.body["pos_points"], event.body["neg_points"], event.body.get("obj_bbox") or None
        )
    except (ActiveFreqError, KeyError, ValueError, TypeError) as error:
        return context.Response(body=str(error), headers={}, content_type="text/plain", status_code=400)
    rings = [p.exterior for p in to_polygons(mask, holes="drop", tolerance=1)]
    body = {"mask": mask.astype(int).tolist(), "points": max(rings, key=area).tolist() if rings else []}
    return context.Response(body=json.dumps(body), headers={}, content_type="application/json", status_code=200)


def area(ring):
    """Of a ring of corners, in pixels."""
    x, y = ring.astype(float).T
    return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


def opened(memory, image):
    """The picture, ready for prompts."""
    key = hashlib.sha256(image.encode()).digest()
    if key not in memory.pictures:
        memory.pictures[key] = Prompted(memory.engine, base64.b64decode(image))
    memory.pictures.move_to_end(key)
    while len(memory.pictures) > PICTURES:
        memory.pictures.popitem(last=False)
    return memory.pictures[key]
