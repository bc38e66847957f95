"""Segments the example images with the shipped weights by a script of clicks and shows what the engine sees.

    python examples/demo.py [--clicks 5] [--out out/demo.png] [--model NAME] [--device auto]

The script of clicks is the robot annotator of the standard protocol: each click falls on the deepest point of the
largest error against the shipped mask.  Prints one line a click and writes one picture.  `ms` is the time from a click
to its mask.  Between clicks the session prepares for the next one, as a tool lets it do while nobody clicks; a click
far from the mask is answered from another region than the prepared one, and takes longer.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from activefreq_engine import Click, Session, Suggestion
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.eval.clickers import RitmClicker
from activefreq_engine.overlay import draw_mask, draw_prompts, draw_suggestions, draw_uncertainty, font, heat_colours

HERE = Path(__file__).parent
PANEL = 560  # pixels, square
GAP, TITLE, FOOT = 16, 40, 64
INK, PAPER = (30, 30, 30), (255, 255, 255)


@dataclass
class Result:
    """The state of one example after its last click."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    uncertainty: np.ndarray
    clicks: list[Click]
    next_click: list[Suggestion]
    iou: float


def segment(session: Session, name: str, clicks: int) -> Result:
    """Click `clicks` times on one example and print a line for each."""
    with Image.open(HERE / "images" / f"{name}.jpg") as file:
        image = np.array(file.convert("RGB"))
    with Image.open(HERE / "masks" / f"{name}.png") as file:
        truth = np.array(file.convert("L")) > 127

    session.set_image(image)
    robot = RitmClicker(truth.astype(np.int8))
    mask, iou, made = np.zeros_like(truth), 0.0, []
    while len(made) < clicks and (click := robot.next_click(mask)) is not None:
        session.prepare()  # as a tool does while nobody clicks
        step = session.click(click.x, click.y, positive=click.positive)
        mask, made = step.mask, [*made, click]
        iou = (mask & truth).sum() / (mask | truth).sum()
        sign = "+" if click.positive else "-"
        print(f"{name:<14}{len(made):>5}{sign:>6}   ({click.x:3.0f}, {click.y:3.0f}){iou:>8.3f}{step.elapsed_ms:>9.1f}")
    return Result(name, image, truth, mask, session.uncertainty, made, session.suggest(k=1), float(iou))


def panels(r: Result) -> list[tuple[str, np.ndarray]]:
    """Three titled pictures, `PANEL` pixels square: the image, the mask with its clicks, the uncertainty."""
    scale = PANEL / r.image.shape[0]

    def enlarge(values: np.ndarray, how: int = cv2.INTER_LINEAR) -> np.ndarray:
        return cv2.resize(values, (PANEL, PANEL), interpolation=how)

    image = enlarge(r.image, cv2.INTER_CUBIC)
    mask, truth = (enlarge(m.astype(np.float32)) >= 0.5 for m in (r.mask, r.truth))
    clicks = [Click((c.x + 0.5) * scale, (c.y + 0.5) * scale, c.positive) for c in r.clicks]
    next_click = [_moved(s, scale) for s in r.next_click]
    third = "Uncertainty, and where to click next" if next_click else "Uncertainty: nothing worth a click"
    heat = draw_uncertainty(image, np.clip(enlarge(r.uncertainty.astype(np.float32)), 0, 1))
    return [
        (f"{r.name}, dashed: the expert's outline", dashed_outline(image, truth)),
        (f"Mask after {len(clicks)} clicks, IoU {r.iou:.3f}", draw_prompts(draw_mask(image, mask), clicks)),
        (third, draw_suggestions(heat, next_click)),
    ]


def dashed_outline(image: np.ndarray, mask: np.ndarray, dash: int = 9) -> np.ndarray:
    picture = image.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        for start in range(0, len(contour), 2 * dash):
            for colour, width in ((INK, 5), (PAPER, 2)):
                cv2.polylines(picture, [contour[start : start + dash]], False, colour, width, cv2.LINE_AA)
    return picture


def compose(results: list[Result]) -> Image.Image:
    """One row of panels for each example, a colour scale and a legend below."""
    width = 3 * PANEL + 4 * GAP
    height = len(results) * (TITLE + PANEL + GAP) + FOOT
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, result in enumerate(results):
        top = row * (TITLE + PANEL + GAP)
        for column, (title, picture) in enumerate(panels(result)):
            left = GAP + column * (PANEL + GAP)
            pen.text((left, top + TITLE / 2 + 2), title, fill=INK, font=font(22), anchor="lm")
            sheet.paste(Image.fromarray(picture), (left, top + TITLE))

    middle = height - FOOT / 2
    blank = np.full((PANEL, PANEL, 3), 255, np.uint8)
    for left, positive, meaning in ((GAP, True, "click inside"), (GAP + 200, False, "click outside")):
        mark = draw_prompts(blank, [Click(20, 20, positive)])[:40, :40]
        sheet.paste(Image.fromarray(mark), (left, int(middle) - 20))
        pen.text((left + 46, middle), meaning, fill=INK, font=font(20), anchor="lm")
    text = "The number is the order of the clicks, a white mark the suggested next one."
    pen.text((GAP + 430, middle), text, fill=INK, font=font(20), anchor="lm")
    left = GAP + 2 * (PANEL + GAP)
    ramp = heat_colours(np.tile(np.linspace(0, 1, 260, dtype=np.float32), (18, 1)))
    pen.text((left, middle), "0 bit: sure", fill=INK, font=font(20), anchor="lm")
    sheet.paste(Image.fromarray(ramp), (left + 112, int(middle) - 9))
    pen.text((left + 384, middle), "1 bit: a coin toss", fill=INK, font=font(20), anchor="lm")
    return sheet


def _moved(s: Suggestion, scale: float) -> Suggestion:
    x0, y0, x1, y1 = (round(v * scale) for v in s.region_bbox)
    x, y = int((s.x + 0.5) * scale), int((s.y + 0.5) * scale)
    return Suggestion(x, y, s.positive, s.score, (x0, y0, x1, y1), s.area, s.mpe, s.ape, s.rgu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=5, help="clicks on each image, default 5")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="the picture, default out/demo.png")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="default: the shipped weights; or a checkpoint file")
    parser.add_argument("--device", default="auto", help="default: the best there is")
    args = parser.parse_args()
    if args.clicks < 1:
        parser.error(f"--clicks {args.clicks}: at least one click is needed")

    print(f"{'image':<14}{'click':>5}{'sign':>6}   {'(x, y)':<10}{'IoU':>8}{'ms':>9}")
    with Session(args.model, device=args.device) as session:
        names = sorted(p.stem for p in (HERE / "images").glob("*.jpg"))
        results = [segment(session, name, args.clicks) for name in names]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    compose(results).save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
