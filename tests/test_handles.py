"""What happens when the system has no file handle left: each call says so in an error of ours, and works afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from activefreq_engine import ActiveFreqError, Session
from activefreq_engine.eval.datasets import load_dataset
from activefreq_engine.images import load_labels, load_volume
from activefreq_engine.models import create_model, load_checkpoint, save_checkpoint

resource = pytest.importorskip("resource")
needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts handles by /proc")


@contextmanager
def no_handles() -> Iterator[None]:
    """No file can be opened any more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@needs_proc
def test_no_handle_left(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    picture = np.full((33, 47), 200, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 9, 7), np.int16)), str(tmp_path / "v.nii.gz"))
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "set" / folder / "x.png"), picture)
    model = create_model("freqformer_b0", embed_dim=8, refiner_width=4, refine_size=32)
    save_checkpoint(model, tmp_path / "m.safetensors")
    session = Session(model, device="cpu")
    session.set_image(picture)
    volume = load_volume(tmp_path / "v.nii.gz")
    blob = (tmp_path / "v.nii.gz").read_bytes()
    need: dict[str, Callable[[], Any]] = {
        "read a picture": lambda: session.set_image(tmp_path / "a.png"),
        "read labels": lambda: load_labels(tmp_path / "a.png"),
        "write a mask": lambda: session.save_mask(tmp_path / "out.png"),
        "read a volume": lambda: load_volume(tmp_path / "v.nii.gz"),
        "read a volume's bytes": lambda: load_volume(blob, name="v.nii.gz"),
        "write a volume": lambda: volume.save_labels(tmp_path / "l.nii.gz", np.zeros((3, 9, 7), np.uint8)),
        "read a checkpoint": lambda: load_checkpoint(tmp_path / "m.safetensors"),
        "write a checkpoint": lambda: save_checkpoint(model, tmp_path / "m2.safetensors"),
        "open a data set": lambda: load_dataset(tmp_path / "set"),
    }
    for call in need.values():
        call()  # what is imported at first use is there now
    told: dict[str, str] = {}
    with no_handles():
        for name, call in need.items():
            try:
                call()
            except ActiveFreqError as error:
                told[name] = str(error)
        session.click(5, 7)  # needs none
    assert told.keys() == need.keys()
    for name, words in told.items():
        assert "Too many open files" in words, (name, words)
    for call in need.values():
        call()
