"""Run the CUDA implementations on random images: ``python -m tests.cuda_on_host.exercise``.

The results are compared with the reference.  For tools that watch a whole process: address sanitizer on the host
(--sanitize), compute-sanitizer on a GPU (--device cuda).
"""

import argparse
import contextlib
from unittest import mock

import numpy as np
import torch
from activefreq_engine.kernels import cupy_impl
from activefreq_engine.kernels.distance import cupy_impl as distance
from activefreq_engine.kernels.distance import distance_transform, inscribed_points
from activefreq_engine.kernels.region_stats import cupy_impl as regions
from activefreq_engine.kernels.region_stats import fixed, region_stats

from tests import cuda_on_host

EXACT = ("labels", "counts", "area", "bbox", "peak")
CLOSE = ("max_entropy", "mean_entropy", "mean_prob", "centroid")


def compare(masks: torch.Tensor, probs: torch.Tensor, connectivity: int, device: torch.device) -> None:
    """One batch through every kernel.  SystemExit where a result is not that of the reference."""

    def same(name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float = 0.0) -> None:
        got = got.cpu()
        if got.shape != expected.shape or not torch.allclose(got.double(), expected.double(), rtol=0, atol=tolerance):
            raise SystemExit(f"{name} is wrong for a batch of shape {tuple(masks.shape)}")

    expected = region_stats(masks, probs, connectivity=connectivity, backend="reference")
    on_device = masks.to(device), probs.to(device)
    got = regions.region_stats(*on_device, connectivity=connectivity)
    small = regions.region_stats_fixed(*on_device, connectivity=connectivity, capacity=2)
    reference = fixed.reference(masks, probs, connectivity=connectivity, capacity=2)
    for name in EXACT:
        same(name, getattr(got, name), getattr(expected, name))
        same(f"{name} at fixed size", getattr(small, name), getattr(reference, name))
    for name in CLOSE:
        same(name, getattr(got, name), getattr(expected, name), 2e-6)
    points, radius = inscribed_points(expected.labels, expected.counts, backend="reference")
    got_points, got_radius = distance.inscribed_points(got.labels, got.counts)
    same("radius", got_radius, radius)
    same("points", got_points, points)
    same("distance", distance.distance_transform(on_device[0]), distance_transform(masks, backend="reference"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sanitize", action="store_true", help="build with address and undefined-behaviour sanitizers")
    parser.add_argument("--atomic-reads", action="store_true", help="for race checkers: see prelude.cu")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--side", type=int, default=75, help="largest height and width")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--plant", nargs=2, default=("", ""), metavar=("OLD", "NEW"), help="change the sources first")
    arguments = parser.parse_args()
    if arguments.atomic_reads:
        cupy_impl.OPTIONS += ("-DATOMIC_READS",)
    device, rng = torch.device(arguments.device), np.random.default_rng(arguments.seed)
    host = cuda_on_host.Host(sanitize=arguments.sanitize, mutate=tuple(arguments.plant))
    with (
        cuda_on_host.installed(host) if device.type == "cpu" else contextlib.nullcontext(),
        mock.patch.object(torch, "empty", cuda_on_host.poisoned(torch.empty)),
    ):
        for k in range(arguments.batches):
            shape = (1 + k % 2, *rng.integers(1, arguments.side, 2))
            if k == 0:
                shape = (1, 1, 1)
            host.schedule = cuda_on_host.Schedule(int(rng.integers(1 << 30)), float(rng.choice([0, 0.1, 0.4])), 8)
            masks = torch.from_numpy(rng.random(shape) < rng.choice([0.4, 0.6, 1.0]))
            probs = rng.random(shape, dtype=np.float32)
            if k % 2:
                probs = np.rint(probs * 8) / 8  # ties, and certainty
            compare(masks, torch.from_numpy(probs), 8 if k % 3 else 4, device)
    if arguments.plant[0] and not host.mutated:
        raise SystemExit("the text to replace is in no source")
    print(f"{arguments.batches} batches are right")


if __name__ == "__main__":
    main()
