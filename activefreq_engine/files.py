"""Writing files whole or not at all."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside the target, sync, rename: a full disk or a kill leaves what was there before.

    A new file gets the permissions that the umask gives, an old one keeps its own.  What is no regular file (a pipe,
    ``/dev/stdout``) is written straight away.  A link stays a link: what it points to is replaced.

    Raises:
        OSError: the file cannot be written; the target is then as it was.
    """
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            file.write(content)
        return
    partial = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(handle, "wb") as file:
            if mode is not None:
                os.chmod(partial, stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """For writers that want a path: another one beside `path`, whose file is synced and renamed to it at the end.

    One process at a time writes to a path.

    Raises:
        OSError: the file cannot be written; the target is then as it was.
    """
    partial = path.with_name(f"{path.name}.partial")  # always the same: what a kill leaves is written over
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
