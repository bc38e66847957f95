"""A session as plain JSON values, and back.  What comes back is not trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import masks
from activefreq_engine.errors import SessionStateError
from activefreq_engine.images import Window, image_digest
from activefreq_engine.runtime.engine import SIZES, Engine
from activefreq_engine.session.canvas import PackedMask
from activefreq_engine.session.history import Scene, SessionSettings, Step
from activefreq_engine.types import Click

FORMAT = "activefreq_engine.session"
VERSION = 1


@dataclass(frozen=True, slots=True)
class SavedObject:
    """One object's steps in the order in which they were made."""

    events: list[Click | NDArray[np.bool_]]
    """Clicks, and masks that were loaded."""
    done: int
    """So many are in effect; the rest was undone and can be redone."""


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A state that was checked."""

    digest: str
    window: Window | None
    objects: list[SavedObject]
    selected: int
    model: str
    size: int
    settings: SessionSettings


def dump(scene: Scene, engine: Engine) -> dict[str, Any]:
    """Everything needed to rebuild a session from the same image: JSON values, no pixels, no probabilities."""
    if scene.digest is None:
        scene.digest = image_digest(scene.image)
    height, width = scene.image.shape[:2]
    return {
        "format": FORMAT,
        "version": VERSION,
        "image": {
            "sha256": scene.digest,
            "height": height,
            "width": width,
            "window": None if scene.window is None else [float(v) for v in scene.window],
        },
        "objects": [
            {"steps": [_dump_event(s) for s in [*h.done, *reversed(h.undone)]], "done": len(h.done)}
            for h in scene.objects
        ],
        "selected": scene.selected + 1,
        "settings": {
            "model": engine.name,
            "size": engine.size,
            "threshold": scene.settings.threshold,
            "zoom": scene.settings.zoom,
            "refine": scene.settings.refine,
        },
    }


def parse(state: Any) -> SavedSession:
    """Check a state.

    Raises:
        SessionStateError: it is damaged, or of another format or version.
    """
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise SessionStateError(f"not a session state: expected a dictionary with format {FORMAT!r}")
    if state.get("version") != VERSION:
        raise SessionStateError(f"session state has version {state.get('version')!r}; this package reads {VERSION}")
    try:
        image, settings = state["image"], state["settings"]
        window = image["window"]
        saved = SavedSession(
            digest=_typed(image["sha256"], str),
            window=None if window is None else (_typed(window[0], float), _typed(window[1], float)),
            objects=[
                SavedObject([_parse_event(e) for e in o["steps"]], _typed(o["done"], int)) for o in state["objects"]
            ],
            selected=_typed(state["selected"], int),
            model=_typed(settings["model"], str),
            size=_typed(settings["size"], int),
            settings=SessionSettings(
                threshold=_typed(settings["threshold"], float),
                zoom=_typed(settings["zoom"], bool),
                refine=_typed(settings["refine"], bool),
            ),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SessionStateError(f"the state is damaged: {type(error).__name__}: {error}") from error
    if not all(0 <= o.done <= len(o.events) for o in saved.objects):
        raise SessionStateError("the state is damaged: an object has more steps done than it has steps")
    if not 0 < saved.settings.threshold < 1 or saved.size not in SIZES:
        raise SessionStateError(
            f"the state is damaged: threshold {saved.settings.threshold} must lie between 0 and 1, "
            f"size {saved.size} be one of {', '.join(map(str, SIZES))}"
        )
    if saved.window is not None and not -math.inf < saved.window[0] < saved.window[1] < math.inf:
        raise SessionStateError(f"the state is damaged: window {saved.window} is not (low, high)")
    if not 1 <= saved.selected <= len(saved.objects):
        raise SessionStateError(f"the state is damaged: object {saved.selected} of {len(saved.objects)} is selected")
    return saved


def _dump_event(step: Step) -> dict[str, Any]:
    if isinstance(step.event, PackedMask):
        return {"mask": masks.to_coco_rle(step.event.unpack())}
    if step.event is None:
        raise ValueError("a blank step has no event")  # unreachable: blank steps are not in a history
    return {"x": step.event.x, "y": step.event.y, "positive": step.event.positive}


def _parse_event(state: Any) -> Click | NDArray[np.bool_]:
    if "mask" in state:
        return masks.from_coco_rle(state["mask"])
    return Click(_typed(state["x"], float), _typed(state["y"], float), _typed(state["positive"], bool))


def _typed(value: Any, kind: type) -> Any:
    """The value, if JSON would have given this type for it."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value
