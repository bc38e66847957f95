"""Image features, kept by picture and region within limits of memory that all pictures of a process share: one for the
host's memory, one for each CUDA device's."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from activefreq_engine.runtime.engine import hold_in_forks
from activefreq_engine.types import Box

LIMIT = 128 << 20  # bytes: 100 regions of MiT-B0 at 256 pixels in half precision, 20 at 384 pixels in float32
CUDA_LIMIT = 1 << 30  # bytes on each device: 360 regions of MiT-B0 at 384 pixels in half precision
CUDA_PART = 1 / 8  # of a device's memory: at most so much, where that is less


class Budget:
    """The memory that the features of all pictures share.  Safe in several threads.

    Args:
        limit (int): bytes of the host's memory.  When more is in use, the regions that were unused for longest are
            forgotten, whatever picture they belong to; the latest one always stays.
        cuda_limit (int): bytes of each CUDA device's memory, likewise; at most `CUDA_PART` of that memory.
    """

    def __init__(self, limit: int = LIMIT, cuda_limit: int = CUDA_LIMIT) -> None:
        self.lock = threading.RLock()  # a signal's handler may click, too
        self.clock = itertools.count()
        self.caches: weakref.WeakSet[FeatureCache] = weakref.WeakSet()
        self._limit, self._cuda_limit = limit, cuda_limit

    @property
    def nbytes(self) -> int:
        """Memory in use on the host and on all devices, bytes."""
        with self.lock:
            return sum(kept.nbytes for cache in self.caches for kept in cache.regions.values())

    def room(self, device: torch.device) -> int:
        """The limit of the memory that a device uses, bytes."""
        if device.type != "cuda":
            return self._limit
        return min(self._cuda_limit, int(CUDA_PART * torch.cuda.get_device_properties(device).total_memory))

    def enforce(self, device: torch.device) -> None:
        """Forget regions of one device until its limit holds."""
        with self.lock:
            found = [
                (kept, box, cache)
                for cache in self.caches
                for box, kept in cache.regions.items()
                if kept.device == device
            ]
            excess = sum(kept.nbytes for kept, _, _ in found) - self.room(device)
            if excess <= 0:
                return
            found.sort(key=lambda item: item[0].used)
            for kept, box, cache in found[:-1]:
                del cache.regions[box]
                excess -= kept.nbytes
                if excess <= 0:
                    return


SHARED = Budget()
"""The budget of all sessions of this process."""
hold_in_forks(SHARED.lock)


@dataclass(slots=True, eq=False)
class KeptFeatures:
    """The features of a region."""

    features: Any
    nbytes: int
    device: torch.device
    """Where they are."""
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
            self.regions[box] = KeptFeatures(features, nbytes, features[0].device, next(self._budget.clock))
            self._budget.enforce(features[0].device)

    def __iter__(self) -> Iterator[Box]:
        """Regions, the latest used last."""
        return iter(sorted(self.regions, key=lambda box: self.regions[box].used))
