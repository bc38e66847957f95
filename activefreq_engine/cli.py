"""The command ``activefreq``: segment, serve, eval, export, train, pack, teacher, info.

Bad input ends with one line on stderr and exit code 2, any other failure with one line and exit code 1.
"""

import importlib
import io
import json
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from activefreq_engine import __version__, _require_a_folder
from activefreq_engine.errors import ActiveFreqError, InvalidArgumentError, MemoryShortageError
from activefreq_engine.values import printable

# Every error that typer raises for bad usage.  Its home moves between releases (click, then typer's own copy of it),
# but it has always been the grandparent of the public BadParameter.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

LAZY = {
    "serve": ("activefreq_engine.serve.command", "serve_command"),
    "segment": ("activefreq_engine.segment.command", "segment_command"),
    "eval": ("activefreq_engine.eval.cli", "eval_command"),
    "export": ("activefreq_engine.export", "export_command"),
    "train": ("activefreq_engine.train.cli", "train_command"),
    "pack": ("activefreq_engine.train.cli", "pack_command"),
    "teacher": ("activefreq_engine.train.cli", "teacher_command"),
}


class _Commands(TyperGroup):
    """Imports each command only when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*LAZY, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        _require_a_folder()
        if cmd_name not in LAZY:
            return super().get_command(ctx, cmd_name)
        module, function = LAZY[cmd_name]
        command = typer.Typer(add_completion=False)
        command.command(cmd_name)(getattr(importlib.import_module(module), function))
        return typer.main.get_command(command)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback means a bug here: plain text is easier to report
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Click-based interactive image segmentation.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad usage or input, 1 for other failures."""
    _open_streams()
    try:
        code = app(arguments, prog_name="activefreq", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except _UsageError as error:
        return _fail(f"{error.format_message().rstrip('.')}; see activefreq --help", 2)  # type: ignore[attr-defined]
    except BrokenPipeError:  # the reader went away, as `head` does; stdout must not be flushed again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryShortageError) as error:  # `FileWriteError` is an OSError
        return _fail(str(error), 1)
    except ActiveFreqError as error:
        return _fail(str(error), 2)
    except MemoryError:
        return _fail("there is not enough memory", 1)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except Exception as error:  # a bug of ours: one line as well, with the place that a report must name
        return _fail(f"this is a bug: {type(error).__name__}: {error} ({_place(error)}); please report it", 1)


def _open_streams() -> None:
    """Give the process the streams that its parent closed, and let them print names that the console cannot show.

    A closed stream then reads and writes nothing, as /dev/null does.  Otherwise the next file that is opened would get
    its number, and printed text would go into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, so mostly this one
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (for the rest of the process)
        stream = getattr(sys, name)
        if mode == "w" and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _place(error: BaseException) -> str:
    """File and line of the package's own code in which an error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "activefreq_engine" in f.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "no place known"


def _fail(message: str, code: int) -> int:
    print("error:", printable(" ".join(message.split())), file=sys.stderr)
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
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Try every compiled kernel again beside its reference; exit code 1 if one is wrong."
        ),
    ] = False,
    size: Annotated[
        list[int] | None, typer.Option(help="With --verify: try these network sizes only; repeat it. Default: all.")
    ] = None,
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
    """Try every kernel on every device, whatever was found before.  Returns `verification.Finding`s as JSON-able
    dicts."""
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
    for name, packages in PACKAGES.items():
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


PACKAGES = {
    "torch": ["torch"],
    "numpy": ["numpy"],
    "opencv": ["opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"],
    "pillow": ["pillow"],
    "triton": ["triton"],
    "cupy": ["cupy-cuda12x", "cupy-cuda13x", "cupy"],
}
"""The packages that `info` lists, and the distributions that provide them.  Their versions come from metadata: nothing
is imported."""


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
