"""The progress of a folder of pictures: which session belongs to which picture, and what is done or skipped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from activefreq_engine.files import alone
from activefreq_engine.serve.errors import ConflictError
from activefreq_engine.serve.journal import append_line, keeping

LARGEST = 2**27
"""Limit on the bytes of the file with a folder's progress."""
_log = logging.getLogger(__name__)

PictureState = Literal["open", "done", "skipped"]


class Progress:
    """Progress, kept beside the journals in one file for each folder, with one line for each event.  Without a
    directory it is kept in memory only.

    One server at a time: of two, each would begin a session of its own for the same picture, and the older one would
    not be found any more.
    """

    def __init__(self, folder: Path, directory: Path | None) -> None:
        """Raises:
        InvalidArgumentError: another server has the folder.
        FileWriteError: `directory` cannot be written to.
        ConflictError: the file is not one of ours.
        """
        self.sessions: dict[str, str] = {}
        """Picture -> session."""
        self.regions: dict[str, dict[tuple[int, ...], str]] = {}
        """Slide -> its regions that were opened, (x0, y0, x1, y1) in its pixels -> session."""
        self.status: dict[str, PictureState] = {}
        """Picture -> "done" or "skipped"; what is missing is open."""
        self._file: Path | None = None
        self._alone = ExitStack()
        if directory is not None:
            name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
            self._file = directory / f"folder-{name}.jsonl"
            busy = (
                f"another server has the folder {folder} open, with the same journal; use that one, or give this one "
                "another --journal"
            )
            with self._alone as held:
                held.enter_context(alone(self._file.with_suffix(".lock"), self._file, busy))
                self._read(self._file)
                self._alone = held.pop_all()

    def close(self) -> None:
        """Let another server have the folder."""
        self._alone.close()

    def begin(self, picture: str, session: str, box: tuple[int, ...] | None = None) -> None:
        """A session was made for a picture, or for a region of a slide."""
        self._note({"picture": picture, "session": session, **({} if box is None else {"box": box})})

    def session(self, picture: str, box: tuple[int, ...] | None = None) -> str | None:
        """The session of a picture, or of a region of a slide."""
        return self.sessions.get(picture) if box is None else self.regions.get(picture, {}).get(box)

    def all_sessions(self, picture: str) -> list[str]:
        """The session of a picture and those of its regions, if there are any."""
        whole = [self.sessions[picture]] if picture in self.sessions else []
        return [*whole, *self.regions.get(picture, {}).values()]

    def mark(self, picture: str, status: PictureState) -> None:
        """A person says how far a picture is."""
        self._note({"picture": picture, "status": status})

    def _note(self, event: dict[str, Any]) -> None:
        if self._file is not None:
            with keeping(self._file.parent):
                file = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
                try:
                    append_line(file, event)
                    os.fsync(file)
                finally:
                    os.close(file)
        self._fold(event)

    def _fold(self, event: dict[str, Any]) -> None:
        if "box" in event:
            self.regions.setdefault(event["picture"], {})[tuple(event["box"])] = event["session"]
        elif "session" in event:
            self.sessions[event["picture"]] = event["session"]
        elif event["status"] == "open":
            self.status.pop(event["picture"], None)
        else:
            self.status[event["picture"]] = event["status"]

    def _read(self, file: Path) -> None:
        """Read what an earlier server noted.  A line that is not an event is skipped; the journals are complete without
        it."""
        if not os.path.lexists(file):
            return
        if not stat.S_ISREG(os.lstat(file).st_mode) or file.stat().st_size > LARGEST:
            raise ConflictError(f"{file} is a link, no file, or has more than {LARGEST} bytes; move it away")
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1  # a crash may have cut the last line
        if whole < len(data):
            os.truncate(file, whole)
        wrong = 0
        for line in data[:whole].splitlines():
            try:
                self._fold(_checked(json.loads(line)))
            except (ValueError, KeyError, TypeError, RecursionError):
                wrong += 1
        if wrong:
            _log.warning("%d lines of %s are no events; they are left out", wrong, file)


def _checked(event: Any) -> dict[str, Any]:
    """Return `event` if it is a well-formed event of this file.

    Raises:
        ValueError, KeyError, TypeError: it is not.
    """
    if not isinstance(event, dict):
        raise TypeError("no object")
    texts = [event[name] for name in ("picture", "session") if name in event]
    box = event.get("box", [0, 0, 0, 0])
    if "picture" not in event or not all(isinstance(text, str) for text in texts):
        raise ValueError("no picture")
    if "session" not in event and event["status"] not in ("open", "done", "skipped"):
        raise ValueError("no status")
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int) for v in box)):
        raise ValueError("no box")
    if "box" in event and "session" not in event:
        raise ValueError("a box without a session")
    return event
