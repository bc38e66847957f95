"""The training loop: one process or `torchrun`, resumable after a kill at any moment."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..errors import DatasetError, InvalidArgumentError
from ..models import FreqFormer, create_model, normalise, save_checkpoint
from ..models.freqformer import Coarse
from ..models.refiner import Refined, roi_align
from .data import PackedDataset, SizeOf, StepSampler, pack
from .losses import coarse_loss, refiner_loss
from .simulate import simulate

log = logging.getLogger(__name__)

Stage = Literal["coarse", "refiner"]


@dataclass(frozen=True)
class TrainConfig:
    """A run.  Stored beside its results; resuming with another configuration is refused."""

    data: tuple[str, ...]  # folders with images/ and masks/, labels/ or instances/
    model: str = "freqformer_b0"
    overrides: dict[str, Any] = field(default_factory=dict)  # of the model's configuration
    init: str | None = None  # checkpoint to start from
    stage: Stage = "coarse"  # "refiner" trains the refiner alone, on a frozen network
    steps: int | None = None  # length of the run in steps, or
    hours: float | None = None  # in hours of training time (the schedules then follow the clock)
    batch: int = 16  # per process
    sizes: tuple[tuple[float, int], ...] = ((0.0, 128), (0.35, 192), (0.85, 256))  # from this progress on: crop size
    lr: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 200  # steps
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999
    # share of steps with so many simulated clicks before the one that is learnt from
    iterations: tuple[tuple[int, float], ...] = ((0, 0.3), (1, 0.3), (2, 0.2), (3, 0.1), (5, 0.06), (8, 0.04))
    source_weights: tuple[float, ...] | None = None  # share of each data folder; default: by number of images
    seed: int = 0
    workers: int = 1  # loader processes

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.hours is None):
            raise InvalidArgumentError("give the length of the run either as steps or as hours")
        if self.stage not in ("coarse", "refiner"):
            raise InvalidArgumentError(f"stage is {self.stage!r}; allowed: 'coarse', 'refiner'")
        if any(size % 32 for _, size in self.sizes):
            raise InvalidArgumentError(f"sizes are {self.sizes}; every crop size must be a multiple of 32")


class Schedule(SizeOf):
    """Progress in 0..1 by steps or by the clock, and what follows from it: learning rate and crop size."""

    def __init__(self, config: TrainConfig, elapsed: float) -> None:
        self.config = config
        self.started = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds of training, earlier parts of a resumed run included."""
        return time.monotonic() - self.started

    def progress(self, step: int) -> float:
        if self.config.steps is not None:
            return step / self.config.steps
        assert self.config.hours is not None
        return self.elapsed / (3600 * self.config.hours)

    def __call__(self, step: int) -> int | None:
        progress = self.progress(step)
        if progress >= 1:
            return None
        return max((p, size) for p, size in self.config.sizes if p <= progress)[1]

    def lr(self, step: int) -> float:
        """Linear warm-up, then a cosine to one hundredth."""
        warm = min(1.0, (step + 1) / self.config.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress(step))))
        return self.config.lr * warm * (0.01 + 0.99 * cosine)


