"""A training run that takes seconds: a tiny encoder under a name of its own.  Also a program, for tests that need one.

python tiny_run.py kill DATA OUT STEP    train, and die by SIGKILL while saving after STEP steps
torchrun tiny_run.py ranks DATA OUT      train for three seconds; write what each rank saw and learnt to OUT
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from activefreq_engine.models.mit import MIT_SPECS, MiTSpec
from activefreq_engine.train import loop, state
from activefreq_engine.train.data import PackedDataset
from activefreq_engine.train.loop import TrainConfig, train

MIT_SPECS["mit_tiny"] = MiTSpec((8, 8, 20, 16), (1, 1, 1, 1))
OVERRIDES = {"encoder": "mit_tiny", "embed_dim": 8, "refiner_width": 4, "refine_size": 32}


def tiny(data: Path, **changes) -> TrainConfig:
    base = {
        "data": (str(data),),
        "overrides": OVERRIDES,
        "batch": 4,
        "sizes": ((0.0, 32), (0.5, 64)),
        "warmup": 5,
        "lr": 5e-3,
        "iterations": ((0, 0.5), (1, 0.5)),
        "workers": 0,
    }
    if "hours" not in changes:
        base["steps"] = 8
    return TrainConfig(**{**base, **changes})


def kill(data: Path, out: Path, step: int) -> None:
    torch.set_num_threads(1)
    save_file = state.save_file

    def half_a_file(tensors, path, facts):
        save_file(tensors, path, facts)
        if json.loads(facts["facts"])["step"] == step:
            with open(path, "r+b") as f:
                f.truncate(1000)
            os.kill(os.getpid(), signal.SIGKILL)

    state.save_file = half_a_file
    train(tiny(data), out, device="cpu", save_every=0)


def ranks(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    asked: list[int] = []
    runs: list[loop._TrainRun] = []
    get, build = PackedDataset.__getitem__, loop._TrainRun._build

    def noted(self, item):
        asked.append(item[0])
        return get(self, item)

    def kept(self):
        runs.append(self)
        return build(self)

    PackedDataset.__getitem__ = noted  # type: ignore[method-assign]
    loop._TrainRun._build = kept  # type: ignore[method-assign]
    train(tiny(data, batch=2, hours=3 / 3600), out / "run", device="cpu")
    digest = hashlib.sha256()
    for p in runs[0].model.parameters():
        digest.update(p.detach().numpy().tobytes())
    facts = {"asked": asked, "weights": digest.hexdigest(), "steps": runs[0].step}
    (out / f"{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        ranks(Path(sys.argv[2]), Path(sys.argv[3]))
