"""The prompts that a user gives for each image (clicks, boxes, lines, a mask to start from), and how to read them from
files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activefreq_engine.errors import InvalidArgumentError, InvalidClickError, InvalidPromptError
from activefreq_engine.types import BoxPrompt, Click, Lasso, Prompt, Scribble

_SIGNS: dict[str, bool] = {"+": True, "-": False, "1": True, "0": False, "true": True, "false": False, "": True}
_MEASURED = ("changed_bbox", "elapsed_ms")  # what `--json` prints beside a prompt
_KINDS = {"a click": ("x", "y"), "a box": ("x0", "y0", "x1", "y1"), "a scribble": ("scribble",), "a lasso": ("lasso",)}
"""The columns of each kind of prompt."""
_MOST_BYTES = 1 << 28  # size limit of a file of clicks


@dataclass(slots=True)
class Prompts:
    """What the user says about one object in one image."""

    prompts: list[Prompt] = field(default_factory=list)
    """In the order in which they are made."""
    start_mask: Path | None = None
    """File with the mask to go on from."""

    def __add__(self, more: Prompts) -> Prompts:
        """These prompts, then those of `more`.  A box makes a fresh start, so where `more` has one, these follow it,
        without a box of their own.  Where both have a start mask, that of `more` is kept."""
        start = max((i + 1 for i, p in enumerate(more.prompts) if isinstance(p, BoxPrompt)), default=0)
        mine = [p for p in self.prompts if not (start and isinstance(p, BoxPrompt))]
        return Prompts([*more.prompts[:start], *mine, *more.prompts[start:]], more.start_mask or self.start_mask)


def parse_click(text: str) -> Click:
    """Read a click from ``x,y``, ``x,y,+`` or ``x,y,-``, with x and y in image pixels.

    Raises:
        InvalidClickError: the text is none of these.
    """
    parts = text.split(",")
    try:
        x, y, sign = parts if len(parts) == 3 else [*parts, "+"]
        return Click(float(x), float(y), {"+": True, "-": False}[sign.strip()])
    except (ValueError, KeyError):
        raise InvalidClickError(
            f"--click {text!r} is not 'x,y' or 'x,y,+' or 'x,y,-' with x and y in image pixels"
        ) from None


def parse_box(text: str) -> BoxPrompt:
    """Read a box from ``x0,y0,x1,y1``, in image pixels.

    Raises:
        InvalidPromptError: the text does not have this form, or the box is empty.
        InvalidClickError: one of the four is not a finite number.
    """
    return _box(text.split(","), f"--box {text!r}")


def parse_scribble(text: str) -> Scribble:
    """Read a scribble from ``x,y x,y ...``, in image pixels; ``+`` or ``-`` may follow as the last word.

    Raises:
        InvalidPromptError: the text does not have this form.
        InvalidClickError: a coordinate is not a finite number.
    """
    return Scribble(*_line(text, None, f"--scribble {text!r}"))


def parse_lasso(text: str) -> Lasso:
    """Read a lasso from ``x,y x,y x,y ...``, in image pixels; ``+`` or ``-`` may follow as the last word.

    Raises:
        InvalidPromptError: the text does not have this form.
        InvalidClickError: a coordinate is not a finite number.
    """
    return Lasso(*_line(text, None, f"--lasso {text!r}"))


def read_prompts(path: Path, text: str | None = None) -> dict[str, Prompts]:
    """Read a file of clicks: the prompts of each image, by its name.

    JSON: an object with an entry for each image name, or a list (or one a line) of entries with the key ``image``.  An
    entry is a list of clicks or an object with ``clicks``, ``box`` ``[x0, y0, x1, y1]`` and ``start_mask`` (a path,
    relative to the file).  A click is ``[x, y]``, ``[x, y, positive]`` or an object with these keys.  ``prompts`` in
    place of ``clicks`` and ``box`` is a list of any kind, in order: clicks, ``{"box": [x0, y0, x1, y1]}``,
    ``{"scribble": [[x, y], ...], "positive": true}``, ``{"lasso": [[x, y], ...], "positive": true}``.  A prompt without
    ``positive`` may have no other keys (or columns), since one of them may be meant as its sign.

    CSV: columns ``image``, ``x``, ``y`` and, if wanted, ``positive`` (1 or 0, + or -, true or false).  A row with
    ``x0, y0, x1, y1`` in place of x and y is a box; a row with ``scribble`` or ``lasso`` (``x,y x,y ...``) is a line of
    that kind.  The prompts of an image are made in the order of their rows, but a box comes first.

    Args:
        path: the file; one that ends in ``.csv`` is read as CSV, any other as JSON.
        text: the content of the file, if it was read already.

    Raises:
        InvalidArgumentError: the file cannot be read, or does not have this form; the message says where.
        InvalidClickError, InvalidPromptError: a click or another prompt in it is malformed.
    """
    if text is None:
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise InvalidArgumentError(
                    f"{path} has more than {_MOST_BYTES >> 20} MB, the most for a file of prompts; is it one?"
                )
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(f"cannot read {path}: {error}") from error
    if path.suffix.lower() == ".csv":
        return _from_csv(path, text)
    try:
        data = _json(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path} is not JSON: {error}") from error
    if isinstance(data, Mapping) and "image" in data:
        data = [data]
    if isinstance(data, Mapping):
        entries: Iterable[tuple[Any, Any]] = data.items()
    elif isinstance(data, list) and all(isinstance(e, Mapping) and "image" in e for e in data):
        entries = ((e["image"], e) for e in data)
    else:
        raise InvalidArgumentError(f"{path} must hold an object of images, or a list of objects with the key 'image'")
    found: dict[str, Prompts] = {}
    for name, entry in entries:
        if not isinstance(name, str):
            raise InvalidArgumentError(f"{path}: image is {name!r}; expected a file's name or path")
        if name in found:
            raise InvalidArgumentError(f"{path} has two entries for image {name!r}; keep one of them")
        found[name] = _entry(entry, f"{path}, image {name!r}", path.parent)
    return found


def _json(text: str) -> Any:
    """The JSON value of a text; where each line holds a value of its own (JSON Lines), a list of them."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not lines[0].rstrip().endswith("}"):
            raise
        return [json.loads(line, object_pairs_hook=_once) for line in lines]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some keys and values; JSON leaves open which value counts of a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(k for k in keys if keys.count(k) > 1)!r} is there twice in one object")
    return found