class Ema:
    """Exponential moving average of all weights and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for k, v in model.state_dict().items():
            if v.is_floating_point():
                self.state[k].lerp_(v, 1 - decay)
            else:
                self.state[k].copy_(v)


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


class CoarseStep(nn.Module):
    """Clicks in, loss out, for the network without its refiner."""

    def __init__(self, model: FreqFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, labels: Tensor, iterations: int, rng: np.random.Generator) -> Tensor:
        self.model.eval()
        clicks = simulate(self.model, image, labels, iterations, rng)
        self.model.train()
        logits = self.model.decode_clicks(self.model.encode_image(image), clicks).logits
        return coarse_loss(logits, labels.float())


class RefinerStep(nn.Module):
    """Clicks in, refiner loss out; the network itself stays as it is.  Its input is the crop at two thirds size."""

    def __init__(self, model: FreqFormer) -> None:
        super().__init__()
        self.model = model
        model.requires_grad_(False)
        assert model.refiner is not None
        model.refiner.requires_grad_(True)

    def forward(self, image: Tensor, labels: Tensor, iterations: int, rng: np.random.Generator) -> Tensor:
        model = self.model.eval()
        assert model.refiner is not None
        size = round(image.shape[3] * 2 / 3 / 32) * 32
        small = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        small_labels = F.interpolate(labels.float(), size=(size, size), mode="nearest-exact").to(torch.int8)
        with torch.no_grad():
            clicks = simulate(model, small, small_labels, iterations, rng)
            coarse = model.decode_clicks(model.encode_image(small), clicks)
            coarse = Coarse(coarse.logits.float(), coarse.embedding.float())
        boxes = focus_boxes(small_labels[:, 0].cpu().numpy(), rng).to(image.device)
        side = model.config.refine_size
        scale = image.shape[3] / size
        crop = roi_align(image, boxes, side, scale, samples=1)
        truth = labels.float().clamp(min=0)
        valid = roi_align((labels >= 0).float(), boxes, side, scale) > 0.999
        target = (roi_align(truth, boxes, side, scale) > 0.5).float().masked_fill(~valid, -1.0)
        # the disks of the coarse input, as they lie in the box
        disks = (roi_align(clicks[:, 1:], boxes, side) > 0.5).float()
        model.refiner.train()
        refined: Refined = model.refine_maps(coarse, boxes, crop, disks)
        return refiner_loss(refined, target)


def focus_boxes(labels: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A box per sample, `[B, 4]`: the object's x1.1 to 1.6 with jitter, or (40 %) a smaller one on its border."""
    boxes = []
    for label in labels:
        size = label.shape[0]
        ys, xs = np.nonzero(label == 1)
        if len(xs) == 0:
            side = size * rng.uniform(0.3, 1.0)
            cx, cy = rng.uniform(side / 2, size - side / 2, 2)
            w = h = side
        else:
            w, h = float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)
            if rng.random() < 0.4 and len(xs) >= 400:
                i = rng.integers(len(xs))
                cx, cy = xs[i] + 0.5, ys[i] + 0.5
                w = h = max(w, h) / rng.uniform(1.3, 4)
            else:
                grow = rng.uniform(1.1, 1.6)
                cx, cy = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
                cx, cy = cx + w * rng.uniform(-0.15, 0.15), cy + h * rng.uniform(-0.15, 0.15)
                w, h = w * grow, h * grow
        w, h = max(w, 16.0), max(h, 16.0)
        boxes.append([max(0.0, cx - w / 2), max(0.0, cy - h / 2), min(size, cx + w / 2), min(size, cy + h / 2)])
    return torch.tensor(boxes, dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------------------
# state on disk
# ------------------------------------------------------------------------------------------------------------------
def save_state(
    path: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, scaler: Any, step: int, elapsed: float
) -> None:
    """Everything that a resumed run needs, in one safetensors file that is replaced whole."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.state.items()}
    for i, s in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in s.items()}
    facts = {"step": step, "elapsed": elapsed, "scaler": scaler.state_dict() if scaler else None}
    partial = path.with_suffix(".partial")
    stored = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(stored, partial, {"facts": json.dumps(facts)})
    partial.replace(path)


def load_state(
    path: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, scaler: Any
) -> tuple[int, float]:
    """Restore a run saved by `save_state`; returns its step and seconds."""
    with safe_open(str(path), framework="pt") as f:
        facts = json.loads(f.metadata()["facts"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for k, v in tensors.items():
        if k.startswith("ema."):
            ema.state[k[4:]].copy_(v)
    state: dict[int, dict[str, Tensor]] = {}
    for k, v in tensors.items():
        if k.startswith("optimizer."):
            _, i, name = k.split(".")
            state.setdefault(int(i), {})[name] = v
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler:
        scaler.load_state_dict(facts["scaler"])
    return facts["step"], facts["elapsed"]


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def train(config: TrainConfig, out: Path, *, device: str = "auto", save_every: float = 120.0) -> Path:
    """Train, or go on with the run in `out`.

    Writes to `out`: `config.json`, `state.safetensors` (every `save_every` seconds), `log.csv`, `curve.png`, and
    `model.safetensors`, the averaged weights.

    Args:
        config (TrainConfig): the run.
        out (path): its folder; an unfinished run of the same configuration in it is resumed.
        device (str): "auto", "cpu", "cuda", "cuda:1".  Under torchrun each process takes its own GPU.
        save_every (float): seconds between saves.

    Returns:
        Path: the averaged weights.

    Raises:
        DatasetError: unusable data.
        InvalidArgumentError: another run lives in `out`.
        ModelLoadError: unusable `config.init`.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    target = pick_device(device)
    if world > 1:
        if target.type == "cuda":
            target = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(target)
        dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    try:
        return _train(config, out, target, save_every, world, rank)
    finally:
        if world > 1:
            dist.destroy_process_group()


def _train(config: TrainConfig, out: Path, device: torch.device, save_every: float, world: int, rank: int) -> Path:
    chief = rank == 0
    out.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(asdict(config)))
    config_path, state_path = out / "config.json", out / "state.safetensors"
    if config_path.exists() and json.loads(config_path.read_text()) != wanted:
        raise InvalidArgumentError(f"{out} holds another run (its configuration is {config_path}); use a new folder")
    if chief:
        config_path.write_text(json.dumps(wanted, indent=1))
        pack([Path(p) for p in config.data], out / "data")
    if world > 1:
        dist.barrier()
    data = PackedDataset(out / "data", config.seed, config.source_weights)
    if len(data) == 0:
        raise DatasetError(f"{config.data}: no object of at least 64 pixels in any mask")

    torch.manual_seed(config.seed + rank)
    model = create_model(config.model, checkpoint=config.init, **config.overrides).to(device)
    model.decoder.compose_fuse = True
    ema = Ema(model, config.ema)
    module: nn.Module = CoarseStep(model) if config.stage == "coarse" else RefinerStep(model)
    if config.stage == "coarse" and model.refiner is not None:
        model.refiner.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr)
    autocast_type = precision(device)
    scaler = torch.amp.GradScaler() if autocast_type == torch.float16 else None
    step, elapsed = 0, 0.0
    if state_path.exists():
        step, elapsed = load_state(state_path, model, ema, optimizer, scaler)
        log.info("resuming %s at step %d", out, step)
    if world > 1:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module) if device.type == "cuda" else module
        module = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
    schedule = Schedule(config, elapsed)
    # with several processes the clock must not end the run on one rank earlier than on another
    size_of = schedule if world == 1 or config.steps is not None else SharedSize(schedule)
    loader = DataLoader(
        data,
        batch_sampler=StepSampler(step, config.batch, rank, world, size_of),
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=config.workers > 0,
    )
    counts, shares = zip(*config.iterations, strict=True)
    meter = Meter(out / "log.csv", step) if chief else None
    bar = tqdm(total=config.steps, initial=step, desc=f"training {config.model}", disable=None if chief else True)
    last_save = time.monotonic()
    for image, label in loader:
        rng = np.random.default_rng((config.seed, step, rank, 2))
        iterations = int(np.random.default_rng((config.seed, step, 3)).choice(counts, p=np.divide(shares, sum(shares))))
        lr = schedule.lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        image = normalise(image.to(device, non_blocking=True))
        label = label.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            loss = module(image, label, iterations, rng)
        optimizer.zero_grad(set_to_none=True)
        if scaler:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        else:
            loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        elif torch.isfinite(norm):
            optimizer.step()
        else:
            log.warning("step %d: gradient norm is %s; step skipped", step, float(norm))
        ema.update(model, step)
        step += 1
        bar.update()
        if meter:
            meter.add(step, schedule.elapsed, float(loss.detach()), lr, image.shape[3], bar)
        if chief and time.monotonic() - last_save > save_every:
            save_state(state_path, model, ema, optimizer, scaler, step, schedule.elapsed)
            export(model, ema, config, out / "model.safetensors", step, schedule.elapsed, device)
            last_save = time.monotonic()
    bar.close()
    if chief:
        save_state(state_path, model, ema, optimizer, scaler, step, schedule.elapsed)
        export(model, ema, config, out / "model.safetensors", step, schedule.elapsed, device)
        plot(out / "log.csv", out / "curve.png")
    if world > 1:
        dist.barrier()
    return out / "model.safetensors"


