"""Image features, kept by picture and region within a limit of memory that all pictures of a process share."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from activefreq_engine.types import Box

LIMIT = 128 << 20  # bytes: 100 regions of MiT-B0 at 256 pixels in half precision, 20 at 384 pixels in float32


class Budget:
    """The memory that the features of all pictures share.  Safe in several threads.

    Args:
        limit (int): bytes.  When more is in use, the regions that were unused for longest are forgotten, whatever
            picture they belong to; the latest one always stays.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.lock = threading.RLock()  # a signal's handler may click, too
        self.clock = itertools.count()
        self.caches: weakref.WeakSet[FeatureCache] = weakref.WeakSet()
        self._limit = limit

    @property
    def nbytes(self) -> int:
        """Memory in use, bytes."""
        with self.lock:
            return sum(kept.nbytes for cache in self.caches for kept in cache.regions.values())

    def enforce(self) -> None:
        """Forget regions until the limit holds."""
        with self.lock:
            excess = self.nbytes - self._limit
            if excess <= 0:
                return
            found = [(kept, box, cache) for cache in self.caches for box, kept in cache.regions.items()]
            found.sort(key=lambda item: item[0].used)
            for kept, box, cache in found[:-1]:
                del cache.regions[box]
                excess -= kept.nbytes
                if excess <= 0:
                    return


SHARED = Budget()
"""The budget of all sessions of this process."""
if hasattr(os, "register_at_fork"):  # so that no child finds the lock held by a thread that it does not have
    os.register_at_fork(
        before=SHARED.lock.acquire, after_in_parent=SHARED.lock.release, after_in_child=SHARED.lock.release
    )


@dataclass(slots=True, eq=False)
class KeptFeatures:
    """The features of a region."""

    features: Any
    nbytes: int
    used: int
    """When the features were asked for last, by the budget's clock."""


class FeatureCache:
    """`StepAnswer.features` of one picture, by the region that they belong to.

    Args:
        budget (Budget): the memory that it shares with other pictures.
    """

    def __init__(self, budget: Budget = SHARED) -> None:
        self.regions: dict[Box, KeptFeatures] = {}
        self._budget = budget
        with budget.lock:
            budget.caches.add(self)

    def get(self, box: Box) -> Any | None:
        """The features of a region, or None when they are not kept.  Asking for them counts as a use."""
        with self._budget.lock:
            kept = self.regions.get(box)
            if kept is None:
                return None
            kept.used = next(self._budget.clock)
            return kept.features

    def keep(self, box: Box, features: Any) -> None:
        """Remember the features of a region: a tuple of tensors."""
        with self._budget.lock:
            kept = self.regions.get(box)
            if kept is not None and kept.features is features:  # no more memory than before
                kept.used = next(self._budget.clock)
                return
        nbytes = sum(tensor.nbytes for tensor in features)
        with self._budget.lock:
            self.regions[box] = KeptFeatures(features, nbytes, next(self._budget.clock))
            self._budget.enforce()

    def __iter__(self) -> Iterator[Box]:
        """Regions, the latest used last."""
        return iter(sorted(self.regions, key=lambda box: self.regions[box].used))
