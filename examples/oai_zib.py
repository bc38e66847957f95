"""Turns the scans of the Osteoarthritis Initiative and ZIB's segmentations of them into data to train and evaluate on.

    python examples/oai_zib.py OAI ZIB/segmentation OUT        # needs SimpleITK: pip install ".[eval]"

OAI is the folder of the baseline scans (it holds 0.C.2 and 0.E.1, DICOM), ZIB what was unpacked from ZIB's archive; how
to get both is told in docs/training.md.  Written are, for the two lists of ZIB's cross-validation:

    OUT/list1/, OUT/list2/    images/ID.mha and labels/ID.mha, volumes as `activefreq eval` reads them
    OUT/train1/, OUT/train2/  images/ and labels/ of PNG slices as `activefreq train` reads them

Volumes that are there already are not converted again.
"""

import argparse
from itertools import groupby
from pathlib import Path

import numpy as np
import SimpleITK
from PIL import Image
from tqdm import tqdm

from activefreq_engine.eval import load_dataset

CARTILAGE = (2, 4)
"""Femoral and tibial cartilage, the objects of the published evaluations; 1 and 3 are the bones."""
SLICES = 12
"""Training slices of each scan, spread evenly over those that hold an object."""
FLIPS = ((), (0,), (1,), (0, 1))
"""Of slices (axis 0) and rows (axis 1)."""


def scan(folder: Path) -> np.ndarray:
    """A DICOM series as an array `[slices, rows, columns]`, slices in the order of their positions."""
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    if not names:
        raise SystemExit(f"{folder} holds no DICOM series; is the baseline of the OAI unpacked completely?")
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(names))


def aligned(labels: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """ZIB's labels `[rows, columns, slices]` on the axes of the scan `[slices, rows, columns]`, and the flip it took.

    The files carry no pose.  Bone and cartilage are each of one brightness where labels and scan agree, so of all flips
    the one is taken that leaves the least variance within the labels.
    """
    turned = np.moveaxis(labels, -1, 0)
    if turned.shape != image.shape:
        raise SystemExit(f"labels of {turned.shape} voxels (slices, rows, columns), scan of {image.shape}")
    few = image[::4, ::2, ::2].astype(np.float64)

    def variance(flip: tuple[int, ...]) -> float:
        found = np.flip(turned, flip)[::4, ::2, ::2]
        return sum(few[found == v].var() * (found == v).sum() for v in np.unique(found) if v)

    best = min(FLIPS, key=variance)
    return np.ascontiguousarray(np.flip(turned, best)), best


def write_slices(volumes: Path, target: Path) -> None:
    """8-bit PNG slices, windowed as `activefreq eval` does it, and label maps of the cartilages."""
    for name in ("images", "labels"):
        (target / name).mkdir(parents=True, exist_ok=True)
    samples = load_dataset(volumes, labels=CARTILAGE, slices=SLICES).samples
    for image_id, objects in groupby(tqdm(samples, desc=f"slices of {volumes.name}"), key=lambda s: s.image_id):
        first, *others = list(objects)
        labels = np.zeros(first.load_mask().shape, np.uint8)
        for sample in (first, *others):
            labels[sample.load_mask() == 1] = sample.object
        file = image_id.replace(":", "_") + ".png"
        Image.fromarray(first.load_image()[:, :, 0]).save(target / "images" / file)
        Image.fromarray(labels).save(target / "labels" / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oai", type=Path, help="folder of the OAI's baseline scans")
    parser.add_argument("zib", type=Path, help="ZIB's folder segmentation")
    parser.add_argument("out", type=Path, help="folder for the result")
    args = parser.parse_args()
    lines = (args.zib / "doc" / "oai_mri_paths.txt").read_text().splitlines()
    paths = dict(map(str.strip, line.split(":", 1)) for line in lines if line.strip())
    for number in (1, 2):
        folder = args.out / f"list{number}"
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        ids = (args.zib / "doc" / f"2foldCrossValidation-List{number}.txt").read_text().split()
        flips: list[tuple[int, ...]] = []
        for patient in tqdm(ids, desc=folder.name):
            image_file, label_file = (folder / name / f"{patient}.mha" for name in ("images", "labels"))
            if label_file.exists():
                continue
            image = scan(args.oai / paths[patient])
            mask = args.zib / "segmentation_masks" / f"{patient}.segmentation_masks.mhd"
            labels, flip = aligned(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask))), image)
            flips.append(flip)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(image_file), useCompression=True)
            partial = label_file.with_name(f"{patient}.partial.mha")
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(partial), useCompression=True)
            partial.rename(label_file)
        counts = ", ".join(f"{flips.count(f)} along axes {f}" for f in FLIPS if f in flips)
        print(f"{folder}: {len(ids)} scans; labels flipped: {counts or 'none were converted now'}")
        write_slices(folder, args.out / f"train{number}")


if __name__ == "__main__":
    main()
