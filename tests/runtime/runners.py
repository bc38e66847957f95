"""Ways to run the work of contexts other than CUDA graphs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from activefreq_engine.runtime.contexts import Work


class Eager:
    """A `contexts.Runner` that calls work as it is, on any device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, work: Work) -> Work:
        return work

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class FakeGraphs:
    """CUDA graphs as far as a CPU can imitate them: results stay in place and are lost with the next replay.

    What a graph must not do is asserted: no capture or replay outside of `active`, none from two threads at a time.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.captures = self.replays = self.waits = 0
        self._results: list[torch.Tensor] = []
        self._active = False

    @contextmanager
    def active(self) -> Iterator[None]:
        assert not self._active, "two threads at a time"
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def capture(self, work: Work) -> Work:
        assert self._active
        self.captures += 1
        results = work()
        self._results += results

        def replay() -> tuple[torch.Tensor, ...]:
            assert self._active
            self.replays += 1
            fresh = [t.clone() for t in work()]
            for t in self._results:
                t.fill_(float("nan"))
            for t, value in zip(results, fresh, strict=True):
                t.copy_(value)
            return results

        return replay

    def wait(self) -> None:
        assert self._active
        self.waits += 1
