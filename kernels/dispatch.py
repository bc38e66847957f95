"""Which implementation of an op runs, and why.

An op folder registers its implementations when it is imported; its public function ends in `call`.  A backend is
chosen, in this order, by

1. the ``backend`` argument, unless it is "auto";
2. the environment variable ``ACTIVEFREQ_BACKEND``: a comma-separated list of ``op=backend``, and at most one bare
   name, which is for all other ops wherever they have such an implementation for the input's device and size;
3. "auto": the implementation of highest priority that supports the device, whose verifier agrees, and which has been
   right in its trial on this device (`verification`).  Each rejection on the way is logged once, with its reason
   (logger ``activefreq_engine.kernels.dispatch``, level INFO; a failed trial is a warning of `verification`).

A backend asked for by name, by argument or variable, runs or raises: there is no fallback behind the caller's back.
A bare name in the variable raises too where this machine lacks what it needs, CuPy for example.  What is asked for by
name is not tried before: this is the way to look into a kernel that has failed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activefreq_engine.errors import BackendUnavailableError, InvalidArgumentError

if TYPE_CHECKING:  # the command line asks for names and settings before torch is needed
    import torch

    from .verification import Form, Question, Trial

BACKENDS = ("auto", "reference", "triton", "cupy")
"""Allowed values of ``backend``, and of an op in ``ACTIVEFREQ_BACKEND``."""

ENVIRONMENT_VARIABLE = "ACTIVEFREQ_BACKEND"
"""For example ``reference``, or ``triton,region_stats=reference``."""

Verdict = tuple[bool, str]
"""(ok, reason).  The reason says what is missing and what to do; it is empty when ok."""

_log = logging.getLogger(__name__)


def _always(*args: Any, **kwargs: Any) -> Verdict:
    return True, ""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an op."""

    op: str
    name: str
    """The backend's name, one of `BACKENDS` other than "auto"."""
    run: Callable[..., Any]
    """Takes the op's arguments.  Imports Triton or CuPy only when called."""
    devices: tuple[str, ...]
    """`torch.device.type` of the inputs it accepts, for example ("cpu", "cuda")."""
    priority: int
    """"auto" tries the highest first."""
    verify: Callable[..., Verdict]
    """Called with the op's arguments before every run, so it must be cheap.  Called without arguments by `table`,
    when the question is only whether this machine has what the implementation needs."""
    trial: Trial | None = None
    """How it is verified on a device before "auto" may choose it; None if there is nothing to verify, as for a
    reference."""
    folder: Path | None = None
    """The op's folder; None: the folder in which `run` is defined."""

    @property
    def source(self) -> str:
        """Fingerprint of the sources in the op's folder and of those that all ops share."""
        from . import verification

        # take the module's own file, since in a frozen program `inspect` finds only a relative path; a module that was
        # typed in at a prompt has no file
        file = getattr(sys.modules[self.run.__module__], "__file__", None) or inspect.getfile(self.run)
        return verification.source(self.folder or Path(file).parent, Path(__file__).parent)


_registry: dict[str, dict[str, Implementation]] = {}
_logged: set[tuple[str, str, str]] = set()


def register(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    devices: tuple[str, ...],
    priority: int,
    verify: Callable[..., Verdict] = _always,
    trial: Trial | None = None,
    folder: Path | None = None,
) -> None:
    """Add an implementation of `op`; see `Implementation` for the arguments.

    Raises:
        ValueError: the name is not a known backend, or the op has an implementation of this name.
    """
    if name not in BACKENDS[1:]:
        raise ValueError(f"an implementation of {op} is named {name!r}; allowed are {', '.join(BACKENDS[1:])}")
    implementations = _registry.setdefault(op, {})
    if name in implementations:
        raise ValueError(f"{op} has a {name} implementation already; register each name once")
    implementations[name] = Implementation(op, name, run, devices, priority, verify, trial, folder)


def call(op: str, device: str, backend: str, *args: Any, **kwargs: Any) -> Any:
    """Run `op` on inputs that live on `device` (a `torch.device.type`) and return what the implementation returns.

    Raises:
        InvalidArgumentError: `backend` is not one of `BACKENDS`.
        BackendUnavailableError: the backend asked for, here or by ``ACTIVEFREQ_BACKEND``, cannot run or does not
            exist, or none can run, or the variable cannot be read; the message has every reason.
    """
    return select(op, device, backend, *args, **kwargs).run(*args, **kwargs)


def select(op: str, device: str, backend: str, *args: Any, **kwargs: Any) -> Implementation:
    """The implementation that `call` would run.  Arguments and errors are those of `call`."""
    implementations = _registry[op]
    name, source = _requested(op, device, backend, args, kwargs)
    if name != "auto":
        if name not in implementations:
            raise BackendUnavailableError(
                f"{op} has no {name} implementation ({source}); it has {', '.join(implementations)}. Use one of these "
                "or 'auto'"
            )
        ok, reason = _verdict(implementations[name], device, args, kwargs)
        if not ok:
            raise BackendUnavailableError(f"{op} cannot run on the {name} backend ({source}): {reason}")
        return implementations[name]
    reasons = []
    for implementation in _by_priority(implementations):
        ok, reason = _verdict(implementation, device, args, kwargs)
        if ok and implementation.trial is not None:
            ok, reason = _tried(implementation, implementation.trial, args, kwargs)
        if ok:
            return implementation
        reasons.append(f"{implementation.name}: {reason}")
        _log_once(implementation, reason)
    raise BackendUnavailableError(f"no implementation of {op} can run: {'; '.join(reasons)}")


def is_named(op: str, device: str, backend: str, *args: Any, **kwargs: Any) -> bool:
    """Whether `call` would run an implementation because it is asked for by name, by argument or variable.  Raises
    what `call` raises."""
    return _requested(op, device, backend, args, kwargs)[0] != "auto"


