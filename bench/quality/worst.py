"""The samples that need the most clicks, as one picture, and what sets them apart.

    activefreq eval DATA --clicker ritm --json out/ritm.json
    python -m bench.quality.worst DATA out/ritm.json --out docs/worst.jpg

The clicks of the report are made again, so every mask shown is one that was evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from activefreq_engine import Click, Session
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.eval import Dataset, Report, load_dataset, metrics, read_json
from activefreq_engine.eval.report import dataset_digest
from activefreq_engine.files import beside
from activefreq_engine.overlay import draw_mask, draw_prompts, font
from activefreq_engine.runtime.engine import stored_digest
from activefreq_engine.types import Box

SHOWN = (1, 2, 5)
PANEL, GAP, TITLE, COLUMNS = 164, 4, 18, 2
SAME = 0.02
"""A mask made again may differ by this much in IoU: a batch rounds differently from a single image."""
QUALITY = 75  # of a JPEG
TRUTH, INK, PAPER = (240, 228, 66), (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class HardCase:
    """One sample: image uint8 `[H, W, 3]`, truth int8 `[H, W]`, and its masks, bool `[H, W]`, after `SHOWN` clicks."""

    title: str
    image: NDArray[np.uint8]
    truth: NDArray[np.integer]
    clicks: tuple[Click, ...]
    masks: tuple[NDArray[np.bool_], ...]


def worst(report: Report, count: int) -> list[int]:
    """Numbers of the samples with the most clicks to 90 % IoU, worst first; of equals, lower IoU after two clicks."""
    curves = report.curves
    return [int(i) for i in np.lexsort((curves[:, 1], -metrics.noc(curves, 0.9)))[:count]]


def replay(session: Session, data: Dataset, report: Report, number: int) -> HardCase:
    """Make the first clicks of a sample's run again.

    Raises:
        ValueError: a mask is not the one that was evaluated.
    """
    sample, run = data.samples[number], report.samples[number]
    image, truth = sample.load_image(), sample.load_mask()
    session.set_image(image)
    masks: list[NDArray[np.bool_]] = []
    for k, click in enumerate(run.clicks[: max(SHOWN)]):
        masks.append(session.click(click.x, click.y, positive=click.positive).mask)
        found = metrics.iou(masks[-1], truth)
        if abs(found - run.ious[k]) > SAME:
            raise ValueError(
                f"{sample.id}: IoU after click {k + 1} is {found:.3f}, in the report {run.ious[k]:.3f}; evaluate again "
                "with this version, then draw"
            )
    needed = int(metrics.noc(report.curves[number : number + 1], 0.9)[0])
    reached = max(run.ious) >= 0.9
    title = f"{sample.id}: {needed} clicks" if reached else f"{sample.id}: not in {needed} clicks"
    return HardCase(title, image, truth, run.clicks, tuple(masks[min(k, len(masks)) - 1] for k in SHOWN))


def panels(case: HardCase) -> list[NDArray[np.uint8]]:
    """The whole image, then each mask with its clicks from closer by; the true outline in all.

    Returns:
        1 + len(`SHOWN`) pictures, uint8 `[h, w, 3]`, the longer side `PANEL` pixels.
    """
    whole = (0, 0, case.truth.shape[1], case.truth.shape[0])
    near = window(np.any([case.truth == 1, *case.masks], axis=0))
    pictures = [_panel(case, whole, None, ())]
    for k, mask in zip(SHOWN, case.masks, strict=True):
        pictures.append(_panel(case, near, mask, case.clicks[:k]))
    return pictures


def window(pixels: NDArray[np.bool_]) -> Box:
    """A box around all pixels with a margin of a fifth, as square as the image allows."""
    height, width = pixels.shape
    x, y, w, h = cv2.boundingRect(pixels.astype(np.uint8))
    side = round(1.4 * max(w, h))
    across, down = min(side, width), min(side, height)
    left = min(max(0, x + w // 2 - across // 2), width - across)
    top = min(max(0, y + h // 2 - down // 2), height - down)
    return left, top, left + across, top + down


def _panel(case: HardCase, box: Box, mask: NDArray[np.bool_] | None, clicks: Sequence[Click]) -> NDArray[np.uint8]:
    x0, y0, x1, y1 = box
    scale = PANEL / max(x1 - x0, y1 - y0)
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR

    def cut(values: NDArray) -> NDArray:
        return np.asarray(cv2.resize(values[y0:y1, x0:x1], size, interpolation=how))

    picture = cut(case.image)
    if mask is not None:
        picture = draw_mask(picture, cut(mask.astype(np.float32)) >= 0.5)
    truth = cut((case.truth == 1).astype(np.float32)) >= 0.5
    contours, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, TRUTH, 1, cv2.LINE_AA)
    # a click is a whole pixel: its middle is drawn
    moved = [Click((int(c.x) + 0.5 - x0) * scale, (int(c.y) + 0.5 - y0) * scale, c.positive) for c in clicks]
    return draw_prompts(picture, moved)


def sheet(cases: Sequence[HardCase], ious: Sequence[Sequence[float]]) -> Image.Image:
    """All cases on one page, `COLUMNS` beside each other, column by column; a line of text above each."""
    rows = -(-len(cases) // COLUMNS)
    across = (1 + len(SHOWN)) * (PANEL + GAP) + 3 * GAP
    canvas = Image.new("RGB", (COLUMNS * across, rows * (TITLE + PANEL + GAP) + TITLE + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for i, (case, curve) in enumerate(zip(cases, ious, strict=True)):
        left, top = i // rows * across + GAP, i % rows * (TITLE + PANEL + GAP)
        pen.text((left, top + TITLE / 2), case.title, fill=INK, font=font(12), anchor="lm")
        for j, picture in enumerate(panels(case)):
            x = left + j * (PANEL + GAP)
            canvas.paste(Image.fromarray(picture), (x, top + TITLE))
            if j:
                text = f"click {SHOWN[j - 1]}: IoU {curve[SHOWN[j - 1] - 1]:.2f}"
                pen.text((x + PANEL, top + TITLE / 2), text, fill=INK, font=font(11), anchor="rm")
    legend = "Yellow: the expert's outline. White: the mask, closer by. Disks: clicks inside. Squares: outside."
    pen.text((GAP, canvas.height - TITLE / 2 - GAP / 2), legend, fill=INK, font=font(12), anchor="lm")
    return canvas


def traits(image: NDArray[np.uint8], truth: NDArray[np.integer]) -> dict[str, float]:
    """What may make an object hard: ``area``, per cent of the image, and ``contrast``, the distance in CIE Lab between
    its mean colour and that of a ring around it, which is 0.15 times as wide as the root of the area."""
    inside = (truth == 1).astype(np.uint8)
    width = max(2, round(0.15 * np.sqrt(inside.sum())))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    ring = (cv2.dilate(inside, disk) > 0) & (truth == 0)
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    colours = [lab[where].mean(axis=0) if where.any() else np.full(3, np.nan) for where in (inside > 0, ring)]
    return {"area": 100 * float((truth == 1).mean()), "contrast": float(np.linalg.norm(colours[0] - colours[1]))}


def main(
    data: Annotated[Path, typer.Argument(help="the data that was evaluated")],
    report: Annotated[Path, typer.Argument(help="report of `activefreq eval --json`")],
    out: Annotated[Path, typer.Option(help="the picture, JPEG or PNG")],
    count: Annotated[int, typer.Option(min=1, help="samples shown")] = 20,
    model: Annotated[str, typer.Option(help="shipped model, or checkpoint, that was evaluated")] = DEFAULT_MODEL,
) -> None:
    """Draw the samples that need the most clicks and compare them with the others."""
    found, measured = load_dataset(data), read_json(report)
    about = measured.settings.about
    if dataset_digest(found) != measured.settings.dataset_digest:
        raise typer.BadParameter(f"{report} is of other data than {data}")
    if about.get("weights_sha256") != stored_digest(model):
        raise typer.BadParameter(f"{report} is of other weights than {model}; evaluate again or name the checkpoint")
    session = Session(
        model,
        device=about["device"],
        precision=about["precision"],
        size=about["size"],
        threshold=about["threshold"],
        zoom=about["zoom"],
        refine=about["refine"],
    )
    chosen = worst(measured, count)
    cases = [replay(session, found, measured, n) for n in tqdm(chosen, desc="clicking", unit="image", disable=None)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with beside(out) as partial:
        picture = sheet(cases, [measured.samples[n].ious for n in chosen])
        picture.save(partial, Image.registered_extensions()[out.suffix.lower()], quality=QUALITY)

    samples = tqdm(found.samples, desc="comparing", unit="image", disable=None)
    measures = [traits(s.load_image(), s.load_mask()) for s in samples]
    needed = metrics.noc(measured.curves, 0.9)
    typer.echo("id  clicks to 90 %  IoU@1  @2  @5  area %  contrast")
    for n in chosen:
        ious = "  ".join(f"{100 * measured.samples[n].ious[k - 1]:.0f}" for k in SHOWN)
        typer.echo(
            f"{found.samples[n].id}  {needed[n]}  {ious}  " + "  ".join(f"{v:.1f}" for v in measures[n].values())
        )
    others = sorted(set(range(len(measures))) - set(chosen))
    for trait in measures[0]:
        values = np.array([measure[trait] for measure in measures])
        medians = " and ".join(f"{np.nanmedian(values[group]):.1f}" for group in (chosen, others) if group)
        typer.echo(f"{trait}: median of these and of the others: {medians}")
        for quarter in np.array_split(np.argsort(values), min(4, len(values))):
            noc, first, second = needed[quarter].mean(), *measured.curves[quarter, :2].mean(axis=0)
            span = f"{values[quarter[0]]:.1f} to {values[quarter[-1]]:.1f}"
            typer.echo(f"  {span}: NoC@90 {noc:.2f}, mIoU@1 {100 * first:.1f}, mIoU@2 {100 * second:.1f}")
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
