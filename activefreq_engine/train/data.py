"""Training data: decoded once into flat memory-mapped files, then cropped and augmented on the fly.

A packed folder holds `images.u8` (RGB rows of all images, back to back), `labels.u16` (label maps, 0 = background),
`objects.npz` (where the objects lie) and `index.json`.  A sample is one (image, object) drawn at random, cropped by a
single affine warp.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from ..errors import DatasetError, InvalidImageError
from ..files import beside, write_file, writing
from ..images import load_image, load_labels
from ..images.folders import IMAGE_SUFFIXES, MASK_SUFFIXES, Pair, listing, match
from .mix import Objects, Source
from .packed import LARGEST, read_packed
from .teacher import Teacher

log = logging.getLogger(__name__)
MASK_FOLDERS = ("masks", "labels", "instances")  # binary, label values, label values
DISTRACTED = 0.35  # share of samples that something is added to, see `distract`
DISTANT = 0.25  # share of samples that are shown small in a larger picture, see `surround`
LEAST_SHOWN = 26  # pixels of the object that `surround` leaves, 2 % of a side of 256 squared
FADED = 0.25  # share of samples whose object loses contrast, see `fade`
FAINTEST = 12.0  # distance in RGB, 0..255, between object and surroundings that is left
MIN_AREA = 16  # pixels of the packed image that an object must have: nuclei are as small as that
MOST_TRIED = 3  # objects that are looked for in a crop, for each sample of it
EDGES = 32  # pixels of its border that are noted for each object
Pixels = NDArray[Any]  # uint8; OpenCV's annotations promise no dtype


def read_image(path: Path) -> Pixels:
    """As `Session.set_image` would see the file, uint8 `[H, W, 3]` RGB.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        image = load_image(path)
    except InvalidImageError as error:
        raise DatasetError(f"{path} is not a readable image; replace or remove it: {error}") from error
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def read_labels(path: Path, binary: bool) -> NDArray[Any]:
    """A mask (one value beside 0, object 1) or label map (each value one object) as uint16 `[H, W]`.

    Raises:
        DatasetError: the file cannot be read, or is no mask or label map.
    """
    try:
        labels = load_labels(path)
    except InvalidImageError as error:
        raise DatasetError(f"{path} is not a readable image of labels: {error}") from error
    low, high = int(labels.min()), int(labels.max())
    if binary:
        values = np.unique(labels[labels != 0])
        if len(values) > 1:  # as in evaluation
            raise DatasetError(
                f"mask {path} holds {len(values)} non-zero values, {values[:5].tolist()}; a mask has one object. Put "
                "label maps into labels/"
            )
        return (labels != 0).astype(np.uint16)
    if low < 0 or high > 65535:
        raise DatasetError(f"{path} has values from {low} to {high}; allowed are 0 to 65535. Number its objects anew")
    return labels.astype(np.uint16)


def find_pairs(folder: Path) -> tuple[str, list[Pair]]:
    """Which of `MASK_FOLDERS` a data folder has, and its images with their masks.

    Raises:
        DatasetError: no such folder, no images, an image without a mask, or several of `MASK_FOLDERS`.
    """
    if not os.path.isdir(folder):  # False for a name that is too long, where Path.is_dir raises
        raise DatasetError(
            f"there is no folder {folder}; a data folder needs images/ and, beside it, masks/ (or labels/)"
        )
    kinds = [k for k in MASK_FOLDERS if (folder / k).is_dir()]
    if len(kinds) > 1:
        raise DatasetError(f"{folder} holds {' and '.join(kinds)}; keep the one that is meant, and move the rest away")
    kind = kinds[0] if kinds else None
    images = folder / "images"
    try:
        paths = listing(images, IMAGE_SUFFIXES)
    except DatasetError:
        paths = []
    if kind is None or not paths:
        raise DatasetError(
            f"{folder} needs images/ ({', '.join(IMAGE_SUFFIXES)}) and, beside it, one of {', '.join(MASK_FOLDERS)} "
            f"with a mask of the same name for each ({', '.join(MASK_SUFFIXES)}); "
            + ("there is no such folder" if kind is None else "images/ holds none")
        )
    return kind, match(paths, listing(folder / kind, MASK_SUFFIXES))


