"""A packed folder as one file small enough to travel: images as WebP, label maps as PNG.

The file is a safetensors file of three tensors, `images` and `labels` (uint8, the files back to back) and `ends` (int64
`[N, 2]`, where each ends), and the index of the packed folder as metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import DatasetError
from ..files import beside
from .data import PackWriter, pack
from .mix import Source

SUFFIX = ".safetensors"


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
    """
    pack(sources, work, max_side)
    index = json.loads((work / "index.json").read_text())
    entries = index["entries"]
    images = np.memmap(work / "images.u8", np.uint8, mode="r")
    labels = np.memmap(work / "labels.u16", np.uint16, mode="r")

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
    with beside(path) as partial:
        save_file(tensors, partial, {"index": json.dumps(index)})
    return path


def open_parcel(path: Path, target: Path) -> Path:
    """Unpack a file that `make_parcel` wrote into a packed folder; one that holds it already is kept.

    Raises:
        DatasetError: the file is not there or is no such file.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stored = target / "index.json"
        if stored.exists() and json.loads(stored.read_text()).get("parcel") == digest:
            return target
        with safe_open(str(path), framework="np") as file:
            index = json.loads(file.metadata()["index"])
            ends = file.get_tensor("ends")
            files = [file.get_tensor(name) for name in ("images", "labels")]
        entries = index.pop("entries")
        starts = np.concatenate([np.zeros((1, 2), np.int64), ends[:-1]])

        def decoded(i: int) -> tuple[NDArray[Any], NDArray[Any]]:
            image, labels = (
                cv2.imdecode(files[k][starts[i, k] : ends[i, k]], how)
                for k, how in enumerate((cv2.IMREAD_COLOR, cv2.IMREAD_UNCHANGED))
            )
            if image is None or labels is None:
                raise ValueError(f"{entries[i]['id']} is damaged")
            return np.ascontiguousarray(image[..., ::-1]), labels.astype(np.uint16)

        with PackWriter(target) as writer, ThreadPoolExecutor() as pool:
            for entry, (image, labels) in zip(entries, pool.map(decoded, range(len(entries))), strict=True):
                objects = tuple(tuple(values) for values in entry["objects"])
                writer.add(image, labels, objects, entry["source"], entry["id"])
            writer.finish(str(path), **index, parcel=digest)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, IndexError, cv2.error) as e:
        raise DatasetError(
            f"{path} is no packed data ({type(e).__name__}: {e}); make it with `activefreq pack`"
        ) from None
    return target


def _encode(kind: str, picture: NDArray[Any], option: int, value: int) -> bytes:
    good, data = cv2.imencode(kind, picture, [option, value])
    if not good:
        raise DatasetError(f"OpenCV cannot write {kind} files here; its build lacks them")
    return data.tobytes()
