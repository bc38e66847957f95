"""The image features of one image, kept by region within a limit of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from activefreq_engine.types import Box

LIMIT = 32 << 20  # bytes: at 384 pixels 5 regions of MiT-B0 in float32, twice as many in half precision


class FeatureCache:
    """`StepAnswer.features` by the region they belong to.

    Args:
        limit (int): bytes.  The regions unused for longest are forgotten beyond it; the latest one always stays.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._kept: OrderedDict[Box, Any] = OrderedDict()

    def get(self, box: Box) -> Any | None:
        """The features of a region, which counts as a use; None when they are not there."""
        if box in self._kept:
            self._kept.move_to_end(box)
        return self._kept.get(box)

    def keep(self, box: Box, features: Any) -> None:
        """Remember the features of a region: a tuple of tensors."""
        self._kept[box] = features
        self._kept.move_to_end(box)
        while self.nbytes > self._limit and len(self._kept) > 1:
            self._kept.popitem(last=False)

    @property
    def nbytes(self) -> int:
        """Memory in use, bytes."""
        return sum(tensor.nbytes for features in self._kept.values() for tensor in features)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Box]:
        """Regions, the latest used last."""
        return iter(self._kept)