def pack(folders: Sequence[Path | Source], target: Path, max_side: int = 384) -> Path:
    """Decode data folders (`images/` beside `masks/`, `labels/` or `instances/`) into one packed folder.

    Images whose longer side exceeds `max_side` are scaled down.  Objects smaller than `MIN_AREA` pixels are dropped.
    An existing complete pack of the same folders is reused, whatever has changed in them since.

    Args:
        folders (sequence of paths or sources): data folders; their order numbers the sources.
        target (path): the packed folder.
        max_side (int): longest side of a packed image, pixels.

    Returns:
        Path: `target`.

    Raises:
        DatasetError: no images, a missing or misshapen mask, an unreadable file, a folder without an object.
        FileWriteError: `target` cannot be written to.
    """
    sources = [f if isinstance(f, Source) else Source(f) for f in folders]
    described = [{"folder": str(s.folder), "objects": s.objects and [list(v) for v in s.objects]} for s in sources]
    try:
        index = json.loads((target / "index.json").read_text())
        if (index["sources"], index["max_side"]) == (described, max_side):
            return target
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s holds no packed data that can be used (%s): made anew", target, type(error).__name__)
    found = [find_pairs(source.folder) for source in sources]  # before anything is written
    with PackWriter(target) as writer:
        for number, (source, (kind, pairs)) in enumerate(zip(sources, found, strict=True)):
            others = len(writer.entries)
            for pair in tqdm(pairs, desc=f"packing {source.folder}", disable=None):
                image, labels = read_image(pair.image), read_labels(pair.truth, binary=kind == "masks")
                if labels.shape != image.shape[:2]:
                    raise DatasetError(
                        f"{pair.truth} is {labels.shape[1]} x {labels.shape[0]} (width x height), its image "
                        f"{image.shape[1]} x {image.shape[0]}; they must agree"
                    )
                scale = max_side / max(labels.shape)
                if scale < 1:
                    size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
                    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
                writer.add(np.ascontiguousarray(image), labels, source.objects, number, pair.name)
            if len(writer.entries) == others:  # the run would be without it, and the other sets would have its share
                made = f" made of the label values {described[number]['objects']}" if source.objects else ""
                raise DatasetError(
                    f"no object of at least {MIN_AREA} pixels{made} in {source.folder}; look at its masks, or leave "
                    "the folder out"
                )
        named = ", ".join(str(s.folder) for s in sources)
        weights = [s.weight for s in sources]
        writer.finish(named, sources=described, max_side=max_side, weights=None if None in weights else weights)
    return target


