"""CSV files of measurements: every row names the machine, the versions and the commit."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from activefreq_engine.files import write_file

RESULTS = Path(__file__).parents[1] / "results"
Row = Mapping[str, Any]
"""A row of a CSV file: its values by column. What was read from a file are strings."""

ABOUT = (
    "device", "driver", "threads", "python", "torch", "triton", "numpy", "opencv-python", "cuda", "commit", "date"
)  # fmt: skip


def write(file: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], *, replace: str = "") -> None:
    """Write rows to a CSV file.

    With `replace`, the name of a column, rows that the file has already stay, unless they have the same value there.
    """
    new = [{**row, **{k: about[k] for k in ABOUT if k in about}} for row in rows]
    measured = {str(row[replace]) for row in new} if replace else set()
    kept = [row for row in read(file) if row[replace] not in measured] if replace and file.exists() else []
    columns = list(dict.fromkeys(k for row in (*new, *kept) for k in row))
    columns = [k for k in columns if k not in ABOUT] + [k for k in ABOUT if k in columns]
    file.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _text(v) for k, v in row.items()} for row in (*kept, *new))
    write_file(file, stream.getvalue().encode())


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return value
