"""The definition of `region_stats`: OpenCV labels, NumPy sums in float64, on the CPU."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..grouped import first_maximum, first_position


@dataclass(frozen=True, slots=True)
class RegionStats:
    """Regions of a batch of images.  R is their number over all images; rows are ordered by image, then by label."""

    labels: torch.Tensor
    """int32 `[B, H, W]`: 0 is background, the regions of each image are 1..n."""
    counts: torch.Tensor
    """int64 `[B]`: regions in each image."""
    image: torch.Tensor
    """int64 `[R]`: index of the image that the region lies in."""
    label: torch.Tensor
    """int32 `[R]`: its value in `labels`."""
    area: torch.Tensor
    """int64 `[R]`: pixels."""
    max_entropy: torch.Tensor
    """float64 `[R]`: largest binary entropy of a pixel, bits."""
    mean_entropy: torch.Tensor
    """float64 `[R]`: mean binary entropy of its pixels, bits."""
    mean_prob: torch.Tensor
    """float64 `[R]`: mean probability of its pixels."""
    bbox: torch.Tensor
    """int64 `[R, 4]`: (x0, y0, x1, y1) in pixels, x1 and y1 are outside."""
    peak: torch.Tensor
    """int64 `[R, 2]`: (x, y) of the first pixel, in row-major order, that has the largest entropy."""
    centroid: torch.Tensor
    """float64 `[R, 2]`: (x, y), mean of the pixel coordinates."""

    def __len__(self) -> int:
        return self.area.shape[0]


def binary_entropy(p: torch.Tensor) -> torch.Tensor:
    """Entropy of a yes-or-no outcome, in bits: ``-p log2(p) - (1 - p) log2(1 - p)``, 0 at p = 0 and p = 1.

    Args:
        p: probabilities in 0..1, floating, any shape.  Not checked; NaN stays NaN.

    Returns:
        Same shape, dtype and device, each in 0..1.
    """
    q, tiny = 1 - p, torch.finfo(p.dtype).tiny  # so that 0 log2(0) is 0
    bits = -p * p.clamp(min=tiny).log2() - q * q.clamp(min=tiny).log2()
    return bits.clamp(max=1)  # log2 is not correctly rounded everywhere


def check_tensors(candidates: torch.Tensor, probs: torch.Tensor, connectivity: int) -> None:
    """Raise TypeError or ValueError unless the arguments are what `region_stats` documents.  Looks at no value."""
    for name, value in (("candidates", candidates), ("probs", probs)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; pass a torch.Tensor (torch.from_numpy for an array)")
    if candidates.dtype != torch.bool:
        raise TypeError(f"candidates has dtype {candidates.dtype}; pass torch.bool, for example `mask > 0`")
    if not probs.dtype.is_floating_point:
        raise TypeError(f"probs has dtype {probs.dtype}; pass floating-point probabilities in 0..1")
    if candidates.ndim != 3 or candidates.numel() == 0:
        raise ValueError(
            f"candidates has shape {tuple(candidates.shape)}; pass [B, H, W] with at least one pixel "
            "(for a single image candidates[None])"
        )
    if probs.shape != candidates.shape:
        raise ValueError(f"probs has shape {tuple(probs.shape)}, candidates {tuple(candidates.shape)}; they must agree")
    if probs.device != candidates.device:
        raise ValueError(f"probs is on {probs.device}, candidates on {candidates.device}; move them to one device")
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity!r}; allowed are 4 and 8")


def check_values(probs: torch.Tensor) -> None:
    """Raise ValueError unless all of `probs` `[B, H, W]` are in 0..1.  Waits for the device."""
    low, high = torch.aminmax(probs.detach())
    if not (low >= 0 and high <= 1):  # so also at NaN
        bad = ~((probs >= 0) & (probs <= 1))
        b, y, x = bad.nonzero()[0].tolist()
        raise ValueError(
            f"probs holds {int(bad.sum())} values that are not in 0..1, the first is {probs[b, y, x].item()} at image "
            f"{b}, x={x}, y={y}; pass probabilities, not logits, and none that is NaN"
        )


def region_stats(candidates: torch.Tensor, probs: torch.Tensor, *, connectivity: int = 8) -> RegionStats:
    """Arguments and result of the public `region_stats`; the arguments are not checked here."""
    device = candidates.device
    masks, probs = candidates.cpu(), probs.detach().cpu()
    images = [_one_image(m.numpy(), p, connectivity) for m, p in zip(masks, probs, strict=True)]
    counts = [image["area"].size for image in images]

    def rows(name: str) -> torch.Tensor:
        # Row-major, as the operator promises to the compiler; NumPy keeps the column order of what it joins.
        return torch.from_numpy(np.ascontiguousarray(np.concatenate([image[name] for image in images]))).to(device)

    return RegionStats(
        labels=torch.from_numpy(np.stack([image["labels"] for image in images])).to(device),
        counts=torch.tensor(counts, dtype=torch.int64, device=device),
        image=torch.from_numpy(np.repeat(np.arange(len(images), dtype=np.int64), counts)).to(device),
        label=rows("label"),
        area=rows("area"),
        max_entropy=rows("max_entropy"),
        mean_entropy=rows("mean_entropy"),
        mean_prob=rows("mean_prob"),
        bbox=rows("bbox"),
        peak=rows("peak"),
        centroid=rows("centroid"),
    )


def _one_image(mask: NDArray[np.bool_], probs: torch.Tensor, connectivity: int) -> dict[str, NDArray]:
    """The fields of `RegionStats` for one image: `mask` and `probs` are `[H, W]`."""
    width = mask.shape[1]
    n, labels, stats, centroids = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=connectivity, ltype=cv2.CV_32S
    )
    n, stats, centroids = n - 1, stats[1:].astype(np.int64), centroids[1:]  # without the background
    pixels = np.flatnonzero(mask)  # row-major
    group = labels.ravel()[pixels].astype(np.int64) - 1

    # OpenCV's numbering depends on its algorithm and thread count; ours is by first pixel.
    order = np.argsort(first_position(group, n))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    group, stats, centroids = rank[group], stats[order], centroids[order]
    numbered = np.zeros(mask.shape, np.int32)
    numbered.ravel()[pixels] = group + 1

    p = probs.flatten()[torch.from_numpy(pixels)].double()
    inside, entropy = p.numpy(), binary_entropy(p).numpy()
    area = stats[:, cv2.CC_STAT_AREA]
    max_entropy, position = first_maximum(entropy, group, n)
    peak = pixels[position]
    corner = stats[:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]]
    return {
        "labels": numbered,
        "label": np.arange(1, n + 1, dtype=np.int32),
        "area": area,
        "max_entropy": max_entropy,
        "mean_entropy": np.bincount(group, weights=entropy, minlength=n) / area,
        "mean_prob": np.bincount(group, weights=inside, minlength=n) / area,
        "bbox": np.hstack([corner, corner + stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]]),
        "peak": np.stack([peak % width, peak // width], axis=1),
        "centroid": centroids,
    }