def requested(op: str, device: str) -> str:
    """The implementation that ``ACTIVEFREQ_BACKEND`` asks for on this type of device, or "auto"."""
    return _requested(op, device, "auto", (), {})[0]


def question(op: str, name: str, device: torch.device, form: Form) -> Question:
    """Whether the implementation of this name is right on a device, for `verification.judge`."""
    from .verification import Question

    implementation = _registry[op][name]
    assert implementation.trial is not None
    return Question(op, name, device, form, implementation.trial.check, implementation.source)


def samples(device: torch.device) -> Iterator[Question]:
    """The ops' own sample questions about a device, which `activefreq info --verify` asks beside those of an engine."""
    load()
    for op in sorted(_registry):
        for i in _by_priority(_registry[op]):
            if i.trial is not None and device.type in i.devices and i.verify()[0]:
                yield from (question(op, i.name, device, form) for form in i.trial.samples())


def sources() -> set[str]:
    """The fingerprints of all implementations that are tried before they run."""
    load()
    return {i.source for implementations in _registry.values() for i in implementations.values() if i.trial is not None}


def proven(op: str, name: str, device: torch.device, form: Form) -> Verdict:
    """Whether an implementation was right on a device in this form.  The first call for a form tries it."""
    key = op, name, device, form.key
    verdict = _proven.get(key)
    if verdict is not None:
        return verdict
    import torch

    from . import verification

    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False, f"it was not tried for {form.size} yet, and during a capture it cannot be; run it once before"
    (finding,) = verification.judge([question(op, name, device, form)])
    verdict = finding.ok, "" if finding.ok else f"tried for {form.size} {form.dtype} on {device}: {finding.reason}"
    _proven[key] = verdict
    return verdict


_proven: dict[tuple[Any, ...], Verdict] = {}


def load() -> None:
    """Import every op, so that all are registered."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"{__package__}.{module.name}")


@dataclass(frozen=True, slots=True)
class Status:
    """One line of `table`."""

    op: str
    backend: str
    devices: tuple[str, ...]
    priority: int
    ok: bool
    reason: str
    """Why it is off; empty when on."""


def table() -> list[Status]:
    """Every implementation of every op on this machine, by op name and then in the order in which "auto" tries them."""
    load()
    rows = []
    for op in sorted(_registry):
        for i in _by_priority(_registry[op]):
            ok, reason = i.verify()
            rows.append(Status(op, i.name, i.devices, i.priority, ok, reason))
    return rows


def _requested(op: str, device: str, backend: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str]:
    """The backend's name and where it was asked for."""
    if backend not in BACKENDS:
        raise InvalidArgumentError(f"backend is {backend!r}; allowed are {', '.join(BACKENDS)}")
    if backend != "auto":
        return backend, f"backend={backend!r}"
    text = os.environ.get(ENVIRONMENT_VARIABLE, "")
    everywhere, by_op = _settings(text)
    source = f"{ENVIRONMENT_VARIABLE}={text}"
    if op in by_op:
        return by_op[op], source
    implementation = _registry[op].get(everywhere)
    if implementation is None or device not in implementation.devices:
        return "auto", source
    if implementation.verify()[0]:  # this machine has what it needs: the question is whether it takes these arguments
        ok, reason = implementation.verify(*args, **kwargs)
        if not ok:
            _log_once(implementation, reason)
            return "auto", source
    return everywhere, source


@functools.lru_cache(maxsize=16)
def _settings(text: str) -> tuple[str, dict[str, str]]:
    """What ``ACTIVEFREQ_BACKEND`` asks for: the backend for all ops, and those for single ops by name."""
    everywhere, by_op = "auto", {}
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if any("=" in entry for entry in entries):
        load()  # so that all ops are known by name
    bare = [entry for entry in entries if "=" not in entry]
    if len(bare) > 1:
        raise BackendUnavailableError(
            f"the environment variable {ENVIRONMENT_VARIABLE} is {text!r}: {' and '.join(bare)} are both for all ops; "
            "give one bare name, and op=backend for single ops"
        )
    for entry in entries:
        op, equals, name = (part.strip() for part in entry.rpartition("="))
        if name not in BACKENDS:
            raise BackendUnavailableError(
                f"the environment variable {ENVIRONMENT_VARIABLE} is {text!r}: {name!r} is not a backend; allowed are "
                f"{', '.join(BACKENDS)}, and op=backend with one of them"
            )
        if equals and op not in _registry:
            raise BackendUnavailableError(
                f"the environment variable {ENVIRONMENT_VARIABLE} is {text!r}: {op!r} is not an op; there are "
                f"{', '.join(sorted(_registry))}"
            )
        if equals:
            by_op[op] = name
        else:
            everywhere = name
    return everywhere, by_op


def _verdict(implementation: Implementation, device: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Verdict:
    if device not in implementation.devices:
        return False, f"it runs on {' and '.join(implementation.devices)}, the input is on {device}"
    return implementation.verify(*args, **kwargs)


def _tried(implementation: Implementation, trial: Trial, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Verdict:
    import torch

    form = trial.form(*args, **kwargs)
    if form is None:
        return True, ""
    device = next(a.device for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
    return proven(implementation.op, implementation.name, device, form)


def _by_priority(implementations: dict[str, Implementation]) -> list[Implementation]:
    return sorted(implementations.values(), key=lambda i: -i.priority)


def _log_once(implementation: Implementation, reason: str) -> None:
    key = (implementation.op, implementation.name, reason)
    if key not in _logged:
        _logged.add(key)
        _log.info("%s: the %s backend is passed over: %s", implementation.op, implementation.name, reason)
