"""Ways to run the work of contexts other than CUDA graphs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from activefreq_engine.runtime.graphs.contexts import Recordable

FORBIDDEN = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal"}
"""Operators that wait for a device: to hand over a number, or to learn the size of a result."""


class Eager:
    """A `contexts.Replayer` that calls work as it is, on any device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def capture(self, work: Recordable) -> Recordable:
        return work

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Recording(TorchDispatchMode):
    """Writes down the operators that run, with the memory that they read and wrote, as the capture of a graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        assert name not in FORBIDDEN, f"{name} waits for the device"
        with self:
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
            given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs)) if not t.is_mkldnn}
            results = list(tensors(out))
            fresh = [t for t in results if t.untyped_storage().data_ptr() not in given]
            if fresh or func._schema.is_mutable:  # a view is there already
                self.calls.append((func, args, kwargs, results))
        return out

    def replay(self) -> None:
        """The same on the same memory: what is in it now is read, and what came of it before is overwritten."""
        for func, args, kwargs, results in self.calls:
            for old, new in zip(results, tensors(func(*args, **kwargs)), strict=True):
                if old is not new:
                    old.copy_(new)

    def scratch(self) -> Iterator[Tensor]:
        """Memory that was allocated in between."""
        for func, _, _, results in self.calls:
            if not func._schema.is_mutable:
                yield from results


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(tuple(tree.values()))


class FakeGraphs:
    """CUDA graphs as far as a CPU can imitate them: a replay repeats operators and no Python, and what stood in the
    memory of any graph before is lost.

    What a graph must not do is asserted: no capture or replay outside of `active`, none from two threads at a time, no
    operator that waits.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.captures = self.replays = self.waits = 0
        self._graphs: list[Recording] = []
        self._active = False

    @contextmanager
    def active(self) -> Iterator[None]:
        assert not self._active, "two threads at a time"
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def capture(self, work: Recordable) -> Recordable:
        assert self._active
        self.captures += 1
        work()  # as a warm-up: what is made once is not in the graph
        with Recording() as graph:
            results = work()
        self._graphs.append(graph)

        def replay() -> tuple[Tensor, ...]:
            assert self._active
            self.replays += 1
            for other in self._graphs:
                for t in other.scratch():
                    if t.is_floating_point():
                        t.fill_(float("nan"))
            graph.replay()
            return results

        return replay

    def wait(self) -> None:
        assert self._active
        self.waits += 1
