"""What a training run is: its configuration and its schedule."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidArgumentError
from ..files import write_file
from .data import SizeOf
from .simulate import CLICKERS, PROMPTS, Clicker, Shares

TrainStage = Literal["coarse", "refiner"]


@dataclass(frozen=True)
class TrainConfig:
    """A run.  Stored beside its results; resuming with another configuration is refused.

    Raises:
        InvalidArgumentError: a value is out of its range.
    """

    data: tuple[str, ...]  # folders with images/ and masks/, labels/ or instances/, or one packed file (`train.parcel`)
    model: str = "freqformer_b0"
    overrides: dict[str, Any] = field(default_factory=dict)  # of the model's configuration
    init: str | None = None  # checkpoint to start from
    guide: str | None = None  # MobileSAM's weights: its encoder becomes the network's guide, see `models.guide`
    stage: TrainStage = "coarse"  # "refiner" trains the refiner alone, on a frozen network
    steps: int | None = None  # length of the run in steps, or
    hours: float | None = None  # in hours of training time (the schedules then follow the clock)
    batch: int = 16  # crops, per process
    # samples of each crop: other objects in it, or other clicks on the same one; with on_device, one a step, so that a
    # step has `batch` samples and its crops serve so many steps
    per_crop: int = 1
    sizes: tuple[tuple[float, int], ...] = ((0.0, 128), (0.35, 192), (0.85, 256))  # from this progress on: crop size
    lr: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 200  # steps
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999
    frozen_norms: float = 0.7  # from this progress on BatchNorm's statistics stay; see `steps.keep_norms`
    # share of steps with so many simulated clicks before the one that is learnt from
    iterations: tuple[tuple[int, float], ...] = ((0, 0.3), (1, 0.3), (2, 0.2), (3, 0.1), (5, 0.06), (8, 0.04))
    source_weights: tuple[float, ...] | None = None  # share of each data folder; default: by number of images
    seed: int = 0
    workers: int = 1  # loader processes; the only field in which a resumed run may differ
    teacher: str | None = None  # folder of a teacher's features; see `activefreq_engine.train.teacher`
    teacher_weight: float = 0.5  # of the error against them; falls linearly to 0 at the end of the run
    clicker: Clicker = "ritm"  # where simulated clicks after the first fall; see `activefreq_engine.train.simulate`
    prompts: Shares = PROMPTS  # share of each kind of first prompt; see `activefreq_engine.train.prompts`
    on_device: bool = False  # samples and clicks are made on the device too; see `activefreq_engine.train.on_device`

    def __post_init__(self) -> None:
        _check(len(self.data) > 0, "data is empty; name at least one folder with images/ and masks/")
        _check((self.steps is None) != (self.hours is None), "give the length of the run either as steps or as hours")
        _check(self.steps is None or self.steps >= 1, f"steps is {self.steps}; it must be at least 1")
        _check(self.hours is None or 0 < self.hours < math.inf, f"hours is {self.hours}; it must be finite, above 0")
        _check(self.stage in ("coarse", "refiner"), f"stage is {self.stage!r}; allowed: 'coarse', 'refiner'")
        _check(
            self.stage == "coarse" or self.init is not None,
            "stage 'refiner' trains on a frozen network; name that network's checkpoint as init",
        )
        _check(self.clicker in CLICKERS, f"clicker is {self.clicker!r}; allowed: {', '.join(CLICKERS)}")
        _check(
            self.teacher is None or self.stage == "coarse",
            "a teacher serves the coarse stage; leave it out of 'refiner'",
        )
        _check(
            self.per_crop == 1 or (self.stage == "coarse" and self.teacher is None),
            "per_crop above 1 serves the coarse stage without a teacher; leave it out of other runs",
        )
        _check(
            not self.on_device or (self.stage == "coarse" and self.teacher is None and self.clicker == "ritm"),
            "on_device serves the coarse stage with clicker 'ritm' and without a teacher; leave it out of other runs",
        )
        _check(self.teacher_weight >= 0, f"teacher_weight is {self.teacher_weight}; it must be at least 0")
        for name, least in (("batch", 1), ("per_crop", 1), ("warmup", 1), ("workers", 0), ("seed", 0)):
            _check(getattr(self, name) >= least, f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("lr", "clip"):
            _check(0 < getattr(self, name) < math.inf, f"{name} is {getattr(self, name)}; it must be finite, above 0")
        for name, most in (("seed", 2**63 - 1), ("lr", 1000.0)):
            _check(getattr(self, name) <= most, f"{name} is {getattr(self, name):g}; it must be at most {most:g}")
        _check(
            0 <= self.frozen_norms <= 1, f"frozen_norms is {self.frozen_norms}; it must be a progress, 0 to 1 (never)"
        )
        _check(0 <= self.ema < 1, f"ema is {self.ema}; it must be at least 0 and below 1")
        _check(
            len(self.sizes) > 0
            and self.sizes[0][0] == 0
            and all(0 <= p < 1 and size > 0 and size % 32 == 0 for p, size in self.sizes),
            f"sizes are {self.sizes}; expected (progress, size) pairs: the first progress 0, all in 0..1, every size a "
            "positive multiple of 32",
        )
        _check(
            all(n >= 0 and share >= 0 for n, share in self.iterations) and sum(s for _, s in self.iterations) > 0,
            f"iterations are {self.iterations}; expected (clicks, share) pairs, none negative, not all shares zero",
        )
        _check(
            all(kind in dict(PROMPTS) and share >= 0 for kind, share in self.prompts)
            and sum(s for _, s in self.prompts) > 0,
            f"prompts are {self.prompts}; expected (kind, share) pairs with kinds of {', '.join(dict(PROMPTS))}, none "
            "negative, not all shares zero",
        )
        if self.source_weights is not None:
            weights = self.source_weights
            _check(
                len(weights) == len(self.data) and all(w >= 0 for w in weights) and sum(weights) > 0,
                f"source_weights are {weights} for {len(self.data)} data folders; expected one each, not all zero",
            )

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON gives them back: tuples are lists."""
        return json.loads(json.dumps(asdict(self)))


