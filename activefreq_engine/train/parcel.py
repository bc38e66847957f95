"""A packed folder as one file small enough to travel: images as WebP, label maps as PNG.

The file is a safetensors file of three tensors, `images` and `labels` (uint8, the files back to back) and `ends` (int64
`[N, 2]`, where each ends), and the index of the packed folder as metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import DatasetError
from ..files import DAMAGED, beside
from ..images import image_size
from .data import PackWriter, pack
from .mix import Source
from .packed import LARGEST, check_entry, check_index, read_packed

SUFFIX = ".safetensors"
AHEAD = 64  # images that are decoded before they are wanted


def make_parcel(sources: Sequence[Source], path: Path, work: Path, max_side: int = 512, quality: int = 75) -> Path:
    """Pack data folders into one file.

    Args:
        sources (sequence of Source): see `train.mix.read_mix`.
        path (path): the file, replaced whole.
        work (path): folder for the packed images; an existing pack of the same folders is reused.
        max_side (int): longest side of an image, pixels.
        quality (int): of the WebP images, 1 to 100; they take half of what JPEG takes at the same quality.

    Raises:
        DatasetError: as `train.data.pack`.
        InvalidArgumentError: another process is writing the file.
        FileWriteError: it cannot be written.
    """
    with beside(path) as partial:
        _write_parcel(sources, partial, work, max_side, quality)
    return path


def _write_parcel(sources: Sequence[Source], path: Path, work: Path, max_side: int, quality: int) -> None:
    pack(sources, work, max_side)
    index = json.loads((work / "index.json").read_text())
    packed = read_packed(work)
    entries, images, labels = packed.entries, packed.images, packed.labels

    def encoded(entry: dict[str, Any]) -> tuple[bytes, bytes]:
        h, w, start = entry["h"], entry["w"], entry["offset"]
        image = images[3 * start : 3 * (start + h * w)].reshape(h, w, 3)[..., ::-1]
        values = labels[start : start + h * w].reshape(h, w)
        small = values.astype(np.uint8) if values.max() < 256 else values
        return _encode(".webp", image, cv2.IMWRITE_WEBP_QUALITY, quality), _encode(
            ".png", small, cv2.IMWRITE_PNG_COMPRESSION, 9
        )

    with ThreadPoolExecutor() as pool:
        files = list(pool.map(encoded, entries))
    tensors = {
        name: np.frombuffer(b"".join(f[k] for f in files), np.uint8) for k, name in enumerate(("images", "labels"))
    }
    tensors["ends"] = np.cumsum([[len(a), len(b)] for a, b in files], axis=0, dtype=np.int64)
    index["entries"] = [{k: e[k] for k in ("objects", "source", "id")} for e in entries]
    save_file(tensors, path, {"index": json.dumps(index)})


def open_parcel(path: Path, target: Path) -> Path:
    """Unpack a file that `make_parcel` wrote into a packed folder; one that holds it already is kept.

    Raises:
        DatasetError: the file is not there or is no such file.
    """
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        if _made_from(target) == digest.hexdigest():
            return target
        with safe_open(str(path), framework="np") as parcel:
            index = json.loads(parcel.metadata()["index"])
            ends = parcel.get_tensor("ends")
            files = [parcel.get_tensor(name) for name in ("images", "labels")]
        entries = index.pop("entries")
        facts = {name: index.get(name) for name in ("sources", "max_side", "weights")}
        for number, entry in enumerate(entries):
            check_entry(entry, len(facts["sources"]), number)
        check_index({**facts, "entries": [{**entries[0], "h": 1, "w": 1, "offset": 0}]})
        _check_ends(ends, len(entries), [f.size if f.dtype == np.uint8 and f.ndim == 1 else -1 for f in files])
        starts = np.concatenate([np.zeros((1, 2), np.int64), ends[:-1]])

        def decoded(i: int) -> tuple[NDArray[Any], NDArray[Any]]:
            picture, png = (files[k][starts[i, k] : ends[i, k]] for k in (0, 1))
            sizes = {image_size(picture.tobytes()), image_size(png.tobytes())}
            known = bytes(picture[8:12]) == b"WEBP" or bytes(picture[:2]) == b"\xff\xd8"  # JPEG: as it used to be
            if not known or bytes(png[:4]) != b"\x89PNG" or len(sizes) != 1:
                raise ValueError(f"{entries[i]['id']} is no WebP or JPEG with a PNG of its size")
            if math.prod(*sizes) > LARGEST:
                raise ValueError(f"{entries[i]['id']} has more than {LARGEST} pixels")
            image, labels = cv2.imdecode(picture, cv2.IMREAD_COLOR), cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
            if image is None or labels is None or image.shape[:2] != labels.shape:
                raise ValueError(f"{entries[i]['id']} is damaged")
            return np.ascontiguousarray(image[..., ::-1]), labels.astype(np.uint16)

        with PackWriter(target) as writer, ThreadPoolExecutor() as pool:
            for first in range(0, len(entries), AHEAD):  # what is decoded waits in memory for the writer
                some = range(first, min(first + AHEAD, len(entries)))
                for i, (image, labels) in zip(some, pool.map(decoded, some), strict=True):
                    objects = tuple(tuple(values) for values in entries[i]["objects"])
                    writer.add(image, labels, objects, entries[i]["source"], entries[i]["id"])
            writer.finish(str(path), **facts, parcel=digest.hexdigest())
    except DatasetError:
        raise
    except (*DAMAGED, MemoryError, cv2.error) as e:
        raise DatasetError(
            f"{path} is no packed data ({type(e).__name__}: {e}); make it with `activefreq pack`"
        ) from None
    return target


def _made_from(target: Path) -> str | None:
    """The sha256 of the file that a packed folder was made from, if it is one."""
    try:
        made = json.loads((target / "index.json").read_text()).get("parcel")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return made if isinstance(made, str) else None


def _check_ends(ends: NDArray[Any], number: int, sizes: list[int]) -> None:
    if ends.dtype != np.int64 or ends.shape != (number, 2):
        raise ValueError(f"its ends are {ends.dtype} {ends.shape}, not int64 {(number, 2)}")
    if (ends[:1] <= 0).any() or (np.diff(ends, axis=0) <= 0).any() or ends[-1].tolist() != sizes:
        raise ValueError("its ends do not rise from above 0 to the sizes of its images and labels")


def _encode(kind: str, picture: NDArray[Any], option: int, value: int) -> bytes:
    good, data = cv2.imencode(kind, picture, [option, value])
    if not good:
        raise DatasetError(f"OpenCV cannot write {kind} files here; its build lacks them")
    return data.tobytes()
