"""A model compiled for one network shape: what depends on the image alone is split off, and everything that can be
folded is folded.

A plan holds three plain `nn.Module`s made of tensor operations, so that they can be exported or captured in a graph.
They equal the modules of `models/` up to rounding; see `rewrites` for what was folded and `layers` for how they run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from activefreq_engine.conventions import STRIDE
from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.kernels import verification
from activefreq_engine.kernels.verification import Question
from activefreq_engine.models import Coarse, FreqFormer
from activefreq_engine.models.freqnet import FreqModule, upsample
from activefreq_engine.models.guide import Guide
from activefreq_engine.models.mit import MiTStage
from activefreq_engine.models.narrow import HALF
from activefreq_engine.models.refiner import Refiner, SeparableBlock, roi_align
from activefreq_engine.runtime import cpu
from activefreq_engine.runtime.plan import frequency, fused, layers, packed, rewrites, trial
from activefreq_engine.runtime.plan.frequency import frequency_block
from activefreq_engine.runtime.plan.fused import Fused, FusedClick
from activefreq_engine.runtime.plan.guide import FrozenTrunk, Projections, TrunkAttention
from activefreq_engine.runtime.plan.resample import SumEnlarged, crop
from activefreq_engine.runtime.plan.spectral import SpectralForm

MOST_SIDE = 4096
"""Largest side of a network input; the largest that sessions use is 512."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""In bf16 and fp16 some parts stay in float32: statistics of norms, softmax, spectra, boxes and logits.  "auto" is fp16
on CUDA, bf16 on CPUs that multiply it natively, and fp32 on others."""
_Shared = list[tuple[layers.Norm, FreqModule, layers.PointwiseFFN]]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ProjectedFeatures(NamedTuple):
    """What depends on the image alone: `models.ImageFeatures` with the Freq layer's output projected."""

    c1: Tensor
    """`[B, C1, H/4, W/4]`: stage 1, before the clicks are added."""
    p1: Tensor
    """`[B, E, H/4, W/4]`: the share of Freq layer 1 in the fused map."""


class GuidedProjections(NamedTuple):
    """`ProjectedFeatures` of a network with a guide, and what the guide adds to the tokens of stages 2 to 4."""

    c1: Tensor
    p1: Tensor
    g2: Tensor
    """`[B, C2, H/8, W/8]`."""
    g3: Tensor
    """`[B, C3, H/16, W/16]`."""
    g4: Tensor
    """`[B, C4, H/32, W/32]`."""


PlanFeatures = ProjectedFeatures | GuidedProjections


class PrepareModule(nn.Module):
    """Normalised image `[B, 3, H, W]` -> `ProjectedFeatures`, or `GuidedProjections`."""

    def __init__(self, stage: nn.Module, freq: nn.Module, project: layers.Linear, guide: nn.Module | None) -> None:
        super().__init__()
        self.stage, self.freq, self.project, self.guide = stage, freq, project, guide

    def forward(self, image: Tensor) -> PlanFeatures:
        maps = image.permute(0, 2, 3, 1).to(self.project.weight.dtype)
        if self.guide is None:
            c1 = self.stage(maps)
            return ProjectedFeatures(c1.permute(0, 3, 1, 2), self.project(self.freq(c1)).permute(0, 3, 1, 2))
        first, *rest = self.guide(image)
        c1 = self.stage(maps, first)
        p1 = self.project(self.freq(c1))
        return GuidedProjections(*(t.permute(0, 3, 1, 2) for t in (c1, p1, *rest)))


