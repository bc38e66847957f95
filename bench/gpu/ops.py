"""The ops of the kernels, each compared with its definition and, only where it agrees, timed beside its competitors.

    python -m bench.gpu.ops                 # on the GPU; writes bench/results/cuda/ops.csv
    python -m bench.gpu.ops --dry-run       # on the CPU, tiny: interpreter, and the CUDA sources under g++

The exit status is 1 when an op is wrong.
"""

import argparse
import contextlib
import functools
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from activefreq_engine.kernels.click_maps import click_maps
from activefreq_engine.kernels.distance import cupy_impl as distance
from activefreq_engine.kernels.distance import distance_transform
from activefreq_engine.kernels.freq_module import FreqModulePlan, reference
from activefreq_engine.kernels.mask_output import mask_output
from activefreq_engine.kernels.region_stats import cupy_impl as regions
from activefreq_engine.kernels.region_stats import fixed, region_stats
from tqdm import tqdm

from activefreq_engine.conventions import SLOTS, THRESHOLD
from bench.tools import rows
from bench.tools.machine import Machine, Run
from bench.tools.measurements import Check
from tests import cuda_on_host

FREQ_TOLERANCE = 1e-3
"""Relative L2 error against float64 with fp16 operands, as in kernels/freq_module/README.md."""

CHANNELS = {"B0": (32, 64, 160, 256), "B3": (64, 128, 320, 512)}
"""Channels of the encoders' levels."""


