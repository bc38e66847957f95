"""``activefreq segment`` on the command line.  The application in `activefreq_engine.cli` registers it."""

from __future__ import annotations

import glob
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activefreq_engine.conventions import DEFAULT_MODEL, THRESHOLD
from activefreq_engine.errors import ActiveFreqError, InvalidArgumentError, InvalidPromptError
from activefreq_engine.files import write_file
from activefreq_engine.segment.prompts import Prompts, parse_box, parse_click, parse_lasso, parse_scribble, read_prompts
from activefreq_engine.types import BoxPrompt, Click
from activefreq_engine.values import printable

if TYPE_CHECKING:
    from activefreq_engine.session import Session

STREAM = "-"
"""Stands for standard input as an image or a file of clicks, for standard output as a mask."""


def segment_command(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, folders of them, or patterns such as 'photos/*.jpg'; - reads one from standard input.",
            show_default=False,
        ),
    ],
    click: Annotated[
        list[str] | None,
        typer.Option(
            help="A click: 'x,y' inside the object, 'x,y,-' outside it, in image pixels. Repeat it; the order counts."
        ),
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Box around the object, in image pixels.")
    ] = None,
    lasso: Annotated[
        list[str] | None,
        typer.Option(
            help="A closed line 'x,y x,y x,y ...' around the object; ends in ' -': around what is not. Repeat it."
        ),
    ] = None,
    scribble: Annotated[
        list[str] | None,
        typer.Option(help="A line 'x,y x,y ...' over the object; ends in ' -': over what is not. Repeat it."),
    ] = None,
    clicks: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON or CSV with clicks and other prompts for each image; see docs/command-line.md. - reads JSON.",
        ),
    ] = None,
    start_mask: Annotated[
        Path | None,
        typer.Option(help="Mask to start from; for several images a folder of PNGs with the images' names."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="PNG for the mask, 0 outside, 255 inside; for several images a folder; - is standard output.",
        ),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Picture (or folder) to write, with the mask's outline, the prompts and the suggested click."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the result as JSON, with run lengths and polygons; several images: a line each."
        ),
    ] = False,
    model: Annotated[str, typer.Option(help="A model with shipped weights, or a checkpoint file.")] = DEFAULT_MODEL,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    size: Annotated[
        int | None, typer.Option(help="Long side of the network's input: 256 (default), 384, 448, 512.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Probability above which a pixel belongs to the mask.")] = THRESHOLD,
    zoom: Annotated[bool, typer.Option(help="Look at the object's surroundings, not at the whole image.")] = True,
    refine: Annotated[bool, typer.Option(help="Redraw the part that changed at full resolution.")] = True,
) -> int:
    """Segment images by clicks, boxes, lassos, scribbles or masks to start from.

    Options are carried out in this order: start mask or box, lassos, scribbles, clicks.

    If a picture cannot be read, only its own mask is missing; the exit code is then 2.
    """
    if output is None and overlay is None and not as_json:
        raise InvalidArgumentError("nothing says what to do with the mask; give --output, --overlay or --json")
    if output == STREAM and as_json:
        raise InvalidArgumentError("--output - and --json would both print; give --output a file")
    if STREAM in images and clicks == STREAM:
        raise InvalidArgumentError("standard input cannot be both the image and the clicks; give one of them as a file")
    common = Prompts(
        [
            *([] if box is None else [parse_box(box)]),
            *map(parse_lasso, lasso or ()),
            *map(parse_scribble, scribble or ()),
            *map(parse_click, click or ()),
        ]
    )
    paths, several = _find(images)
    jobs = _jobs(paths, several, common, clicks, start_mask)
    _place(jobs, several, output, overlay)

    from activefreq_engine.session import Session  # imports torch, which is slow: mistakes above are told before

    failed = 0
    with Session(model=model, device=device, size=size, threshold=threshold, zoom=zoom, refine=refine) as session:
        for job in _progress(jobs):
            try:
                outcome = _segment(session, job)
            except (ActiveFreqError, OSError) as error:
                if not several:
                    raise
                failed += 1
                _say(f"error: {' '.join(f'{job.image}: {error}'.split())}")
                continue
            if output == STREAM:
                _stream_out(outcome.png)
            elif as_json:
                typer.echo(json.dumps(outcome.report, indent=None if several else 2))
            else:
                typer.echo(outcome.text(several))
    if failed:
        _say(f"error: {failed} of {len(jobs)} images have no mask, for the reasons above")
    return 2 if failed else 0


