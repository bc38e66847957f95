"""Compile the FreqModule kernels that bench.gpu.ops and the models want, many at a time, into Triton's cache.

    python -m bench.gpu.compile

One takes several seconds of a core and every map size has its own; without this they would spend minutes on them.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from activefreq_engine.kernels.freq_module import FreqModulePlan
from tqdm import tqdm

from activefreq_engine.runtime.engine import SIZES
from bench.gpu.ops import CHANNELS, interpret

ShapeCase = tuple[int, int, torch.dtype, bool, bool]
"""Channels, side of the map, dtype, whether channels are last, and whether there is a residual."""


def cases(dry: bool) -> Iterator[ShapeCase]:
    """The slowest first."""
    if dry:
        yield 4, 3, torch.float16, True, True
        return
    widths = {(c, level) for w in CHANNELS.values() for level, c in enumerate(w)}
    for size in sorted(SIZES, reverse=True):
        for channels, level in sorted(widths, key=lambda w: w[1]):
            side = size // 4 >> level
            yield channels, side, torch.float16, True, True  # in a plan
            yield channels, side, torch.float32, False, False  # in bench.gpu.ops and the latency suite
            if size == min(SIZES):
                yield channels, side, torch.float32, False, True


def compile_one(case: ShapeCase, device: str) -> None:
    """Compile one case by launching it, so that it is the very kernel that launches look for."""
    channels, side, dtype, last, residual = case
    quarter, half = channels // 4, side // 2 + 1
    shapes = ((quarter, side, half), (quarter, half), (quarter, half))
    filters = [torch.ones(s, dtype=torch.complex64, device=device) for s in shapes]
    weight = torch.ones(quarter, 1, 3, 3, device=device)
    plan = FreqModulePlan(*filters, weight, size=(side, side), backend="triton")
    x = torch.zeros(1, channels, side, side, dtype=dtype, device=device)
    if last:
        x = x.to(memory_format=torch.channels_last)
    plan(x, residual=torch.zeros_like(x) if residual else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="one tiny map, in the interpreter")
    arguments = parser.parse_args()
    wanted = list(cases(arguments.dry_run))
    if arguments.dry_run:
        interpret()
        compile_one(wanted[0], "cpu")
    else:
        workers = min(len(wanted), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            done = pool.map(compile_one, wanted, ["cuda"] * len(wanted))
            list(tqdm(done, total=len(wanted), desc="kernels", unit="kernel"))
    print(f"{len(wanted)} kernels")


if __name__ == "__main__":
    main()
