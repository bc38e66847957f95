"""The plans behind the plain function: made once for the same filters, made again when one of them has changed."""

import threading
import weakref
from collections import OrderedDict
from typing import Any

from torch import Tensor

from .plan import FreqModulePlan

Parameters = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


class RecentPlans:
    """At most `kept` plans, those used last.  A plan goes when one of its tensors does.

    A tensor is the same as before if it is the same object, at the same address, with the same strides and version
    counter: autograd's own test.  Like autograd it does not see writes that bypass the counter, through ``.data`` or
    memory shared with NumPy.  Tensors made under `torch.inference_mode` have no counter: their plan is for one call.
    """

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self._plans: OrderedDict[Any, tuple[Any, list[weakref.ref[Tensor]], FreqModulePlan]] = OrderedDict()
        self._lock = threading.RLock()  # reentrant: a tensor may die, and drop its plan, inside the lock

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, parameters: Parameters, size: tuple[int, int], precision: str, backend: str) -> FreqModulePlan:
        """The plan of these arguments.  Raises what `FreqModulePlan` raises."""
        tensors = [t for t in parameters if t is not None]
        if any(t.is_inference() for t in tensors):
            return FreqModulePlan(*parameters, size=size, precision=precision, backend=backend)
        key = (*map(id, parameters), size, precision, backend)
        state = [(t._version, t.data_ptr(), t.stride()) for t in tensors]
        with self._lock:
            kept_state, owners, plan = self._plans.get(key, (None, [], None))
            if plan is not None and kept_state == state and all(r() is t for r, t in zip(owners, tensors, strict=True)):
                self._plans.move_to_end(key)
                return plan
        plan = FreqModulePlan(*parameters, size=size, precision=precision, backend=backend)
        with self._lock:
            self._plans[key] = (state, [weakref.ref(t, lambda _: self._drop(key)) for t in tensors], plan)
            self._plans.move_to_end(key)
            while len(self._plans) > self.kept:
                self._plans.popitem(last=False)
        return plan

    def _drop(self, key: Any) -> None:
        with self._lock:
            self._plans.pop(key, None)
