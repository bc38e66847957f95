"""Keeps torch settings of the program around the engine (the host) away from the engine's own tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def settings_aside() -> Iterator[None]:
    """Within this the host's default device and autocast have no effect.  Both belong to the thread, so no other thread
    notices.

    The host's default dtype belongs to the whole process and cannot be set aside, so the engine names a dtype for every
    tensor of floats that it makes.
    """
    # to make a tensor and look is five times as quick as to ask torch for the default device
    elsewhere = torch.empty(0).device.type != "cpu"
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not elsewhere and not autocast:  # most hosts, at every click
        yield
        return
    with contextlib.ExitStack() as stack:
        if elsewhere:
            stack.enter_context(torch.device("cpu"))
        for kind in autocast:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