def _entry(entry: Any, where: str, folder: Path) -> Prompts:
    if isinstance(entry, list):
        entry = {"clicks": entry}
    if not isinstance(entry, Mapping) or not {"clicks", "box", "prompts", "start_mask"} & set(entry):
        raise InvalidArgumentError(f"{where}: expected clicks, or an object with clicks, box, prompts or start_mask")
    if lost := {"scribble", "lasso"} & set(entry):
        raise InvalidArgumentError(f"{where}: put the {lost.pop()} into the list prompts")
    clicks = entry.get("clicks") or []
    if not isinstance(clicks, list):
        raise InvalidArgumentError(f"{where}: clicks is {clicks!r}; expected a list")
    box, mask = entry.get("box"), entry.get("start_mask")
    if mask is not None and not isinstance(mask, str):
        raise InvalidArgumentError(f"{where}: start_mask is {mask!r}; expected a path")
    found: list[Prompt] = [_click(c, where) for c in clicks]
    if box is not None:
        found.insert(0, _box(box, where))
    if (prompts := entry.get("prompts")) is not None:
        if not isinstance(prompts, list):
            raise InvalidArgumentError(f"{where}: prompts is {prompts!r}; expected a list")
        listed = [_prompt(p, where) for p in prompts]
        # a report holds its clicks twice, beside the other prompts and alone
        if found and found != [p for p in listed if isinstance(p, Click)]:
            raise InvalidArgumentError(
                f"{where}: prompts does not have the same clicks as clicks and box; keep prompts only"
            )
        found = listed
    return Prompts(found, None if mask is None else folder / mask)


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, Mapping):
        if "box" in value:
            return _box(value["box"], where)
        for name, kind in (("scribble", Scribble), ("lasso", Lasso)):
            if name in value:
                points = value[name]
                if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
                    raise InvalidPromptError(f"{where}: {name} is {str(points)[:80]}; expected a list of points [x, y]")
                made: Scribble | Lasso = kind(
                    tuple((_number(x, where), _number(y, where)) for x, y in points),
                    _said_sign(value, name, where),
                )
                return made
    return _click(value, where)


def _click(value: Any, where: str) -> Click:
    if isinstance(value, Mapping) and {"x", "y"} <= set(value):
        value = [value["x"], value["y"], _said_sign(value, "x", where)]
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise InvalidClickError(f"{where}: click {value!r} is not [x, y] or [x, y, positive]")
    sign = _sign(value[2] if len(value) == 3 else True, value, where)
    return Click(_number(value[0], where), _number(value[1], where), sign)


def _said_sign(prompt: Mapping[str, Any], kind: str, where: str) -> bool:
    """The sign of a prompt that is an object."""
    if "positive" not in prompt and (more := set(prompt) - {kind, "y", *_MEASURED}):
        raise InvalidClickError(
            f"{where}: {str(prompt)[:200]} has {', '.join(map(repr, sorted(more)))} and no 'positive'; if that is the "
            "sign, call it 'positive', else leave it out"
        )
    return _sign(prompt.get("positive", True), prompt, where)