class ClickModule(nn.Module):
    """Features and click maps `[B, 3, H, W]` (previous soft mask, positive disks, negative disks) -> `Coarse`."""

    def __init__(
        self,
        embed: nn.Module,
        stages: list[nn.Module],
        freqs: list[nn.Module],
        projects: list[nn.Module],
        total: SumEnlarged,
        head: layers.Linear,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.stages, self.freqs, self.projects = nn.ModuleList(stages), nn.ModuleList(freqs), nn.ModuleList(projects)
        self.total, self.head = total, head

    def forward(self, c1: Tensor, p1: Tensor, *more: Tensor) -> Coarse:
        *added, clicks = more
        x = self.embed(clicks.permute(0, 2, 3, 1).to(c1.dtype)).add_(c1.permute(0, 2, 3, 1))
        parts = []
        for i, (stage, freq, project) in enumerate(zip(self.stages, self.freqs, self.projects, strict=True)):
            x = stage(x, added[i].permute(0, 2, 3, 1)) if added else stage(x)
            parts.append(project(freq(x)))
        fused = self.total(p1.permute(0, 2, 3, 1), parts).relu_()
        logits = self.head(fused).permute(0, 3, 1, 2).to(clicks.dtype)
        return Coarse(upsample(logits, clicks.shape[2:]), fused.permute(0, 3, 1, 2))


class Separable(layers.PlanLayer):
    """`refiner.SeparableBlock` with its norms folded, on `[B, H, W, C]`."""

    def __init__(self, block: SeparableBlock) -> None:
        super().__init__()
        depthwise = rewrites.fold_batch_norm(block.depthwise, block.norm1)
        self.depthwise = layers.Conv(depthwise, block.depthwise, then="relu")
        self.pointwise = layers.Linear(rewrites.fold_batch_norm(block.pointwise, block.norm2))

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x), x).relu_()


