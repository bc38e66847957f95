"""A run on disk: everything needed to go on with it, and the averaged weights as a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InvalidArgumentError
from ..files import DAMAGED, beside
from ..models import FreqFormer, save_checkpoint
from .config import TrainConfig


class Ema:
    """Exponential moving average of all weights and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def decay_at(self, step: int) -> float:
        """Less at the start, where there is little to average."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average a little towards the weights that a step, counted from 0, has left."""
        decay = self.decay_at(step)
        for k, v in model.state_dict().items():
            if v.is_floating_point():
                self.state[k].lerp_(v, 1 - decay)
            else:
                self.state[k].copy_(v)


def save_state(
    path: Path, module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, scaler: Any, step: int, elapsed: float
) -> None:
    """Everything that a resumed run needs, in one safetensors file that is replaced whole."""
    tensors = dict(module.state_dict())
    tensors |= {f"ema.{k}": v for k, v in ema.state.items()}
    for i, s in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in s.items()}
    facts = {"step": step, "elapsed": elapsed, "scaler": scaler.state_dict() if scaler else None}
    stored = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with beside(path) as partial:
        save_file(stored, partial, {"facts": json.dumps(facts)})


def load_state(
    path: Path, module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, scaler: Any
) -> tuple[int, float]:
    """Restore a run saved by `save_state`; returns its step and seconds.

    Raises:
        InvalidArgumentError: the file is damaged or of another model.
    """
    try:
        with safe_open(str(path), framework="pt") as f:
            facts = json.loads(f.metadata()["facts"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (a safetensors handle is not a dict)
        module.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(("ema.", "optimizer."))})
        for k, v in ema.state.items():
            v.copy_(tensors[f"ema.{k}"])
        state: dict[int, dict[str, Tensor]] = {}
        for k, v in tensors.items():
            if k.startswith("optimizer."):
                _, i, name = k.split(".")
                state.setdefault(int(i), {})[name] = v
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if scaler and facts["scaler"]:  # a run that began without loss scaling may go on with it
            scaler.load_state_dict(facts["scaler"])
        step, elapsed = int(facts["step"]), float(facts["elapsed"])
        if step < 0 or not 0 <= elapsed < math.inf:
            raise ValueError(f"step is {step}, seconds are {elapsed}")
        return step, elapsed
    except (*DAMAGED, RuntimeError) as e:  # torch's, for weights of another shape
        raise InvalidArgumentError(
            f"{path} cannot be resumed from ({e}); it is damaged or of another model. Remove it to start this run anew"
        ) from None


def averaged(model: FreqFormer, ema: Ema) -> FreqFormer:
    """A copy of the model with the averaged weights, on the CPU, in evaluation mode."""
    out = deepcopy(model).cpu()
    out.decoder.compose_fuse = False
    out.load_state_dict(ema.state)
    return out.eval()


def export(
    model: FreqFormer,
    ema: Ema,
    config: TrainConfig,
    folders: Sequence[str],
    path: Path,
    step: int,
    elapsed: float,
    device: torch.device,
) -> None:
    """Write the averaged weights as a checkpoint; `folders` are those that the data came from."""
    facts = {
        "training_data": [Path(p).as_posix().rstrip("/").split("/")[-2:] for p in folders],
        "recipe": {k: v for k, v in asdict(config).items() if k not in ("data", "init")},
        "steps": step,
        "hours": round(elapsed / 3600, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
    }
    save_checkpoint(averaged(model, ema), path, facts, dtype=torch.float16)
