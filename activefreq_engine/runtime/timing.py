"""Where the time of a step goes."""

from __future__ import annotations

from time import perf_counter


class Stopwatch:
    """Adds up wall time by stage, from one lap to the next."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}
        """Milliseconds by stage, in the order in which stages first ended."""
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """A stage ends here; it began where the last one ended."""
        now = perf_counter()
        self.timings[stage] = self.timings.get(stage, 0.0) + (now - self._last) * 1e3
        self._last = now
