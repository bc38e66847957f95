"""Makes the steps of a saved state again, with the network.  Works on scenes; no session is needed."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import masks
from activefreq_engine.errors import (
    InvalidArgumentError,
    InvalidClickError,
    InvalidMaskError,
    InvalidPromptError,
    SessionStateError,
)
from activefreq_engine.models import list_models
from activefreq_engine.runtime.engine import Engine
from activefreq_engine.session.arguments import check_mark, view_box
from activefreq_engine.session.click import advance, loaded_step
from activefreq_engine.session.history import History, Pass, Points, Scene, Step
from activefreq_engine.session.packed_mask import PackedMask
from activefreq_engine.session.state import SavedPrompts, SavedSession

if TYPE_CHECKING:
    from activefreq_engine.models import FreqFormer


def matching_engine(
    saved: SavedSession,
    engine: Engine | None,
    model: str | os.PathLike[str] | FreqFormer | None,
    device: str,
    precision: str,
) -> Engine:
    """An engine with the model that a state belongs to: the given one, or that of the other arguments.

    Raises:
        SessionStateError: the engine holds another model, or other weights.
        InvalidArgumentError: `engine` and `model` were both given.
    """
    if engine is None:
        if model is None and saved.model not in list_models():
            # the state is not trusted to name files
            raise SessionStateError(
                f"the state belongs to model {saved.model!r}, which is not shipped; pass its file as model="
            )
        engine = Engine.shared(saved.model if model is None else model, device, precision, saved.size)
    elif model is not None:
        raise InvalidArgumentError("engine= was given together with model; give only one of them")
    if (engine.name, engine.size) != (saved.model, saved.size):
        raise SessionStateError(
            f"the state belongs to model {saved.model!r} at size {saved.size}, the engine holds {engine.name!r} at "
            f"size {engine.size}; pass the state's model"
        )
    if saved.weights is not None and saved.weights != engine.weights:
        raise SessionStateError(
            f"the state belongs to other weights of {saved.model!r}: sha256 {saved.weights[:12]}..., loaded are "
            f"{engine.weights[:12]}...; pass model= with the file of the state's weights"
        )
    return engine


def replay(saved: SavedSession, scene: Scene, engine: Engine) -> Scene:
    """The scene with the objects of a state, in place of its own.

    Raises:
        SessionStateError: the state holds prompts or masks that do not fit the image.
    """
    scene = replace(scene, objects=tuple(History(scene.blank) for _ in saved.objects))
    try:
        for index, item in enumerate(saved.objects):
            scene = scene.selecting(index)
            for event in item.events:
                scene = scene.having(scene.history.push(_step(scene, event, engine)))
            for _ in item.events[item.done :]:
                scene = scene.having(scene.history.undo())
    except (InvalidClickError, InvalidPromptError, InvalidMaskError, InvalidArgumentError) as error:
        raise SessionStateError(f"the state is damaged: {error}") from error
    return scene.selecting(saved.selected - 1)


def _step(scene: Scene, event: SavedPrompts | NDArray[np.bool_], engine: Engine) -> Step:
    """The step that an event makes on the current object."""
    picture = scene.picture
    if not isinstance(event, SavedPrompts):
        return _loaded(scene, event)
    passes = tuple(
        Pass(tuple(check_mark(picture, m) for m in p.prompts), p.view and view_box(scene, p.view)) for p in event.passes
    )
    if not event.at_once:
        return advance(engine, [(picture, scene.history.step)], passes)[0].step
    first = scene.blank if event.start is None else _loaded(scene, event.start)
    known = [first, *(s for s in scene.history.done if s.start == first.start)]
    step = max((s for s in known if s.passes == passes[: len(s.passes)]), key=lambda s: len(s.passes))
    for new in passes[len(step.passes) :]:
        step = advance(engine, [(picture, step)], [new])[0].step
    return replace(step, event=Points(step.canvas.marks))


def _loaded(scene: Scene, mask: NDArray[np.bool_]) -> Step:
    mask = masks.as_mask(mask, scene.picture.shape)
    return loaded_step(scene.picture, mask, PackedMask.of(mask))
