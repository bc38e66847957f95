"""Some objects of each of several data sets."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from activefreq_engine.eval import Dataset, load_dataset


def drawn(folder: Path, limit: int) -> tuple[str, list[int], Dataset]:
    """At most `limit` objects of a validation folder, drawn with a fixed seed.

    Returns:
        The set's name, which is that of the parent folder; the objects' places in the whole set; and the objects.
    """
    whole = load_dataset(folder)
    places = sorted(np.random.default_rng(0).permutation(len(whole.samples))[:limit].tolist())
    return folder.resolve().parent.name, places, replace(whole, samples=tuple(whole.samples[i] for i in places))
