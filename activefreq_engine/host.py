"""What the program around the engine has set in torch: it holds for that program's tensors, not for the engine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def settings_aside() -> Iterator[None]:
    """The host's default device and autocast do not count within; both belong to the thread, so nobody else notices.

    Its default dtype belongs to the whole process and cannot be set aside: tensors of floats are made with a dtype.
    """
    # a tensor is made five times as quickly as torch says what the default device is
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
