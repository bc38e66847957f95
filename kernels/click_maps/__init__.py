"""Click maps: padded point slots -> one map of positive and one of negative disks."""

import torch
from torch import Tensor

from .. import dispatch, operators, triton_support
from ..verification import Trial
from . import trial
from .reference import check_points
from .reference import click_maps as _reference

__all__ = ["click_maps"]


def click_maps(points: Tensor, height: int, width: int, radius: float = 5.0, *, backend: str = "auto") -> Tensor:
    """Binary disks around clicks.

    Args:
        points (Tensor): `[B, 2N, 2]` float, (x, y) in pixels of the maps; the first N slots are positive clicks, the
            last N negative ones.  A slot with a negative coordinate is empty.
        height, width (int): size of the maps.
        radius (float): disk radius in pixels; a pixel belongs to a disk when its centre's distance is <= radius.
        backend (str): see `kernels.dispatch`. Default: "auto".

    Returns:
        Tensor: `[B, 2, H, W]` float32, zeros and ones: positive disks, negative disks.  No gradient reaches `points`.

    Example:
        >>> positive, negative = click_maps(torch.tensor([[[3.0, 1.0], [-1.0, -1.0]]]), 3, 5, radius=1)[0]
        >>> positive.int().tolist(), negative.any().item()
        ([[0, 0, 0, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 0]], False)

    Raises:
        ValueError: if `points` is not `[B, 2N, 2]`.
        BackendUnavailableError: the backend asked for by name cannot run.
    """
    check_points(points)
    return _operator(points.detach(), height, width, float(radius), backend)


def _run(points: Tensor, height: int, width: int, radius: float, backend: str) -> Tensor:
    return dispatch.call("click_maps", points.device.type, backend, points, height, width, radius)


def _fake(points: Tensor, height: int, width: int, radius: float, backend: str) -> Tensor:
    return points.new_empty((points.shape[0], 2, height, width), dtype=torch.float32)


_operator = operators.define("click_maps", _run, _fake)


def _triton(points: Tensor, height: int, width: int, radius: float) -> Tensor:
    from .triton_impl import click_maps

    return click_maps(points, height, width, radius)


def _verify_triton(
    points: Tensor | None = None, height: int = 1, width: int = 1, radius: float = 1.0
) -> dispatch.Verdict:
    ok, reason = triton_support.available()
    if ok and height * width >= 2**30:
        return False, f"maps of {height}x{width} have 2^30 pixels or more, which overflows 32 bits"
    return ok, reason


dispatch.register("click_maps", "reference", _reference, devices=("cpu", "cuda"), priority=0)
dispatch.register(
    "click_maps",
    "triton",
    _triton,
    devices=triton_support.DEVICES,
    priority=10,
    verify=_verify_triton,
    trial=Trial(trial.form, trial.check, trial.samples),
)
