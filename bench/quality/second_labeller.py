"""Objects that the masks of a set leave out, outlined by MobileSAM: a second set to train on.

    python -m bench.quality.second_labeller DATA/train OUT/train --checkpoint mobile_sam.pt --sheet out/sheet.jpg

MobileSAM is asked at the points of a grid, as SAM's own generator of masks does (arXiv 2304.02643, appendix B), where
no mask of the set lies.  A mask stays if

- the model itself expects it to be good (`QUALITY`) and it hardly depends on the threshold (`STABLE`),
- it is neither a speck nor the background (`SMALLEST`, `LARGEST`),
- less than `SHARED` of it lies on what is labelled already, by the set's masks or by a better mask of MobileSAM's.

OUT gets `images/` (the same files) and `instances/` (16 bits, one value for each new object).  An image without a new
object is left out.  An interrupted run goes on where it was.  The contact sheet is to be looked at before anything
learns from the set.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from activefreq_engine.eval import Dataset, Sample, load_dataset
from activefreq_engine.files import beside
from bench.peers.mobile_sam import SIDE, SamNetwork, mobile_sam, network_input, scaled_size

GRID = 8
"""Points along each side of the grid."""
AT_ONCE = 64
"""Points in one run of MobileSAM's decoder."""
QUALITY = 0.88
"""Least IoU that the model expects of a mask (SAM's own default)."""
STABLE, MARGIN = 0.95, 1.0
"""Least IoU of the masks at this much above and below the threshold of the logits (SAM's own defaults)."""
SMALLEST, LARGEST = 0.0008, 0.5
"""Part of the image that an object may be."""
SHARED = 0.1
"""Part of a mask that may be labelled already."""
TILE, ACROSS, GAP = 256, 6, 4  # pixels, tiles, pixels
COLOURS = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0)])


@torch.inference_mode()
def proposals(
    sam: SamNetwork, image: NDArray[np.uint8], known: NDArray[np.bool_]
) -> list[tuple[float, NDArray[np.bool_]]]:
    """What MobileSAM sees where nothing is labelled.

    Args:
        sam: the model.
        image (uint8 `[H, W, 3]`): RGB.
        known (bool `[H, W]`): what is labelled already.

    Returns:
        Expected IoU and mask, bool `[H, W]`, of each object, best first.
    """
    height, width = image.shape[:2]
    scaled = scaled_size(height, width)
    embedding = sam.encoder(network_input(image))
    found = []
    points_left = grid(known, scaled)
    for points in points_left.split(AT_ONCE) if len(points_left) else ():
        sparse, dense = sam.prompt_encoder(points[None, :, None], torch.ones(1, len(points), 1), None, None)
        logits, quality = sam.mask_decoder(embedding, sam.places(), sparse, dense, multimask_output=True)
        logits, quality = logits.flatten(1, 2)[0], quality.flatten()
        low, high = ((logits > level).flatten(1).sum(1) for level in (-MARGIN, MARGIN))
        good = (quality >= QUALITY) & (high >= STABLE * low) & (low > 0)
        for score, mask in zip(quality[good].tolist(), logits[good], strict=True):
            square = F.interpolate(mask[None, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            inside = square[..., : scaled[0], : scaled[1]]
            full = F.interpolate(inside, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
            found.append((score, (full > 0).numpy()))
    return sorted(found, key=lambda one: -one[0])


def grid(known: NDArray[np.bool_], scaled: tuple[int, int]) -> Tensor:
    """Points (x, y) evenly over what is not labelled, in an image scaled to this height and width: float32 `[N, 2]`."""
    height, width = known.shape
    centres = (torch.arange(GRID) + 0.5) / GRID
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    free = torch.from_numpy(~known[(y.numpy() * height).astype(int), (x.numpy() * width).astype(int)])
    return torch.stack([x[free] * scaled[1], y[free] * scaled[0]], dim=-1)


def new_objects(known: NDArray[np.bool_], found: list[tuple[float, NDArray[np.bool_]]]) -> NDArray[np.uint16]:
    """The new objects: uint16 `[H, W]`, 0 or the number of the object, better ones first.

    Args:
        known (bool `[H, W]`): what is labelled already.
        found: expected IoU and mask, best first.
    """
    labels = np.zeros(known.shape, np.uint16)
    taken = known.copy()
    for _, mask in found:
        area = int(mask.sum())
        if not SMALLEST * mask.size <= area <= LARGEST * mask.size or int((mask & taken).sum()) > SHARED * area:
            continue
        labels[mask & ~taken] = labels.max() + 1
        taken |= mask
    return labels


def by_image(data: Dataset) -> Iterator[tuple[str, list[Sample]]]:
    """The samples of each image together."""
    images: dict[str, list[Sample]] = {}
    for sample in data.samples:
        images.setdefault(sample.image_id, []).append(sample)
    yield from images.items()


def sheet(folder: Path, count: int) -> Image.Image:
    """A contact sheet of a set made here: some images, evenly from the whole, with their objects in colours."""
    files = sorted((folder / "instances").iterdir())
    files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, count).astype(int))]
    rows = -(-len(files) // ACROSS)
    page = Image.new("RGB", (ACROSS * (TILE + GAP), rows * (TILE + GAP)), "white")
    for number, file in enumerate(files):
        labels = np.asarray(Image.open(file))
        picture = next((folder / "images").glob(f"{file.stem}.*"))
        image = np.asarray(Image.open(picture).convert("RGB")).copy()
        colours = COLOURS[labels % len(COLOURS)]
        image[labels > 0] = (0.55 * image + 0.45 * colours)[labels > 0]
        edge = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        image[edge] = colours[edge]
        tile = Image.fromarray(image)
        tile.thumbnail((TILE, TILE))
        page.paste(tile, (number % ACROSS * (TILE + GAP), number // ACROSS * (TILE + GAP)))
    return page


def main(
    data: Annotated[Path, typer.Argument(help="A set with images and masks, labels or instances.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new set.")],
    checkpoint: Annotated[Path, typer.Option(help="MobileSAM's mobile_sam.pt.")],
    sheet_to: Annotated[Path, typer.Option("--sheet", help="Contact sheet, a picture.")],
    limit: Annotated[int | None, typer.Option(help="The first N images only.")] = None,
) -> None:
    sam = mobile_sam(checkpoint)
    pictures = {file.stem: file for file in (data / "images").iterdir()}
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "instances").mkdir(exist_ok=True)
    objects = 0
    for name, samples in tqdm(list(by_image(load_dataset(data)))[:limit]):
        target = out / "instances" / f"{name}.png"
        if target.exists():
            objects += int(np.asarray(Image.open(target)).max())
            continue
        known = np.logical_or.reduce([sample.load_mask() > 0 for sample in samples])
        labels = new_objects(known, proposals(sam, samples[0].load_image(), known))
        if not labels.any():
            continue
        objects += int(labels.max())
        shutil.copyfile(pictures[name], out / "images" / pictures[name].name)
        with beside(target) as partial:
            Image.fromarray(labels).save(partial, "PNG")
    sheet_to.parent.mkdir(parents=True, exist_ok=True)
    sheet(out, 4 * ACROSS).save(sheet_to)
    print(f"{objects} new objects in {len(list((out / 'instances').iterdir()))} images")


if __name__ == "__main__":
    typer.run(main)
