"""The refiner's worth: what changes between two evaluations of the same objects."""

import numpy as np
import pytest

from bench.quality import refined


def test_the_change_is_told_with_its_interval(rng: np.random.Generator) -> None:
    without = np.sort(rng.uniform(0.5, 0.85, (40, refined.CLICKS)), axis=1)
    better = without.copy()
    better[:, 1] += 0.02
    better[:, 4] = np.minimum(better[:, 4] + rng.normal(0, 0.05, 40), 0.89)
    better[:10, 5:] = 0.95  # from the sixth click on, where without it none gets there in ten
    found = refined.compare(without, better)
    assert found["miou1_more"] == 0
    assert found["miou2"] == pytest.approx(100 * without[:, 1].mean())
    assert found["miou2_more"] == pytest.approx(2)
    assert found["miou5_low"] < found["miou5_more"] < found["miou5_high"]
    assert found["noc90"] == refined.CLICKS
    assert found["noc90_more"] == pytest.approx(-4 * 10 / 40)
