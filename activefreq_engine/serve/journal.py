"""Journals: what is done in a session is on disk before it is done, as one appended line of JSON for each event.

A session's folder holds `events.jsonl` and, if the picture came over the network, its unchanged bytes (`picture`).  An
event is written before it is carried out; if it then fails, a further event "void" takes it back.  A last line without
an end was left by a crash, and nobody was told about its event: it is cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from activefreq_engine.serve.errors import ConflictError, NotFoundError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two servers from one journal there
    fcntl = None  # type: ignore[assignment]

FORMAT = "activefreq_engine.journal"
VERSION = 1
_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")


class Journal:
    """The events of one session, oldest first, and the means to add to them.  One process at a time."""

    def __init__(self, folder: Path, file: int, events: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.events = events
        """What was read when the journal was opened."""
        self._file = file

    def append(self, event: Mapping[str, Any]) -> None:
        """Hand one event to the operating system.  It survives a crash of this process, but not yet one of the
        machine."""
        data = (json.dumps(event, separators=(",", ":"), allow_nan=False) + "\n").encode()
        written = os.write(self._file, data)
        if written != len(data):  # half a line would spoil the next one
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(f"only {written} of {len(data)} bytes fitted on the disk of {self.folder}")

    def sync(self) -> None:
        """Wait until everything that was appended survives a power cut."""
        os.fsync(self._file)

    @property
    def picture(self) -> Path:
        """The file of the picture's bytes, if it came over the network."""
        return self.folder / "picture"

    def write_picture(self, data: bytes) -> None:
        """Keep a picture; whole or not at all."""
        temporary = self.folder / "picture.part"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.picture)

    def close(self) -> None:
        """Let go of the file; the journal stays."""
        os.close(self._file)


class Journals:
    """A folder of journals, one for each session."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root = root

    def create(self, session: str, model: str, size: int) -> Journal:
        """A new, empty journal."""
        folder = self._folder(session)
        folder.mkdir(mode=0o700)
        file = _locked(folder)
        journal = Journal(folder, file, [])
        journal.append({"format": FORMAT, "version": VERSION, "model": model, "size": size, "made": int(time.time())})
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
        file = _locked(folder)
        try:
            data = (folder / "events.jsonl").read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.ftruncate(file, whole)
            lines = [json.loads(line) for line in data[:whole].splitlines()]
            head, *events = lines
            if (head["format"], head["version"]) != (FORMAT, VERSION):
                raise ConflictError(
                    f"the journal of session {session!r} has another format: {head}; this server reads version "
                    f"{VERSION} of {FORMAT}"
                )
            if (head["model"], head["size"]) != (model, size):
                raise ConflictError(
                    f"session {session!r} was made with {head['model']} at {head['size']} px, this server runs {model} "
                    f"at {size} px; its masks would change. Start the server with --model {head['model']}"
                )
        except (ValueError, KeyError, TypeError) as error:
            os.close(file)
            raise ConflictError(
                f"the journal in {folder} is damaged: {error}. Move that folder away and begin a new session"
            ) from error
        except BaseException:
            os.close(file)
            raise
        return Journal(folder, file, _without_void(events))

    def drop(self, session: str) -> None:
        """Delete a session's journal, picture included."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder(session))

    def _folder(self, session: str) -> Path:
        if not _ID.fullmatch(session):
            raise NotFoundError(f"there is no session {session!r}")
        return self.root / session


def _locked(folder: Path) -> int:
    file = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ConflictError(f"another server has the session in {folder} open; close that one first") from None
    return file


def _without_void(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for event in events:
        if event.get("op") == "void":
            kept.pop()
        else:
            kept.append(event)
    return kept
