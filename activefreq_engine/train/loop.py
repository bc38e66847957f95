"""The training loop: one process or `torchrun`, resumable after a kill at any moment."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..errors import ActiveFreqError, InvalidArgumentError
from ..files import alone_in
from ..models import FreqFormer, create_model, normalise
from .config import Schedule, TrainConfig, TrainStage, claim, launched
from .data import PackedDataset, SizeOf, StepSampler, pack
from .distill import load_teacher
from .on_device import DeviceSteps
from .packed import read_packed
from .parcel import SUFFIX, open_parcel
from .record import Record, Validation, plot, require_plotting
from .sampler import Sampler
from .state import Ema, averaged, export, load_state, save_state
from .steps import CoarseStep, RefinerStep, trusted_attention, with_guide
from .teacher import Teacher

__all__ = ["TrainConfig", "TrainStage", "Validation", "train"]

log = logging.getLogger(__name__)

# the other processes wait in a collective operation while the first one packs data or validates
PATIENCE = timedelta(hours=4)


def precision(device: torch.device) -> torch.dtype | None:
    """Autocast type: bf16 where the hardware multiplies it natively, fp16 on older GPUs, None for float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No weight decay on biases, norms and spectral filters (decay would pull a filter away from 1)."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (plain if p.dim() < 2 or ".filters." in name else decay).append(p)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def train(
    config: TrainConfig,
    out: Path,
    *,
    device: str = "auto",
    save_every: float = 120.0,
    validation: Validation | None = None,
    packed: Path | None = None,
    model: FreqFormer | None = None,
) -> Path:
    """Train, or go on with the run in `out`.

    Writes to `out`: `config.json`; `data/`, the packed data; every `save_every` seconds `state.safetensors`,
    `model.safetensors` (the averaged weights) and `curve.png`; `log.csv`; with `validation`, also `best.safetensors`,
    the averaged weights of lowest NoC@90.

    A run of `steps` gives the same weights however often it was killed and resumed, on one kind of CPU with one number
    of threads.

    Args:
        config (TrainConfig): the run.
        out (path): its folder; an unfinished run of the same configuration in it is resumed.
        device (str): "auto", "cpu", "cuda", "cuda:1".  Under torchrun each process takes its own GPU.
        save_every (float): seconds between saves.
        validation (Validation, optional): held-out data to evaluate on now and then.
        packed (path, optional): packed data to use instead of `out/data`; packed there first if it is not.
        model (FreqFormer, optional): train this one, with its weights, in place of the one that `config` describes: a
            network with a module of your own.  It is changed.

    Returns:
        Path: the averaged weights.

    Raises:
        DatasetError: unusable data, or matplotlib is missing.
        InvalidArgumentError: another run lives in `out`, another process is at work on it, its configuration, state or
            log is damaged, or WORLD_SIZE and RANK are no numbers.
        FileWriteError: `out` cannot be written to.
        BackendUnavailableError: the device is not there.
        ModelLoadError: unusable `config.init`.
        ActiveFreqError: the batch does not fit into the GPU's memory, or a loader process was killed.
    """
    world, rank = launched()
    if os.path.exists(out) and not os.path.isdir(out):  # a name that is too long is refused where it is written to
        raise InvalidArgumentError(f"{out} is a file; name a folder for the run")
    target = pick_device(device, world)
    if world > 1:
        # gloo beside nccl: what the processes agree on about the run lies on the CPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        return _TrainRun(config, out, target, world, rank, model).train(save_every, validation, packed or out / "data")
    except torch.OutOfMemoryError as e:
        raise ActiveFreqError(
            f"batch {config.batch} at {max(size for _, size in config.sizes)} pixels does not fit into the memory of "
            f"{target}; use a smaller batch or smaller crops"
        ) from e
    finally:
        if world > 1:
            dist.destroy_process_group()


