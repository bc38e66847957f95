"""Verified or not used: a compiled kernel answers only where it has once been seen to be right.

The same kernel may be right on one device and wrong on the next, by a fault of a compiler or a library that no test
on another machine can see.  So before an implementation first answers "auto" on a device it is tried there: on random
numbers, beside its reference, in poisoned memory, in the size, dtype and layout in which it will run.  If its error is
above the tolerance stated for it, or NaN, or if it raises, it is not used: the next implementation runs, and one
warning says so.

On a CUDA device trials run in a process of their own, since an illegal memory access ends all CUDA work of the process
that made it.  Verdicts are kept on the disk, also those against a kernel, by device, driver, versions and source: a
machine pays once for each of them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

CACHE_VARIABLE = "ACTIVEFREQ_CACHE"
"""Environment variable: the folder for what may be made again at any time, in place of the user's cache folder."""

PATIENCE = 120.0
"""Seconds that a trial in another process may take, compilation included."""

PROCESSES = max(1, min(8, (os.cpu_count() or 1) // 2))
"""As many try the kernels of one device at a time, unless the caller of `judge` says otherwise."""

_log = logging.getLogger(__name__)


# ---- what is asked, and what was found


class Part(NamedTuple):
    """How far one part of a result is from the reference.  Parts are judged one by one: a mean hides a wrong one."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


class Form(NamedTuple):
    """In which form a kernel runs."""

    key: tuple[Any, ...]
    """Numbers and strings: all that the compiled code depends on."""
    size: str
    """For people, as `dtype`."""
    dtype: str
    arguments: dict[str, Any]
    """What `Trial.check` needs to make such a case, JSON-able."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How an implementation is verified."""

    form: Callable[..., Form | None]
    """Takes the op's arguments; None where these do not tell, and the op asks by itself.  Called before each run."""
    check: Callable[..., Iterable[Part]]
    """``check(device, **form.arguments)`` runs the implementation beside its reference."""
    samples: Callable[[], Iterable[Form]] = tuple
    """Forms that "try everything" means, apart from those that an engine asks for."""


@dataclass(frozen=True, slots=True)
class Question:
    """Is this implementation right on this device in this form?"""

    op: str
    backend: str
    device: torch.device
    form: Form
    check: Callable[..., Iterable[Part]]
    source: str
    """Fingerprint of the code that is tried, see `source`."""

    @property
    def key(self) -> str:
        """Names the question in this process and on the disk, beside the environment."""
        return json.dumps([self.op, self.backend, self.source, self.form.key])


@dataclass(frozen=True, slots=True)
class Finding:
    """What a trial has found; the part of the result that was worst."""

    op: str
    backend: str
    size: str
    dtype: str
    device: str
    ok: bool
    source: str
    part: str = ""
    error: float | None = None
    """None when it raised."""
    tolerance: float | None = None
    reason: str = ""
    """Why not, empty when ok."""
    lasting: bool = True
    """False where the trial did not come to an end, for want of memory or time: it is held another time."""
    environment: dict[str, str] = field(default_factory=dict)


def poison(*tensors: torch.Tensor) -> None:
    """Fill tensors with what no right result holds."""
    for t in tensors:
        if t.dtype.is_floating_point:
            t.fill_(float("nan"))
        else:
            t.fill_(True if t.dtype == torch.bool else torch.iinfo(t.dtype).max)


# ---- where


def environment(device: torch.device) -> dict[str, str]:
    """What a verdict depends on besides the form and the source: the device, its driver, and versions."""
    return dict(_environment(device.type, device.index))


@functools.cache
def _environment(kind: str, index: int | None) -> dict[str, str]:
    facts = {"torch": str(torch.__version__)}
    for name, packages in (("triton", ("triton",)), ("cupy", ("cupy-cuda12x", "cupy-cuda13x", "cupy"))):
        for package in packages:
            try:
                facts[name] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(index or 0)
        return {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "cuda": str(torch.version.cuda),
            **facts,
        }
    return {"device": _processor(), **_cpu_switches(), **facts}


def _driver() -> str:
    """Version of NVIDIA's driver; where the system does not tell, the CUDA version that it offers."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
        return next(word for word in line.split() if word[0].isdigit() and "." in word)
    except (OSError, IndexError, StopIteration):
        return f"CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]  # in CUDA builds alone


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cpu_switches() -> dict[str, str]:
    """What decides which of torch's and oneDNN's kernels run on this CPU."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    known = [line.strip(" -") for line in torch.__config__.show().splitlines() if "MKL-DNN" in line]
    facts = {
        "isa": torch.backends.cpu.get_cpu_capability() + (" AMX" if amx is not None and amx() else ""),
        "onednn": known[0].split("(Git")[0].strip() if known else "none",
    }
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "TRITON_INTERPRET"):
        if os.environ.get(name):
            facts[name] = os.environ[name]
    return facts


@functools.cache
def source(*places: Path) -> str:
    """Fingerprint of source files and folders; of a folder its ``.py`` and ``.cu`` files, without those in folders."""
    total = hashlib.sha256()
    for place in places:
        files = [place] if place.is_file() else [p for p in place.iterdir() if p.suffix in (".py", ".cu")]
        for file in sorted(files):
            total.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()[:16]


# ---- judging

_known: dict[tuple[torch.device, str], Finding] = {}
_judging = threading.RLock()
_said: set[str] = set()


def judge(questions: Sequence[Question], *, anew: bool = False, processes: int = PROCESSES) -> list[Finding]:
    """Answer questions: from memory, from the disk, or by a trial.  The findings come in the order of the questions.

    On a CUDA device a call with something new in it starts a process, so ask together what is used together.

    Args:
        questions: of one or several devices.
        anew: hold every trial again, whatever was found before.
        processes: the most that try the kernels of one device at a time; each holds half a gigabyte of its memory.
    """
    if not anew:
        found = [_known.get((q.device, q.key)) for q in questions]
        if all(found):
            return [f for f in found if f is not None]
    answers: dict[tuple[torch.device, str], Finding] = {}
    with _judging:
        for device in dict.fromkeys(q.device for q in questions):
            own = {q.key: q for q in questions if q.device == device}
            answers |= {(device, key): finding for key, finding in _judge(device, own, anew, processes).items()}
    return [answers[q.device, q.key] for q in questions]


def _judge(device: torch.device, questions: dict[str, Question], anew: bool, processes: int) -> dict[str, Finding]:
    """The answers to the questions of one device."""
    found: dict[str, Finding] = {}
    for key in () if anew else questions:
        finding = _known.get((device, key)) or _read(device, key)
        if finding is not None:
            found[key] = finding
    missing = [q for key, q in questions.items() if key not in found]
    for q, finding in zip(missing, _try(missing, processes), strict=True):
        found[q.key] = finding
        if finding.lasting:
            _write(device, q.key, finding)
    for key, finding in found.items():
        if finding.lasting:
            _known[device, key] = finding
        _tell(finding)
    return found


def findings(device: torch.device) -> list[Finding]:
    """What this process has asked about a device so far."""
    return [f for (where, _), f in list(_known.items()) if where == device]


def _tell(finding: Finding) -> None:
    if finding.ok:
        return
    text = describe(finding)
    if text not in _said:
        _said.add(text)
        _log.warning("%s", text)


def describe(finding: Finding) -> str:
    """One sentence on what was not used, where, and why."""
    where = ", ".join(value if name == "device" else f"{name} {value}" for name, value in finding.environment.items())
    return (
        f"{finding.op}: the {finding.backend} kernel for {finding.size} {finding.dtype} is not used on "
        f"{finding.device} ({where}): {finding.reason}. "
        "The next best implementation runs; `activefreq info --verify` tries it again"
    )


# ---- trials


def _try(questions: list[Question], processes: int) -> list[Finding]:
    if not questions:
        return []
    if questions[0].device.type != "cuda":
        return [_attempt(q) for q in questions]
    if not _can_start_python():
        _say_once("this program cannot start another Python: kernels are tried within it")
        return [_attempt(q) for q in questions]
    size = -(-len(questions) // processes)
    size = max(3, size)  # fewer are not worth the start of a process
    parts = [questions[k : k + size] for k in range(0, len(questions), size)]
    with ThreadPoolExecutor(len(parts)) as pool:
        return [finding for part in pool.map(_elsewhere, parts) for finding in part]


def _attempt(question: Question) -> Finding:
    """Hold a trial in this process."""
    try:
        with torch.inference_mode(), torch.autocast(question.device.type, enabled=False):
            parts = list(question.check(question.device, **question.form.arguments))
            if question.device.type == "cuda":
                torch.cuda.synchronize(question.device)
    except Exception as error:  # whatever a compiler, a driver or a kernel raises is a reason not to use the kernel
        words = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}"
        if _wants_memory(error):
            return _finding(question, reason=f"memory was short when it was tried, {words}", lasting=False)
        return _finding(question, reason=f"it raised {words}")
    return _judged(question, parts)


def _wants_memory(error: Exception) -> bool:
    """Whether an error may be due to a shortage of memory, which says nothing about a kernel."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # of torch's CPU allocator, of CuPy, of C++, and of oneDNN, which does not say why
    signs = ("allocate memory", "out of memory", "bad_alloc", "could not create a primitive")
    return any(sign in str(error).lower() for sign in signs)


def _judged(question: Question, parts: Sequence[Part]) -> Finding:
    """By the part that is worst."""
    worst = max(parts, key=lambda p: (not p.ok, p.error != p.error, p.error / (p.tolerance or 1.0)))  # NaN is worst
    reason = "" if worst.ok else f"its error in {worst.name} is {worst.error:.2g}, {worst.tolerance:.2g} is allowed"
    return _finding(question, part=worst.name, error=worst.error, tolerance=worst.tolerance, reason=reason)


def _finding(q: Question, *, reason: str, **found: Any) -> Finding:
    return Finding(
        op=q.op,
        backend=q.backend,
        size=q.form.size,
        dtype=q.form.dtype,
        device=str(q.device),
        ok=not reason,
        source=q.source,
        reason=reason,
        environment=environment(q.device),
        **found,
    )


# ---- trials in another process

_PROGRAM = "from activefreq_engine.kernels.verification import serve; serve()"
_MARK = "activefreq: "  # begins a line of ours: whatever else prints does not


def _can_start_python() -> bool:
    return bool(sys.executable) and not getattr(sys, "frozen", False) and Path(sys.executable).is_file()


def _elsewhere(questions: list[Question], program: str = _PROGRAM) -> list[Finding]:
    """Hold trials of one device in a process of their own; in a new one after each that ends it."""
    found: list[Finding] = []
    while len(found) < len(questions):
        left = questions[len(found) :]
        started, answers, end = _run_python(left, program)
        if not started:
            _say_once(f"another process cannot use {left[0].device} ({end}): kernels are tried within this one")
            return found + [_attempt(q) for q in left]
        found += [
            replace(Finding(**answer), source=q.source, environment=environment(q.device))
            for q, answer in zip(left, answers, strict=False)
        ]
        if not answers or (len(answers) < len(left) and answers[-1]["error"] is not None):  # it ended within a trial
            late = end.startswith("it took")
            reason = end if late else f"the process that ran it ended: {end}"
            found.append(_finding(left[len(answers)], reason=reason, lasting=not late))
    return found


def _run_python(questions: list[Question], program: str) -> tuple[bool, list[dict[str, Any]], str]:
    """Whether it got as far as the first trial, the answers that came, and how it ended."""
    if getattr(sys, "frozen", False):  # `sys.executable` is the application: it would start anew, once for each trial
        return False, [], "a frozen application has no Python beside it"
    request = [{"op": q.op, "backend": q.backend, "device": str(q.device), **q.form._asdict()} for q in questions]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    variables["OMP_NUM_THREADS"] = "1"  # several run at a time, each with references on the CPU
    limit = PATIENCE * (1 + len(questions))
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(request).encode(),
            env=variables,
            capture_output=True,
            timeout=limit,
            check=False,
        )
        out, last = done.stdout, done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        end = ", ".join([f"exit status {done.returncode}", *(line[:300] for line in last)])
    except subprocess.TimeoutExpired as error:
        out, end = error.stdout or b"", f"it took more than {limit:.0f} s"
    except OSError as error:
        return False, [], str(error)
    said = [line.removeprefix(_MARK) for line in out.decode(errors="replace").splitlines() if line.startswith(_MARK)]
    answers = [json.loads(line) for line in said]
    return bool(answers), answers[1:], end


def serve() -> None:
    """Answer the questions on standard input, a line each.  The other end is `_run_python`.

    Ends after a trial that has raised: after some errors of CUDA no later one would work.
    """
    from . import dispatch

    def say(answer: Any) -> None:
        print(_MARK + json.dumps(answer), flush=True)

    request = json.load(sys.stdin)
    dispatch.load()
    torch.zeros(1, device=request[0]["device"])  # raises where the device cannot be shared
    say("ready")
    for item in request:
        form = Form(tuple(item["key"]), item["size"], item["dtype"], item["arguments"])
        finding = _attempt(dispatch.question(item["op"], item["backend"], torch.device(item["device"]), form))
        say(asdict(finding))
        if finding.error is None:
            return


# ---- on the disk


def folder() -> Path | None:
    """Where verdicts are kept; None where this user has no such place."""
    named = os.environ.get(CACHE_VARIABLE)
    try:
        if named:
            return Path(named).expanduser() / "verdicts"
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            xdg = Path(os.environ.get("XDG_CACHE_HOME") or "")
            base = xdg if xdg.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home folder
        return None
    return base / "activefreq_engine" / "verdicts"


def kept(device: torch.device) -> list[Finding]:
    """All verdicts on the disk for this device, its driver and these versions; of any source."""
    place = _place(device)
    if place is None or not os.path.isdir(place):  # unlike `Path.is_dir`, False where it must not be looked at
        return []
    return [f for f in (_load(file, device) for file in sorted(place.glob("*.json"))) if f is not None]


def _place(device: torch.device) -> Path | None:
    base = folder()
    return None if base is None else base / _digest(sorted(environment(device).items()))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:24]


def _file(device: torch.device, key: str) -> Path | None:
    place = _place(device)
    return None if place is None else place / f"{_digest(key)}.json"


def _read(device: torch.device, key: str) -> Finding | None:
    file = _file(device, key)
    if file is None or not os.path.exists(file):  # unlike `Path.exists`, False where it must not be looked at
        return None
    return _load(file, device)


def _load(file: Path, device: torch.device) -> Finding | None:
    """None for a file that is damaged, which is then written anew."""
    try:
        finding = Finding(**json.loads(file.read_text("utf-8")))
        for f in fields(Finding):
            if not isinstance(getattr(finding, f.name), _TYPES[f.name]):
                raise TypeError(f"{f.name} is {getattr(finding, f.name)!r}")
    except (OSError, ValueError, TypeError) as error:
        _say_once(f"{file} is passed over and what it says is tried again: {error}")
        return None
    return replace(finding, device=str(device), environment=environment(device))


_TYPES: dict[str, Any] = {f.name: str for f in fields(Finding)} | {
    "ok": bool,
    "lasting": bool,
    "error": (float, int, type(None)),
    "tolerance": (float, int, type(None)),
    "environment": dict,
}


def _write(device: torch.device, key: str, finding: Finding) -> None:
    """Keep a verdict.  Whole or not at all: other processes may read and write the same."""
    file = _file(device, key)
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(finding), indent=1)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False, encoding="utf-8") as part:
            part.write(text)
        try:
            os.replace(part.name, file)
        except OSError:
            os.unlink(part.name)
            raise
    except OSError as error:
        _say_once(f"verdicts on kernels cannot be kept in {file.parent} ({error}): every process will try them again")


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _log.info("%s", text)