def launched() -> tuple[int, int]:
    """(number of processes, this one's number), as `torchrun` says in WORLD_SIZE and RANK; (1, 0) without it.

    Raises:
        InvalidArgumentError: they are no such numbers.
    """
    world, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    good = world.isdecimal() and rank.isdecimal() and int(rank) < int(world)
    _check(good, f"WORLD_SIZE is {world!r}, RANK {rank!r}; expected 0 <= RANK < WORLD_SIZE, as torchrun sets them")
    return int(world), int(rank)


def _check(good: bool, message: str) -> None:
    if not good:
        raise InvalidArgumentError(message)


def claim(config: TrainConfig, path: Path, *, write: bool = True) -> None:
    """Store the configuration in `path`, or check that the run stored there is the same one.

    Fields that a stored run lacks (it is older than they are) count as having their defaults.

    Args:
        config (TrainConfig): the run.
        path (path): its config.json.
        write (bool): False in all processes but one.

    Raises:
        InvalidArgumentError: another run, or something that is no configuration, is stored there.
    """
    wanted = config.as_json()
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as e:  # ValueError: also no UTF-8, a number of thousands of digits
            raise InvalidArgumentError(f"{path} is not readable JSON ({e}); mend it or use a new folder") from None
        if not isinstance(stored, dict):
            raise InvalidArgumentError(f"{path} holds {stored!r}, which is no run; use a new folder")
        defaults = TrainConfig(data=config.data, steps=config.steps, hours=config.hours).as_json()
        known = {f.name for f in fields(TrainConfig)}
        old = {**{k: defaults[k] for k in known - {"data", "steps", "hours"}}, **stored, "workers": wanted["workers"]}
        differ = [
            f"{k}: {old.get(k, 'nothing')!r} there, {wanted.get(k, 'nothing')!r} now"
            for k in sorted(known | set(stored))
            if old.get(k) != wanted.get(k)
        ]
        if differ:
            raise InvalidArgumentError(
                f"{path.parent} holds another run ({'; '.join(differ)}); repeat its values (they are in {path}) or use "
                "a new folder"
            )
    if write:
        write_file(path, json.dumps(wanted, indent=1).encode())  # whole: a process of the same run may be reading it


class Schedule(SizeOf):
    """Progress in 0..1 by steps or by the clock, and what follows from it: learning rate and crop size."""

    def __init__(self, config: TrainConfig, elapsed: float) -> None:
        self.config = config
        self.started = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds of training, earlier parts of a resumed run included."""
        return time.monotonic() - self.started

    def exclude(self, seconds: float) -> None:
        """Take back time that was not spent on training."""
        self.started += seconds

    def progress(self, step: int) -> float:
        """How much of the run is done before a step: 0 to 1, and above 1 after its end."""
        if self.config.steps is not None:
            return step / self.config.steps
        assert self.config.hours is not None
        return self.elapsed / (3600 * self.config.hours)

    def __call__(self, step: int) -> int | None:
        progress = self.progress(step)
        if progress >= 1:
            return None
        return max((p, size) for p, size in self.config.sizes if p <= progress)[1]

    def teacher_weight(self, step: int) -> float:
        """Falls linearly to 0: at the end masks alone count."""
        return self.config.teacher_weight * max(0.0, 1 - self.progress(step))

    def frozen(self, step: int) -> bool:
        """Whether BatchNorm's statistics are frozen."""
        return self.progress(step) >= self.config.frozen_norms

    def lr(self, step: int) -> float:
        """Linear warm-up, then a cosine to one hundredth."""
        warm = min(1.0, (step + 1) / self.config.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress(step))))
        return self.config.lr * warm * (0.01 + 0.99 * cosine)