def blobs(batch: int, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates and probabilities as a network gives them: a few large regions and many small ones."""
    noise = torch.randn(batch, 1, side, side)
    smooth = sum(torch.nn.functional.avg_pool2d(noise, 2 * r + 1, 1, r) * r for r in (1, 4, 12))
    probs = (4 * smooth).sigmoid()[:, 0]
    return ((probs - 0.5).abs() < 0.3).to(device), probs.to(device)


def check_regions(check: Check) -> str:
    """region_stats in buffers of its own, the host's, and CuPy's ndimage with one call for each statistic."""
    device, side = check.machine.device, 24 if check.dry else 512
    ndimage = importlib.import_module("scipy.ndimage" if check.dry else "cupyx.scipy.ndimage")
    array = np.asarray if check.dry else importlib.import_module("cupy").asarray
    giant = torch.ones(1, side, side, dtype=torch.bool, device=device)
    cases = {
        "blobs": blobs(1, side, device),
        "blobs B8": blobs(2 if check.dry else 8, side, device),
        "one region": (giant, torch.rand(1, side, side, device=device)),
        "noise": (torch.rand(1, side, side, device=device) < 0.407, torch.rand(1, side, side, device=device)),
    }
    for name, (masks, probs) in cases.items():
        expected = region_stats(masks.cpu(), probs.cpu(), backend="reference")
        buffers = regions.Buffers.allocate(*masks.shape, 4096, device)  # type: ignore[misc]

        def ours(masks=masks, probs=probs, buffers=buffers) -> fixed.FixedRegionStats:
            regions.launch(masks, probs, buffers)
            return buffers.result

        def ndimage_run(masks=masks, probs=probs) -> torch.Tensor:
            for mask, p in zip(array(masks), array(probs), strict=True):
                labels, n = ndimage.label(mask, np.ones((3, 3)) if check.dry else array(np.ones((3, 3))))
                index = array(np.arange(1, n + 1))
                entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
                for reduction in (ndimage.maximum, ndimage.mean, ndimage.maximum_position):
                    reduction(entropy, labels, index)
                ndimage.mean(p, labels, index)
                ndimage.center_of_mass(mask, labels, index)
            return torch.as_tensor(labels, device=masks.device)[None]

        def right(out: Any, expected=expected) -> float:
            if isinstance(out, fixed.FixedRegionStats):
                counts = out.counts.tolist()
                if max(counts) > 4096:
                    assert torch.equal(out.labels.cpu(), expected.labels)
                    return 0.0
                out = fixed.unpack(out, counts)
            if isinstance(out, torch.Tensor):  # of the last image, numbered in the library's own order
                assert int(out.max()) == int(expected.labels[-1].max())
                return 0.0
            for same in ("labels", "area", "bbox", "peak"):
                assert torch.equal(getattr(out, same).cpu(), getattr(expected, same)), same
            error = (out.mean_entropy.cpu() - expected.mean_entropy).abs().max().item()
            assert error <= 1e-5
            return error

        runs: dict[str, Run] = {
            "ours": ours,
            "public op": lambda masks=masks, probs=probs: regions.region_stats(masks, probs),
            "cv2 on the host": lambda masks=masks, probs=probs: region_stats(masks, probs, backend="reference"),
            "cupyx.scipy.ndimage": ndimage_run,
        }
        pixels = masks.numel()
        waits = ("public op", "cv2 on the host", "cupyx.scipy.ndimage")
        check.compare(
            "region_stats", f"{name} {side}x{side}", len(masks), runs, right,
            moved=pixels * (1 + 4 + 4), nodes=6, not_captured=waits,
        )  # fmt: skip
    return f"{len(cases)} cases"


def check_distance(check: Check) -> str:
    device, side = check.machine.device, 24 if check.dry else 512
    giant = torch.ones(1, side, side, dtype=torch.bool, device=device)
    cases = {"blobs": blobs(1, side, device)[0], "one region": giant}
    for name, masks in cases.items():
        expected = distance_transform(masks.cpu(), backend="reference")

        def right(out: torch.Tensor, expected=expected) -> float:
            assert torch.equal(out.cpu(), expected)
            return 0.0

        runs: dict[str, Run] = {
            "ours": lambda masks=masks: distance.distance_transform(masks),
            "cv2 on the host": lambda masks=masks: distance_transform(masks, backend="reference"),
        }
        check.compare(
            "distance_transform", f"{name} {side}x{side}", 1, runs, right,
            moved=masks.numel() * (1 + 8), nodes=2, not_captured=("cv2 on the host",),
        )  # fmt: skip
    return f"{len(cases)} cases"


def check_click_maps(check: Check) -> str:
    device, side = check.machine.device, 24 if check.dry else 512
    points = torch.full((1, 48, 2), -1.0)
    points[:, :20] = torch.rand(1, 20, 2) * side
    points[:, SLOTS : SLOTS + 6] = torch.rand(1, 6, 2) * side
    expected = click_maps(points, side, side, backend="reference")
    points = points.to(device)

    def right(out: torch.Tensor) -> float:
        assert torch.equal(out.cpu(), expected)
        return 0.0

    runs: dict[str, Run] = {
        name: lambda backend=backend: click_maps(points, side, side, backend=backend)
        for name, backend in (("ours", "triton"), ("torch", "reference"))
    }
    case = f"48 slots {side}x{side}"
    check.compare("click_maps", case, 1, runs, right, moved=expected.nbytes, not_captured=("torch",))
    return "1 case"


def check_mask_output(check: Check) -> str:
    device, side = check.machine.device, 24 if check.dry else 512
    logits = 3 * torch.randn(1, 1, side // 4, side // 4)
    previous = torch.rand(1, side, side) < 0.5
    expected = mask_output(logits, previous, backend="reference")
    logits, previous = logits.to(device), previous.to(device)

    def right(out: Any) -> float:
        error = (out.probs.cpu() - expected.probs).abs().max().item()
        assert error <= 1e-5
        clear = (expected.probs - THRESHOLD).abs() > 1e-5
        assert torch.equal(out.mask.cpu()[clear], expected.mask[clear])
        assert (out.entropy.cpu() - expected.entropy).abs().max() <= 1e-4
        return error

    runs: dict[str, Run] = {
        name: lambda backend=backend: mask_output(logits, previous, backend=backend)
        for name, backend in (("ours", "triton"), ("torch", "reference"))
    }
    moved = logits.nbytes + side * side * (1 + 4 + 1 + 4)
    check.compare("mask_output", f"{side // 4} to {side}", 1, runs, right, moved=moved)
    return "1 case"


def freq_cases(dry: bool) -> Iterator[tuple[str, int, int, bool]]:
    """(name, channels, map side, whether torch.compile and the residual take part): 384 px first,
    and what has to be compiled last."""
    if dry:
        yield "tiny", 8, 3, True
        return
    for side in (384, 512, 448, 256):
        for model, widths in CHANNELS.items():
            for level, channels in enumerate(widths):
                yield f"{model}@{side} level {level + 1}", channels, side // 4 >> level, side == 256


def freq_cost(batch: int, channels: int, side: int) -> tuple[float, float]:
    """Bytes of input and output, and operations of the transforms as dense matrix products."""
    quarter = channels // 4

    def plane(m: int, n: int) -> int:
        return 2 * m * n * n + 4 * m * m * n

    macs = quarter * plane(side, side) + 2 * side * plane(quarter, side) + 9 * quarter * side * side
    return 2 * 4.0 * batch * channels * side * side, 2.0 * batch * macs


def check_freq_module(check: Check) -> str:
    device, cases = check.machine.device, list(freq_cases(check.dry))
    for name, channels, side, compiled in tqdm(cases, desc="freq_module", unit="map"):
        quarter, half = channels // 4, side // 2 + 1
        shapes = ((quarter, side, half), (quarter, half), (quarter, half))
        filters = [1 + 0.3 * torch.randn(s, dtype=torch.complex64, device=device) for s in shapes]
        weight, bias = torch.randn(quarter, 1, 3, 3, device=device), torch.randn(quarter, device=device)
        backends = ("triton", "reference")
        plans = {b: FreqModulePlan(*filters, weight, bias, size=(side, side), backend=b) for b in backends}
        for batch in (1,) if check.dry else (1, 8):
            x = torch.randn(batch, channels, side, side, device=device)
            wide = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (*filters, weight, bias)]
            expected = reference.freq_module(x.double(), *wide)

            def right(out: torch.Tensor, expected=expected) -> float:
                error = ((out.double() - expected).norm() / expected.norm()).item()
                assert error <= FREQ_TOLERANCE, f"relative error {error:.1e}"
                return error

            runs: dict[str, Run] = {
                "ours": lambda x=x, plan=plans["triton"]: plan(x),
                "torch.fft": lambda x=x, plan=plans["reference"]: plan(x),
            }
            if compiled:
                torch.compiler.reset()
                program = torch.compile(reference.freq_module, backend="eager" if check.dry else "inductor")
                runs["torch.compile"] = lambda x=x, p=program, f=(*filters, weight, bias): p(x, *f)
            moved, flops = freq_cost(batch, channels, side)
            case = f"{name} {channels}x{side}x{side}"
            check.compare("freq_module", case, batch, runs, right, moved=moved, flops=flops)
            if compiled:
                residual = torch.randn_like(x)
                runs = {
                    "ours": lambda x=x, r=residual, plan=plans["triton"]: plan(x, residual=r),
                    "ours, then add": lambda x=x, r=residual, plan=plans["triton"]: plan(x) + r,
                }
                sums = functools.partial(right, expected=expected + residual)
                check.compare("freq_module_residual", case, batch, runs, sums, moved=1.5 * moved, flops=flops)
    return f"{len(cases)} maps"


def interpret() -> None:
    """Begin again with Triton's interpreter, which must be chosen before Triton is imported, and it is by now."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "TRITON_INTERPRET": "1"})


OPS = (check_click_maps, check_mask_output, check_freq_module, check_regions, check_distance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny; times mean nothing")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cuda", help="folder of ops.csv")
    parser.add_argument("--seconds", type=float, default=600, help="no measurement begins later")
    arguments = parser.parse_args()
    dry = arguments.dry_run
    if dry:
        interpret()
    machine = Machine("cpu" if dry else "cuda")
    failures = []
    with cuda_on_host.installed() if dry else contextlib.nullcontext():
        check = Check(machine, dry, time.monotonic() + arguments.seconds, machine.limits())
        for op in OPS:
            try:
                print(f"{op.__name__}: {op(check)}", flush=True)
            except Exception:
                failures.append(f"{op.__name__}: {traceback.format_exc()}")
            found = [asdict(row) for row in check.rows]
            rows.write(arguments.out / "ops.csv", found, machine.describe(), replace="op")
    for row in check.rows:
        what = f"{row.op:20s} {row.case:32s} B{row.batch} {row.implementation:20s} {'graph' if row.graph else 'eager'}"
        print(what, row.note or f"{row.median_us:9.1f} us  floor {row.floor_us:7.1f} us  {row.gb_per_s:7.0f} GB/s")
    failures += check.failures()
    print(*failures, sep="\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
