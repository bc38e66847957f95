"""Ours beside other click segmenters: the same images, the same clicks, the same run, losses included.

    python -m bench.peers.run accuracy DATA --method mobile_sam     # a robot clicks on every image; may be interrupted
    python -m bench.peers.run latency DATA                          # times of all methods, image by image in turn
    python -m bench.peers.run report --readme README.md             # CSV, picture and tables of what has been measured

DATA is a folder that `activefreq eval` takes.  Quality and speed are measured apart: quality may run for an hour beside
other work, speed needs the machine for itself.  Reports that `activefreq eval --json` wrote are taken as well, under
the name `METHOD.json` in the results folder.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from activefreq_engine import Engine, Session
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.eval import Dataset, Report, evaluate, load_dataset, merge, read_json, write_json
from activefreq_engine.files import write_file
from bench.peers import latency as peers_latency
from bench.peers import mobile_sam
from bench.peers import report as peers_report
from bench.peers.grabcut import GrabCutPredictor
from bench.tools import rows
from bench.tools.machine import Machine

RESULTS = Path(__file__).parents[1] / "results" / "peers"
TIMES = "latency.csv"
WORK = Path("runs/peers")
KINDS = RESULTS.parent / "kinds.csv"
OURS = {"activefreq": DEFAULT_MODEL, "activefreq@lesions": "freqformer_b0"}
"""Weights by method."""
ACCURACY = (*(name + robot for name in (*OURS, "mobile_sam") for robot in ("", "+acselect")), "grabcut")
"""Behind the plus sign is the robot clicker, `ritm` where there is none."""


def accuracy(data: Dataset, method: str, out: Path, work: Path, checkpoint: Path) -> Report:
    """Evaluate one method with a robot clicker and write `out/METHOD.json`.

    Every sample is kept in a file of its own until the last one is done, and is not run again.
    """
    name, _, clicker = method.partition("+")
    options: dict[str, Any] = {"clicker": clicker or "ritm", "model": OURS.get(name, name), "progress": False}
    if name == "mobile_sam":
        options["predictors"] = [mobile_sam.SamPeer(mobile_sam.mobile_sam(checkpoint), work / "embeddings")]
    elif name not in OURS:
        options["predictors"] = [GrabCutPredictor()]
    count = len(data.samples)
    folder = work / f"{method}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:03d}.json" for i in range(count)]
    for i, file in enumerate(tqdm(files, desc=method, unit="image", disable=None)):
        if not file.exists():
            partial = file.with_suffix(".partial")
            write_json(evaluate(data, shard=(i, count), **options), partial)
            partial.replace(file)
    report = merge([read_json(file) for file in files])
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / f"{method}.json")
    shutil.rmtree(folder)
    return report


def latency(data: Dataset, out: Path, checkpoint: Path, skip: Sequence[str], device: str) -> None:
    """Time all methods and write `out/latency.csv`; methods that are skipped keep the times they have there."""

    def sam(model: mobile_sam.SamNetwork) -> mobile_sam.SamPeer:
        return mobile_sam.SamPeer(model.to(device), device=device)

    makers: dict[str, Callable[[], Any]] = {
        "activefreq": lambda: Session(device=device),
        "activefreq@384": lambda: Session(device=device, size=384),
        "activefreq@lesions": lambda: Session(OURS["activefreq@lesions"], device=device),
        "mobile_sam": lambda: sam(mobile_sam.mobile_sam(checkpoint)),
        "sam_vit_b": lambda: sam(mobile_sam.sam_vit_b()),
        "grabcut": GrabCutPredictor,
    }
    for name in skip:
        if name not in makers:
            raise SystemExit(f"--skip {name}: there are {', '.join(makers)}")
    methods = {name: make() for name, make in makers.items() if name not in skip}
    found = peers_latency.measure(data, methods, Session(engine=Engine(DEFAULT_MODEL, device=device)))
    rows.write(out / TIMES, found, Machine(device).describe(), replace="method")
    print("\n".join(peers_report.ratios(rows.read(out / TIMES))))


def report(out: Path, readme: Path | None) -> None:
    """Write `peers.csv`, `peers.png` and `peers.md` from what the folder holds, and the table into `readme`, which also
    gets the table of the kinds of images."""
    reports = {method: read_json(out / f"{method}.json") for method in ACCURACY if (out / f"{method}.json").exists()}
    times = rows.read(out / TIMES) if (out / TIMES).exists() else []
    if not reports and not times:
        raise SystemExit(f"{out} holds neither METHOD.json nor {TIMES}; measure something first")
    peers_report.check(reports)
    text = peers_report.table(reports, times)
    rows.write(out / "peers.csv", peers_report.columns(reports, times), {}, replace="method")
    peers_report.picture(reports, times, out / "peers.png")
    write_file(out / "peers.md", text.encode())
    print(text, *peers_report.ratios(times), sep="\n")
    if readme is not None:
        peers_report.insert(readme, "peers", text)
        peers_report.insert(readme, "kinds", peers_report.kinds(rows.read(KINDS), OURS["activefreq"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers.run", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name) for name in ("accuracy", "latency", "report")}
    for name in ("accuracy", "latency"):
        sub = parsers[name]
        sub.add_argument("data", type=Path, help="folder of images with masks")
        sub.add_argument(
            "--limit", type=int, default=None if name == "accuracy" else 20, help="only the first N images"
        )
        sub.add_argument("--mobile-sam", type=Path, default=Path("mobile_sam.pt"), help="MobileSAM's weights")
    parsers["accuracy"].add_argument("--method", choices=ACCURACY, required=True)
    parsers["accuracy"].add_argument("--work", type=Path, default=WORK, help="folder for parts and embeddings")
    parsers["latency"].add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="GrabCut: always the CPU")
    parsers["latency"].add_argument(
        "--skip", action="append", default=[], help="leave this method out; may be repeated"
    )
    parsers["report"].add_argument("--readme", type=Path, help="file whose table between the two marks is replaced")
    for sub in parsers.values():
        sub.add_argument("--out", type=Path, default=RESULTS, help="results folder")
    options = parser.parse_args()
    np.random.seed(0)
    torch.manual_seed(0)
    if options.command == "report":
        report(options.out, options.readme)
        return
    data = load_dataset(options.data, limit=options.limit)
    try:
        if options.command == "accuracy":
            accuracy(data, options.method, options.out, options.work, options.mobile_sam)
        else:
            latency(data, options.out, options.mobile_sam, options.skip, options.device)
    except mobile_sam.Missing as problem:
        raise SystemExit(str(problem)) from None


if __name__ == "__main__":
    main()
