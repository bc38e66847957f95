"""The definition: which pixels of a region are in the mask of a map of levels, in whole numbers, as packed bits.

The rule is that of `activefreq_engine.session.painter`; here it is written out for a whole region at once.
"""

import torch
from torch import Tensor

from activefreq_engine.conventions import PARTS


def mask_bits(levels: Tensor, asked: Tensor, bits: Tensor, found: Tensor) -> None:
    """See `kernels.mask_bits`."""
    for image, (height, width, limit, top, rows, known, _, _) in enumerate(asked.tolist()):
        if rows <= 0:
            continue
        down = _shares(height, levels.shape[1], levels.device)[top : top + rows]
        across = _shares(width, levels.shape[2], levels.device)
        # whole numbers below 2^53 are exact in float64; CUDA multiplies no matrices of integers
        sums = down.double() @ levels[image].double() @ across.double().T
        mask = sums > limit % 2**32
        words = -(-width // 32)
        padded = torch.nn.functional.pad(mask, (0, 32 * words - width)).view(rows, words, 32)
        new = _signed((padded.long() << torch.arange(32, device=levels.device)).sum(-1))
        old = bits[image, : rows * words].view(rows, words)
        before = (old.long()[..., None] >> torch.arange(32, device=levels.device)) & 1
        differs = padded if not known else padded ^ before.bool()
        found[image] = torch.tensor(
            [side for part in (mask, differs.flatten(1)[:, :width]) for side in _box(part, height, width, top)],
            dtype=torch.int32,
        )
        old.copy_(new)


def _shares(pixels: int, values: int, device: torch.device) -> Tensor:
    """int64 `[pixels, values]`: the share that each pixel takes of each level, in `PARTS`."""
    i, k = torch.arange(pixels, device=device)[:, None], torch.arange(values, device=device)
    if values > pixels:
        covered = (torch.arange(values + 1, device=device) * pixels - i * values).clamp(0, values)
        return ((2 * PARTS * covered + values) // (2 * values)).diff(dim=1)
    place = ((2 * i + 1) * values - pixels).clamp(0, 2 * pixels * (values - 1))
    low = (place // (2 * pixels)).clamp(max=max(0, values - 2))
    weight = ((place - low * 2 * pixels) * PARTS + pixels) // (2 * pixels)
    return (k == low) * (PARTS - weight) + (k == low + 1) * weight


def _signed(words: Tensor) -> Tensor:
    """Numbers below 2^32 as the int32 of the same bits."""
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _box(mask: Tensor, height: int, width: int, top: int) -> list[int]:
    """(x0, y0, x1, y1) around the true pixels of rows from `top` on; (width, height, 0, 0) if there are none."""
    if not bool(mask.any()):
        return [width, height, 0, 0]
    ys, xs = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return [int(xs[0]), int(ys[0]) + top, int(xs[-1]) + 1, int(ys[-1]) + top + 1]