def pick_device(name: str, world: int = 1) -> torch.device:
    """The device for a name, "auto" being CUDA where there is one.

    Raises:
        InvalidArgumentError: no such name.
        BackendUnavailableError: the device is not there.
    """
    from ..runtime.engine import resolve_device

    if world > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    elif world > 1 and name.startswith("cuda:"):
        raise InvalidArgumentError(f"device is {name!r}, but {world} processes share the run; use device='cuda'")
    target = resolve_device(name)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    return target


class _TrainRun:
    """One call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        device: torch.device,
        world: int,
        rank: int,
        given: FreqFormer | None = None,
    ) -> None:
        self.config, self.out, self.device, self.given = config, out, device, given
        self.world, self.rank, self.chief = world, rank, rank == 0
        self.state_path = out / "state.safetensors"
        self.teacher = None if config.teacher is None else Teacher(Path(config.teacher))

    def train(self, save_every: float, validation: Validation | None, packed: Path) -> Path:
        require_plotting()
        held_out = validation.open() if validation and self.chief else None
        with alone_in(self.out) if self.chief else nullcontext():
            return self._train(save_every, validation, held_out, packed)

    def _train(self, save_every: float, validation: Validation | None, held_out: Any, packed: Path) -> Path:
        config, device = self.config, self.device
        claim(config, self.out / "config.json", write=False)
        if self.chief:
            pack_data(config.data, packed)
        if self.world > 1:
            dist.barrier()
        self.folders = [str(s["folder"]) for s in read_packed(packed).sources]

        self._build()
        if self.chief:
            claim(config, self.out / "config.json")  # a run that found no data or no weights leaves its folder free
        schedule = Schedule(config, self.elapsed)
        # with several processes their clocks must agree on when a run ends and on the learning rate
        shared = self.world > 1 and config.steps is None
        self.device_steps: DeviceSteps | None = None
        if config.on_device:
            self.device_steps = self._device_steps(packed)
        size_of = SharedSize(schedule) if shared else schedule
        autocast_type = precision(device)
        counts, shares = zip(*config.iterations, strict=True)
        record = Record(self.out / "log.csv", self.step) if self.chief else None
        description = f"training {config.model}"
        bar = tqdm(total=config.steps, initial=self.step, desc=description, disable=None if self.chief else True)
        last_save, last_check = time.monotonic(), schedule.elapsed
        last_row = self.step, time.monotonic()
        batches: Iterable[Any] = self._sizes(schedule) if self.device_steps else self._batches(packed, size_of)
        for batch in batches:
            step = self.step
            # chance depends on seed, step and rank alone, so that a resumed run takes the same course
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step, self.rank, 4)).generate_state(1)[0]))
            rng = np.random.default_rng((config.seed, step, self.rank, 2))
            draw = np.random.default_rng((config.seed, step, 3))
            iterations = int(draw.choice(counts, p=np.divide(shares, sum(shares))))
            lr = agreed(schedule.lr(step)) if shared else schedule.lr(step)
            frozen = agreed(schedule.frozen(step)) > 0 if shared else schedule.frozen(step)
            if self.device_steps:
                size = batch
                loss = self.device_steps(step, size, iterations, lr, frozen, 1 - self.ema.decay_at(step))
                self.step += 1
            else:
                image, label, *features = batch
                size = image.shape[3]
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                image = normalise(image.to(device, non_blocking=True))
                label = label.to(device, non_blocking=True)
                self.step_module.frozen = frozen
                autocast = torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None)
                with trusted_attention(), autocast:
                    told = (
                        (features[0].to(device, non_blocking=True), schedule.teacher_weight(step)) if features else ()
                    )
                    loss = self.module(image, label, iterations, rng, *told)
                self._update(loss)
            bar.update()
            if not record:
                continue
            last = self.step == config.steps
            mean = record.add(self.step, schedule.elapsed, loss.detach(), lr, size, last=last)
            if mean is not None:
                now = time.monotonic()
                samples = config.batch * (1 if self.device_steps else config.per_crop) * self.world
                rate = (self.step - last_row[0]) * samples / (now - last_row[1])
                last_row = self.step, now
                bar.set_postfix(loss=f"{mean:.4f}", size=size, rate=f"{rate:.0f}/s")
                minutes = schedule.elapsed / 60
                log.info("step %d, %.1f min: loss %.4f, %.0f samples/s", self.step, minutes, mean, rate)
            if validation and held_out and schedule.elapsed - last_check > 60 * validation.every:
                self._validate(validation, held_out, record, schedule)
                last_check = schedule.elapsed
            elif time.monotonic() - last_save > save_every:
                self._save(schedule.elapsed)
                last_save = time.monotonic()
        bar.close()
        if record:
            if validation and held_out and record.validated < self.step:
                self._validate(validation, held_out, record, schedule)
            self._save(schedule.elapsed)
        if self.world > 1:
            dist.barrier()
        return self.out / "model.safetensors"

    def _batches(self, packed: Path, size_of: SizeOf) -> Iterator[Any]:
        """The batches of the steps from the present one on.  They are made in other processes, or in this one if there
        is no shared memory to bring them over, or too little; they are the same then."""
        workers = self.config.workers
        try:
            if workers:
                torch.multiprocessing.Lock()  # needs shared memory too; a loader that gets none is loud about it
            yield from self._loader(packed, size_of, workers)
            return
        except (OSError, RuntimeError) as error:
            reason = str(error)
            lost = "DataLoader worker (pid" in reason  # it was killed
            shared = isinstance(error, OSError) or any(said in reason for said in ("shared memory", "Bus error"))
            if not workers or not (lost or shared):
                raise
            if not shared or self.world > 1:  # the processes agree on the sizes of batches that are made ahead
                raise ActiveFreqError(
                    f"a loader process failed ({reason.strip().splitlines()[-1]}); there may be too little memory or "
                    "shared memory (/dev/shm). The same command with --workers 0 goes on where it was saved last"
                ) from error
        log.warning(
            "samples are made in the process that trains, not beside it: no shared memory (%s)",
            reason.strip().splitlines()[-1],
        )
        yield from self._loader(packed, size_of, 0)

    def _loader(self, packed: Path, size_of: SizeOf, workers: int) -> DataLoader:
        config = self.config
        return DataLoader(
            PackedDataset(packed, config.seed, config.source_weights, self.teacher, config.per_crop),
            batch_sampler=StepSampler(self.step, config.batch, self.rank, self.world, size_of),
            num_workers=workers,
            worker_init_fn=_one_thread,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
        )

    def _sizes(self, size_of: SizeOf) -> Iterator[int]:
        """Crop sizes until the run is over: all that the host has to say."""
        while (size := size_of(self.step)) is not None:
            yield size

    def _device_steps(self, packed: Path) -> DeviceSteps:
        config, autocast_type = self.config, precision(self.device)
        if self.world > 1:
            raise InvalidArgumentError(f"on_device is for one process, this is one of {self.world}; leave it out")
        if autocast_type == torch.float16:
            raise InvalidArgumentError(f"on_device needs bfloat16, which {self.device} lacks; leave it out")
        assert isinstance(self.step_module, CoarseStep)
        sampler = Sampler(packed, config.seed, config.source_weights, self.device)
        return DeviceSteps(self.step_module, self.optimizer, self.ema, sampler, config, autocast_type)

    def _build(self) -> None:
        """Model, optimizer and averaged weights: new, or as the run in `out` left them."""
        config, device = self.config, self.device
        resumed = self.state_path.exists()
        torch.manual_seed(config.seed)
        checkpoint = None if resumed else config.init
        model = self.given or create_model(config.model, checkpoint=checkpoint, **config.overrides)
        if config.guide is not None:
            model = with_guide(model, None if resumed else load_teacher(Path(config.guide)).trunk)
        self.model: FreqFormer = model.to(device)
        self.model.decoder.compose_fuse = True
        if config.stage == "refiner" and self.model.refiner is None:
            raise InvalidArgumentError(f"{config.init} has no refiner to train; its refiner_width is 0")
        self.step_module: CoarseStep | RefinerStep  # without the wrapper of several processes
        if config.stage == "coarse":
            channels = self.teacher.channels if self.teacher else 0
            self.step_module = CoarseStep(self.model, config.clicker, channels, config.prompts).to(device)
        else:
            self.step_module = RefinerStep(self.model, config.clicker, config.prompts)
        self.module: nn.Module = self.step_module
        self.ema = Ema(self.model, config.ema)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.module, config.weight_decay),
            lr=config.lr,
            fused=config.on_device or None,
            capturable=config.on_device and device.type == "cuda",
        )
        self.scaler = torch.amp.GradScaler() if precision(device) == torch.float16 else None
        self.step, self.elapsed = 0, 0.0
        if resumed:
            self.step, self.elapsed = load_state(
                self.state_path, self.step_module, self.ema, self.optimizer, self.scaler
            )
            log.info("resuming %s at step %d", self.out, self.step)
        self.step_module.look.hasten(precision(device) or torch.float32)
        if self.world > 1:
            cuda = device.type == "cuda"
            if cuda:
                self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)
            self.module = DistributedDataParallel(self.module, device_ids=[device] if cuda else None)

    def _update(self, loss: torch.Tensor) -> None:
        """One optimizer step; none where the gradient is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        scaled = self.scaler.scale(loss) if self.scaler else loss
        scaled.backward()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.step_module.parameters(), self.config.clip)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif torch.isfinite(norm):
            self.optimizer.step()
        else:
            log.warning("step %d: gradient norm is %s; step skipped", self.step, float(norm))
        self.ema.update(self.model, self.step)
        self.step += 1

    def _settle(self) -> None:
        """Before the weights are read: wait for a device that works on its own."""
        if self.device_steps and (skipped := self.device_steps.settle()):
            log.warning("%d steps before step %d had no finite gradient and were skipped", skipped, self.step)

    def _save(self, elapsed: float) -> None:
        self._settle()
        save_state(self.state_path, self.step_module, self.ema, self.optimizer, self.scaler, self.step, elapsed)
        self._export("model.safetensors", elapsed)
        plot(self.out / "log.csv", self.out / "curve.png")

    def _export(self, name: str, elapsed: float) -> None:
        export(self.model, self.ema, self.config, self.folders, self.out / name, self.step, elapsed, self.device)

    def _validate(self, validation: Validation, held_out: Any, record: Record, schedule: Schedule) -> None:
        """Evaluate the averaged weights; the time it takes is no training time."""
        self._settle()
        started = time.monotonic()
        try:
            scores = validation.scores(held_out, averaged(self.model, self.ema), self.device)
        except Exception:  # data that cannot be read any more shall cost no training
            self._save(schedule.elapsed)
            raise
        schedule.exclude(time.monotonic() - started)
        log.info("step %d: NoC@90 %.2f, mIoU@2 %.3f", self.step, scores["noc90"], scores["miou2"])
        if record.add_scores(self.step, schedule.elapsed, scores):
            self._export("best.safetensors", schedule.elapsed)
        self._save(schedule.elapsed)


def pack_data(data: Sequence[str], target: Path) -> Path:
    """The packed folder of data folders, or of one file that `train.parcel` wrote."""
    parcels = [d for d in data if d.endswith(SUFFIX) or os.path.isfile(d)]  # by its name also where it is missing
    if not parcels:
        return pack([Path(p) for p in data], target)
    if len(data) > 1:
        raise InvalidArgumentError(f"data are {', '.join(data)}; a packed file ({parcels[0]}) is trained on alone")
    return open_parcel(Path(parcels[0]), target)


def _one_thread(worker: int) -> None:
    """Loader processes share the machine with the training itself."""
    cv2.setNumThreads(0)


def agreed(value: float) -> float:
    """The first process's value, in all processes."""
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)


class SharedSize(SizeOf):
    """The crop size that the first process reads off its clock, told to all."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, step: int) -> int | None:
        return int(agreed(self.schedule(step) or 0)) or None
