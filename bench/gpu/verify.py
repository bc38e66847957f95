"""Every kernel in every form in which an engine runs it, beside its reference: the first question on a new device.

    python -m bench.gpu.verify              # writes verify.csv to bench/results/cuda
    python -m bench.gpu.verify --dry-run    # on the CPU, in Triton's interpreter, one network shape

The default size comes first.  Verdicts are kept where engines look for them, so that the next steps pay nothing for
them, and what was compiled stays in Triton's cache.  The exit status is 1 when a kernel is wrong.
"""

import argparse
import os
import sys
import time
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
from bench.tools.machine import Machine

FIRST = 384
"""The default size."""

AT_ONCE = 256
"""Kernels that are tried between two writes of the file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, one network shape; slow, so say when to stop"
    )
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of verify.csv")
    parser.add_argument("--seconds", type=float, default=600, help="no trial is begun later")
    arguments = parser.parse_args()
    dry, deadline = arguments.dry_run, time.monotonic() + arguments.seconds
    if dry:
        interpret()
    device = torch.device("cpu") if dry else torch.device("cuda", torch.cuda.current_device())
    about = Machine(device.type).describe()
    verification.PROCESSES = len(os.sched_getaffinity(0))
    sizes = sorted(SIZES, key=lambda size: (size != FIRST, size))
    asked: list[Question] = []
    for size in sizes[:1] if dry else sizes:
        for precision in ("auto",) if dry else ("fp16", "fp32"):
            shapes = [(64, 32)] if dry else verify.network_shapes(size)
            asked += verify.questions(device, shapes, precision=precision)
    questions, found = list({q.key: q for q in asked}.values()), []
    for start in tqdm(range(0, len(questions), AT_ONCE), desc="verify", unit=f"{AT_ONCE} kernels"):
        if time.monotonic() > deadline:
            break
        for finding in verification.judge(questions[start : start + AT_ONCE], anew=True):
            row = {k: v for k, v in asdict(finding).items() if k not in ("environment", "device", "source")}
            found.append({"key": f"{finding.op} {finding.backend} {finding.size} {finding.dtype}", **row})
        rows.write(arguments.out / "verify.csv", found, about, replace="key")
    wrong = [row for row in found if not row["ok"]]
    for row in wrong:
        print(f"WRONG {row['key']}: {row['reason']}")
    print(f"{len(found)} of {len(questions)} forms of kernels tried, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
