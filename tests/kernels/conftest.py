"""Masks that break region labelling: every size is odd or not square, and the random ones are new in every run."""

import numpy as np
import pytest
import torch

from tests import cuda_on_host


def spiral(height: int, width: int) -> np.ndarray:
    """One path, one pixel wide, that winds inwards with one pixel between its turns."""
    mask = np.zeros((height, width), bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[y, x] = True

    def free(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and not mask[y, x]

    while True:
        for _ in range(2):
            ahead, beyond = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
            inside = 0 <= beyond[0] < height and 0 <= beyond[1] < width
            if free(*ahead) and (not inside or free(*beyond)):
                break
            dy, dx = dx, -dy
        else:
            return mask
        y, x = ahead
        mask[y, x] = True


def comb(height: int, width: int) -> np.ndarray:
    """Teeth that meet only in the last row: labels that differ until the very end."""
    mask = np.zeros((height, width), bool)
    mask[:, ::2] = True
    mask[-1] = True
    return mask


def checkerboard(height: int, width: int) -> np.ndarray:
    return np.add.outer(np.arange(height), np.arange(width)) % 2 == 0


MASKS = {
    **{
        f"random{density}-{height}x{width}": lambda rng, density=density, height=height, width=width: (
            rng.random((height, width)) < density
        )
        for density in (0.05, 0.407, 0.59, 0.95)  # 0.407 and 0.59: percolation of 8- and 4-connected sites
        for height, width in ((37, 61), (64, 48))
    },
    "spiral-33x47": lambda _: spiral(33, 47),
    "comb-21x35": lambda _: comb(21, 35),
    "upturned-comb-21x35": lambda _: comb(21, 35)[::-1].copy(),
    "checkerboard-15x22": lambda _: checkerboard(15, 22),
    "all-19x31": lambda _: np.ones((19, 31), bool),
    "all-but-one-19x31": lambda _: np.arange(19 * 31).reshape(19, 31) != 300,
    "none-7x5": lambda _: np.zeros((7, 5), bool),
    "row-1x53": lambda rng: rng.random((1, 53)) < 0.6,
    "column-53x1": lambda rng: rng.random((53, 1)) < 0.6,
    "pixel-1x1": lambda _: np.ones((1, 1), bool),
}


@pytest.fixture(params=MASKS)
def mask(request, rng) -> np.ndarray:
    return MASKS[request.param](rng)


@pytest.fixture
def host(device, monkeypatch):
    """Lets the cupy implementations run: on --device cuda as they are, else on the host, and new memory is poison.

    A `tests.cuda_on_host.Host`; on a GPU nothing looks at it.
    """
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, cuda_on_host.poisoned(getattr(torch, name)))
    if device.type == "cuda":
        pytest.importorskip("cupy")
        yield cuda_on_host.Host()
    elif cuda_on_host.GPP is None:
        pytest.skip("g++ is not installed")
    else:
        with cuda_on_host.installed() as host:
            yield host
