"""Runs work on a CUDA device: captured as graphs and replayed on one stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from activefreq_engine.runtime.graphs.contexts import Recordable

_one_capture = threading.Lock()
"""Held during a capture.  A capture begins by waiting for the device, which CUDA forbids while another stream is being
captured."""


@contextmanager
def convolutions_in_full() -> Iterator[None]:
    """Within this cuDNN does not round the operands of float32 convolutions to TF32, which is torch's default.

    The setting belongs to the whole process: other threads that run meanwhile are more exact than they asked for. So
    this is entered for captures alone; a replay does what was captured. Products of float32 are exact unless the
    program around has asked torch for less.
    """
    # torch 2.9 and newer has a setting for each op, and refuses the older one where a program has used the new ones
    conv: Any = getattr(torch.backends.cudnn, "conv", None)
    new = hasattr(conv, "fp32_precision")
    settings = conv if new else torch.backends.cudnn
    name = "fp32_precision" if new else "allow_tf32"
    before = getattr(settings, name)
    setattr(settings, name, "ieee" if new else False)
    try:
        yield
    finally:
        setattr(settings, name, before)


WARM_UPS = 3  # runs before a capture: they compile kernels, load modules and make cuFFT plans, which a capture forbids


class Graphs:
    """Runs work as CUDA graphs (a `contexts.Replayer`).

    All graphs share one memory pool, since they are replayed one after another: the memory of one graph's results may
    be another one's scratch.

    While a graph is captured, at the first use of a network shape, no other thread may wait for the whole device or
    draw random numbers on it: CUDA and torch forbid that.  `Engine.warmup` lets a program choose the time.

    Args:
        device (torch.device): a CUDA device.
        in_full (bool): float32 means float32. Otherwise torch may let cuDNN round the operands of convolutions to ten
            bits (TF32), which is its default.
    """

    def __init__(self, device: torch.device, in_full: bool = False) -> None:
        self.device, self._in_full = device, in_full
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(priority=-1)  # a click goes first; see `plan.fused.Aside` too
            self._done = torch.cuda.Event()
            self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def capture(self, work: Recordable) -> Recordable:
        graph = torch.cuda.CUDAGraph()
        with _one_capture, convolutions_in_full() if self._in_full else nullcontext():
            for _ in range(WARM_UPS):
                work()
            self._stream.synchronize()
            # "thread_local": other threads may use the device meanwhile
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                results = work()

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return results

        return replay

    def wait(self) -> None:
        self._done.record(self._stream)
        self._done.synchronize()
