"""A packed folder, read and not trusted: it may have come from elsewhere, or be half of what it was."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError

LARGEST = 1 << 24
"""Pixels of a packed image."""


@dataclass(frozen=True)
class Packed:
    """What `train.data.pack` wrote."""

    sources: list[dict[str, Any]]
    entries: list[dict[str, Any]]
    weights: list[float] | None
    images: NDArray[np.uint8]
    """RGB, all images back to back."""
    labels: NDArray[np.uint16]


def read_packed(folder: Path) -> Packed:
    """Open a packed folder; its images stay on the disk.

    Raises:
        DatasetError: it is not whole, or says what cannot be.
    """
    try:
        index = json.loads((folder / "index.json").read_text())
        pixels = check_index(index)
        for name, size in (("images.u8", 3 * pixels), ("labels.u16", 2 * pixels)):
            if (found := (folder / name).stat().st_size) != size:
                raise ValueError(f"{name} has {found} bytes, its index says {size}")
        images = np.memmap(folder / "images.u8", np.uint8, mode="c")
        labels = np.memmap(folder / "labels.u16", np.uint16, mode="c")
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, error) from error
    return Packed(index["sources"], index["entries"], index.get("weights"), images, labels)


def read_objects(folder: Path, entries: list[dict[str, Any]], edges: int) -> dict[str, NDArray[Any]]:
    """Where the objects lie: `values` uint16 `[N, V]`, `entry` int64 `[N]`, `box` int32 `[N, 4]`, `edges` int16
    `[N, edges, 2]`.

    Raises:
        DatasetError: it is not what belongs to these entries.
    """
    number = sum(len(e["objects"]) for e in entries)
    widest = max(len(v) for e in entries for v in e["objects"])
    wanted = {
        "values": ((number, widest), np.uint16),
        "entry": ((number,), np.int64),
        "box": ((number, 4), np.int32),
        "edges": ((number, edges, 2), np.int16),
    }
    path = folder / "objects.npz"
    try:
        with zipfile.ZipFile(path) as file:  # a packed array may be of any size, and claim any other
            sizes = {i.filename.removesuffix(".npy"): i.file_size for i in file.infolist()}
        found = {}
        for name, (shape, dtype) in wanted.items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if not size <= sizes.get(name, 0) <= size + 4096:
                raise ValueError(f"{name} has {sizes.get(name, 0)} bytes, not {size}")
            with np.load(path) as arrays:
                found[name] = arrays[name]
            if found[name].shape != shape or found[name].dtype != dtype:
                raise ValueError(f"{name} is {found[name].dtype} {found[name].shape}, not {dtype.__name__} {shape}")
        size = np.array([(e["w"], e["h"]) for e in entries])[found["entry"]]
        if found["entry"].tolist() != [i for i, e in enumerate(entries) for _ in e["objects"]]:
            raise ValueError("its objects are not those of the index")
        low, high = found["box"][:, :2], found["box"][:, 2:]
        if (low < 0).any() or (low >= high).any() or (high > size).any():
            raise ValueError("a box is not in its image")
        if (found["edges"] < 0).any() or (found["edges"] >= size[:, None]).any():
            raise ValueError("an edge is not in its image")
    except (OSError, ValueError, IndexError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise _damaged(folder, error) from error
    return found


def check_index(index: Any) -> int:
    """The pixels of all images, after a look whether the index can be used.

    Raises:
        ValueError: it cannot.
    """
    if not isinstance(index, dict):
        raise ValueError("its index is no JSON object")
    sources, entries, weights = (index.get(name) for name in ("sources", "entries", "weights"))
    if not isinstance(sources, list) or not all(isinstance(s, dict) and "folder" in s for s in sources):
        raise ValueError("its index names no sources with their folders")
    if not isinstance(entries, list) or not entries:
        raise ValueError("its index has no entries")
    if weights is not None:
        good = isinstance(weights, list) and len(weights) == len(sources)
        if not good or not all(isinstance(w, (int, float)) and 0 < w < float("inf") for w in weights):
            raise ValueError(f"its weights are no numbers above 0, one for each of its {len(sources)} sources")
    pixels = 0
    for number, entry in enumerate(entries):
        check_entry(entry, len(sources), number)
        h, w = (entry.get(name) for name in ("h", "w"))
        if not (_whole(h, 1, LARGEST) and _whole(w, 1, LARGEST) and h * w <= LARGEST):
            raise ValueError(f"entry {number} has no height and width of at most {LARGEST} pixels together")
        if not _whole(entry.get("offset"), pixels, pixels):
            raise ValueError(f"entry {number} does not begin where the one before ends")
        pixels += h * w
    return pixels


def check_entry(entry: Any, sources: int, number: int) -> None:
    """Look at what an entry of an index says beside its size and place.

    Raises:
        ValueError: it cannot be.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise ValueError(f"entry {number} has no id")
    if not _whole(entry.get("source"), 0, sources - 1):
        raise ValueError(f"entry {number} belongs to none of the {sources} sources")
    objects = entry.get("objects")
    lists = isinstance(objects, list) and objects and all(isinstance(v, list) and v for v in objects)
    if not lists or not all(_whole(v, 1, 65535) for values in entry["objects"] for v in values):
        raise ValueError(f"entry {number} has objects that are no lists of values from 1 to 65535")


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _damaged(folder: Path, error: Exception) -> DatasetError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DatasetError(f"{folder} holds no packed data, or is damaged: {reason}. Remove it, and it will be made anew")