@dataclass(slots=True)
class _Job:
    """One image: what is said about it and where its results go."""

    image: str
    prompts: Prompts
    mask: Path | None = None
    overlay: Path | None = None
    stream: bool = False
    """Whether the mask's PNG goes to standard output."""


@dataclass(slots=True)
class _Segmented:
    job: _Job
    report: dict[str, Any]
    png: bytes = b""

    def text(self, several: bool) -> str:
        """The text that is printed for people."""
        r, best = self.report, self.report["next_click"]
        start = f"{printable(self.job.image)}: " if several else ""
        others = len(r["prompts"]) - len(r["clicks"])
        said = f"clicks: {len(r['clicks'])}" + (f", other prompts: {others}" if others else "")
        lines = [f"{start}{said}, pixels inside: {r['area']} of {r['width'] * r['height']}"]
        if best is not None and not several:
            lines.append(
                f"the next click is worth most at {best['x']},{best['y']}: is that inside the object?  Add "
                f"--click {best['x']},{best['y']},+ if it is, --click {best['x']},{best['y']},- if not"
            )
        written = [printable(str(p)) for p in (self.job.mask, self.job.overlay) if p is not None]
        if several and written:
            lines[0] += f"; wrote {', '.join(written)}"
        else:
            lines += [f"wrote {path}" for path in written]
        return "\n".join(lines)


