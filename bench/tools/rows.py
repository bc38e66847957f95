"""CSV files of measurements: every row names the machine, the versions and the commit."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
Row = Mapping[str, Any]
"""Of a CSV file: by column, as written; what is read are strings."""

ABOUT = (
    "device", "driver", "threads", "python", "torch", "triton", "numpy", "opencv-python", "cuda", "commit", "date"
)  # fmt: skip


def write(file: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], *, replace: str) -> None:
    """Write rows to a CSV file; rows that it has already stay, unless they have the same value in column `replace`."""
    new = [{**row, **{k: about[k] for k in ABOUT if k in about}} for row in rows]
    measured = {str(row[replace]) for row in new}
    kept = [row for row in read(file) if row[replace] not in measured] if file.exists() else []
    columns = list(dict.fromkeys(k for row in (*new, *kept) for k in row))
    columns = [k for k in columns if k not in ABOUT] + [k for k in ABOUT if k in columns]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _text(v) for k, v in row.items()} for row in (*kept, *new))


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return value
