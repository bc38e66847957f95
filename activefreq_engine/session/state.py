"""Turns a session into plain JSON values and back.  What is read back is not trusted."""

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
from activefreq_engine.session.history import Points, Scene, SessionSettings, Step
from activefreq_engine.session.packed_mask import PackedMask
from activefreq_engine.types import Box, BoxPrompt, Click, Lasso, Prompt, Scribble

FORMAT = "activefreq_engine.session"
VERSION = 3
READ = (1, 2, 3)
"""Version 1 knows only single clicks without views; version 2 knows no boxes, scribbles and lassos.  A state is written
in the oldest version that can hold it, so that older packages can read it."""


@dataclass(frozen=True, slots=True)
class SavedPass:
    """Prompts that the network was shown together."""

    prompts: tuple[Prompt, ...]
    view: Box | None


@dataclass(frozen=True, slots=True)
class SavedPrompts:
    """One prompt, or a list of clicks."""

    passes: tuple[SavedPass, ...]
    """The passes that make them; those of a list begin at its start, not at the step before."""
    at_once: bool
    """Whether it was a list."""
    start: NDArray[np.bool_] | None = None
    """The mask that a list goes on from."""


@dataclass(frozen=True, slots=True)
class SavedObject:
    """One object's steps in the order in which they were made."""

    events: list[SavedPrompts | NDArray[np.bool_]]
    """Prompts, and masks that were loaded."""
    done: int
    """So many of the events are in effect; the rest was undone and can be redone."""


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A state that has been checked."""

    digest: str
    window: Window | None
    objects: list[SavedObject]
    selected: int
    model: str
    weights: str | None
    """sha256; None in states of older packages."""
    size: int
    settings: SessionSettings


def dump(scene: Scene, engine: Engine) -> dict[str, Any]:
    """Everything needed to rebuild a session from the same image: JSON values, no pixels, no probabilities."""
    picture = scene.picture
    if picture.digest is None:
        picture.digest = image_digest(picture.image)
    height, width = picture.shape
    steps = [s for h in scene.objects for s in (*h.done, *h.undone)]
    simple = all(not isinstance(s.event, Points) and all(p.view is None for p in s.passes) for s in steps)
    clicks = all(isinstance(m, Click) for s in steps for p in s.passes for m in p.marks)
    return {
        "format": FORMAT,
        "version": VERSION if not clicks else 1 if simple else 2,
        "image": {
            "sha256": picture.digest,
            "height": height,
            "width": width,
            "window": None if picture.window is None else list(picture.window),
        },
        "objects": [
            {"steps": [_dump_event(s) for s in [*h.done, *reversed(h.undone)]], "done": len(h.done)}
            for h in scene.objects
        ],
        "selected": scene.selected + 1,
        "settings": {
            "model": engine.name,
            "weights": engine.weights,
            "size": engine.size,
            "threshold": picture.settings.threshold,
            "zoom": picture.settings.zoom,
            "refine": picture.settings.refine,
        },
    }


def parse(state: Any, size: int | None = None) -> SavedSession:
    """Check a state.

    Args:
        state: what `dump` returned, perhaps by way of JSON, or anything else.
        size: of the engine that is there to make the clicks again; allowed beside `SIZES`.

    Raises:
        SessionStateError: it is damaged, or of another format or version.
    """
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise SessionStateError(f"not a session state: expected a dictionary with format {FORMAT!r}")
    version = state.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version not in READ:
        raise SessionStateError(f"session state has version {_brief(version)}; this package reads {READ}")
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
            weights=None if settings.get("weights") is None else _typed(settings["weights"], str),
            size=_typed(settings["size"], int),
            settings=SessionSettings(
                threshold=_typed(settings["threshold"], float),
                zoom=_typed(settings["zoom"], bool),
                refine=_typed(settings["refine"], bool),
            ),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise SessionStateError(f"the state is damaged: {type(error).__name__}: {error}") from error
    if not all(0 <= o.done <= len(o.events) for o in saved.objects):
        raise SessionStateError("the state is damaged: an object has more steps done than it has steps")
    if not 0 < saved.settings.threshold < 1 or saved.size not in (*SIZES, size):
        raise SessionStateError(
            f"the state is damaged: threshold {saved.settings.threshold} must lie between 0 and 1, "
            f"size {_brief(saved.size)} be one of {', '.join(map(str, SIZES))}"
        )
    if saved.window is not None and not -math.inf < saved.window[0] < saved.window[1] < math.inf:
        raise SessionStateError(f"the state is damaged: window {saved.window} is not (low, high)")
    if not 1 <= saved.selected <= len(saved.objects):
        selected = _brief(saved.selected)
        raise SessionStateError(f"the state is damaged: object {selected} of {len(saved.objects)} is selected")
    return saved


def _dump_event(step: Step) -> dict[str, Any]:
    if isinstance(step.event, PackedMask):
        return {"mask": masks.to_coco_rle(step.event.unpack())}
    if isinstance(step.event, Points):
        return {
            "passes": [
                {
                    **(
                        dump_prompt(p.marks[0])
                        if isinstance(p.marks[0], BoxPrompt)
                        else {"clicks": [[c.x, c.y, c.positive] for c in p.marks if isinstance(c, Click)]}
                    ),
                    **_dump_view(p.view),
                }
                for p in step.passes
            ],
            "start": None if step.start is None else masks.to_coco_rle(step.start.unpack()),
        }
    if step.event is None:
        raise ValueError("a blank step has no event")  # unreachable: blank steps are not in a history
    view = step.passes[-1].view if step.passes else None
    return {**dump_prompt(step.event), **_dump_view(view)}


def dump_prompt(prompt: Prompt) -> dict[str, Any]:
    """A prompt as JSON values."""
    match prompt:
        case Click(x, y, positive):
            return {"x": x, "y": y, "positive": positive}
        case BoxPrompt(x0, y0, x1, y1):
            return {"box": [x0, y0, x1, y1]}
        case Scribble(points, positive):
            return {"scribble": [list(p) for p in points], "positive": positive}
        case Lasso(points, positive):
            return {"lasso": [list(p) for p in points], "positive": positive}


def _dump_view(view: Box | None) -> dict[str, Any]:
    return {} if view is None else {"view": list(view)}


def _parse_event(state: Any) -> SavedPrompts | NDArray[np.bool_]:
    if "mask" in state:
        return masks.from_coco_rle(state["mask"])
    if "passes" in state:
        start = state["start"]
        passes = tuple(_parse_pass(p) for p in state["passes"])
        return SavedPrompts(passes, True, None if start is None else masks.from_coco_rle(start))
    return SavedPrompts((SavedPass((_parse_prompt(state),), _parse_view(state)),), at_once=False)


def _parse_pass(state: Any) -> SavedPass:
    prompts = tuple(_parse_click(*c) for c in state["clicks"]) if "clicks" in state else (_parse_prompt(state),)
    if not prompts:
        raise ValueError("a list of clicks is empty")
    return SavedPass(prompts, _parse_view(state))


def _parse_prompt(state: Any) -> Prompt:
    if "box" in state:
        x0, y0, x1, y1 = (_typed(v, float) for v in state["box"])
        return BoxPrompt(x0, y0, x1, y1)
    for name, kind in (("scribble", Scribble), ("lasso", Lasso)):
        if name in state:
            points = tuple((_typed(x, float), _typed(y, float)) for x, y in state[name])
            return kind(points, _typed(state["positive"], bool))
    return _parse_click(state["x"], state["y"], state["positive"])


def _parse_click(x: Any, y: Any, positive: Any) -> Click:
    return Click(_typed(x, float), _typed(y, float), _typed(positive, bool))


def _parse_view(state: Any) -> Box | None:
    if state.get("view") is None:
        return None
    x0, y0, x1, y1 = (_typed(v, int) for v in state["view"])
    return x0, y0, x1, y1


def _typed(value: Any, kind: type) -> Any:
    """The value; raises TypeError unless JSON gives this type for it."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{_brief(value)} is not a {kind.__name__}")
    return value


def _brief(value: Any) -> str:
    """A value as text for a message, cut short: what comes from outside may be of any size."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a huge number"
    text = repr(value) if not isinstance(value, (list, dict, tuple)) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
