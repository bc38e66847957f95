"""Time the forms of `runtime.plan.spectral` at the map sizes of every click, on the CPU.

    python -m bench.speed.spectral_forms             # the table, a minute
    python -m bench.speed.spectral_forms --write     # and record it in bench/results/spectral_forms.csv

The maps are channels-last, as the layers before and after have them.  A form whose result is wrong is not timed.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from activefreq_engine.files import beside
from activefreq_engine.models.freqnet import FreqModule
from activefreq_engine.models.mit import MIT_SPECS
from activefreq_engine.runtime.engine import SIZES
from activefreq_engine.runtime.plan.spectral import spectral_module
from bench.tools.cpu import describe, side_by_side

RESULT = Path(__file__).parents[1] / "results" / "spectral_forms.csv"
ENCODERS = {"mit_b0": "B0", "mit_b1": "B1 to B3"}  # B1, B2 and B3 have the same widths
FORMS = ("fft", "matmul", "dense")
TOLERANCE = 2e-6
COLUMNS = ["models", "size", "stage", "channels", "map", "threads", "form"]
COLUMNS += ["median_us", "lower_us", "upper_us", "relative_error", "machine"]


def measure(encoder: str, size: int, stage: int, threads: list[int], samples: int) -> list[list[object]]:
    channels, side = MIT_SPECS[encoder].channels[stage - 1], size >> (stage + 1)
    torch.manual_seed(0)
    freq = FreqModule(channels).eval().requires_grad_(False)
    for p in freq.parameters():
        nn.init.normal_(p)
    x = torch.randn(1, side, side, channels).permute(0, 3, 1, 2)
    modules = {"modules": freq} | {form: spectral_module(freq, side, side, form) for form in FORMS}
    truth = FreqModule(channels).double()
    truth.load_state_dict(freq.state_dict())
    want = truth(x.double())
    rows: list[list[object]] = []
    for count in threads:
        torch.set_num_threads(count)
        errors = {name: float((m(x) - want).norm() / want.norm()) for name, m in modules.items()}
        wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
        if wrong:
            raise SystemExit(f"{ENCODERS[encoder]} {size} px stage {stage}: wrong results, nothing is timed: {wrong}")
        times = side_by_side({name: lambda m=m: m(x) for name, m in modules.items()}, samples)
        for name, t in times.items():
            numbers = [f"{v:.0f}" for v in (t.median, t.lower, t.upper)]
            rows.append([ENCODERS[encoder], size, stage, channels, side, count, name, *numbers, f"{errors[name]:.1e}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record the table in bench/results")
    parser.add_argument("--samples", type=int, default=30, help="of each form at each size (default: 30)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default: 1 2)")
    options = parser.parse_args()
    machine = describe("torch")
    cases = [(e, size, stage) for e in ENCODERS for size in SIZES for stage in (2, 3, 4)]
    rows = []
    with torch.inference_mode():
        for case in tqdm(cases, file=sys.stderr):
            rows += measure(*case, options.threads, options.samples)
    for row in rows:
        print(*row, sep="\t")
    if options.write:
        with beside(RESULT) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([*row, machine] for row in rows)


if __name__ == "__main__":
    main()
