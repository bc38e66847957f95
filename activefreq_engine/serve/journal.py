"""Journals: what is done in a session is on disk before it is done, as one appended line of JSON for each event.

A session's folder holds `events.jsonl` and, if the picture came over the network, its unchanged bytes (`picture`).  An
event is written before it is carried out; if it then fails, a further event "void" takes it back.  A last line without
an end was left by a crash, and nobody was told about its event: it is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from activefreq_engine.files import lock, write_file
from activefreq_engine.serve.errors import ConflictError, NotFoundError, StorageError

FORMAT = "activefreq_engine.journal"
VERSION = 1
LARGEST = 2**30
"""Limit on the bytes of a journal; a larger one is not opened."""
LONGEST = 2**27
"""Limit on the bytes of a line of a journal; a mask may have half as many."""
_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")


class Journal:
    """The events of one session, oldest first, and the means to add to them.  One process at a time."""

    def __init__(self, folder: Path, file: int, events: list[tuple[int, dict[str, Any]]]) -> None:
        self.folder = folder
        self.lines = [line for line, _ in events]
        """Numbers of the lines that the events were read from, the first line being 1."""
        self.events = [event for _, event in events]
        """What was read when the journal was opened."""
        self._file = file

    def append(self, event: Mapping[str, Any]) -> None:
        """Hand one event to the operating system.  It survives a crash of this process, but not yet one of the
        machine.

        Raises:
            StorageError: the disk does not take it; the journal is then as it was.
        """
        with keeping(self.folder):
            append_line(self._file, event)

    def sync(self) -> None:
        """Wait until everything that was appended survives a power cut.

        Raises:
            StorageError: the disk failed.
        """
        with keeping(self.folder):
            os.fsync(self._file)

    @property
    def picture(self) -> Path:
        """The file of the picture's bytes, if it came over the network."""
        return self.folder / "picture"

    def read_picture(self, most: int) -> bytes:
        """The bytes of the picture, cut off after `most` + 1 of them.

        Raises:
            ConflictError: the picture is missing, cannot be read, or is not a regular file.
        """
        try:
            if stat.S_ISREG(os.lstat(self.picture).st_mode):  # not a link, pipe or device
                with self.picture.open("rb") as file:
                    return file.read(most + 1)
            reason = "it is no regular file"
        except OSError as error:
            reason = error.strerror or str(error)
        raise ConflictError(f"the picture of the journal in {self.folder} cannot be read: {reason}")

    def write_picture(self, data: bytes) -> None:
        """Keep a picture; whole or not at all.

        Raises:
            StorageError: the disk does not take it.
        """
        with keeping(self.folder):
            write_file(self.picture, data)

    def close(self) -> None:
        """Let go of the file; the journal stays."""
        os.close(self._file)


