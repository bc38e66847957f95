"""Every kernel in every form in which an engine runs it, beside its reference: the first question on a new device.

    python -m bench.gpu.verify              # writes verify.csv to bench/results/cuda
    python -m bench.gpu.verify --first      # what a click on a square region at 384 px runs, in fp16
    python -m bench.gpu.verify --dry-run    # on the CPU, in Triton's interpreter, one network shape

384 px, at which clicks are timed, come first.  Verdicts are kept where engines look for them, so that the next steps
pay nothing for them, and what was compiled stays in Triton's cache.  The exit status is 1 when a kernel is wrong.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from activefreq_engine.kernels import verification
from activefreq_engine.kernels.verification import Question
from tqdm import tqdm

from activefreq_engine.runtime import verify
from activefreq_engine.runtime.engine import SIZES
from bench.gpu.ops import interpret
from bench.tools import rows
from bench.tools.clicking import SIZE
from bench.tools.machine import Machine


def parts(device: torch.device, dry: bool, first: bool) -> Iterator[list[Question]]:
    """What is tried together, `SIZE` first: starting the processes takes some ten seconds each time."""
    if dry:
        yield verify.questions(device, [(64, 32)])
        return
    yield verify.questions(device, [(SIZE, SIZE)], precision="fp16")
    if not first:
        for precision in ("fp16", "fp32"):
            for size in sorted(SIZES, key=lambda size: (size != SIZE, size)):
                yield verify.questions(device, verify.network_shapes(size), precision=precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, one network shape; slow, so say when to stop"
    )
    parser.add_argument("--first", action="store_true", help=f"the square network shape of {SIZE} px, in fp16")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of verify.csv")
    parser.add_argument("--seconds", type=float, default=600, help="no trial is begun later")
    arguments = parser.parse_args()
    dry, deadline = arguments.dry_run, time.monotonic() + arguments.seconds
    if dry:
        interpret()
    device = torch.device("cpu") if dry else torch.device("cuda", torch.cuda.current_device())
    about = Machine(device.type).describe()
    processes = len(os.sched_getaffinity(0))  # nothing else runs here meanwhile
    found, known = [], set[str]()
    for asked in tqdm(parts(device, dry, arguments.first), desc="verify", unit="part"):
        questions = [q for q in asked if q.key not in known]
        if time.monotonic() > deadline:
            break
        for finding in verification.judge(questions, anew=True, processes=processes):
            row = {k: v for k, v in asdict(finding).items() if k not in ("environment", "device", "source")}
            found.append({"key": f"{finding.op} {finding.backend} {finding.size} {finding.dtype}", **row})
        known |= {q.key for q in questions}
        rows.write(arguments.out / "verify.csv", found, about, replace="key")
    wrong = [row for row in found if not row["ok"]]
    for row in wrong:
        print(f"WRONG {row['key']}: {row['reason']}")
    print(f"{len(found)} forms of kernels tried, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
