"""Masks painted on the device beside those that a session paints, bit by bit: every network shape, regions of any size.

    python -m bench.gpu.painting              # writes painting.csv to bench/results/cuda
    python -m bench.gpu.painting --dry-run    # on the CPU by the definition, a few shapes

Each region is painted three times, from other levels each time: anew, then as a change of what is there.  The largest
is painted in turns.  The exit status is 1 where a bit or a box differs.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from activefreq_engine.kernels.mask_bits import mask_bits
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine.conventions import THRESHOLD, network_shapes
from activefreq_engine.runtime.engine import SIZES
from activefreq_engine.runtime.painting import WORDS
from activefreq_engine.session.boxes import mask_bbox
from activefreq_engine.session.painter import Painter, limit
from bench.speed.host import disk
from bench.tools import rows
from bench.tools.clicking import SIZE
from bench.tools.machine import Machine

ROUNDS = 3


def regions(height: int, width: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Height and width in image pixels: an enlarged one, the network's own, and smaller along one axis and both."""
    part, whole = rng.uniform(0.3, 0.9, 3), rng.uniform(1.1, 3.0, 2)
    yield int(height * whole[0]), int(width * whole[1])
    yield height, width
    yield int(height * part[0]), int(width * whole[0])
    yield max(1, int(height * part[1])), max(1, int(width * part[2]))


def levels(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint16]:
    """A ragged disk as a network would answer it, and pixels at the limit."""
    found = disk(shape, rng.uniform(0.4, 0.9), int(rng.integers(1 << 30)), everywhere=True)
    found[rng.random(shape) < 0.001] = limit(THRESHOLD) >> 16
    return found


def differing(device: str, shape: tuple[int, int], region: tuple[int, int], seed: int) -> str:
    """What differs between the device and the host; empty where nothing does."""
    rng, (height, width) = np.random.default_rng(seed), region
    words = -(-width // 32)
    at_once = min(height, WORDS // words)
    bits = torch.full((1, WORDS), -1, dtype=torch.int32, device=device)  # as an engine has it: another kernel each size
    box, before = (0, 0, width, height), np.zeros(region, np.bool_)
    for k in range(ROUNDS):
        values, mask = levels(shape, rng), np.zeros(region, np.bool_)
        Painter(box, values, limit(THRESHOLD)).threshold(mask, blank=True)
        known = k > 0 and at_once == height
        on_device = torch.from_numpy(values)[None].to(device)
        for top in range(0, height, at_once):
            count = min(at_once, height - top)
            found = torch.full((1, 8), -1, dtype=torch.int32, device=device)
            asked = [height, width, limit(THRESHOLD), top, count, known, 0, 0]
            mask_bits(on_device, torch.tensor([asked], dtype=torch.int32, device=device), bits, found)
            painted = bits[0, : count * words].cpu().numpy().view(np.uint8).reshape(count, 4 * words)
            pixels = np.unpackbits(painted, axis=1, bitorder="little")
            part = mask[top : top + count]
            wrong = int((pixels[:, :width] != part).sum()) + int(pixels[:, width:].sum())
            if wrong:
                return f"{wrong} of {part.size} pixels in round {k} from row {top}"
            change = part ^ before[top : top + count] if known else part
            expected = [side for m in (part, change) for side in sides(m, height, width, top)]
            if found[0].tolist() != expected:
                return f"boxes {found[0].tolist()} in round {k} from row {top}, expected {expected}"
        before = mask
    return ""


def sides(mask: NDArray[np.bool_], height: int, width: int, top: int) -> tuple[int, int, int, int]:
    """The box of a mask as `kernels.mask_bits` writes it."""
    box = mask_bbox(np.ascontiguousarray(mask))
    return (width, height, 0, 0) if box is None else (box[0], box[1] + top, box[2], box[3] + top)


def cases(dry: bool) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Network shape and region; `SIZE` and its largest regions first."""
    rng = np.random.default_rng(0)
    if dry:
        return [(shape, region) for shape in ((64, 96), (32, 256)) for region in regions(*shape, rng)]
    found = [((SIZE, SIZE), region) for region in ((1200, 1200), (3000, 4000), (6000, 2731))]
    for size in sorted(SIZES, key=lambda size: (size != SIZE, size)):
        found += [(shape, region) for shape in network_shapes(size) for region in regions(*shape, rng)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, a few shapes")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of painting.csv")
    parser.add_argument("--seconds", type=float, default=600, help="no shape is begun later")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    deadline, about = time.monotonic() + arguments.seconds, Machine(device).describe()
    found: list[dict[str, Any]] = []
    planned = cases(arguments.dry_run)
    for seed, (shape, region) in enumerate(tqdm(planned, desc="painting", unit="region")):
        if time.monotonic() > deadline:
            break
        key = f"{shape[0]}x{shape[1]} on {region[0]}x{region[1]}"
        found.append({"key": key, "wrong": differing(device, shape, region, seed)})
    rows.write(arguments.out / "painting.csv", found, about, replace="key")
    wrong = [row for row in found if row["wrong"]]
    for row in wrong:
        print(f"WRONG {row['key']}: {row['wrong']}")
    print(f"{len(found)} of {len(planned)} regions were painted, {len(wrong)} differ from the host's")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