class PackWriter:
    """Writes a packed folder, image by image, beside what is there; `finish` puts it in its place.

    The index comes last: without it nothing there counts.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
        self.entries: list[dict[str, Any]] = []
        self.objects: list[tuple[list[int], int, tuple[int, ...], NDArray[Any]]] = []
        self.offset = 0

    def __enter__(self) -> PackWriter:
        with ExitStack() as files:
            self.images, self.labels, self._objects = (
                files.enter_context(files.enter_context(beside(self.target / name)).open("wb"))
                for name in ("images.u8", "labels.u16", "objects.npz")
            )
            self._files = files.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._files.__exit__(kind, error, trace)  # nothing is left to do after `finish`

    def add(self, image: Pixels, labels: NDArray[Any], objects: Objects | None, source: int, name: str) -> None:
        """One image `[H, W, 3]` and its label map; it is left out where no object has `MIN_AREA` pixels.

        Raises:
            DatasetError: more than `packed.LARGEST` pixels.
        """
        if labels.size > LARGEST:
            raise DatasetError(f"{name} would be packed with {labels.size} pixels; allowed are {LARGEST}: pack smaller")
        areas = np.bincount(labels.ravel())
        groups = [(int(v),) for v in np.flatnonzero(areas) if v > 0] if objects is None else objects
        kept = [list(g) for g in groups if sum(int(areas[v]) for v in g if v < len(areas)) >= MIN_AREA]
        if not kept:
            return
        for values in kept:
            self.objects.append((values, len(self.entries), *_outline(members(labels, values), len(self.objects))))
        self.images.write(image.tobytes())
        self.labels.write(labels.tobytes())
        h, w = labels.shape
        entry = {"offset": self.offset, "h": h, "w": w, "objects": kept, "source": source, "id": name}
        self.entries.append(entry)
        self.offset += h * w

    def finish(self, named: str, **facts: object) -> None:
        """Write the objects and the index.  Raises DatasetError where there is no object."""
        if not self.entries:
            raise DatasetError(f"no object of at least {MIN_AREA} pixels in {named}; are the masks empty?")
        widest = max(len(values) for values, *_ in self.objects)
        np.savez(
            self._objects,
            # an object of fewer values repeats its first one
            values=np.array([v + v[:1] * (widest - len(v)) for v, *_ in self.objects], np.uint16),
            entry=np.array([e for _, e, *_ in self.objects], np.int64),
            box=np.array([box for *_, box, _ in self.objects], np.int32),
            edges=np.stack([edges for *_, edges in self.objects]).astype(np.int16),
        )
        (self.target / "index.json").unlink(missing_ok=True)  # that of what is replaced now
        self._files.close()
        write_file(self.target / "index.json", json.dumps({**facts, "entries": self.entries}).encode())


def members(labels: NDArray[Any], values: Sequence[int]) -> NDArray[np.uint8]:
    """The object that label values make: 0 or 1, `[H, W]`."""
    if len(values) == 1:
        return (labels == values[0]).view(np.uint8)
    return np.isin(labels, values).view(np.uint8)


def _outline(mask: NDArray[np.uint8], seed: int) -> tuple[tuple[int, int, int, int], NDArray[Any]]:
    """An object's box (x0, y0, x1, y1), half-open, and `EDGES` pixels (x, y) of its inner border, drawn at random."""
    x, y, w, h = cv2.boundingRect(mask)
    left, top = max(x - 1, 0), max(y - 1, 0)
    near = mask[top : y + h + 1, left : x + w + 1]
    ys, xs = np.nonzero(border(near) if border(near).any() else near)
    drawn = np.random.default_rng(seed).integers(len(ys), size=EDGES)
    return (x, y, x + w, y + h), np.stack([xs[drawn] + left, ys[drawn] + top], axis=1)


def border(mask: NDArray[np.uint8]) -> NDArray[Any]:
    """The pixels of an object, 0 or 1, that touch what is beside it; the image's own border is no border."""
    gradient: NDArray[Any] = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return gradient & mask


@dataclass(frozen=True)
class Crop:
    """One training sample."""

    image: Pixels  # [S, S, 3] RGB
    label: NDArray[Any]  # [S, S]: 0, 1, or -1 beyond the image
    affine: NDArray[np.float64]  # [2, 3]: crop pixel (u, v, 1) -> pixel (x, y) of the packed image