class SharedSize(SizeOf):
    """The crop size that rank 0 reads off its clock, told to all ranks."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, step: int) -> int | None:
        size = torch.tensor([self.schedule(step) or 0])
        dist.broadcast(size, src=0)
        return int(size) or None


def export(
    model: FreqFormer, ema: Ema, config: TrainConfig, path: Path, step: int, elapsed: float, device: torch.device
) -> None:
    """Write the averaged weights as a checkpoint."""
    averaged = FreqFormer(model.config)
    averaged.load_state_dict(ema.state)
    facts = {
        "training_data": [Path(p).as_posix().rstrip("/").split("/")[-2:] for p in config.data],
        "recipe": {k: v for k, v in asdict(config).items() if k not in ("data", "init")},
        "steps": step,
        "hours": round(elapsed / 3600, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
    }
    save_checkpoint(averaged, path, facts, dtype=torch.float16)


class Meter:
    """Means of the last steps, to a CSV and the progress bar."""

    EVERY = 50
    FIELDS = ("step", "seconds", "loss", "lr", "size")

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.losses: list[float] = []
        # of a resumed run, only the rows up to the last save: the others will come again
        rows = [r for r in csv.DictReader(path.open()) if int(r["step"]) <= step] if path.exists() else []
        with path.open("w", newline="") as f:
            writer = csv.DictWriter(f, self.FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def add(self, step: int, seconds: float, loss: float, lr: float, size: int, bar: tqdm) -> None:
        self.losses.append(loss)
        if step % self.EVERY:
            return
        mean = float(np.mean(self.losses))
        self.losses.clear()
        with self.path.open("a", newline="") as f:
            csv.writer(f).writerow([step, round(seconds, 1), f"{mean:.5f}", f"{lr:.3e}", size])
        bar.set_postfix(loss=f"{mean:.4f}", size=size)


def plot(log_path: Path, picture: Path) -> None:
    """Loss and learning rate against steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(csv.DictReader(log_path.open()))
    steps = [int(r["step"]) for r in rows]
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(steps, [float(r["loss"]) for r in rows], color="tab:blue")
    axis.set(xlabel="step", ylabel="training loss", title=log_path.parent.name)
    axis.grid(alpha=0.3)
    rate = axis.twinx()
    rate.plot(steps, [float(r["lr"]) for r in rows], color="tab:orange", alpha=0.6)
    rate.set_ylabel("learning rate")
    figure.savefig(picture, dpi=120)
    plt.close(figure)