def _find(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The images that the arguments name, in order, and whether results go into folders."""
    from activefreq_engine.images.folders import IMAGE_SUFFIXES, entries
    from activefreq_engine.images.load import is_url

    found: list[str] = []
    several = len(arguments) > 1
    for argument in arguments:
        path = Path(argument)
        if argument == STREAM or (os.path.exists(argument) and not os.path.isdir(argument)):
            found.append(argument)
            continue
        if os.path.isdir(argument):
            inside = [p for p in entries(path) if p.suffix.lower() in IMAGE_SUFFIXES]
            if not inside:
                raise InvalidArgumentError(f"folder {path} holds no image: no file ends in {', '.join(IMAGE_SUFFIXES)}")
        elif glob.has_magic(argument):
            inside = [Path(name) for name in sorted(glob.glob(argument, recursive=True)) if Path(name).is_file()]
            if not inside:
                raise InvalidArgumentError(f"no file matches {argument}; check the pattern")
        else:
            what = "it is a URL; download it first and name the file" if is_url(argument) else "no such file"
            raise InvalidArgumentError(f"cannot read image '{argument}': {what}")
        several = True
        found += [str(p) for p in inside]
    files = [os.path.normpath(name) for name in found]
    if len(set(files)) < len(files):
        twice = next(name for i, name in enumerate(found) if files[i] in files[:i])
        raise InvalidArgumentError(f"image {twice} is named twice; name it once")
    if several and STREAM in found:
        raise InvalidArgumentError(
            "standard input (-) is one image and cannot be given together with others; give it alone"
        )
    return found, several


def _jobs(
    images: list[str], several: bool, common: Prompts, clicks: str | None, start_masks: Path | None
) -> list[_Job]:
    """A job for each image that has prompts or a start mask.  The others are left out, and a line on stderr names
    them; another one names those that have prompts but no mask in the folder of start masks."""
    named: dict[str, Prompts] = {}
    if clicks is not None:
        text = _stream_in().decode("utf-8-sig", "replace") if clicks == STREAM else None
        named = _by_image(read_prompts(Path(clicks), text), images, clicks)
    jobs, bare, blank = [], [], []
    for image in images:
        prompts = Prompts(common.prompts, _start_mask(start_masks, image, several)) + named.get(image, Prompts())
        if prompts.start_mask is not None and any(isinstance(p, BoxPrompt) for p in prompts.prompts):
            raise InvalidPromptError(f"{image}: a start mask and a box are both a start; give only one of them")
        if prompts.prompts or prompts.start_mask:
            jobs.append(_Job(image, prompts))
            blank += [image] if start_masks is not None and prompts.start_mask is None else []
        else:
            bare.append(image)
    if not jobs:
        raise InvalidArgumentError(
            "no prompts were given; give --click, --box, --lasso, --scribble, --clicks or --start-mask"
        )
    for what, lacking, end in (("prompts", bare, "left out"), ("start mask", blank, "they start blank")):
        if lacking:
            more = ", ..." if len(lacking) > 3 else ""
            _say(f"no {what} for {len(lacking)} of {len(images)} images: {', '.join(lacking[:3])}{more}; {end}")
    return jobs


def _by_image(prompts: dict[str, Prompts], images: list[str], file: str) -> dict[str, Prompts]:
    """The entries of a prompts file by the images that they are for: matched by path, or else by file name.

    A path may be absolute or relative, and a file from Windows may have backslashes in it.
    """
    from activefreq_engine.images.folders import composed

    by_path: dict[str, list[str]] = {}
    by_name: dict[str, list[str]] = {}
    for image in images:
        by_path.setdefault(os.path.abspath(composed(image)), []).append(image)
        by_name.setdefault(composed(Path(image).name), []).append(image)
    found: dict[str, Prompts] = {}
    for name, entry in prompts.items():
        names = {composed(name), composed(name.replace("\\", "/"))}
        same = [i for n in names for i in by_path.get(os.path.abspath(n), ())]
        same = same or [i for n in names for i in by_name.get(n, ())]
        if len(same) != 1:
            what = "is not an image that was given" if not same else f"may be {same[0]} or {same[1]}; give its path"
            raise InvalidArgumentError(f"{file}: image {name!r} {what}")
        if same[0] in found:
            raise InvalidArgumentError(f"{file} has two entries for {same[0]}; keep one of them")
        found[same[0]] = entry
    return found


def _start_mask(given: Path | None, image: str, several: bool) -> Path | None:
    if given is None or not several:
        return given
    if not given.is_dir():
        raise InvalidArgumentError(f"--start-mask {given} is no folder; for several images name a folder of PNGs")
    from activefreq_engine.images.folders import composed, entries

    path = given / f"{Path(image).stem}.png"
    if path.exists():
        return path
    return next((p for p in entries(given) if composed(p.name) == composed(path.name)), None)


def _place(jobs: list[_Job], several: bool, output: str | None, overlay: Path | None) -> None:
    """Decide where each result goes.  Raises, before any work is done, if a result cannot be written or would be
    lost."""
    inputs = {_real(Path(j.image)) for j in jobs if j.image != STREAM}
    inputs |= {_real(j.prompts.start_mask) for j in jobs if j.prompts.start_mask is not None}
    if output == STREAM:
        if several:
            raise InvalidArgumentError("--output - prints one mask; for several images name a folder")
        jobs[0].stream = True
    taken: dict[str, str] = {}
    for target, option in (
        (None if output in (None, STREAM) else Path(str(output)), "--output"),
        (overlay, "--overlay"),
    ):
        if target is None:
            continue
        if several:
            _check_folder(target, option)
        for job in jobs:
            path = target / f"{Path(job.image).stem}.png" if several else target
            if not several:
                _check_target(path, option)
            if _real(path) in inputs:
                raise InvalidArgumentError(f"{option} {path} would overwrite the image; choose another name")
            if (other := taken.setdefault(_real(path), f"{option} of {job.image}")) != f"{option} of {job.image}":
                raise InvalidArgumentError(f"{path} would be written twice: {other} and {option} of {job.image}")
            if option == "--output":
                job.mask = path
            else:
                job.overlay = path
    for folder in {p.parent for j in jobs for p in (j.mask, j.overlay) if several and p is not None}:
        folder.mkdir(parents=True, exist_ok=True)


def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _check_folder(target: Path, option: str) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidArgumentError(f"{option} {target} is a file; for several images name a folder")
    if not target.is_dir() and target.suffix.lower() in (".png", ".jpg"):
        raise InvalidArgumentError(f"{option} {target} names a file; for several images name a folder")
    nearest = next(folder for folder in (target, *target.resolve().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InvalidArgumentError(
            f"{option} {target} cannot be written: {nearest} is not a folder that you may write to"
        )


def _check_target(target: Path, option: str) -> None:
    if target.suffix.lower() != ".png":
        raise InvalidArgumentError(f"{option} {target} must end in .png: only a lossless format keeps a mask")
    if not target.parent.is_dir():
        raise InvalidArgumentError(f"{option} {target}: there is no directory {target.parent}; make it first")
    if target.is_dir():
        raise InvalidArgumentError(f"{option} {target} is a directory; name a file")


def _segment(session: Session, job: _Job) -> _Segmented:
    """Carry out the prompts of one image and write its results."""
    import numpy as np
    from PIL import Image

    from activefreq_engine import masks
    from activefreq_engine.images import load_image
    from activefreq_engine.overlay import draw_mask, draw_prompts, draw_suggestions
    from activefreq_engine.session import click_batch
    from activefreq_engine.session.state import dump_prompt

    pixels = load_image(job.image if job.image != STREAM else _stream_in())
    session.set_image(pixels, copy=False)
    prompts = job.prompts.prompts
    if job.prompts.start_mask is not None:
        session.load_mask(masks.load_labels_png(job.prompts.start_mask) > 0)
    results = [
        {**dump_prompt(p), "changed_bbox": r.changed_bbox, "elapsed_ms": r.elapsed_ms}
        for p in prompts
        for r in click_batch([session], [p])
    ]
    mask, suggestions = session.mask, session.suggest(k=1)
    if job.mask is not None:
        session.save_mask(job.mask)
    if job.overlay is not None:
        rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        picture = draw_suggestions(draw_prompts(draw_mask(rgb, mask), prompts), suggestions)
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG")
        write_file(job.overlay, out.getvalue())
    best = suggestions[0] if suggestions else None
    report = {
        "image": job.image,
        "width": mask.shape[1],
        "height": mask.shape[0],
        "mask": job.mask and str(job.mask),
        "overlay": job.overlay and str(job.overlay),
        "area": int(mask.sum()),
        "clicks": [r for p, r in zip(prompts, results, strict=True) if isinstance(p, Click)],
        "prompts": results,
        "next_click": best and {"x": best.x, "y": best.y, "positive": best.positive, "score": best.score},
        "rle": session.to_coco_rle(),
        "polygons": [
            {"exterior": p.exterior.tolist(), "holes": [h.tolist() for h in p.holes]} for p in session.to_polygons()
        ],
    }
    png = b""
    if job.stream:
        buffer = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG")
        png = buffer.getvalue()
    return _Segmented(job, report, png)


def _progress(jobs: list[_Job]) -> Any:
    """The jobs, with a bar on a terminal where there are several."""
    from tqdm import tqdm

    return tqdm(jobs, "segment", unit="image", disable=True if len(jobs) == 1 else None, leave=False)


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(printable(message), file=sys.stderr)


def _stream_in() -> bytes:
    if sys.stdin is None:
        raise InvalidArgumentError("standard input is closed; give a file instead of -")
    return sys.stdin.buffer.read()


def _stream_out(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