@contextlib.contextmanager
def keeping(place: Path) -> Iterator[None]:
    """Turns the system's errors while something is written into a sentence for the client."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the server cannot keep this, so it was not done: {error.strerror or error}. Make room on the disk of "
            f"{place}, or let the server write there; then try again"
        ) from error


def append_line(file: int, event: Mapping[str, Any]) -> None:
    """Write one event to the end of a file that was opened with O_APPEND, whole or not at all.

    Raises:
        OSError: it does not fit on the disk.
    """
    data = (json.dumps(event, separators=(",", ":"), allow_nan=False) + "\n").encode()
    written = os.write(file, data)
    if written != len(data):  # half a line would spoil the next one
        os.ftruncate(file, os.fstat(file).st_size - written)
        raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes fitted")


class Journals:
    """A folder of journals, one for each session."""

    def __init__(self, root: Path) -> None:
        """Raises:
        ConflictError: the folder cannot be made, or belongs to another user, who could put journals there and take
            ours away.
        """
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConflictError(
                f"the journal's folder {root} cannot be made: {error.strerror or error}. Name another with --journal, "
                "or give --no-journal"
            ) from error
        if hasattr(os, "geteuid") and os.geteuid() and root.stat().st_uid not in (0, os.geteuid()):
            raise ConflictError(f"the journal's folder {root} belongs to another user; name one of your own")
        self.root = root

    def create(self, session: str, model: str, size: int) -> Journal:
        """A new, empty journal.

        Raises:
            StorageError: there is no room for it, or no right to write there; nothing is left of it then.
        """
        folder = self._folder(session)
        with keeping(self.root):
            folder.mkdir(mode=0o700, parents=True)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            file = _locked(folder)
            undo.callback(os.close, file)
            journal = Journal(folder, file, [])
            head = {"format": FORMAT, "version": VERSION, "model": model, "size": size, "made": int(time.time())}
            journal.append(head)
            undo.pop_all()
        return journal

    def open(self, session: str, model: str, size: int) -> Journal:
        """The journal of an earlier session.

        Raises:
            NotFoundError: there is none.
            ConflictError: another process has it open, another model made it, or it is damaged.
        """
        folder = self._folder(session)
        if not (folder / "events.jsonl").is_file():
            raise NotFoundError(f"there is no session {session!r}")
        if folder.is_symlink():
            raise ConflictError(f"the folder of the journal {folder} is a link; put the folder itself in its place")
        file = _locked(folder)
        try:
            head, events = _read(file)
            if (head["format"], head["version"]) != (FORMAT, VERSION):
                raise ConflictError(
                    f"the journal of session {session!r} has format {str(head['format'])[:80]}, version "
                    f"{str(head['version'])[:80]}; this server reads {FORMAT}, version {VERSION}"
                )
            if (head["model"], head["size"]) != (model, size):
                made = f"{str(head['model'])[:200]} at {str(head['size'])[:20]} px"
                raise ConflictError(
                    f"session {session!r} was made with {made}, this server runs {model} at {size} px; its masks would "
                    f"change. Start the server with --model {str(head['model'])[:200]}"
                )
            return Journal(folder, file, _without_void(events))
        except (ValueError, KeyError, IndexError, TypeError, RecursionError, OSError) as error:
            os.close(file)
            raise damaged(folder, error) from error
        except BaseException:
            os.close(file)
            raise

    def drop(self, session: str) -> None:
        """Delete a session's journal, picture included.

        Raises:
            ConflictError: another process has it open.
        """
        folder = self._folder(session)
        if (folder / "events.jsonl").is_file() and not folder.is_symlink():
            os.close(_locked(folder))
        with contextlib.suppress(FileNotFoundError):
            if folder.is_symlink():
                folder.unlink()
            else:
                shutil.rmtree(folder)

    def _folder(self, session: str) -> Path:
        if not _ID.fullmatch(session):
            raise NotFoundError(f"there is no session {session!r}")
        return self.root / session


def _locked(folder: Path) -> int:
    # somebody may have put a link there; do not follow it, or a file elsewhere would be cut or written to
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.open(folder / "events.jsonl", flags, 0o600)
    except OSError as error:
        raise ConflictError(f"the journal in {folder} cannot be opened: {error.strerror}") from error
    if not lock(file):
        os.close(file)
        raise ConflictError(f"another server has the session in {folder} open; close that one first")
    return file


def _read(file: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head and the events of a journal.  A last line that is incomplete is cut off the file.

    Raises:
        ValueError: the journal is empty, too large, or has lines that are not JSON objects.
    """
    size = os.fstat(file).st_size
    if size > LARGEST:
        raise ValueError(f"it has {size} bytes; allowed are {LARGEST}")
    lines: list[dict[str, Any]] = []
    with open(file, "rb", closefd=False) as content:
        content.seek(0)
        while line := content.readline(LONGEST):
            if not line.endswith(b"\n"):
                if len(line) == LONGEST:
                    raise ValueError(f"line {len(lines) + 1} has {LONGEST} bytes and more")
                os.ftruncate(file, size - len(line))
                break
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):  # ValueError: no UTF-8, a number of too many digits
                found = None
            if not isinstance(found, dict):
                raise DamagedLineError(len(lines) + 1, "it is no JSON object")
            lines.append(found)
    if not lines:
        raise ValueError("it is empty")
    return lines[0], lines[1:]


class DamagedLineError(ValueError):
    """A line of a journal cannot be read, or what it says cannot have happened after the lines before it."""

    def __init__(self, line: int, reason: object) -> None:
        super().__init__(f"line {line} of events.jsonl: {str(reason)[:200]}")
        self.line = line


def damaged(folder: Path, error: Exception) -> ConflictError:
    """The error for a journal that cannot be read, or whose events cannot have happened; it says how to keep the
    work."""
    keep = ""
    if isinstance(error, DamagedLineError) and error.line > 2:  # the first two lines are the head and the picture
        keep = f"To keep the work before it, copy the folder and delete line {error.line} and all lines after it; or "
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:300]
    move = f"{'move' if keep else 'Move'} that folder away and begin a new session"
    return ConflictError(f"the journal in {folder} is damaged: {reason}. {keep}{move}")


def _without_void(events: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """The events that were not taken back, with the numbers of their lines; the head is line 1."""
    kept: list[tuple[int, dict[str, Any]]] = []
    for line, event in enumerate(events, 2):
        if event.get("op") != "void":
            kept.append((line, event))
        elif kept:
            kept.pop()
        else:
            raise DamagedLineError(line, "there is nothing to take back")
    return kept
