"""What a client may ask of a session; each is one message of the WebSocket and one line of the journal."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from activefreq_engine.serve.errors import ServeError
from activefreq_engine.types import BoxPrompt, Click, Lasso, Prompt, Scribble

Finite = Annotated[float, Field(allow_inf_nan=False)]
Point = Annotated[list[Finite], Field(min_length=2, max_length=2)]
PointList = Annotated[list[Point], Field(min_length=1, max_length=10_000)]
_whole = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
Whole = Annotated[int, _whole]
"""JSON has one kind of number: 3.0 is an integer, and not every language can write it otherwise."""


class Op(BaseModel):
    """Base of all; `seq` numbers the requests of a page, so that one that is sent again is not carried out twice."""

    model_config = ConfigDict(extra="forbid", strict=True)
    seq: Annotated[int, Field(ge=1, lt=2**32), _whole] | None = None


class ClickOp(Op):
    """Click on the current object: (x, y) in image pixels, inside the object or outside it."""

    op: Literal["click"] = "click"
    x: Finite
    y: Finite
    positive: bool = True

    def prompt(self) -> Prompt:
        """What it says."""
        return Click(self.x, self.y, self.positive)


class BoxOp(Op):
    """A box around the object, x0 < x1 and y0 < y1 in image pixels: a fresh start for the current object."""

    op: Literal["box"]
    x0: Finite
    y0: Finite
    x1: Finite
    y1: Finite

    def prompt(self) -> Prompt:
        """What it says."""
        return BoxPrompt(self.x0, self.y0, self.x1, self.y1)


class ScribbleOp(Op):
    """A line over the object, or over what does not belong to it: points (x, y) inside the picture."""

    op: Literal["scribble"]
    points: PointList
    positive: bool = True

    def prompt(self) -> Prompt:
        """What it says."""
        return Scribble(tuple((x, y) for x, y in self.points), self.positive)


class LassoOp(Op):
    """A closed line around the object or a missing part of it, or around what does not belong to it: at least three
    points.
    """

    op: Literal["lasso"]
    points: PointList
    positive: bool = True

    def prompt(self) -> Prompt:
        """What it says."""
        return Lasso(tuple((x, y) for x, y in self.points), self.positive)


PromptOp = ClickOp | BoxOp | ScribbleOp | LassoOp
"""Requests that the network answers."""


def _kind(prompt: Any) -> Any:
    return prompt.get("op", "click") if isinstance(prompt, dict) else getattr(prompt, "op", None)


PromptBody = Annotated[
    Annotated[ClickOp, Tag("click")]
    | Annotated[BoxOp, Tag("box")]
    | Annotated[ScribbleOp, Tag("scribble")]
    | Annotated[LassoOp, Tag("lasso")],
    Discriminator(_kind),
]
"""The body of a request with one prompt; for a click `op` may be left out."""


class MaskOp(Op):
    """Start from a mask: an image file, such as PNG, of the picture's size, in base64; every value but 0 is inside."""

    op: Literal["mask"] = "mask"
    png: Annotated[str, Field(max_length=64 * 2**20)]


class UndoOp(Op):
    """Take back the current object's last step on this slice."""

    op: Literal["undo"] = "undo"


class RedoOp(Op):
    """Do the last undone step again."""

    op: Literal["redo"] = "redo"


class ResetOp(Op):
    """Undo all of the current object's steps on this slice; redo brings them back."""

    op: Literal["reset"] = "reset"


class NextOp(Op):
    """Go to a new object; if the newest one is untouched, go to that one."""

    op: Literal["next"] = "next"


class SelectOp(Op):
    """Go to an object that exists."""

    op: Literal["select"] = "select"
    object: Whole


class DeleteOp(Op):
    """Remove an object with all its steps; this cannot be undone."""

    op: Literal["delete"] = "delete"
    object: Whole


class RenameOp(Op):
    """Name an object, for the list and for exports."""

    op: Literal["rename"] = "rename"
    object: Whole
    name: Annotated[str, Field(max_length=100)]


class SliceOp(Op):
    """Go to a slice of a volume, counted from 0."""

    op: Literal["slice"] = "slice"
    index: Whole


class WindowOp(Op):
    """The values shown as black and as white.  The network sees the same, so all clicks are made anew."""

    op: Literal["window"] = "window"
    low: Finite
    high: Finite


AnyOp = PromptOp | MaskOp | UndoOp | RedoOp | ResetOp | NextOp | SelectOp | DeleteOp | RenameOp | SliceOp | WindowOp
_ADAPTER: TypeAdapter[AnyOp] = TypeAdapter(Annotated[AnyOp, Field(discriminator="op")])


def parse(message: Any) -> AnyOp:
    """A decoded JSON message, or a line of a journal, as a request.

    Raises:
        ServeError: it is not a request.
    """
    try:
        return _ADAPTER.validate_python(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ServeError(f"the request cannot be understood: {where + ': ' if where else ''}{first['msg']}") from None
