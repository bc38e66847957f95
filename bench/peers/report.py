"""The table, the CSV file and the picture of `bench.peers.run`, from what has been measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from activefreq_engine.conventions import MIOU_CLICKS
from activefreq_engine.eval import Report
from activefreq_engine.files import write_file
from bench.tools import plots
from bench.tools.rows import Row

MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
"""What stands between them in a file is replaced by the table of this name."""
NAMES = {
    "activefreq": "**activefreq, 256 px**",
    "activefreq@384": "activefreq, 384 px",
    "activefreq@lesions": "activefreq, 256 px, lesion weights",
    "mobile_sam": "MobileSAM",
    "sam_vit_b": "SAM ViT-B (random weights)",
    "grabcut": "GrabCut (OpenCV)",
}
CALLS = ("set_image", "first mask", "next click", "prepare")
"""What the table has the times of."""
PLAIN = {name: text.replace("*", "").partition(" (")[0] for name, text in NAMES.items()}
IMAGES = {
    "isic2017": "skin lesions",
    "hc18": "fetal heads, ultrasound",
    "usgra": "nerves, ultrasound",
    "ms_brain": "brains, MRI",
    "sunnybrook": "hearts, MRI",
    "vocalfolds": "vocal folds, endoscopy",
    "dsb2018": "nuclei, microscopy",
    "axon_sem": "nerve fibres, electron microscopy",
    "plant_em": "chloroplasts, electron microscopy",
    "coffee_leaf": "leaves and their spots",
    "coco_ccby": "photographs",
}
"""What the sets of `bench.quality.kinds` show."""
FIGURES = {"NoC@90": ("noc90", min), "mIoU@1": ("miou1", max), "mIoU@2": ("miou2", max), "mIoU@5": ("miou5", max)}
"""Columns of the table of kinds: which figure, and which of two is better."""
COLOURS = {"activefreq": plots.BLUE, "mobile_sam": plots.ORANGE, "grabcut": plots.GREEN, "sam_vit_b": plots.PURPLE}


def check(reports: Mapping[str, Report]) -> None:
    """Raise ValueError unless all reports are of the same samples and may be compared."""
    kinds = {
        method: (r.settings.dataset_digest, r.settings.max_clicks, r.settings.stop_at) for method, r in reports.items()
    }
    if len(set(kinds.values())) > 1:
        raise ValueError(f"the reports are of different samples or settings (digest, clicks, stop): {kinds}")


def table(reports: Mapping[str, Report], times: Sequence[Row]) -> str:
    """Markdown: one row a method, speed first, then quality, then what it all means."""
    heads = ["method", "robot", *(f"{call} ms" for call in CALLS)]
    heads += [f"mIoU@{k}" for k in MIOU_CLICKS] + ["NoC@85", "NoC@90"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for method in NAMES:
        speed = [_times(times, method, call) for call in CALLS]
        own = {name: r for name, r in reports.items() if name.partition("+")[0] == method}
        for name, report in own.items() or [("", None)]:
            cells = [NAMES[method], report.settings.clicker if report else "-"]
            cells += speed if "+" not in name else [""] * len(CALLS)
            lines.append("| " + " | ".join(cells + _quality(report)) + " |")
    return "\n".join([*lines, "", *_notes(reports, times), ""])


def kinds(measured: Sequence[Row], weights: str) -> str:
    """Markdown: one row a kind of image, MobileSAM and these weights on the same objects, as `bench.quality.kinds`
    wrote them, and the means; the better figure is bold.

    Raises:
        ValueError: a set was measured on more objects with one of the two than with the other.
    """
    found = {(row["weights"], row["set"]): row for row in measured}
    both = {name: (found.get(("mobile_sam", name)), found.get((weights, name))) for name in IMAGES}
    pairs = {name: (peer, ours) for name, (peer, ours) in both.items() if peer and ours}
    for name, (peer, ours) in pairs.items():
        if peer["objects"] != ours["objects"]:
            raise ValueError(f"{name}: {peer['objects']} objects with MobileSAM and {ours['objects']} with {weights}")
    values = np.array([[[float(row[c]) for row in pair] for c, _ in FIGURES.values()] for pair in pairs.values()])
    names = [f"{IMAGES[name]} (`{name}`)" for name in pairs] + ["mean of the kinds"]
    objects = [int(ours["objects"]) for _, ours in pairs.values()]
    lines = ["| images | objects |" + "".join(f" {name} MobileSAM, ours |" for name in FIGURES)]
    lines.append("|" + "---|" * (2 + len(FIGURES)))
    for name, count, row in zip(names, [*objects, sum(objects)], [*values, values.mean(0)], strict=True):
        cells = []
        for pair, (column, better) in zip(row, FIGURES.values(), strict=True):
            texts = [f"{v:.{2 if column.startswith('noc') else 1}f}" for v in pair]
            best = better(texts, key=float)
            cells.append(", ".join(f"**{text}**" if text == best else text for text in texts))
        lines.append(" | ".join([f"| {name}", str(count), *cells]) + " |")
    return "\n".join([*lines, ""])


def ratios(times: Sequence[Row]) -> list[str]:
    """Ours against MobileSAM in one line each; above 1 ours is faster."""
    lines = []
    for text, ours, theirs in (
        (
            "next click at 384 px / MobileSAM's decoder alone",
            ("activefreq@384", "next click"),
            ("mobile_sam", "decoder"),
        ),
        ("next click at 384 px / MobileSAM's click", ("activefreq@384", "next click"), ("mobile_sam", "next click")),
        ("set_image / MobileSAM's set_image", ("activefreq", "set_image"), ("mobile_sam", "set_image")),
        ("image to first mask at 384 px / MobileSAM's", ("activefreq@384", "first mask"), ("mobile_sam", "first mask")),
    ):
        a, b = (_row(times, *which) for which in (ours, theirs))
        if a is not None and b is not None:
            p, q = float(a["p50_ms"]), float(b["p50_ms"])
            lines.append(f"{text}: {_short(p)} ms / {_short(q)} ms, {_short(q / p)} times as fast")
    return lines


def columns(reports: Mapping[str, Report], times: Sequence[Row]) -> list[dict[str, Any]]:
    """The table's numbers, one row a method and robot."""
    result = []
    for method in dict.fromkeys([*reports, *(row["method"] for row in times)]):
        row: dict[str, Any] = {"method": method}
        if method in reports:
            m = reports[method].metrics()
            row |= {"samples": m["samples"], "noc85": m["noc85"], "noc90": m["noc90"]}
            row |= {f"miou{k}": m["miou"][str(k)] for k in MIOU_CLICKS}
        for call in CALLS:
            found = _row(times, method, call)
            row |= {f"{call.replace(' ', '_')}_{p}_ms": found[f"{p}_ms"] if found else "" for p in ("p50", "p95")}
        result.append(row)
    return result


