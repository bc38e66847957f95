"""Everything that `kernels.verification` can be asked about a device, and what it has answered so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from activefreq_engine.conventions import network_shapes as network_shapes
from activefreq_engine.kernels import dispatch, verification
from activefreq_engine.kernels.verification import Finding, Question
from activefreq_engine.models import create_model
from activefreq_engine.runtime.plan import Folded, trial


def devices() -> list[torch.device]:
    """All devices of this machine that an engine can run on."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(count))]


def questions(device: torch.device, shapes: Sequence[tuple[int, int]], precision: str = "auto") -> list[Question]:
    """What engines of our weights ask for these network shapes, and the ops' own sample questions.  A guide's kernels
    are the same at every shape, so the network that has one is asked about at the first shape only."""
    asked = [*dispatch.samples(device)]
    for model, at in (("freqformer_b0", shapes), ("freqformer_b0_guided", shapes[:1])):
        folded = Folded(create_model(model, pretrained=True).to(device).eval(), device, precision, pack=True)
        asked += [q for shape in at for q in folded.questions(*shape)]
    return list({q.key: q for q in asked}.values())


def rejected(device: torch.device) -> list[Finding]:
    """The kernels that are not used on this device with the present code, as far as trials were made, now or
    earlier."""
    current = dispatch.sources() | {trial.source()}
    asked = [*verification.kept(device), *verification.findings(device)]  # the newest last
    known = {(f.op, f.backend, f.size, f.dtype): f for f in asked}
    return [f for f in known.values() if not f.ok and f.source in current]
