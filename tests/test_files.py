"""Files are written whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from activefreq_engine import FileWriteError, InvalidArgumentError, files, masks
from activefreq_engine.files import alone_at, alone_in, beside, write_file

try:
    import resource
except ImportError:
    resource = None


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch, rng):
    path = tmp_path / "mask.png"
    old, new = rng.random((40, 50)) < 0.5, rng.random((300, 200)) < 0.5
    masks.save_png(path, old)
    content = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        masks.save_png(path, new)
    with pytest.raises(OSError, match="no space"):
        masks.save_labels_png(tmp_path / "labels.png", new.astype(int))
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]
    monkeypatch.undo()
    masks.save_png(path, new)
    assert np.array_equal(masks.load_labels_png(path) > 0, new)


def test_what_writes_to_a_path_replaces_it_as_a_whole(tmp_path):
    path = tmp_path / "weights"
    with beside(path) as partial:
        partial.write_bytes(b"old")
    assert path.read_bytes() == b"old"

    def half(partial):
        with beside(partial) as inner:
            inner.write_bytes(b"ne")
            raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        half(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.skipif(resource is None, reason="only POSIX limits the size of files")
def test_weights_that_find_no_room_end_in_an_error_of_ours(tmp_path):
    path = tmp_path / "weights.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(FileWriteError) as caught, beside(path) as partial:
            save_file({"w": torch.zeros(1000)}, partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_permissions_links_and_other_targets(tmp_path):
    umask = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"1")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "a").chmod(0o604)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write_file(tmp_path / "link", b"22")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"22"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604
    write_file("/dev/null", b"gone")
    write_file(tmp_path / ("n" * 255), b"a long name")
    for target in (tmp_path, tmp_path / "none" / "a"):
        with pytest.raises(OSError, match="directory"):
            write_file(target, b"3")


@pytest.mark.skipif(os.name == "nt", reason="permissions and pipes of POSIX")
def test_what_writes_to_a_path_keeps_permissions_links_and_pipes(tmp_path):
    """The writer of safetensors makes its file anew, for the user alone; a rename replaces links and even devices."""
    path, content = tmp_path / "weights", {"w": torch.zeros(3)}
    umask = os.umask(0o027)
    try:
        with beside(path) as partial:
            save_file(content, partial)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    (tmp_path / "link").symlink_to(path)
    with beside(tmp_path / "link") as partial:
        save_file({"w": torch.ones(3)}, partial)
    assert (tmp_path / "link").is_symlink()
    assert load_file(path)["w"].tolist() == [1, 1, 1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileWriteError, match=r"pipe cannot be replaced|Is a directory"), beside(tmp_path / name):
            pytest.fail("refused before any work is done")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert {p.name for p in tmp_path.iterdir()} == {"weights", "link", "pipe", "folder"}


def test_an_interrupt_at_any_line_leaves_no_stump(tmp_path):
    path, lines = tmp_path / "mask.png", 0
    path.write_bytes(b"old")

    def interrupting(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != files.__file__:
            return None
        if event in ("line", "return"):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return interrupting

    while True:
        left, traced = lines, sys.gettrace()
        sys.settrace(interrupting)
        try:
            write_file(path, b"new")
            break
        except KeyboardInterrupt:
            lines += 1
        finally:
            sys.settrace(traced)
        assert path.read_bytes() in (b"old", b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["mask.png"], f"interrupted at the {lines}th line"
    assert lines > 10


def test_one_at_a_time(tmp_path):
    """A second call, process or writer is refused; afterwards nothing is left but what was written."""
    with alone_in(tmp_path / "run"), alone_at(tmp_path / "report.json"), alone_in(tmp_path / "other"):
        with (
            pytest.raises(InvalidArgumentError, match=r"another process is at work in .*run; wait"),
            alone_in(tmp_path / "run"),
        ):
            pass
        with (
            pytest.raises(InvalidArgumentError, match=r"another process is writing .*report\.json"),
            beside(tmp_path / "report.json"),
        ):
            pass
    with alone_in(tmp_path / "run"), beside(tmp_path / "report.json") as partial:
        partial.write_bytes(b"1")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["other", "report.json", "run"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from activefreq_engine.files import alone_in

with alone_in(Path(sys.argv[1])):
    child = os.fork()  # as a loader of training data
    if not child:
        os.close(1)
        time.sleep(60)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills by a signal, and forks")
def test_what_a_killed_process_left_locks_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False, timeout=60
    )
    try:
        assert done.returncode == -signal.SIGKILL
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
        with alone_in(tmp_path):
            pass
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_file_that_was_taken_away_is_no_lock(tmp_path, monkeypatch):
    """Somebody opens the file, its holder lets go, and only then does the first one get the lock."""
    lock, seen = files.lock, []

    def late(file):
        if not seen:
            os.unlink(tmp_path / ".lock")
        seen.append(file)
        return lock(file)

    monkeypatch.setattr(files, "lock", late)
    with alone_in(tmp_path):
        assert len(seen) == 2
        monkeypatch.undo()
        with pytest.raises(InvalidArgumentError), alone_in(tmp_path):
            pass


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_a_file_system_without_locks_is_said_in_the_log(tmp_path, monkeypatch, caplog):
    def unknown(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
    assert "No locks available" in caplog.text


def test_names_as_long_as_they_can_be(tmp_path):
    path = tmp_path / ("m" * 251 + ".png")
    with beside(path) as partial:
        partial.write_bytes(b"1")
    assert path.read_bytes() == b"1"
    masks.save_png(path, np.ones((3, 4), bool))
    assert masks.load_labels_png(path).shape == (3, 4)
