"""Features of MobileSAM's image encoder for every training image, for the student to learn beside the masks.

MobileSAM (ChaoningZhang/MobileSAM, arXiv 2306.14289) and its weights are under the Apache licence 2.0; what is stored
here are its features of the user's images, and no tensor of it enters a trained model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DatasetError, InvalidArgumentError, ModelLoadError
from ..files import alone_in, write_file
from ..models import normalise
from ..models.tinyvit import EMBEDDING, MobileSamEncoder, from_mobile_sam
from .data import pack
from .packed import Packed, read_packed
from .teacher import TEACHER_STRIDE, Teacher

SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"  # of the published mobile_sam.pt
LEAST_STD = 0.02  # channels that hardly vary would become rounding noise when standardised


def load_teacher(weights: Path) -> MobileSamEncoder:
    """MobileSAM's image encoder in evaluation mode.

    The published file is a pickle: it is read only if its SHA-256 is the published one, and tensors only.

    Raises:
        ModelLoadError: no such file, or another one.
    """
    try:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if digest != SHA256:
            raise ModelLoadError(f"{weights} has SHA-256 {digest}; mobile_sam.pt as published has {SHA256}")
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as e:
        raise ModelLoadError(f"{weights} cannot be read ({e}); docs/training.md says where it can be had") from None
    encoder = MobileSamEncoder()
    encoder.load_state_dict(from_mobile_sam(state))
    return encoder.eval().requires_grad_(False)


def padded_square(image: torch.Tensor, side: int) -> torch.Tensor:
    """`[1, 3, H, W]` RGB in 0..255 -> `[1, 3, side, side]` normalised, scaled to a longer side of `side`."""
    height, width = image.shape[2:]
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    scaled = normalise(F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False))
    return F.pad(scaled, (0, side - size[1], 0, side - size[0]))


@torch.inference_mode()
def make_teacher(
    data: Sequence[Path],
    encoder: MobileSamEncoder,
    out: Path,
    *,
    side: int = 512,
    device: str | torch.device = "cpu",
    packed: Path | None = None,
) -> Path:
    """Write a teacher folder (see `teacher`) for training data; one that was interrupted goes on.

    Args:
        data (sequence of paths): data folders, as for `train`.
        encoder (MobileSamEncoder): the teacher, on any device.
        out (path): the folder.
        side (int): longer side of the images it sees, pixels; a multiple of 16. MobileSAM was trained at 1024; 512 is a
            quarter of the work.
        device: where it runs.
        packed (path, optional): the packed data. Default: `out/data`, packed there first if it is not.

    Returns:
        Path: `out`.

    Raises:
        DatasetError: unusable data.
        InvalidArgumentError: a bad side, or another process is at work in `out`.
        FileWriteError: `out` cannot be written to.
    """
    if side < TEACHER_STRIDE or side % TEACHER_STRIDE:
        raise InvalidArgumentError(f"side is {side}; expected a positive multiple of {TEACHER_STRIDE}")
    folder = pack(data, packed or out / "data")
    made_of = read_packed(folder)
    with contextlib.suppress(DatasetError):
        made = Teacher(out)
        if (made.images, made.grid) == ([str(e["id"]) for e in made_of.entries], side // TEACHER_STRIDE):
            return out
    with alone_in(out):
        return _make_teacher(made_of, encoder, out, side, torch.device(device))


def _make_teacher(made_of: Packed, encoder: MobileSamEncoder, out: Path, side: int, target: torch.device) -> Path:
    from .loop import precision

    entries, pixels = made_of.entries, made_of.images
    grid = side // TEACHER_STRIDE
    bytes_each = EMBEDDING * grid * grid * 2
    # what was interrupted goes on if it was made of the same images at the same size
    partial = out / f"features.{hashlib.sha256(json.dumps([side, entries]).encode()).hexdigest()[:16]}.partial"
    for other in set(out.glob("features.*.partial")) - {partial}:
        other.unlink()
    encoder = encoder.to(target)
    narrow = precision(target)
    with partial.open("ab") as f:
        done = min(f.tell() // bytes_each, len(entries))
        f.truncate(done * bytes_each)
        for entry in tqdm(entries[done:], desc="teacher", initial=done, total=len(entries), disable=None):
            height, width, offset = entry["h"], entry["w"], entry["offset"]
            image = np.array(pixels[3 * offset : 3 * (offset + height * width)]).reshape(1, height, width, 3)
            x = padded_square(torch.from_numpy(image).permute(0, 3, 1, 2).to(target), side)
            with torch.autocast(target.type, dtype=narrow, enabled=narrow is not None):
                features = encoder(x)[1]
            f.write(features[0].float().half().cpu().numpy().tobytes())
        f.flush()
        os.fsync(f.fileno())
    shape = (len(entries), EMBEDDING, grid, grid)
    mean, std = _moments(np.memmap(partial, np.float16, mode="r", shape=shape), entries, grid)
    (out / "teacher.json").unlink(missing_ok=True)  # that of what is replaced now
    partial.replace(out / "features.f16")
    facts = {"images": [str(e["id"]) for e in entries], "channels": EMBEDDING, "grid": grid, "mean": mean, "std": std}
    write_file(out / "teacher.json", json.dumps(facts).encode())
    return out


def _moments(features: NDArray[Any], entries: list[dict[str, Any]], grid: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the cells that lie in an image."""
    total, squares, cells = np.zeros(EMBEDDING), np.zeros(EMBEDDING), 0
    for one, entry in zip(features, entries, strict=True):
        longer = max(entry["h"], entry["w"])
        rows, columns = (-(-grid * entry[side] // longer) for side in ("h", "w"))
        inside = one[:, :rows, :columns].reshape(EMBEDDING, -1).astype(np.float64)
        total += inside.sum(axis=1)
        squares += np.square(inside).sum(axis=1)
        cells += inside.shape[1]
    mean = total / cells
    std = np.sqrt(np.maximum(squares / cells - mean**2, 0))
    return mean.tolist(), np.maximum(std, LEAST_STD).tolist()