class PackedDataset(Dataset):
    """Deterministic samples: item (index, size) depends on the seed, the index and the size alone.

    So a run that is killed and resumed, or spread over several processes, sees the same data.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        teacher: Teacher | None = None,
        per_crop: int = 1,
    ) -> None:
        packed = read_packed(folder)
        self.entries, self.images, self.labels = packed.entries, packed.images, packed.labels
        self.seed = seed
        self.per_crop = per_crop
        self.teacher = teacher
        if teacher is not None:
            teacher.check(self.entries)
        self.sources = sources = np.array([e["source"] for e in self.entries])
        # weights: share of each source folder in an epoch; by default every image counts the same
        self.share = None
        weights = weights or packed.weights
        if weights is not None:
            counts = np.bincount(sources, minlength=len(weights))
            p = np.asarray(weights, float)[sources] / counts[sources]
            self.share = p / p.sum()

    def __len__(self) -> int:
        return len(self.entries)

    def pick(self, index: int) -> int:
        """Entry of a running sample index: a fresh permutation each epoch (or draw, with source weights)."""
        epoch, position = divmod(index, len(self.entries))
        rng = np.random.default_rng((self.seed, epoch, 0))
        if self.share is None:
            return int(rng.permutation(len(self.entries))[position])
        return int(rng.choice(len(self.entries), size=len(self.entries), p=self.share)[position])

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """`(index, size)` -> image uint8 `[3, S, S]`, label int8 `[1, S, S]`, and the teacher's `[T, S/16, S/16]`.

        With `per_crop` P, labels `[P, S, S]`: other objects of the crop, where it has some, and nothing is added to it.
        """
        index, size = item
        picked = self.pick(index)
        rng = np.random.default_rng((self.seed, index, 1))
        crop = self._crop(picked, size, rng)
        seen, label = crop.image, crop.label
        if others := self._others(picked, crop, rng):
            drawn = rng.permuted(np.arange(self.per_crop - 1) % len(others))
            labels = np.stack([label, *(others[i] for i in drawn)])
            return torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1))), torch.from_numpy(labels)
        # a teacher has not seen what is added, so its features would be wrong there
        if self.teacher is None and rng.random() < DISTRACTED:
            seen = distract(seen, label, self._crop(self._alike(picked, rng), size, rng), rng)
        if self.teacher is None and rng.random() < DISTANT:
            seen, label = surround(seen, label, self._crop(self._alike(picked, rng), size, rng).image, rng)
        labels = np.repeat(label[None], self.per_crop, axis=0)
        sample = (torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1))), torch.from_numpy(labels))
        if self.teacher is None:
            return sample
        entry = self.entries[picked]
        return (*sample, self.teacher.crop(picked, (entry["h"], entry["w"]), crop.affine, size))

    def _crop(self, picked: int, size: int, rng: np.random.Generator) -> Crop:
        """A random crop of an entry, of one of its objects."""
        entry = self.entries[picked]
        h, w, offset = entry["h"], entry["w"], entry["offset"]
        image = self.images[3 * offset : 3 * (offset + h * w)].reshape(h, w, 3)
        labels = self.labels[offset : offset + h * w].reshape(h, w)
        return random_crop(image, members(labels, entry["objects"][rng.integers(len(entry["objects"]))]), size, rng)

    def _others(self, picked: int, crop: Crop, rng: np.random.Generator) -> list[NDArray[Any]]:
        """Labels of up to `per_crop - 1` other objects that lie in a crop."""
        entry = self.entries[picked]
        if self.per_crop == 1 or len(entry["objects"]) == 1:
            return []
        h, w, offset = entry["h"], entry["w"], entry["offset"]
        labels = self.labels[offset : offset + h * w].reshape(h, w)
        found: list[NDArray[Any]] = []
        for i in rng.permutation(len(entry["objects"]))[: MOST_TRIED * self.per_crop]:
            label = warped(members(labels, entry["objects"][i]), crop.affine, len(crop.label))
            label[crop.label < 0] = -1
            if (label == 1).sum() >= MIN_AREA and (label != crop.label).any():
                found.append(label)
            if len(found) == self.per_crop - 1:
                break
        return found

    def _alike(self, picked: int, rng: np.random.Generator) -> int:
        """An entry of the same source folder."""
        return int(rng.choice(np.flatnonzero(self.sources == self.sources[picked])))


class StepSampler(Sampler):
    """Batches of (index, size) from a given step on; `size_of` is asked when a batch is drawn."""

    def __init__(self, start: int, batch: int, rank: int, world: int, size_of: SizeOf) -> None:
        self.start, self.batch, self.rank, self.world, self.size_of = start, batch, rank, world, size_of

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start
        while True:
            size = self.size_of(step)
            if size is None:
                return
            first = (step * self.world + self.rank) * self.batch
            yield [(first + i, size) for i in range(self.batch)]
            step += 1


class SizeOf:
    """Crop size at a step, or None when training is over.  Overridden by the loop's schedule."""

    def __call__(self, step: int) -> int | None:
        raise TypeError("SizeOf is an interface")


