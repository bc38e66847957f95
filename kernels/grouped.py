"""Reductions over groups of values, without a loop over the groups.  Plain NumPy; used by reference implementations."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]


def first_position(group: Ints, groups: int) -> NDArray[np.int64]:
    """Smallest i with ``group[i] == g``, for every g.

    Args:
        group: int `[N]`, each in 0..groups-1.
        groups: number of groups.

    Returns:
        int64 `[groups]`; N for a group without members.
    """
    first = np.full(groups, group.size, np.int64)
    np.minimum.at(first, group, np.arange(group.size))
    return first


def first_maximum(values: Floats, group: Ints, groups: int) -> tuple[Floats, NDArray[np.int64]]:
    """Maximum of each group, and the smallest position that reaches it.

    Args:
        values: float64 `[N]`, finite.
        group: int `[N]`, each in 0..groups-1; every group has a member.
        groups: number of groups.

    Returns:
        maximum: float64 `[groups]`.
        position: int64 `[groups]`, index into `values`.
    """
    maximum = np.full(groups, -np.inf)
    np.maximum.at(maximum, group, values)
    reached = np.flatnonzero(values == maximum[group])
    return maximum, reached[first_position(group[reached], groups)]
