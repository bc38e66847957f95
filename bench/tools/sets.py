"""Some objects of each of several data sets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from activefreq_engine.eval import Dataset, load_dataset


def drawn(folder: Path, limit: int, labels: Sequence[int] | None = None) -> tuple[str, list[int], Dataset]:
    """At most `limit` objects of a validation folder, drawn with a fixed seed.  `labels`: as for `load_dataset`.

    Returns:
        The set's name, which is that of the parent folder; the objects' places in the whole set; and the objects.
    """
    whole = load_dataset(folder, labels=labels)
    places = sorted(np.random.default_rng(0).permutation(len(whole.samples))[:limit].tolist())
    return folder.resolve().parent.name, places, replace(whole, samples=tuple(whole.samples[i] for i in places))
