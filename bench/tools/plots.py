"""Pictures of what was measured, from the CSV files alone."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from activefreq_engine.files import beside
from bench.tools.rows import Row

PICTURES = Path(__file__).parents[2] / "docs" / "performance"

BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f6fb4", "#d9662b", "#2f8f5b", "#7d5ba6", "#8a8a8a"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "savefig.dpi": 110,
}


def ladder(rows: list[Row], file: Path) -> None:
    """One bar a rung: the median click, its 95th and 99th percentile, and how much faster it is."""
    rows = [r for r in rows if r["size"] == rows[-1]["size"]]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 0.62 * len(rows) + 1.5), layout="constrained")
        for i, r in enumerate(rows):
            p50, p95, p99 = (number(r, f"p{p}_ms") for p in (50, 95, 99))
            axes.barh(i, 0 if math.isnan(p50) else p50, 0.55, color=BLUE if i else GREY)
            for value, marker in ((p95, "|"), (p99, "d")):
                axes.plot(value, i, marker, color="#333333", markersize=9 if marker == "|" else 4)
            text = r["note"] or f"{p50:.3g} ms" + (f", {number(r, 'faster_than_first'):.1f}x" if i else "")
            right = max((v for v in (p50, p95, p99) if not math.isnan(v)), default=0)
            axes.annotate(text, (right, i), (8, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [r["rung"] for r in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
        axes.grid(visible=False, axis="y")
        axes.set_title(f"Click to mask, {rows[0]['size']} px: median (bar), 95 % (|), 99 % (♦)")
        axes.set_xlabel(f"ms on {machine(rows)}")
        save(figure, file)


def scaling(rows: list[Row], folder: Path, device: str) -> None:
    """One picture a sweep that was measured."""
    draw = {
        "input_size": input_size,
        "image_size": image_size,
        "clicks": clicks,
        "memory": memory,
        "objects": objects,
        "sessions": sessions,
    }
    with plt.rc_context(STYLE):
        for name, function in draw.items():
            own = [r for r in rows if r["sweep"] == name]
            if own:
                figure = function(own)
                figure.supxlabel(machine(own), fontsize=8, color=GREY, x=0.99, ha="right")
                save(figure, folder / f"{name}_{device}.png")


def input_size(rows: list[Row]) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for series, colour in (("plain modules", GREY), ("plan", BLUE)):
        line(axes, rows, series, "p50_ms", colour, series, band=("q1_ms", "q3_ms"))
    line(axes, rows, "plan", "floor_ms", ORANGE, "floor: bound by matrix products", style="--")
    axes.set_xticks(xs(rows, "plan"))
    finish(axes, "Next click against input size", "long side of the network input, pixels", "ms")
    axes.legend()
    return figure


def image_size(rows: list[Row]) -> Any:
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained", sharey=True)
    colours = {"set_image": GREY, "first click": ORANGE, "second click": PURPLE, "next click": BLUE}
    for axes, kind in zip(both, ("object of 200 pixels", "object half as high as the image"), strict=True):
        for call, colour in colours.items():
            line(axes, rows, f"{call}, {kind}", "p50_ms", colour, call)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = xs(rows, f"next click, {kind}")
        axes.set_xticks(ticks, [f"{t:.2g}" if t < 1 else f"{t:.0f}" for t in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        finish(axes, kind[0].upper() + kind[1:], "megapixels", "ms" if axes is both[0] else "", from_zero=False)
    both[1].legend()
    return figure


def clicks(rows: list[Row]) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    line(axes, rows, "click", "p50_ms", BLUE, "median", band=("q1_ms", "q3_ms"))
    second = next(number(r, "p50_ms") for r in rows if number(r, "x") == 2)
    text = "first click: the whole image\nsecond click: the region moves to the object"
    axes.annotate(text, (2, second), (8, 0), textcoords="offset points", fontsize=8, va="center", color="#444444")
    finish(axes, "Click latency against clicks made", "number of the click on the object", "ms")
    return figure


def memory(rows: list[Row]) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    line(axes, rows, "12 megapixels", "growth_mb", BLUE, "measured")
    axes.axhline(50, color=ORANGE, linestyle="--")
    axes.annotate("allowed", (rows_max(rows, "x"), 50), (0, 4), textcoords="offset points", ha="right", color=ORANGE)
    finish(axes, "Memory over 200 clicks on 12 megapixels", "clicks", "MB more than after click 2")
    return figure


def objects(rows: list[Row]) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    line(left, rows, "the same object", "p50_ms", BLUE, "the same object")
    line(left, rows, "each object in turn", "p50_ms", ORANGE, "each object in turn")
    line(right, rows, "the same object", "growth_mb", GREEN, "memory")
    doubling(left, xs(rows, "the same object"))
    right.set_xticks(xs(rows, "the same object")[2:])
    finish(left, "Next click against objects", "objects on the image", "ms, median")
    finish(right, "Memory of the objects", "objects on the image, three clicks each", "MB")
    left.legend()
    return figure


def sessions(rows: list[Row]) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    line(left, rows, "threads", "per_s", BLUE, "a thread a session")
    line(left, rows, "one batch", "per_s", GREEN, "one batched call")
    line(left, rows, "threads", "floor_per_s", ORANGE, "bound by matrix products", style="--")
    line(right, rows, "threads", "p99_ms", PURPLE, "99 %, a thread a session")
    line(right, rows, "threads", "p50_ms", BLUE, "median, a thread a session")
    line(right, rows, "one batch", "p50_ms", GREEN, "median, one batched call")
    for axes in (left, right):
        doubling(axes, xs(rows, "threads"))
        axes.set_yscale("log") if axes is right else None
    right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    finish(left, "Clicks a second, all sessions", "sessions on one engine", "clicks / s")
    finish(right, "Latency of a click", "sessions on one engine", "ms", from_zero=False)
    left.legend()
    right.legend()
    return figure


def soak(rows: list[Row], file: Path) -> None:
    """Memory and the work of a click over the clicks that were made; the first tenth is grey."""
    x = [number(r, "clicks") for r in rows]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
        left.plot(x, [number(r, "memory MB") for r in rows], color=GREEN)
        for name, colour in (("answered", BLUE), ("stand-in", ORANGE)):
            label = "by the network" if name == "answered" else "by the stand-in"
            right.plot(x, [number(r, f"{name} work p50 ms") for r in rows], color=colour, label=label, linewidth=1)
        for axes, title, y in ((left, "Memory", "MB"), (right, "Work of a click", "ms of its thread, median")):
            axes.axvspan(0, x[-1] / 10, color=GREY, alpha=0.15, linewidth=0)
            finish(axes, title, "clicks", y)
        right.legend()
        figure.supxlabel(machine(rows), fontsize=8, color=GREY, x=0.99, ha="right")
        save(figure, file)


def reliability(rows: list[Row], file: Path) -> None:
    """Share of object pixels against probability, a panel for each number of clicks, a line for each set."""
    counts = sorted({int(r["clicks"]) for r in rows})
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(counts), figsize=(4.2 * len(counts), 4.4), squeeze=False, layout="tight")
        for axes, n in zip(panels[0], counts, strict=True):
            own = [r for r in rows if int(r["clicks"]) == n]
            axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
            for i, name in enumerate(dict.fromkeys(r["set"] for r in own)):
                points = [r for r in own if r["set"] == name and r["bin"] != "all"]
                (whole,) = [number(r, "ece") for r in own if r["set"] == name and r["bin"] == "all"]
                xs, ys = ([number(r, c) for r in points] for c in ("probability", "object"))
                colour = plt.get_cmap("tab20")(i)
                axes.plot(xs, ys, color=colour, marker=".", linewidth=1.2, label=f"{name} {whole:.1f} %")
            finish(axes, f"after {n} click{'s' * (n > 1)}", "probability", "share of object pixels")
            axes.legend(title="ECE", fontsize=7, title_fontsize=8)
        save(figure, file)


def line(
    axes: Axes,
    rows: list[Row],
    series: str,
    column: str,
    colour: str,
    label: str,
    *,
    style: str = "-",
    band: tuple[str, str] | None = None,
) -> None:
    own = [r for r in rows if r["series"] == series]
    x = [number(r, "x") for r in own]
    marker = "" if style != "-" or len(own) > 40 else "o"
    axes.plot(x, [number(r, column) for r in own], style, color=colour, label=label, marker=marker)
    if band is not None:
        low, high = ([number(r, c) for r in own] for c in band)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def finish(axes: Axes, title: str, x: str, y: str, *, from_zero: bool = True) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if from_zero:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def doubling(axes: Axes, ticks: Iterable[float]) -> None:
    """A logarithmic x axis with exactly these ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), [f"{t:g}" for t in ticks])


def number(row: Row, column: str) -> float:
    return float(row[column]) if row[column] else math.nan


def xs(rows: list[Row], series: str) -> list[float]:
    return [number(r, "x") for r in rows if r["series"] == series]


def rows_max(rows: list[Row], column: str) -> float:
    return max(number(r, column) for r in rows)


def machine(rows: list[Row]) -> str:
    r = rows[-1]
    return f"{r['device']}, torch {r['torch']}, commit {r['commit']}"


def save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with beside(file) as partial:
        figure.savefig(partial, format=file.suffix[1:])
    plt.close(figure)
