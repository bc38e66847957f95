"""Arrays as nnInteractive's protocol packs them: a short head and blosc2 chunks.  What comes in is not trusted.

Little-endian: "NNIA", version 1, codec, number of axes, length of the type's name (a byte each), the name, the shape
(int64 each), the number of chunks (uint32), then for each chunk its plain and its packed length (uint64 each) and the
packed bytes.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.serve.errors import ServeError, TooLargeError

MAGIC, VERSION = b"NNIA", 1
DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "float32", "float64"),
    )
}
"""The types that are accepted, by name.  A type is looked up here, never made from the text of a request."""

_ZSTD = 1
_AXES = 4
_CHUNK = 2**30


def pack(array: NDArray[Any]) -> bytes:
    """Pack an array."""
    import blosc2

    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode()
    raw = array.reshape(-1).view(np.uint8).data
    parts = [MAGIC, struct.pack("<BBBB", VERSION, _ZSTD, array.ndim, len(name)), name]
    parts.append(struct.pack(f"<{array.ndim}q", *array.shape))
    starts = range(0, raw.nbytes, _CHUNK)
    parts.append(struct.pack("<I", len(starts)))
    for start in starts:
        piece = raw[start : start + _CHUNK]
        packed = blosc2.compress2(piece, typesize=array.dtype.itemsize, codec=blosc2.Codec.ZSTD, clevel=1)
        parts += [struct.pack("<QQ", piece.nbytes, len(packed)), packed]
    return b"".join(parts)


def unpack(data: bytes, most_bytes: int) -> NDArray[Any]:
    """Unpack an array of at most `most_bytes`.

    Raises:
        ServeError: it is not a packed array.
        TooLargeError: it would be larger; nothing was unpacked.
    """
    try:
        return _unpack(data, most_bytes)
    except (struct.error, ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise ServeError("the body is not an array as nnInteractive packs it") from error


def _unpack(data: bytes, most_bytes: int) -> NDArray[Any]:
    import blosc2

    if data[:4] != MAGIC:
        raise ValueError("no magic")
    version, codec, axes, length = struct.unpack_from("<BBBB", data, 4)
    name = data[8 : 8 + length].decode("ascii")
    if version != VERSION or codec not in (1, 2) or not 1 <= axes <= _AXES or name not in DTYPES:
        raise ServeError(f"packed as version {version}, codec {codec}, {axes} axes of {name!r}; this is not supported")
    at = 8 + length
    shape = struct.unpack_from(f"<{axes}q", data, at)
    at += 8 * axes
    dtype = DTYPES[name]
    if min(shape) < 1:
        raise ValueError("an empty axis")
    total = math.prod(shape) * dtype.itemsize
    if total > most_bytes:
        raise TooLargeError(f"the array has {total} bytes; this server takes {most_bytes}")
    (chunks,) = struct.unpack_from("<I", data, at)
    at += 4
    out = np.empty(total, np.uint8)
    written = 0
    for _ in range(chunks):
        plain, packed = struct.unpack_from("<QQ", data, at)
        at += 16
        piece = memoryview(data)[at : at + packed]
        if len(piece) != packed or plain < 1 or written + plain > total or plain % dtype.itemsize:
            raise ValueError("a chunk does not fit")
        if blosc2.get_cbuffer_sizes(piece)[:2] != (plain, packed):
            raise ValueError("a chunk lies about its size")
        blosc2.decompress2(piece, dst=out[written : written + plain])
        written += plain
        at += packed
    if written != total:
        raise ValueError("bytes are missing")
    array: NDArray[Any] = out.view(dtype).reshape(shape)
    return array
