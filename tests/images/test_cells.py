"""Every cell of the table of picture formats: the right values, or a refusal in words."""

import io
from pathlib import Path

import numpy as np
import pytest

from activefreq_engine import InvalidImageError
from activefreq_engine.images import image_size, load_image

from .cells import CELLS, Cell, table, window


def stored_type(cell: Cell) -> np.dtype:
    kind, bits = "u", 16
    if "-bit" in cell.samples:
        bits = int(cell.samples.split("-")[0])
        kind = {"signed": "i", "float": "f"}.get(cell.samples.split()[-1], "u")
    return np.dtype(f"{kind}{min(8, max(8, 1 << (bits - 1).bit_length()) // 8)}")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell, tmp_path, rng) -> None:
    data, right = cell.make(rng)
    path = tmp_path / "picture"
    path.write_bytes(data)
    limits = window(stored_type(cell))
    if cell.refused is not None:
        with pytest.raises(InvalidImageError, match=cell.refused):
            load_image(path, window=limits)
        return
    got = load_image(path, window=limits)
    assert got.shape == right.shape
    assert image_size(path) == right.shape[:2]
    assert np.abs(got.astype(int) - right).max() <= cell.tolerance
    for source in (data, io.BytesIO(data)):
        assert np.array_equal(load_image(source, window=limits), got)


def test_cells_differ() -> None:
    assert len({str(c) for c in CELLS}) == len(CELLS) >= 300


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text("utf-8")
    assert table() in page, "run: python -m tests.images.cells, and put what it prints into docs/pictures.md"