def _sign(value: Any, prompt: Any, where: str) -> bool:
    sign = _SIGNS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(sign, (bool, int)) or sign not in (0, 1):
        raise InvalidClickError(
            f"{where}: {str(prompt)[:200]} has no sign; allowed are 1 and 0, true and false, + and -"
        )
    return bool(sign)


def _line(text: str, sign: str | None, where: str) -> tuple[tuple[tuple[float, float], ...], bool]:
    """Points and sign of ``x,y x,y ...``.  `sign` is given where it stands elsewhere, else it may be the last word."""
    parts = text.split()
    if sign is None and parts and parts[-1] in ("+", "-"):
        sign = parts.pop()
    pairs = [p.split(",") for p in parts]
    if not pairs or any(len(p) != 2 for p in pairs):
        raise InvalidPromptError(f"{where} is not 'x,y x,y ...', in image pixels, with + or - at its end if wanted")
    return tuple((_number(x, where), _number(y, where)) for x, y in pairs), _sign(sign or "+", text, where)


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidClickError(f"{where}: {value!r} is not a number") from None
    if not math.isfinite(number):
        raise InvalidClickError(f"{where}: {value!r} is not finite")
    return number


def _box(value: Any, where: str) -> BoxPrompt:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        raise InvalidPromptError(f"{where}: box is {str(value)[:80]}; expected x0, y0, x1, y1 in image pixels")
    x0, y0, x1, y1 = (_number(v, where) for v in value)
    if not (x0 < x1 and y0 < y1):
        raise InvalidPromptError(f"{where}: box {value!r} is empty; expected x0 < x1 and y0 < y1")
    return BoxPrompt(x0, y0, x1, y1)


def _from_csv(path: Path, text: str) -> dict[str, Prompts]:
    lines = io.StringIO(text, newline=None)  # ends of lines as any system writes them
    head = lines.readline()
    lines.seek(0)
    rows = csv.DictReader(lines, delimiter=next((d for d in ",;\t" if d in head), ","))
    try:
        names = [(n or "").strip().lower() for n in rows.fieldnames or []]
    except csv.Error as error:
        raise InvalidArgumentError(f"{path}, line 1: {error}") from error
    known = {"x", "y"} <= set(names) or {"x0", "y0", "x1", "y1"} <= set(names) or {"scribble", "lasso"} & set(names)
    if "image" not in names or not known:
        raise InvalidArgumentError(
            f"{path} has the columns {', '.join(names)[:200] or 'none'}; expected image, x, y and, if wanted, "
            "positive; image, x0, y0, x1, y1 for boxes; image and scribble or lasso for lines"
        )
    columns = {"image", *(c for kind in _KINDS.values() for c in kind)}
    unknown = sorted(set(filter(None, names)) - columns)
    if unknown and "positive" not in names and {"x", "scribble", "lasso"} & set(names):
        raise InvalidArgumentError(
            f"{path} has {', '.join(map(repr, unknown))[:200]} and no column 'positive'; if that is the sign, call it "
            "'positive', else leave it out"
        )
    if twice := [n for n in columns if names.count(n) > 1]:
        raise InvalidArgumentError(f"{path} has several columns {twice[0]!r}; keep one of them")
    rows.fieldnames = names
    found: dict[str, Prompts] = {}
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            cells = {k: (v or "").strip() if isinstance(v, str) or v is None else v for k, v in row.items()}
            if None in cells:
                raise InvalidArgumentError(
                    f"{where} has more cells than the first line has columns; put lines of points into quotation marks"
                )
            given = [kind for kind, own in _KINDS.items() if any(cells.get(c) for c in own)]
            if len(given) > 1:
                raise InvalidArgumentError(f"{where} has {' and '.join(given)}; give each a row of its own")
            prompts = found.setdefault(cells["image"], Prompts())
            if cells.get("x") or cells.get("y"):
                values = [cells.get("x", ""), cells.get("y", ""), cells.get("positive", "")]
                prompts.prompts.append(_click(values, where))
            elif cells.get("scribble"):
                prompts.prompts.append(Scribble(*_line(cells["scribble"], cells.get("positive") or None, where)))
            elif cells.get("lasso"):
                prompts.prompts.append(Lasso(*_line(cells["lasso"], cells.get("positive") or None, where)))
            elif not any(isinstance(p, BoxPrompt) for p in prompts.prompts):
                prompts.prompts.insert(0, _box([cells.get(k, "") for k in ("x0", "y0", "x1", "y1")], where))
            else:
                raise InvalidArgumentError(f"{where}: image {cells['image']!r} has a box already; keep one of them")
    except csv.Error as error:
        raise InvalidArgumentError(f"{path}, line {rows.line_num}: {error}") from error
    return found
