"""Writing files whole or not at all, and by one process at a time."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from activefreq_engine.errors import ActiveFreqError, FileWriteError, InvalidArgumentError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Turns errors of the system into ours.  A broken pipe stays what it is: nothing is wrong with the file then.

    Raises:
        FileWriteError: the system refuses.
        InvalidArgumentError: `path` is no path.
    """
    try:
        yield
    except (BrokenPipeError, ActiveFreqError):
        raise
    except OSError as error:
        raise FileWriteError(error.errno, error.strerror or str(error), str(path)) from error
    except (TypeError, ValueError) as error:  # no path at all, a NUL within
        raise InvalidArgumentError(f"cannot write to {str(path)[:200]!r}: {error}") from error


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: beside the target, then sync, then rename.  If the disk is full or the process
    is killed, the old file is still there.

    A new file gets the permissions that the umask gives; an old one keeps its own.  What is not a regular file (a pipe,
    ``/dev/stdout``) is written to directly.  A link stays a link: the file that it points to is replaced.

    Raises:
        FileWriteError: the file cannot be written; the target is then as it was.
        InvalidArgumentError: `path` is no path.
    """
    with writing(path):
        _write(os.path.realpath(path), content)


def _write(target: str, content: bytes) -> None:
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            file.write(content)
        return
    partial = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
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


DAMAGED = (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading a damaged file of safetensors may raise, and making something of what it says."""

_SYSTEM = re.compile(r"(?:os error |Os { code: )(\d+)")  # new and old releases of safetensors quote it like this


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """For writers that want a path: gives another path beside `path`; at the end its file is synced and renamed to
    `path`.  Permissions and links are treated as by `write_file`, whatever the writer does.

    Raises:
        FileWriteError: the file cannot be written, or `path` is no regular file; the target is then as it was.
        InvalidArgumentError: another process, or another call of this one, is writing to `path`.
    """
    with writing(path):
        path = Path(os.path.realpath(path))
    with alone_at(path), _beside(path, _short(path, "partial")) as partial:
        yield partial


def _short(path: Path, suffix: str) -> Path:
    """A file beside another one.  The name is always the same, so that what a kill leaves is written over, and short,
    since the other one may be as long as a name can be."""
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{suffix}")


@contextlib.contextmanager
def _beside(path: Path, partial: Path) -> Iterator[Path]:
    try:
        with writing(path):
            mode = _permissions(path, partial)
        yield partial
        with writing(path):
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.chmod(partial, mode)  # safetensors lets nobody but the user read what it writes
            partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            with writing(path):
                raise
        number = _SYSTEM.search(str(error)) if isinstance(error, SafetensorError) else None
        if number is not None:  # its writer hides the system's error in its own
            with writing(path):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


def _permissions(path: Path, partial: Path) -> int:
    """Those of the file that is replaced; without one, those that the umask gives.  Leaves `partial` empty.

    Raises:
        OSError: `path` is something that a rename must not replace: a device, a pipe, a folder.
    """
    partial.unlink(missing_ok=True)  # what a kill left has the permissions of its own
    partial.touch()
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        found = os.stat(partial).st_mode
    if stat.S_ISDIR(found):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found):
        raise OSError(errno.EINVAL, "A device or pipe cannot be replaced by a file")
    return stat.S_IMODE(found)


_held: set[int] = set()
"""The handles of the locks that this process holds by `alone`."""


def _after_fork() -> None:
    """A child would hold its parent's locks, also when the parent is gone: let go of the handles."""
    for file in _held:
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """For work that writes to a folder for as long as it runs: keeps a second one out.  The folder is made if it is not
    there.

    Raises:
        FileWriteError: the folder cannot be written to.
        InvalidArgumentError: another process, or another call of this one, is at work there.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(
        folder / ".lock", folder, f"another process is at work in {folder}; wait for its end, or name another folder"
    ):
        yield


@contextlib.contextmanager
def alone_at(file: Path) -> Iterator[None]:
    """The same for work that writes to one file.

    Raises:
        FileWriteError: there is no such folder, or it cannot be written to.
        InvalidArgumentError: another process, or another call of this one, is writing the file.
    """
    with writing(file):
        lock_file = _short(file, "lock")
    with alone(lock_file, file, f"another process is writing {file}; wait for its end, or name another file"):
        yield


@contextlib.contextmanager
def alone(path: Path, target: Path, busy: str) -> Iterator[None]:
    """Hold the lock that the file `path` stands for, because `target` will be written to.  The file is made, and taken
    away at the end; one that a killed process left locks nothing.

    Raises:
        FileWriteError: the file cannot be made.
        InvalidArgumentError: somebody else holds the lock; `busy` is the message.
    """
    with writing(target):
        file = _lock_file(path, busy)
    _held.add(file)
    try:
        yield
    finally:
        if file in _held:  # not in a forked child
            _held.remove(file)
            with contextlib.suppress(OSError):
                if sys.platform != "win32":
                    os.unlink(path)  # before others can have the lock; whoever opened it already looks again
            os.close(file)
            with contextlib.suppress(OSError):
                if sys.platform == "win32":
                    os.unlink(path)  # an open file cannot be taken away there


def _lock_file(path: Path, busy: str) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not lock(file):
                raise InvalidArgumentError(busy)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last holder took it away meanwhile


def lock(file: int) -> bool:
    """Take the system's lock on an open file.  It ends with the handle, and so with the process, however that ends.

    On a file system that has no locks nothing is locked, which the log says.

    Args:
        file (int): a handle that is open for writing; the file has less than 2 GiB.

    Returns:
        Whether it could be had: False if another handle has it, of another process or of this one.
    """
    try:
        if sys.platform == "win32":
            place = os.lseek(file, 0, os.SEEK_CUR)
            os.lseek(file, 2**31 - 2, os.SEEK_SET)  # behind all content: what is locked cannot be read there
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file, place, os.SEEK_SET)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        _log.warning("nothing keeps a second process away, because files cannot be locked here: %s", error.strerror)
    return True
