"""The command ``activefreq serve``."""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.errors import InvalidArgumentError

TOKEN_VARIABLE = "ACTIVEFREQ_TOKEN"
_M_ARENA_MAX = -8  # of glibc's malloc.h


def serve_command(
    host: Annotated[
        str, typer.Option(help="Address to listen on; an address that other machines reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8040,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN_VARIABLE,
            help="Token that clients must send. Better set the variable: other users can read command lines.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="A model with shipped weights, or a checkpoint file.")] = (DEFAULT_MODEL),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    images: Annotated[Path | None, typer.Option(help="A folder of pictures to annotate.")] = None,
    journal: Annotated[
        Path | None,
        typer.Option(help="Folder in which sessions are kept; by default in your home folder.", show_default=False),
    ] = None,
    no_journal: Annotated[
        bool, typer.Option("--no-journal", help="Keep sessions, and the pictures sent, in memory only.")
    ] = False,
    fsync: Annotated[
        bool, typer.Option(help="Sync each click to the disk, so that it survives a power cut and not only a crash.")
    ] = True,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name by which clients reach this server; repeat it.")
    ] = None,
    label_studio: Annotated[
        str | None,
        typer.Option(
            "--label-studio",
            help="Address of a Label Studio that may ask for masks; its pictures come from there.",
            metavar="URL",
        ),
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, max=1024, help="Sessions in memory at once.")] = 32,
) -> None:
    """Serve a page to annotate in, a REST interface, and the protocols of nnInteractive, Label Studio and others."""
    try:
        import uvicorn
        import websockets  # noqa: F401  # uvicorn takes it when the first page connects

        from activefreq_engine.serve.app import create_app
        from activefreq_engine.serve.connections import config
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(
            f'activefreq serve needs {error.name}; in its checkout: pip install ".[serve]"'
        ) from error
    from activefreq_engine import Engine
    from activefreq_engine.serve.journal import Journals
    from activefreq_engine.serve.label_studio import KEY_VARIABLE, LabelStudio
    from activefreq_engine.serve.pictures import Folder
    from activefreq_engine.serve.security import Gate, is_loopback
    from activefreq_engine.serve.sessions import Limits, Sessions

    loopback = is_loopback(host)
    if token is not None and len(token) < 8:
        raise InvalidArgumentError("the token is shorter than 8 characters; give a longer one, or none at all")
    if token is None and not loopback:
        token = secrets.token_urlsafe(24)
    if journal is not None and no_journal:
        raise InvalidArgumentError("--journal and --no-journal were both given; choose one")
    if images is not None and not images.is_dir():
        raise InvalidArgumentError(f"--images {images} is not a folder")

    _share_heaps()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    engine = Engine.shared(model, device)
    engine.warmup()
    names = [*(allow_host or []), host, socket.gethostname()] if not loopback else [*(allow_host or [])]
    gate = Gate(token, loopback=loopback, hosts=names)
    served = Sessions(
        engine,
        Limits(sessions=sessions),
        journals=None if no_journal else Journals(journal or default_journal()),
        folder=None if images is None else Folder(images),
        fsync=fsync,
    )
    studio = None if label_studio is None else LabelStudio(served, label_studio, os.environ.get(KEY_VARIABLE))
    server = uvicorn.Server(config(create_app(served, gate, studio)))
    listener = _listen(host, port)
    bound = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"activefreq serves on http://{shown}:{bound}/{f'#token={token}' if token else ''}", flush=True)
    server.run([listener])


def _share_heaps() -> None:
    """Have all threads of this process share two heaps.  By default glibc gives each thread its own, up to eight for
    each core, and what is free in one is of no use to the others (docs/performance.md, "What serving adds")."""
    if sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:  # who set it wants it so
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and no such heaps
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def default_journal() -> Path:
    """The folder in which sessions are kept by default.

    Raises:
        InvalidArgumentError: this user has no home folder.
    """
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        else:
            base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise InvalidArgumentError(
            "this user has no home folder to keep sessions in; name one with --journal, or give --no-journal"
        ) from error
    return Path(base) / "activefreq" / "sessions"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound already, so that the address is known to be free before it is printed."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # whoever reads the address may connect at once, and waits until the server is ready
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another --host or --port"
        ) from error
    return listener
