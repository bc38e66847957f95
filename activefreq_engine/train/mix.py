"""A mix: which sets are trained on, each with its share of the samples and with what counts as an object in it.

A mix is a JSON file, `{"sets": [{"name": "skin", "folder": "isic2017/train", "weight": 0.5}, ...]}`; `folder` is
relative to the root of the data.  `objects` lists the label values that make each object, `[[1], [2], [1, 2]]` being
two parts and the whole; without it each value is an object.  `licence` is for people.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..values import whole

Objects = tuple[tuple[int, ...], ...]  # label values of each object
MIXES = Path(__file__).with_name("mixes")
"""The mixes of the weights that ship."""


@dataclass(frozen=True)
class Source:
    """One set of a mix."""

    folder: Path  # images/ beside masks/, labels/ or instances/
    weight: float | None = None  # share of the samples; None: by the number of images
    objects: Objects | None = None  # None: each value but 0
    name: str = ""


def read_mix(path: Path, root: Path) -> list[Source]:
    """The sets of a mix.

    Args:
        path (path): the JSON file, or the name of one in `MIXES`.
        root (path): what its folders are relative to.

    Raises:
        DatasetError: the file is not there or is no mix.
    """
    known = MIXES / f"{path}.json"
    try:
        described = json.loads((known if known.exists() else path).read_text(encoding="utf-8"))
        sources = [_source(s, root) for s in described["sets"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        names = ", ".join(sorted(p.stem for p in MIXES.glob("*.json")))
        raise DatasetError(
            f"{path} is no mix ({type(e).__name__}: {e}); give a JSON file with sets that have a name, a folder and a "
            f"weight above 0, or one of these names: {names}"
        ) from None
    if not sources:
        raise DatasetError(f"{path} names no set; a mix needs at least one")
    return sources


def _source(described: dict[str, Any], root: Path) -> Source:
    weight = float(described["weight"])
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight of {described['name']} is {weight}")
    objects = described.get("objects")
    if objects is not None:
        objects = tuple(tuple(whole("a label value", v) for v in values) for values in objects)
        if not objects or not all(values and min(values) > 0 and max(values) < 65536 for values in objects):
            raise ValueError(f"objects of {described['name']} are {described['objects']}, not lists of 1 to 65535")
    return Source(root / described["folder"], weight, objects, str(described["name"]))
