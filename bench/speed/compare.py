"""What a run of the latency tests says: how much faster than its reference each is, now and in the committed result.

    python -m bench.speed.compare out/latency.json         # as written by: pytest --benchmark --benchmark-json=...
    python -m bench.speed.compare out/latency.json --save  # and commit it as bench/results/latency_*.json

Times of two machines cannot be compared, so the ratio to the reference of the same run is what is compared; the
machine of the committed result is named.  What was not measured, because its check failed or it was skipped, has no
ratio.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from activefreq_engine.files import write_file

RESULTS = Path(__file__).parents[1] / "results"

LatencyRun = dict[str, Any]
"""{"machine": {...}, "groups": {group: {implementation: {"reference": bool, "median_ms": float, ...}}}}"""


def summarise(full: dict[str, Any], device: str) -> LatencyRun:
    """What is kept of pytest-benchmark's JSON for one device: no single rounds, no host name."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for b in full["benchmarks"]:
        facts = b["extra_info"]
        if facts["device"] != device:
            continue
        groups[b["group"]][facts["implementation"]] = {
            "reference": facts["reference"],
            "error": float(f"{facts['error']:.3g}"),
            **{f"{name}_ms": float(f"{1e3 * b['stats'][key]:.4g}") for name, key in
               (("lower", "q1"), ("median", "median"), ("upper", "q3"))},
            "rounds": b["stats"]["rounds"],
        }  # fmt: skip
    return {"machine": full["machine_info"]["activefreq"].get(device, {}), "groups": dict(groups)}


def speed_up(run: LatencyRun, group: str, implementation: str) -> float:
    """Reference over implementation, medians of one run; NaN unless both were measured."""
    rows = run["groups"].get(group, {})
    reference = next((r for r in rows.values() if r["reference"]), None)
    if reference is None or implementation not in rows:
        return math.nan
    return reference["median_ms"] / rows[implementation]["median_ms"]


def table(run: LatencyRun, before: LatencyRun | None) -> str:
    """One line an implementation: its time, how many times faster than its reference it is, and was."""
    lines = [f"{'':58s}{'median ms':>10s} {'quartiles':>19s} {'faster':>8s} {'then':>8s}"]
    for group, rows in run["groups"].items():
        lines.append(group)
        for name, r in sorted(rows.items(), key=lambda item: not item[1]["reference"]):
            then = math.nan if before is None else speed_up(before, group, name)
            quartiles = f"{r['lower_ms']:.4g}..{r['upper_ms']:.4g}"
            marked = name + " (the reference)" * r["reference"]
            lines.append(
                f"    {marked:54s}{r['median_ms']:10.4g} {quartiles:>19s} "
                f"{_times(speed_up(run, group, name)):>8s} {_times(then):>8s}"
            )
    missing = [f"    {g}: {i}" for g, rows in (before or run)["groups"].items() for i in rows
               if i not in run["groups"].get(g, {})]  # fmt: skip
    if missing:
        lines += ["in the committed result but not measured now (check failed, skipped or not selected):", *missing]
    return "\n".join(lines)


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="JSON file of pytest-benchmark")
    parser.add_argument("--save", action="store_true", help="make this run the committed result")
    arguments = parser.parse_args()
    full = json.loads(arguments.run.read_text())
    for device in sorted({b["extra_info"]["device"] for b in full["benchmarks"]}):
        run, file = summarise(full, device), RESULTS / f"latency_{device}.json"
        before = json.loads(file.read_text()) if file.exists() else None
        print(f"\n{_machine(run)}\nthen: {_machine(before) if before else 'nothing is committed yet'}")
        print(table(run, before))
        if arguments.save:
            write_file(file, (json.dumps(run, indent=1) + "\n").encode())
            print("saved as", file)


def _machine(run: LatencyRun) -> str:
    about = run["machine"]
    return ", ".join(f"{k} {about[k]}" for k in ("device", "threads", "torch", "commit", "date") if k in about)


if __name__ == "__main__":
    main()