def random_crop(image: Pixels, mask: Pixels, size: int, rng: np.random.Generator) -> Crop:
    """One affine warp (crop, scale, rotation, flip, mild stretch) and photometric changes.

    What the engine meets: the whole image at the first click, then the object's box x1.4 (Session zooms in).  So: 40 %
    whole image, 45 % object box x1.1 to 2, 15 % a part of the boundary.
    """
    h, w = mask.shape
    mode = rng.random()
    ys, xs = np.nonzero(mask)
    if not len(xs):
        raise DatasetError("an object of the packed data has no pixels: it is damaged. Remove it, and it is made anew")
    x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    box = max(x1 - x0, y1 - y0, 16)
    if mode < 0.40:
        side = max(h, w) * rng.uniform(0.85, 1.1)
        cx, cy = w / 2, h / 2
        jitter = 0.06 * side
    elif mode < 0.85:
        side = box * rng.uniform(1.1, 2.0)
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        jitter = 0.15 * box
    else:
        side = box * rng.uniform(0.4, 0.9)
        edge = np.flatnonzero(border(mask))
        i = int(rng.choice(edge)) if len(edge) else int(rng.choice(np.flatnonzero(mask)))
        cx, cy = i % w + 0.5, i // w + 0.5
        jitter = 0.2 * side
    side = min(max(side, 24.0), 1.1 * max(h, w))
    # little beyond the image: the engine's crops end at its border
    cx = keep_inside(cx + rng.uniform(-jitter, jitter), 0.45 * side, w)
    cy = keep_inside(cy + rng.uniform(-jitter, jitter), 0.45 * side, h)
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.6 else rng.integers(4) * np.pi / 2
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    zoom = side / size
    flip = -1.0 if rng.random() < 0.5 else 1.0
    # output pixel centre (u + 0.5, v + 0.5) -> source point; warpAffine counts pixel centres at integers
    c, s = np.cos(angle) * zoom, np.sin(angle) * zoom
    matrix = np.array([[c * stretch * flip, -s / stretch], [s * stretch * flip, c / stretch]])
    centre = np.array([cx - 0.5, cy - 0.5]) - matrix @ np.array([(size - 1) / 2, (size - 1) / 2])
    affine = np.concatenate([matrix, centre[:, None]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if zoom > 1.2:  # bilinear samples alone would alias; an even box filter would move the image by half a pixel
        image = cv2.GaussianBlur(image, (0, 0), math.sqrt((zoom * zoom - 1) / 6))
    out = cv2.warpAffine(image, affine, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    target = warped(mask, affine, size)
    inside = cv2.warpAffine(
        np.full((h, w), 255, np.uint8), affine, (size, size), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    target[inside == 0] = -1
    if rng.random() < FADED:
        out = fade(out, target, rng)
    return Crop(photometric(out, rng), target, affine)


def warped(mask: NDArray[np.uint8], affine: NDArray[np.float64], size: int) -> NDArray[np.int8]:
    """A mask, 0 or 1, in a crop, whatever its borders."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    label = cv2.warpAffine(mask * 255, affine, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return (label > 127).astype(np.int8)


def fade(image: Pixels, label: NDArray[Any], rng: np.random.Generator) -> Pixels:
    """Draw the object's colours towards those around it, without changing what lies around it much.

    Faint objects are those that need most clicks, and data sets hold few of them.
    """
    size = image.shape[0]
    inside = (label == 1).astype(np.float32)
    around = cv2.dilate(inside, np.ones((2 * (size // 12) + 1,) * 2, np.uint8)) - inside
    around[label < 0] = 0
    if around.sum() < 1 or inside.sum() < 1:
        return image
    colour = (image * around[..., None]).sum((0, 1)) / around.sum()
    contrast = float(np.linalg.norm((image * inside[..., None]).sum((0, 1)) / inside.sum() - colour))
    share = min(rng.uniform(0.3, 0.8), 1 - FAINTEST / max(contrast, 1.0))
    if share <= 0:
        return image
    weight = share * cv2.GaussianBlur(inside, (0, 0), rng.uniform(0.005, 0.03) * size)
    return (image + weight[..., None] * (colour - image) + 0.5).astype(np.uint8)


def distract(image: Pixels, label: NDArray[Any], other: Crop, rng: np.random.Generator) -> Pixels:
    """Add something that is not the object, clear of it: another image's object, or a patch or ring of one colour.

    Stickers, ink, gel bubbles and a second lesion are what a first click's mask runs into.
    """
    size = image.shape[0]
    drawn = rng.random()
    gap = 2 * int(rng.uniform(0.02, 0.06) * size) + 1
    taken: NDArray[Any] = cv2.dilate((label == 1).astype(np.uint8), np.ones((gap, gap), np.uint8))
    for _ in range(6):
        shape: NDArray[Any] = np.zeros((size, size), np.uint8)
        if drawn < 0.5:
            scale = rng.uniform(0.3, 0.9)
            shift = rng.uniform(-0.2, 1.2, 2) * size - scale * size / 2
            affine = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
            shape = cv2.warpAffine((other.label == 1).astype(np.uint8), affine, (size, size), flags=cv2.INTER_NEAREST)
            content = cv2.warpAffine(other.image, affine, (size, size), borderMode=cv2.BORDER_REFLECT_101)
        else:
            centre = tuple(int(v) for v in rng.uniform(-0.3, 1.3, 2) * size)
            axes = tuple(int(v) for v in rng.uniform(0.05, 0.6, 2) * size)
            width = -1 if drawn < 0.8 else int(rng.uniform(0.01, 0.04) * size) + 1
            cv2.ellipse(shape, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, width, cv2.LINE_8)
            content = np.clip(rng.uniform(0, 255, 3) + rng.normal(0, rng.uniform(1, 15), image.shape), 0, 255)
        if shape.any() and not (shape & taken).any():
            alpha = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), rng.uniform(0.4, 2.0)) * (taken == 0)
            alpha *= rng.uniform(0.5, 1.0) if drawn >= 0.5 else 1.0
            return (image + alpha[..., None] * (content.astype(np.float32) - image) + 0.5).astype(np.uint8)
    return image


def surround(
    image: Pixels, label: NDArray[Any], other: Pixels, rng: np.random.Generator
) -> tuple[Pixels, NDArray[Any]]:
    """Show the crop 1.3 to 8 times smaller, somewhere in a picture of the same size: image and label.

    Around it lies a field of its border's colour, its own mirror images (only the clicked object is the object), or
    `other`, in its own colours or those of the crop's border.  An object that reaches the crop's border is left alone:
    its mirror image would touch it, and elsewhere it would end in a straight line.

    In a photograph of many megapixels the object fills a small part of what the first click sees, and a first mask that
    is too large costs more clicks than one that is too small (docs/experiments.md, 16).
    """
    size = image.shape[0]
    rim = np.ones((size, size), bool)
    rim[2:-2, 2:-2] = False
    most = math.sqrt((label == 1).sum() / LEAST_SHOWN)
    if (label[rim] == 1).any() or most <= 1.3:
        return image, label
    side = round(size / math.exp(rng.uniform(math.log(1.3), math.log(min(8.0, most)))))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    small_label = cv2.resize(label, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    left, top = (int(v) for v in rng.integers(0, size - side + 1, 2))
    place = (slice(top, top + side), slice(left, left + side))
    out_label = np.zeros_like(label)
    out_label[place] = small_label
    drawn = rng.random()
    if drawn < 0.25:
        around = ((top, size - side - top), (left, size - side - left), (0, 0))
        return np.pad(small, around, mode="reflect"), out_label
    outside = rim & (label == 0)
    colour = np.median(image[outside if outside.any() else rim], axis=0)
    if drawn < 0.6:
        cells = int(rng.integers(2, 33))
        grid = rng.normal(0, 1, (cells, cells, 1)) + 0.3 * rng.normal(0, 1, (cells, cells, 3))
        shade = cv2.resize(grid.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, rng.uniform(0.5, 6), (size, size, 1))
        backdrop: NDArray[Any] = colour + rng.uniform(1, 15) * shade + grain
    else:
        backdrop = other.astype(np.float32)
        if drawn < 0.8:
            backdrop = backdrop + (colour - np.median(other.reshape(-1, 3), axis=0))
    # a seam as wide as may be, but never across the object
    alpha: NDArray[Any] = np.zeros((size, size), np.float32)
    soft = rng.uniform(0.3, 0.08 * side) if rng.random() < 0.7 else 0.3
    edge = int(2 * soft)
    alpha[top + edge : top + side - edge, left + edge : left + side - edge] = 1
    kept: NDArray[Any] = cv2.dilate((out_label == 1).astype(np.float32), np.ones((5, 5), np.uint8))
    alpha = np.maximum(cv2.GaussianBlur(alpha, (0, 0), soft), kept)
    beyond = np.ones((size, size), bool)
    beyond[place] = False
    alpha[beyond] = 0
    pasted = np.zeros(image.shape, np.float32)
    pasted[place] = small
    return np.clip(backdrop + alpha[..., None] * (pasted - backdrop) + 0.5, 0, 255).astype(np.uint8), out_label


def keep_inside(centre: float, margin: float, length: int) -> float:
    """`centre`, moved so that `margin` on both sides fits into `length` where it can."""
    return float(np.clip(centre, margin, length - margin)) if 2 * margin < length else length / 2


def photometric(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Colour, contrast, gamma, saturation, blur, noise, drawn hairs and a dermatoscope's rim, each now and then."""
    ramp = np.arange(256, dtype=np.float32) / 255
    gain = np.exp(rng.uniform(-0.25, 0.25)) * np.exp(rng.uniform(-0.15, 0.15, 3))  # exposure, white balance
    offset = rng.uniform(-0.1, 0.1)
    gamma = np.exp(rng.uniform(-0.4, 0.4))
    lut = (ramp[:, None] ** gamma) * gain + offset
    image = cv2.LUT(image, np.clip(lut * 255 + 0.5, 0, 255).astype(np.uint8)[None])
    if rng.random() < 0.5:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        keep = rng.uniform(0.4, 1.6) if rng.random() < 0.85 else 0.0
        image = cv2.addWeighted(image, keep, grey, 1 - keep, 0)
    if rng.random() < 0.15:
        image = hairs(image, rng)
    if rng.random() < 0.1:
        image = vignette(image, rng)
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.5))
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(2, 10), image.shape).astype(np.float32)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def vignette(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Darkness outside a circle, hard or soft, as the tube of a dermatoscope leaves it."""
    size = image.shape[0]
    cx, cy = size / 2 + rng.uniform(-0.15, 0.15, 2) * size
    y, x = np.ogrid[:size, :size]
    beyond = np.hypot(x - cx, y - cy) - rng.uniform(0.5, 0.65) * size
    light = 1 / (1 + np.exp(np.clip(beyond / (rng.uniform(0.005, 0.08) * size), -30, 30)))
    dark = rng.uniform(0, 0.35)
    return (image * (dark + (1 - dark) * light)[..., None]).astype(np.uint8)


def hairs(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Dark bent lines, as body hair and rulers leave them on dermoscopic images."""
    out = image.copy()
    for points, colour, thickness in hair_lines(image.shape[0], rng):
        cv2.polylines(out, [points], False, colour, thickness, cv2.LINE_AA)
    return out


def hair_lines(size: int, rng: np.random.Generator) -> Iterator[tuple[NDArray[np.int32], list[float], int]]:
    """Points `[12, 2]`, colour and thickness of each hair in a picture of `size` x `size`."""
    for _ in range(rng.integers(2, 12)):
        start = rng.uniform(0, size, 2)
        angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, 12))
        points = start + np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1) * size / 10, 0)
        colour = (rng.uniform(10, 90) * rng.uniform(0.8, 1.2, 3)).tolist()
        yield np.round(points).astype(np.int32), colour, int(rng.integers(1, 3))