class RefineModule(nn.Module):
    """`refiner.Refiner`.  Its 1x1 convolution runs before RoIAlign, with which it commutes: fewer channels to align.

    embedding `[B, E, H/4, W/4]`, coarse logits `[B, 1, H, W]`, boxes `[B, 4]` in network pixels, normalised image crop
    `[B, 3, S, S]`, disks `[B, 2, S, S]` -> logits `[B, 1, S, S]`.
    """

    def __init__(self, refiner: Refiner) -> None:
        super().__init__()
        self.stem = layers.Conv(rewrites.fold_batch_norm(refiner.stem, refiner.stem_norm), refiner.stem, then="relu")
        local: Any = refiner.local
        merge: Any = refiner.merge
        self.local = nn.Sequential(*(Separable(b) for b in local))
        self.context = layers.Linear(rewrites.affine(refiner.context))
        self.merge = nn.Sequential(*(Separable(b) for b in merge))
        detail, boundary = rewrites.affine(refiner.detail), rewrites.affine(refiner.boundary)
        both = rewrites.Affine(torch.cat([detail.weight, boundary.weight]), torch.cat([detail.bias, boundary.bias]))
        self.heads = layers.NarrowConv(both)

    def forward(self, embedding: Tensor, logits: Tensor, boxes: Tensor, image: Tensor, disks: Tensor) -> Tensor:
        size = image.shape[2:]
        scale = embedding.shape[3] / logits.shape[3]
        coarse = roi_align(logits, boxes, (size[0], size[1]))
        x = torch.cat([image, coarse.sigmoid(), disks], dim=1).permute(0, 2, 3, 1).to(embedding.dtype)
        context = self.context(embedding.permute(0, 2, 3, 1))
        # in the precision of the logits: half precision has no room for the coordinates of a box
        context = crop(context.to(logits.dtype), boxes * scale, (size[0] // 2, size[1] // 2))
        x = self.merge(self.local(self.stem(x)).add_(context))
        maps = upsample(self.heads(x.to(logits.dtype)), size)
        detail, boundary = maps.split(1, dim=1)
        return torch.lerp(coarse, detail, boundary.sigmoid_())


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A model compiled for one network shape.  The modules need no gradient and must not be trained."""

    height: int
    width: int
    precision: str
    """"fp32", "bf16" or "fp16"; "auto" is resolved."""
    prepare: PrepareModule
    click: ClickModule
    refine: RefineModule | None
    """None when the model has no refiner."""
    fused: FusedClick | None = None
    """`click` by fused kernels, from points to levels; None where these cannot run."""


class Folded:
    """A model with everything folded that does not depend on the network shape.

    Args:
        model (FreqFormer): its weights are copied; later changes to them do not reach its plans.
        device: where the plans run. Default: "cpu".
        precision (str): one of `PRECISIONS`.
        pack (bool): on a CPU store weights in the order in which its kernels read them, where these can be had.  The
            modules can then be neither exported nor copied. Default: False.
    """

    def __init__(
        self, model: FreqFormer, device: str | torch.device = "cpu", precision: str = "auto", *, pack: bool = False
    ) -> None:
        if precision not in PRECISIONS:
            raise InvalidArgumentError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        self.precision = _fastest(self.device) if precision == "auto" else precision
        self._model = model
        self._plain: Folded | None = None
        self._fingerprint = ""
        decoder, stages = model.decoder, list(model.encoder.stages)
        self._dtype = _TYPES.get(self.precision, decoder.head.weight.dtype)
        self._pack = pack and self.device.type == "cpu" and packed.available(self._dtype)
        self._strides = _strides(stages)
        self._freq_layers = [self._shared(layer) for layer in decoder.freq_layers]
        self._stages = [self._place(_stage(s)) for s in stages]
        self._embed = self._place(layers.Embed(model.click_embed))
        mlps: Any = decoder.mlp_layers
        slices = rewrites.fuse_slices(decoder.fuse, decoder.norm, list(mlps))
        self._projects = [self._place(layers.Linear(f)) for f in slices]
        self._head = self._place(layers.Linear(rewrites.affine(decoder.head)))
        self._guide = None if model.guide is None else self._placed_guide(model.guide)
        self._fused = self.fuse() if fused.offered(self.device, self._dtype) else None
        self.refine = None if model.refiner is None else self._refine(model.refiner)

    def plan(self, height: int, width: int, form: SpectralForm = "auto") -> Plan:
        """The plan for one network shape; plans share all weights but the resized filters.

        Args:
            height, width (int): of the network input, multiples of 32.
            form: how the FreqModules compute, see `spectral`.

        Raises:
            InvalidArgumentError: a side is not a positive multiple of 32, or above 4096.
            MemoryError: there is too little memory to try the plan's layers, see `trial`.
        """
        for name, side in (("height", height), ("width", width)):
            if not 0 < side <= MOST_SIDE or side % STRIDE:
                raise InvalidArgumentError(f"{name} is {side}; expected a multiple of {STRIDE}, at most {MOST_SIDE}")
        if form == "auto":
            verification.judge(self._kernel_questions(height, width))  # together: it may take another process
        plan = self._plan(height, width, form)
        findings = verification.judge(self._layer_questions(plan))
        if not all(f.lasting for f in findings):  # so that the next click asks again
            raise MemoryError("memory was short when the layers of a plan were tried")
        return plan if all(f.ok for f in findings) else self._in_float32().plan(height, width, form)

    def questions(self, height: int, width: int) -> list[Question]:
        """What the plan for a network shape asks of `kernels.verification`."""
        layers = self._layer_questions(self._plan(height, width, "fft")) if self.device.type == "cpu" else []
        return self._kernel_questions(height, width) + layers

    def fuse(self) -> Fused | None:
        """The click by fused kernels; None where the network is not one that they are written for."""
        stages = self._stages[1:]
        why_not = fused.unsuited(self._embed, stages, self._strides[1:])
        if why_not:
            fused.say(why_not)
            return None
        blocks = self._freq_layers[1:]
        norms, ffns = [b[0][0] for b in blocks], [b[-1][2] for b in blocks]
        guided = self._guide is not None
        return Fused(self._embed, stages, norms, ffns, self._projects[1:], self._head, self._strides[1:], guided)

    def _plan(self, height: int, width: int, form: SpectralForm) -> Plan:
        sizes = [(height // stride, width // stride) for stride in self._strides]
        freqs = [self._freq(layer, *size, form) for layer, size in zip(self._freq_layers, sizes, strict=True)]
        prepare = PrepareModule(self._stages[0], freqs[0], self._projects[0], self._guide)
        total = SumEnlarged(sizes[0], sizes[1:], self._dtype, self.device)
        click = ClickModule(self._embed, self._stages[1:], freqs[1:], self._projects[1:], total, self._head)
        fast = None
        if self._fused is not None and form == "auto":
            fast = FusedClick(self._fused, freqs[1:], self.refine is not None)
        return Plan(height, width, self.precision, prepare.eval(), click.eval(), self.refine, fast)

    def _kernel_questions(self, height: int, width: int) -> list[Question]:
        sizes = [(height // stride, width // stride) for stride in self._strides]
        asked = (
            frequency.question(freq, *size, self._dtype, self.device)
            for layer, size in zip(self._freq_layers, sizes, strict=True)
            for _, freq, _ in layer
        )
        questions = [q for q in asked if q is not None]
        if self._fused is not None:
            questions += self._fused.questions(height, width)
        return questions

    def _layer_questions(self, plan: Plan) -> list[Question]:
        """Questions about layers in half precision on a CPU; in float32 none was ever seen to be wrong."""
        if self.device.type != "cpu" or self._dtype not in HALF:
            return []
        kind = "packed layers" if self._pack else "layers"
        maps = torch.zeros(1, 3, plan.height, plan.width, dtype=torch.float32)

        def click() -> None:
            plan.click(*plan.prepare(maps), maps)

        parts, size = (plan.prepare, plan.click), (plan.height, plan.width)
        self._fingerprint = self._fingerprint or trial.fingerprint(parts)
        name = f"{kind} of a network of {plan.height}x{plan.width}"
        asked = [trial.question(name, (*size, self._fingerprint), parts, self._dtype, click)]
        return asked if plan.refine is None else [*asked, self._refiner_question(plan.refine, kind)]

    def _refiner_question(self, refine: RefineModule, kind: str) -> Question:
        side = self._model.config.refine_size
        embedding = torch.zeros(1, 16, 16, self._model.config.embed_dim, dtype=self._dtype).permute(0, 3, 1, 2)
        floats = torch.zeros(0, dtype=torch.float32)
        logits, box = floats.new_zeros(1, 1, 64, 64), floats.new_tensor([[0.0, 0.0, 64.0, 64.0]])
        maps = floats.new_zeros(1, 3, side, side)

        def redraw() -> None:
            refine(embedding, logits, box, maps, maps[:, :2])

        key = (side, trial.fingerprint([refine]))
        return trial.question(f"{kind} of a refiner of {side}x{side}", key, [refine], self._dtype, redraw)

    def _in_float32(self) -> Folded:
        """The model in float32, whose layers were never seen to be wrong; made when it is first needed."""
        if self._plain is None:
            self._plain = Folded(self._model, self.device, "fp32")
        return self._plain

    def _freq(self, shared: _Shared, height: int, width: int, form: SpectralForm) -> nn.Module:
        """A Freq layer at one size of its maps."""
        size = (height, width)
        blocks = (frequency_block(*b, *size, form, self._dtype, self.device, pack=self._pack) for b in shared)
        return nn.Sequential(*blocks)

    def _shared(self, layer: Any) -> _Shared:
        """What all network shapes share of each Freq block: the first norm, the FreqModule, and the second norm with
        the FFN."""
        return [
            (self._place(layers.Norm(b.norm1)), copy.deepcopy(b.freq), self._place(layers.PointwiseFFN(b)))
            for b in layer
        ]

    def _placed_guide(self, guide: Guide) -> nn.Module:
        """The guide on the device.  It is in float32 where the rest runs in fp16: MobileSAM was not trained to stay
        within fp16's range."""
        exact = torch.float32 if self._dtype == torch.float16 else self._dtype
        return nn.Sequential(self._place(FrozenTrunk(guide.trunk), exact), self._place(Projections(guide)))

    def _refine(self, refiner: Refiner) -> RefineModule:
        refine = RefineModule(refiner)
        for name, part in refine.named_children():
            if name != "heads":
                self._place(part)
        refine.heads.to(self.device)
        return refine.eval().requires_grad_(False)

    def _place(self, module: Any, dtype: torch.dtype | None = None) -> Any:
        """A module on the device, with its weights in the plan's precision, or in `dtype`.  Tables and stages of other
        kinds keep theirs."""
        module.to(self.device).eval().requires_grad_(False)
        for part in module.modules():
            if isinstance(part, (layers.Linear, layers.Conv, layers.Norm, TrunkAttention)):
                part.to(dtype or self._dtype)
            if self._pack and isinstance(part, (layers.Linear, layers.Conv)):
                part.pack()
            if isinstance(part, layers.PlanLayer):
                part.settle()
        return module


def _fastest(device: torch.device) -> str:
    """The precision that "auto" means on a device."""
    if device.type == "cuda":
        return "fp16"
    return "bf16" if cpu.has_bf16() else "fp32"


def _stage(stage: nn.Module) -> nn.Module:
    """A stage on `[B, H, W, C]`; one that is not a Mix Transformer's runs as it is."""
    if isinstance(stage, MiTStage):
        return layers.Stage(stage)
    return layers.OnMaps(layers.AsItIs(copy.deepcopy(stage)))


def _strides(stages: list[nn.Module]) -> list[int]:
    """How many network pixels a pixel of each stage's output spans."""
    side, strides = 64, []
    first = next(stages[0].parameters())
    x = torch.zeros(1, 3, side, side, dtype=first.dtype, device=first.device)
    with torch.inference_mode():
        for stage in stages:
            x = stage(x)
            strides.append(side // x.shape[2])
    return strides