def picture(reports: Mapping[str, Report], times: Sequence[Row], file: Path) -> None:
    """Mean IoU against clicks, and how long an image's first mask and each next click take."""
    with plt.rc_context(plots.STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for name, report in reports.items():
            method, _, robot = name.partition("+")
            mean = 100 * report.curves.mean(axis=0)
            kind, _, variant = method.partition("@")
            style = ("-." if robot else ":") if variant else "--" if robot else ".-"
            label = f"{PLAIN[method]}, {robot} robot" if robot else PLAIN[method]
            left.plot(range(1, len(mean) + 1), mean, style, color=COLOURS[kind], label=label)
        left.set_xticks(MIOU_CLICKS)
        if reports:
            figure.legend(loc="outside lower left", ncols=3)
        plots.finish(left, "Quality: mean IoU after each click", "clicks", "%", from_zero=False)
        methods = [m for m in NAMES if _row(times, m, "next click")]
        for i, method in enumerate(methods):
            colour = COLOURS[method.partition("@")[0]]
            for call, offset, alpha in (("first mask", -0.19, 0.45), ("next click", 0.19, 1.0)):
                row = _row(times, method, call)
                assert row is not None
                value = float(row["p50_ms"])
                right.barh(i + offset, value, 0.36, color=colour, alpha=alpha)
                text = f"{call}: {_short(value)} ms"
                right.annotate(text, (value, i + offset), (4, 0), textcoords="offset points", va="center", fontsize=8)
        right.set_yticks(range(len(methods)), [PLAIN[method] for method in methods])
        right.invert_yaxis()
        right.set_xscale("log")
        low, high = right.get_xlim()
        right.set_xlim(low / 3, high * (high / low) ** 0.5)  # room for the texts
        right.grid(visible=False, axis="y")
        plots.finish(right, "Speed: medians", "ms, logarithmic", "", from_zero=False)
        plots.save(figure, file)


def insert(file: Path, name: str, text: str) -> None:
    """Replace what stands between the two `MARKS` of a table in a file.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    begin, end = (mark.format(name) for mark in MARKS)
    content = file.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{file} needs the lines {begin} and {end}, once each and in this order")
    before, rest = content.split(begin)
    write_file(file, f"{before}{begin}\n{text}{end}{rest.split(end)[1]}".encode())


def _row(times: Sequence[Row], method: str, call: str) -> Row | None:
    return next((row for row in times if row["method"] == method and row["call"] == call), None)


def _times(times: Sequence[Row], method: str, call: str) -> str:
    row = _row(times, method, call)
    if row is None:
        return "-"
    return " / ".join(_short(float(row[f"{p}_ms"])) for p in ("p50", "p95") if row[f"{p}_ms"])


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _quality(report: Report | None) -> list[str]:
    if report is None:
        return ["-"] * (len(MIOU_CLICKS) + 2)
    m = report.metrics()
    cells = [f"{100 * m['miou'][str(k)]:.1f}" if str(k) in m["miou"] else "-" for k in MIOU_CLICKS]
    for target in ("noc85", "noc90"):
        interval = m["intervals"].get(target)
        shown = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        cells.append("-" if m[target] is None or math.isnan(m[target]) else f"{m[target]:.2f}{shown}")
    return cells


def _notes(reports: Mapping[str, Report], times: Sequence[Row]) -> list[str]:
    notes = []
    if reports:
        settings = next(iter(reports.values())).settings
        notes.append(
            f"Quality: {settings.dataset_samples} images of `{settings.dataset}`, robot clicks as named, "
            f"{settings.max_clicks} clicks each; brackets are 95 % bootstrap intervals."
        )
    if times:
        row = next(r for r in times if r["method"] not in ("sam_vit_b",))
        images = max(int(r["n"]) for r in times if r["call"] == "set_image")
        notes.append(
            f"Speed: p50 / p95 (p95 from 20 samples on) over {images} images with the same clicks for all, methods in "
            f"turn, {row['threads']} threads, {row['device']}, torch {row['torch']}, commit {row['commit']}. "
            "Of ours, `set_image` includes a `prepare`; one more follows each click, while a person looks at the mask, "
            "and mostly finds all done. The first mask takes `set_image` and the first click."
        )
    return notes
