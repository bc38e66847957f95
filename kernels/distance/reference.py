"""The definition of `distance_transform` and `inscribed_points`: OpenCV's exact transform, on the CPU."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..grouped import first_maximum


def check_mask(mask: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless `mask` is what `distance_transform` documents."""
    check_tensor("mask", mask, torch.bool)
    check_images("mask", mask)


def check_labels(labels: torch.Tensor, counts: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless the arguments are what `inscribed_points` documents.  Looks at no value."""
    check_tensor("labels", labels, torch.int32)
    check_tensor("counts", counts, torch.int64)
    check_images("labels", labels)
    if counts.shape != labels.shape[:1]:
        raise ValueError(f"counts has shape {tuple(counts.shape)}; pass one number an image, [{labels.shape[0]}]")
    if counts.device != labels.device:
        raise ValueError(f"counts is on {counts.device}, labels on {labels.device}; move them to one device")


def check_label_values(labels: torch.Tensor, counts: torch.Tensor) -> None:
    """Raise ValueError unless each image of `labels` `[B, H, W]` holds all of 1..counts[b].  Waits for the device."""
    for b, (image, n) in enumerate(zip(labels, counts.tolist(), strict=True)):
        low, high = int(image.min()), int(image.max())
        if low < 0 or high > n:
            raise ValueError(f"labels of image {b} span {low}..{high}; allowed are 0 (background) to counts[{b}] = {n}")
        absent = torch.bincount(image.flatten(), minlength=n + 1)[1:] == 0
        if absent.any():
            raise ValueError(
                f"image {b} has no pixel of label {int(absent.nonzero()[0]) + 1}, counts[{b}] is {n}; "
                "every region needs a pixel"
            )


def distance_transform(mask: torch.Tensor) -> torch.Tensor:
    """Arguments and result of the public `distance_transform`; the argument is not checked here."""
    distances = [_distance(image) for image in mask.cpu().numpy()]
    return torch.from_numpy(np.stack(distances)).to(mask.device)


def inscribed_points(labels: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments and result of the public `inscribed_points`; the arguments are not checked here."""
    images = [_one_image(image, n) for image, n in zip(labels.cpu().numpy(), counts.tolist(), strict=True)]
    points = torch.from_numpy(np.concatenate([points for points, _ in images]))
    radius = torch.from_numpy(np.concatenate([radius for _, radius in images]))
    return points.to(labels.device), radius.to(labels.device)


def _one_image(labels: NDArray[np.int32], n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Points `[n, 2]` and radii `[n]` of one image; `labels` is `[H, W]`.

    One transform of the union of all regions serves every region that shares no pixel edge with another.  Proof: let q
    be the pixel outside region R nearest to a pixel p of R.  One step from q towards p along an axis leads to a pixel
    nearer to p, which is therefore in R.  So q shares an edge with R, and as R shares none with another region, q is
    background.  This covers the components of a mask, also 4-connected ones that touch at a corner.
    """
    distance = _distance(labels > 0)
    pixels = np.flatnonzero(labels)  # row-major
    group = labels.ravel()[pixels].astype(np.int64) - 1
    y, x = np.divmod(pixels, labels.shape[1])
    touching = _sharing_an_edge(labels)
    if touching.size:
        left, top, right, bottom = _boxes(x, y, group, n)
        for label in touching:
            g = label - 1
            box = slice(top[g], bottom[g]), slice(left[g], right[g])
            own = labels[box] == label
            distance[box][own] = _distance(own)[own]  # outside of the box no pixel is in the region
    radius, position = first_maximum(distance.ravel()[pixels], group, n)
    return np.stack([x[position], y[position]], axis=1), radius


def _boxes(
    x: NDArray[np.int64], y: NDArray[np.int64], group: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """x0, y0, x1, y1, each `[n]`, half-open, of n groups of pixels."""
    x0, y0 = np.full((2, n), np.iinfo(np.int64).max)
    x1, y1 = np.zeros((2, n), np.int64)
    np.minimum.at(x0, group, x)
    np.minimum.at(y0, group, y)
    np.maximum.at(x1, group, x + 1)
    np.maximum.at(y1, group, y + 1)
    return x0, y0, x1, y1


def _sharing_an_edge(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Labels of the regions that share a pixel edge with another region."""
    pairs = [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]
    touching = [np.stack([a, b])[:, (a != b) & (a > 0) & (b > 0)].ravel() for a, b in pairs]
    return np.unique(np.concatenate(touching))


def _distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Exact distances of one image `[H, W]` to the nearest false pixel; outside of the image is false."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1].astype(np.float64)
    # OpenCV rounds to float32.  Squared distances are integers, so the exact value comes back (up to 2^11 pixels).
    return np.sqrt(np.rint(distance * distance))


def check_tensor(name: str, value: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise TypeError unless `value` is a tensor of this dtype."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a torch.Tensor (torch.from_numpy for an array)")
    if value.dtype != dtype:
        raise TypeError(f"{name} has dtype {value.dtype}; pass {dtype}")


def check_images(name: str, value: torch.Tensor) -> None:
    """Raise ValueError unless `value` is `[B, H, W]` with at least one pixel."""
    if value.ndim != 3 or value.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; pass [B, H, W] with at least one pixel "
            f"(for a single image {name}[None])"
        )
