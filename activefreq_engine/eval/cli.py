"""``activefreq eval``: the evaluation on the command line.  The application in `activefreq_engine.cli` registers it."""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from activefreq_engine.conventions import DEFAULT_MODEL, THRESHOLD
from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.files import alone_at, alone_in

WRITE_EVERY = 30.0  # seconds between two writings of an unfinished report


def eval_command(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder with images/ and masks/ (or labels/), or the official ISIC-2017 folders."),
    ] = None,
    model: Annotated[str, typer.Option(help="Model name or checkpoint file.")] = DEFAULT_MODEL,
    clicker: Annotated[str, typer.Option(help="Robot clicker: ritm, acselect or random.")] = "ritm",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only part I (0..N-1) of N; see --merge.")] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(help="JSON report of a shard. Give one --merge for each shard of a run, and no DATA."),
    ] = None,
    max_clicks: Annotated[int, typer.Option(min=1, help="Most clicks on each sample.")] = 20,
    stop_at: Annotated[
        float | None, typer.Option(help="Stop a sample at this IoU; faster, but mIoU is then no longer the protocol's.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Probability above which a pixel belongs to the mask.")] = THRESHOLD,
    size: Annotated[
        int | None, typer.Option(help="Long side of the network's input: 256 (default), 384, 448, 512.")
    ] = None,
    zoom: Annotated[bool, typer.Option(help="Look at the object's surroundings, not at the whole image.")] = True,
    refine: Annotated[bool, typer.Option(help="Redraw the part that changed at full resolution.")] = True,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples that run at once: more are faster and need more memory.")
    ] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, or auto: faster where half precision is; on a GPU results then depend on --batch-size."
        ),
    ] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the random clicker.")] = 0,
    layout: Annotated[str | None, typer.Option(help="masks, labels, isic2017 or volumes; default: detected.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the ISIC-2017 layout, such as Test_v2.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="V,V", help="Only these label values are objects.")] = None,
    ignore_label: Annotated[int | None, typer.Option(help="Mask value of pixels that do not count.")] = None,
    slices: Annotated[int, typer.Option(min=0, help="Slices of each volume; 0 takes all that hold an object.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, samples.csv, report.md and curve.png.")
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="File or folder for the JSON report; - prints it instead of the table."),
    ] = None,
) -> int:
    """Measure clicks and quality with a robot clicker: NoC, NoF, mIoU, seconds per click.

    Results are written on the way, so that an interruption does not lose them.  Samples that cannot be read are left
    out and listed; the exit code is then 2.
    """
    from activefreq_engine.eval.datasets import load_dataset
    from activefreq_engine.eval.report import Report, read_json, require_plotting, to_markdown, write_json
    from activefreq_engine.eval.report import merge as merge_reports
    from activefreq_engine.eval.runner import evaluate

    part, values = _shard(shard), _labels(labels)
    if (data is None) == (not merge):
        raise InvalidArgumentError("give the folder DATA to evaluate on, or --merge REPORT once for each shard")
    # Hours may pass before the report is written: what would fail then shall fail now.
    if out is not None:
        require_plotting()
    printed = json_path is not None and str(json_path) == "-"
    if json_path is not None and not printed and os.path.isdir(json_path):
        json_path = json_path / "report.json"

    def write(report: Report, *, last: bool) -> None:
        if out is not None and last:
            report.write(out)
        elif out is not None:
            write_json(report, out / "report.json")
        if json_path is not None and not printed:
            write_json(report, json_path)

    def finish(report: Report) -> None:
        """Print first: a disk that is full must not cost the table, nor a reader that went away the report."""
        try:
            typer.echo(json.dumps(report.to_json()) if printed else to_markdown([report]))
            sys.stdout.flush()
        finally:
            write(report, last=True)

    with ExitStack() as held:
        if merge or data is None:
            report = merge_reports([read_json(path) for path in merge or ()])
            held.enter_context(_targets(out, None if printed else json_path))
        else:
            dataset = load_dataset(
                data,
                layout=layout,
                split=split,
                labels=values,
                ignore_label=ignore_label,
                slices=slices or None,
                limit=limit,
                broken="keep",
            )
            held.enter_context(_targets(out, None if printed else json_path))
            so_far, written = None, time.monotonic()

            def keep(report: Report) -> None:
                nonlocal so_far, written
                so_far = report
                if time.monotonic() - written < WRITE_EVERY:
                    return
                written = time.monotonic()
                try:
                    write(report, last=False)
                except OSError as error:  # there may be room again later; the last writing is the one that must succeed
                    tqdm.write(f"warning: the report so far could not be written ({error})", file=sys.stderr)

            try:
                with _terminated_like_interrupted():
                    report = evaluate(
                        dataset,
                        model=model,
                        device=device,
                        precision=precision,
                        size=size,
                        clicker=clicker,
                        max_clicks=max_clicks,
                        stop_at=stop_at,
                        threshold=threshold,
                        zoom=zoom,
                        refine=refine,
                        batch_size=batch_size,
                        seed=seed,
                        shard=part,
                        keep=keep,
                    )
            except BaseException:  # an interruption, a lack of memory, a bug: hours of work must not go with it
                if so_far is not None:
                    finish(so_far)
                raise
        finish(report)
    if report.failed:
        print(f"error: {len(report.failed)} samples could not be read; they are listed above", file=sys.stderr)
    return 2 if report.failed else 0


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, where nobody has decided otherwise (nohup has)."""
    changed = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _targets(out: Path | None, json_path: Path | None) -> Iterator[None]:
    """Make the folders, see whether they can be written to, and keep other evaluations from writing there.

    Raises:
        InvalidArgumentError: they cannot be written to, or another evaluation is at work there.
    """
    for folder, option in ((out, "--out"), (json_path and json_path.parent, "--json")):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if option == "--out" or not (json_path and json_path.exists()):
                tempfile.TemporaryFile(dir=folder).close()
            elif json_path:
                json_path.open("ab").close()
        except OSError as error:
            target = json_path if option == "--json" else folder
            raise InvalidArgumentError(f"{option} {target} cannot be written: {error.strerror or error}") from error
    with ExitStack() as held:
        if out is not None:
            held.enter_context(alone_in(out))
        if json_path is not None and (json_path.is_file() or not json_path.exists()):  # not a pipe
            held.enter_context(alone_at(json_path))
        yield


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    left, slash, right = text.partition("/")
    whole = slash and all(part.isdecimal() and len(part) < 20 for part in (left, right))
    if not (whole and int(left) < int(right)):
        raise InvalidArgumentError(f"--shard is {text!r}; expected I/N with 0 <= I < N, such as 0/2 and 1/2")
    return int(left), int(right)


def _labels(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 20 for part in parts):
        raise InvalidArgumentError(f"--labels is {text[:80]!r}; expected label values separated by commas, such as 2,4")
    return [int(part) for part in parts]
