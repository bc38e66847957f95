"""The machine that is measured: clocks, graphs, what it can do at best, and what it is called."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Microseconds a call: median and quartiles of the samples."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class MachineLimits:
    """What the device reaches in simple cases, measured by `Machine.limits`; the floors are computed from it."""

    node_us: float
    """A graph node that does nothing."""
    bytes_per_us: float
    """Copying memory; bytes read and bytes written both count."""
    flops_per_us: float
    """Multiplying large fp16 matrices."""

    def floor_us(self, moved: float, flops: float = 0, nodes: int = 1) -> float:
        """No implementation that moves these bytes and computes these operations in `nodes` launches is faster.

        A model: it ignores latency inside a launch, and a working set that stays in the cache may beat the memory.
        """
        return max(nodes * self.node_us, moved / self.bytes_per_us, flops / self.flops_per_us)


class Machine:
    """A CUDA device, or the CPU for a dry run, where a graph calls again and clocks are the host's."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.gpu = self.device.type == "cuda"

    def measure(self, run: Run, samples: int = 50, batch: int = 10, seconds: float = 3.0) -> Times:
        """Median time of `run` after warm-up.  Events enclose `batch` calls, so that their own cost does not count.

        What is so slow that this would take longer than `seconds` is called less often, but three times at least.
        """
        warm_up = 5
        if not self.gpu:
            samples, batch, warm_up = 2, 1, 0
        else:
            start = time.perf_counter()
            run()
            self.wait()
            calls = int(seconds / max(time.perf_counter() - start, 1e-9))
            warm_up, batch = min(warm_up, calls // 10), max(1, min(batch, calls // samples))
            samples = max(3, min(samples, calls // batch))
        for _ in range(warm_up):
            run()
        self.wait()
        times = sorted(self._sample(run, batch) for _ in range(samples))
        lower, median, upper = statistics.quantiles(times, n=4) if len(times) > 2 else (times[0], *times)
        return Times(median, lower, upper)

    def _sample(self, run: Run, batch: int) -> float:
        if not self.gpu:
            start = time.perf_counter()
            run()
            return 1e6 * (time.perf_counter() - start)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(batch):
            run()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end) / batch

    def graph(self, run: Run) -> tuple[Run, Any]:
        """A replay of `run` as a CUDA graph, and the output that each replay fills."""
        if not self.gpu:
            out = run()

            def replay() -> None:
                for old, new in zip(tensors(out), tensors(run()), strict=True):
                    old.copy_(new)

            return replay, out
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()  # compiles, plans and allocates what a capture may not
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = run()
        return graph.replay, out

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def limits(self) -> MachineLimits:
        """Measure the device's limits; a second or two."""
        side = 4096 if self.gpu else 64
        tiny, out = torch.zeros(2, 1, device=self.device)
        chain = 100

        def nodes() -> None:
            for _ in range(chain):
                torch.add(tiny, 1, out=out)

        large = torch.empty(16 * side * side, device=self.device)
        copy = torch.empty_like(large)
        a = torch.randn(side, side, device=self.device).half()
        return MachineLimits(
            node_us=self.measure(self.graph(nodes)[0]).median / chain,
            bytes_per_us=2 * large.nbytes / self.measure(lambda: copy.copy_(large)).median,
            flops_per_us=2 * side**3 / self.measure(lambda: a @ a).median,
        )

    def describe(self) -> dict[str, str]:
        """Device, driver, versions and commit, for every row that is written."""
        result = {
            "device": torch.cuda.get_device_name(self.device) if self.gpu else processor(),
            "threads": str(torch.get_num_threads()),
            "cuda": str(torch.version.cuda),
            "python": platform.python_version(),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        for package in ("torch", "triton", "cupy-cuda12x", "cupy-cuda13x", "opencv-python", "numpy"):
            try:
                result[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        if self.gpu:
            result["driver"], result["clocks"] = (
                nvidia_smi("driver_version"),
                nvidia_smi("clocks.sm,clocks.mem,power.limit"),
            )
        return result


def processor() -> str:
    """The processor's name, and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def tensors(out: Any) -> list[torch.Tensor]:
    """The tensors of what an op returns: none, one, several, or a dataclass of them."""
    if out is None or isinstance(out, torch.Tensor):
        return [] if out is None else [out]
    return list(out) if isinstance(out, tuple) else [getattr(out, f.name) for f in fields(out)]


def nvidia_smi(query: str) -> str:
    """What it says of the first device; "unknown" where there is no such tool."""
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or done.stderr.strip() or "unknown"


def commit(root: Path = Path(__file__).parents[2]) -> str:
    """The checkout's commit, with "+" where files differ from it; "unknown" for a copy that is no checkout, whatever
    repository it lies in."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, env=environment, capture_output=True, text=True
        ).stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top).resolve() != root.resolve():
            return "unknown"
        return git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*") or "unknown"
    except FileNotFoundError:
        return "unknown"
