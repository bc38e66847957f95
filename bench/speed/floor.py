"""The physical floor under a click: its multiply-adds at the best speed at which this machine multiplies matrices.

No implementation of the same arithmetic in the same precision is faster.  What is not matrix arithmetic (Fourier
transforms, norms, resampling, painting the mask) comes on top, so the floor cannot be reached.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from activefreq_engine.models import FreqFormer
from activefreq_engine.models.freqformer import Coarse


@dataclass(frozen=True)
class Peak:
    """The best of several runs each."""

    gmac_per_s: float
    """Billion multiply-adds a second: product of two large square matrices."""
    gb_per_s: float
    """10^9 bytes a second, read and written, copying an array much larger than the caches."""


def peak(device: torch.device, dtype: torch.dtype = torch.float32) -> Peak:
    """Measure; about a second."""
    side, size = (8192, 1 << 28) if device.type == "cuda" else (1536, 1 << 25)
    a = torch.randn(side, side, device=device).to(dtype)
    large = torch.ones(size, device=device)
    copy = torch.empty_like(large)
    return Peak(
        side**3 / _best(lambda: a @ a, device) / 1e9,
        2 * large.nbytes / _best(lambda: copy.copy_(large), device) / 1e9,
    )


def click_gmac(model: FreqFormer, height: int, width: int) -> float:
    """Billion multiply-adds of one click on known image features, refiner included.

    Counted on the decoder with its MLP layers folded through the fuse convolution, the cheapest exact form known here.
    """
    with torch.device("meta"):
        model = FreqFormer(model.config).eval()
    model.decoder.compose_fuse = True
    image = torch.empty(1, 3, height, width, device="meta")
    quarter = (height // 4, width // 4)
    with torch.no_grad():
        features = model.encode_image(image)
        with FlopCounterMode(display=False) as counter:
            coarse = model.decode_clicks(features, image)
        total = counter.get_total_flops() / 2
        total -= features.c1.shape[1] * model.config.embed_dim * quarter[0] * quarter[1]  # of the cached map
        if model.refiner is not None:
            side = model.config.refine_size
            crop, disks = torch.empty(1, 3, side, side, device="meta"), torch.empty(1, 2, side, side, device="meta")
            with FlopCounterMode(display=False) as counter:
                model.refine(Coarse(*coarse), torch.empty(1, 4, device="meta"), crop, disks)
            total += counter.get_total_flops() / 2
    return total / 1e9


def _best(run: Callable[[], Any], device: torch.device, samples: int = 10) -> float:
    """Seconds."""
    times = []
    for _ in range(samples):
        start = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(perf_counter() - start)
    return min(times)
