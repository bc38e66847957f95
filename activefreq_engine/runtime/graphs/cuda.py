"""Runs work on a CUDA device: captured as graphs and replayed on one stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from activefreq_engine.runtime.graphs.contexts import Recordable

_one_capture = threading.Lock()
"""Held during a capture.  A capture begins by waiting for the device, which CUDA forbids while another stream is being
captured."""

WARM_UPS = 3  # runs before a capture: they compile kernels, load modules and make cuFFT plans, which a capture forbids


class Graphs:
    """Runs work as CUDA graphs (a `contexts.Replayer`).

    All graphs share one memory pool, since they are replayed one after another: the memory of one graph's results may
    be another one's scratch.

    While a graph is captured, at the first use of a network shape, no other thread may wait for the whole device or
    draw random numbers on it: CUDA and torch forbid that.  `Engine.warmup` lets a program choose the time.

    Args:
        device (torch.device): a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._done = torch.cuda.Event()
            self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def capture(self, work: Recordable) -> Recordable:
        graph = torch.cuda.CUDAGraph()
        with _one_capture:
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
