"""Every random input can be had again: see `rng` in conftest.py."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import seeded

HERE = Path(__file__).parent
WITHOUT_A_SEED = re.compile(
    r"default_rng\(\)|SeedSequence\(\)|random\.Random\(\)|np\.random\.(?!default_rng|Generator|SeedSequence)"
)
drawn: list[tuple[float, float]] = []


def test_no_test_draws_without_a_seed() -> None:
    files = [p for p in HERE.rglob("*.py") if p.name not in ("conftest.py", Path(__file__).name)]
    assert len(files) > 50
    found = [
        f"{p.relative_to(HERE)}:{n}: {line.strip()}"
        for p in files
        for n, line in enumerate(p.read_text("utf-8").splitlines(), 1)
        if WITHOUT_A_SEED.search(line)
    ]
    assert not found, "draw from the fixture rng instead:\n" + "\n".join(found)


@pytest.mark.parametrize("k", range(3))
def test_each_test_draws_its_own_numbers(k: int, rng: np.random.Generator) -> None:
    drawn.append((rng.random(), float(torch.rand(()))))
    assert len(set(drawn)) == len(drawn)


def test_a_seed_draws_the_same_again(pytestconfig: pytest.Config) -> None:
    one, two, other = ((seeded(pytestconfig, n).random(3).tolist(), torch.rand(3).tolist()) for n in ("a", "a", "b"))
    assert one == two
    assert one[0] != other[0]
    assert one[1] != other[1]
