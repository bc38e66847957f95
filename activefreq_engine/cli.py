"""The command ``activefreq``: segment, serve, eval, export, train, pack, teacher, info.

Anything wrong with what the user gave ends in one line on stderr and exit code 2; other failures in one line and 1.
"""

import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from activefreq_engine import __version__
from activefreq_engine.errors import ActiveFreqError, InvalidArgumentError, InvalidClickError
from activefreq_engine.types import Click

# Every error that typer raises for bad usage.  Its home moves between releases (click, then typer's own copy of it),
# but it has always been the grandparent of the public BadParameter.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

_LAZY = {
    "serve": ("activefreq_engine.serve.command", "serve_command"),
    "eval": ("activefreq_engine.eval.cli", "eval_command"),
    "export": ("activefreq_engine.export", "export_command"),
    "train": ("activefreq_engine.train.cli", "train_command"),
    "pack": ("activefreq_engine.train.cli", "pack_command"),
    "teacher": ("activefreq_engine.train.cli", "teacher_command"),
}


class _Commands(TyperGroup):
    """Imports evaluation, export and training only when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_LAZY]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, function = _LAZY[cmd_name]
        command = typer.Typer(add_completion=False)
        command.command(cmd_name)(getattr(importlib.import_module(module), function))
        return typer.main.get_command(command)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback means a bug here: plain text is easier to report
    help="Click-based interactive image segmentation.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad usage or input, 1 for other failures."""
    try:
        code = app(arguments, prog_name="activefreq", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except _UsageError as error:
        return _fail(f"{error.format_message().rstrip('.')}; see activefreq --help", 2)  # type: ignore[attr-defined]
    except ActiveFreqError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:  # the reader went away, as `head` does; stdout must not be flushed again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"activefreq_engine {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="Image file.", show_default=False)],
    click: Annotated[
        list[str],
        typer.Option(help="'x,y' inside the object, 'x,y,-' outside it, in image pixels; repeat it, in order."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Mask to write: PNG, 0 outside, 255 inside.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Picture to write: mask outline, clicks, suggested next click.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    model: Annotated[str, typer.Option(help="A model with shipped weights, or a checkpoint file.")] = "freqformer_b0",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Segment one image by clicks."""
    clicks = [parse_click(text) for text in click]
    if output is None and overlay is None and not as_json:
        raise InvalidArgumentError("nothing to do with the mask; give --output, --overlay or --json")
    for target, option in ((output, "--output"), (overlay, "--overlay")):
        _check_target(target, option, image)

    import numpy as np
    from PIL import Image

    from activefreq_engine.images import load_image
    from activefreq_engine.overlay import draw_clicks, draw_mask, draw_suggestions

    pixels = load_image(image)
    from activefreq_engine import Session  # imports torch: a bad image is told before

    with Session(model=model, device=device) as session:
        session.set_image(pixels)
        results = [session.click(c.x, c.y, positive=c.positive) for c in clicks]
        mask, suggestions = results[-1].mask, session.suggest(k=1)
        if output is not None:
            session.save_mask(output)

    if overlay is not None:
        rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        Image.fromarray(draw_suggestions(draw_clicks(draw_mask(rgb, mask), clicks), suggestions)).save(overlay)
    best = suggestions[0] if suggestions else None
    if as_json:
        report = {
            "image": str(image),
            "width": mask.shape[1],
            "height": mask.shape[0],
            "mask": output and str(output),
            "overlay": overlay and str(overlay),
            "area": int(mask.sum()),
            "clicks": [
                {**asdict(c), "changed_bbox": r.changed_bbox, "elapsed_ms": r.elapsed_ms}
                for c, r in zip(clicks, results, strict=True)
            ],
            "next_click": best and {"x": best.x, "y": best.y, "positive": best.positive, "score": best.score},
        }
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(f"clicks: {len(clicks)}, pixels inside: {int(mask.sum())} of {mask.size}")
    if best is not None:
        typer.echo(f"the next click is worth most at: {best.x},{best.y},{'+' if best.positive else '-'}")
    for path in (output, overlay):
        if path is not None:
            typer.echo(f"wrote {path}")


def parse_click(text: str) -> Click:
    """The click that ``x,y``, ``x,y,+`` or ``x,y,-`` means.

    Raises:
        InvalidClickError: the text is none of these.
    """
    parts = text.split(",")
    try:
        x, y, sign = parts if len(parts) == 3 else [*parts, "+"]
        return Click(float(x), float(y), {"+": True, "-": False}[sign.strip()])
    except (ValueError, KeyError):
        raise InvalidClickError(
            f"--click {text!r} is not 'x,y' or 'x,y,+' or 'x,y,-' with x and y in image pixels"
        ) from None


def _check_target(target: Path | None, option: str, image: Path) -> None:
    """Refuse a file that cannot be written before any work is done, and the input image."""
    if target is None:
        return
    if target.suffix.lower() != ".png":
        raise InvalidArgumentError(f"{option} {target} must end in .png: only a lossless format keeps a mask")
    if not target.parent.is_dir():
        raise InvalidArgumentError(f"{option} {target}: there is no directory {target.parent}; make it first")
    if target.is_dir():
        raise InvalidArgumentError(f"{option} {target} is a directory; name a file")
    if target.exists() and image.exists() and target.samefile(image):
        raise InvalidArgumentError(f"{option} {target} would overwrite the image; choose another name")


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    verify: Annotated[
        bool, typer.Option(help="Try every compiled kernel beside its reference, anew; exit code 1 if one is wrong.")
    ] = False,
    size: Annotated[list[int] | None, typer.Option(help="With --verify: network sizes; all without it.")] = None,
) -> None:
    """Show versions, devices, models, and which backends are on, or why not."""
    tried = verify_kernels(size) if verify else None
    facts = collect_info()
    if tried is not None:
        facts["verification"] = tried
    typer.echo(json.dumps(facts, indent=2) if as_json else format_info(facts))
    if not all(f["ok"] for f in tried or []):
        raise typer.Exit(1)


def verify_kernels(sizes: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Try every kernel on every device, whatever was found before: `verification.Finding`s, JSON-able."""
    from tqdm import tqdm

    from activefreq_engine.kernels import verification
    from activefreq_engine.runtime import verify
    from activefreq_engine.runtime.engine import SIZES

    for size in sizes or ():
        if size not in SIZES:
            raise InvalidArgumentError(f"--size is {size}; allowed are {', '.join(map(str, SIZES))}")
    shapes = [shape for size in sizes or SIZES for shape in verify.network_shapes(size)]
    found = []
    for device in verify.devices():
        questions = verify.questions(device, shapes)
        for start in tqdm(range(0, len(questions), 64), str(device), leave=False, disable=None):
            found += verification.judge(questions[start : start + 64], anew=True)
    return [asdict(f) for f in found]


def collect_info() -> dict[str, Any]:
    """What `activefreq info` shows, JSON-able: versions, devices, models, backends, environment."""
    import torch

    from activefreq_engine.kernels import dispatch, verification
    from activefreq_engine.models import list_models
    from activefreq_engine.models.checkpoint import read_metadata
    from activefreq_engine.models.registry import WEIGHTS
    from activefreq_engine.runtime import verify

    versions: dict[str, str | None] = {"activefreq_engine": __version__, "python": platform.python_version()}
    for name, packages in _PACKAGES.items():
        versions[name] = next((v for v in map(_version, packages) if v is not None), None)

    devices = [{"name": "cpu", "ok": True, "detail": f"{platform.machine()}, {torch.get_num_threads()} threads"}]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            detail = f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB"
            devices.append({"name": f"cuda:{i}", "ok": True, "detail": detail})
    else:
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "no usable GPU or driver"
        devices.append({"name": "cuda", "ok": False, "detail": why})

    models = []
    for name in list_models():
        path = WEIGHTS / f"{name}.safetensors"
        file = {"bytes": path.stat().st_size, "sha256": read_metadata(path)["sha256"]} if path.exists() else None
        models.append({"name": name, "weights": file})

    rows = [
        {"op": r.op, "backend": r.backend, "devices": list(r.devices), "ok": r.ok, "reason": r.reason}
        for r in dispatch.table()
    ]
    variables = {name: os.environ.get(name) for name in (dispatch.ENVIRONMENT_VARIABLE, verification.CACHE_VARIABLE)}
    return {
        "versions": versions,
        "devices": devices,
        "models": models,
        "backends": rows,
        "rejected": [asdict(f) for device in verify.devices() for f in verify.rejected(device)],
        "environment": variables,
    }


_PACKAGES = {
    "torch": ["torch"],
    "numpy": ["numpy"],
    "opencv": ["opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"],
    "pillow": ["pillow"],
    "triton": ["triton"],
    "cupy": ["cupy-cuda12x", "cupy-cuda13x", "cupy"],
}
"""What `info` lists, and the distributions that provide it.  Asked for by metadata: nothing is imported."""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def format_info(facts: dict[str, Any]) -> str:
    """The text of `activefreq info` for what `collect_info` returned."""

    def state(ok: bool) -> str:
        return "on " if ok else "off"

    lines = ["versions"]
    lines += [f"  {name:<21} {version or 'not installed'}" for name, version in facts["versions"].items()]
    lines += ["", "devices"]
    lines += [f"  {d['name']:<21} {state(d['ok'])}  {d['detail']}" for d in facts["devices"]]
    lines += ["", "models"]
    for m in facts["models"]:
        file = m["weights"]
        detail = f"{file['bytes'] / 1e6:.1f} MB, sha256 {file['sha256'][:12]}" if file else "no weights shipped"
        lines.append(f"  {m['name']:<21} {detail}")
    lines += ["", "backends"]
    for b in facts["backends"]:
        detail = "on " + ", ".join(b["devices"]) if b["ok"] else b["reason"]
        lines.append(f"  {b['op']:<21} {state(b['ok'])}  {b['backend']:<10} {detail}")
    lines += ["", "kernels that were tried here and are not used"]
    lines += [f"  {table_row(f)}" for f in facts["rejected"]] or ["  none"]
    if "verification" in facts:
        lines += ["", "verification", f"  {table_row(None)}"]
        lines += [f"  {table_row(f)}" for f in facts["verification"]]
    lines += ["", "environment"]
    lines += [f"  {name:<21} {value or 'not set'}" for name, value in facts["environment"].items()]
    return "\n".join(lines)


def table_row(finding: dict[str, Any] | None) -> str:
    """One line on a `verification.Finding`; the head of the table for None."""
    if finding is None:
        cells = ["op", "backend", "size", "dtype", "device", "error", "allowed", "verdict"]
    else:
        numbers = ["-" if finding[n] is None else f"{finding[n]:.2g}" for n in ("error", "tolerance")]
        verdict = "right" if finding["ok"] else f"not used: {finding['reason']}"
        cells = [*(finding[name] for name in ("op", "backend", "size", "dtype", "device")), *numbers, verdict]
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, (19, 8, 50, 9, 7, 9, 9, 0), strict=True))


if __name__ == "__main__":
    sys.exit(main())
