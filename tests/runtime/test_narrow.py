"""Upright and flat images: convolutions with one column or row, and the same bits whatever is in free memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from activefreq_engine import list_models
from activefreq_engine.models import narrow
from activefreq_engine.runtime.plan import Folded, packed

from .modules import logits_error, random_model, relative

ROOT = Path(__file__).parents[2]
SIZES = [(16, 2), (2, 16), (2, 2), (1, 1), (16, 3), (5, 4)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 1, 1), (2, 2, 0), (7, 4, 3), (8, 8, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_convolution_is_what_it_was(dtype, kernel, stride, padding):
    conv = narrow.Conv2d(6, 10, kernel, stride, padding).to(dtype).requires_grad_(False)
    for height, width in SIZES:
        if min(height, width) + 2 * padding < kernel:
            height, width = 8 * height, 8 * width
        x = torch.randn(2, height, width, 6).to(dtype).permute(0, 3, 1, 2)
        expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, padding)
        assert relative(conv(x), expected) <= (1e-2 if dtype == torch.bfloat16 else 1e-5)


class Convolutions(TorchDispatchMode):
    """Notes the sizes of what convolutions in half precision return; 1x1 ones are products, which are right always."""

    def __init__(self):
        super().__init__()
        self.sides = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        convolution = func._schema.name.partition("::")[2].startswith(("conv", "_conv"))
        if convolution and out.dtype in narrow.HALF and args[1].shape[2:] != (1, 1):
            self.sides.append(min(out.shape[2:]))
        return out


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (32, 32)], ids=str)
@pytest.mark.parametrize("how", ["packed plan", "plan", "modules", "autocast"])
def test_no_convolution_in_half_precision_has_one_column_or_row(how, shape):
    model = random_model(dtype=torch.float32, refine_size=64)
    image, clicks = torch.randn(1, 3, *shape), torch.rand(1, 3, *shape)
    if how.endswith("plan"):
        plan = Folded(model, precision="bf16", pack=how == "packed plan").plan(*shape)
        with Convolutions() as seen:
            plan.click(*plan.prepare(image), clicks)
    elif how == "modules":
        model.to(torch.bfloat16)
        with Convolutions() as seen:
            model.decode_clicks(model.encode_image(image.bfloat16()), clicks.bfloat16())
    else:
        with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16):
            model.decode_clicks(model.encode_image(image), clicks)
    assert min(seen.sides) == 2
    assert len(seen.sides) >= 8 + 8 + 4 + 1  # one in each block, and to reduce keys, of each Freq layer, of each stage


@pytest.mark.parametrize("shape", [(160, 32), (32, 160)], ids=str)
@pytest.mark.parametrize("pack", [False, True])
@torch.inference_mode()
def test_a_narrow_plan_in_bf16_is_close_to_float32(shape, pack):
    if pack and not packed.available(torch.bfloat16):
        pytest.skip("this torch has no packed layers in bf16 here")
    model = random_model(dtype=torch.float32, refine_size=64)
    image, clicks = torch.randn(2, 3, *shape), torch.rand(2, 3, *shape)
    plan = Folded(model, precision="bf16", pack=pack).plan(*shape)
    answer = plan.click(*plan.prepare(image), clicks)
    expected = model.decode_clicks(model.encode_image(image), clicks)
    assert relative(answer.embedding, expected.embedding) <= 0.03
    assert logits_error(answer.logits, expected.logits) <= 0.03


BITS = """
import sys
import numpy as np
from activefreq_engine import Engine, Session, list_models
from activefreq_engine.runtime.plan.trial import fill_freed_memory
from activefreq_engine.runtime.verify import network_shapes

seed, precision, every, *sizes = sys.argv[1:]
rng, every = np.random.default_rng(int(seed)), int(every)
for size in map(int, sizes):
    for k, name in enumerate(list_models(pretrained=True)):
        engine = Engine(name, device="cpu", precision=precision, size=size)
        shapes = network_shapes(size)[k % every :: every]
        for height, width in shapes:
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            clicks = [(rng.random() * width, rng.random() * height, i != 1) for i in range(3)]
            answers = set()
            for _ in range(2):
                session = Session(engine=engine)
                session.set_image(image)
                for x, y, positive in clicks:
                    fill_freed_memory(8 << 20)
                    session.click(x, y, positive=positive)
                answers.add(session.probs.tobytes())
            assert len(answers) == 1, f"{name}, {engine.precision}: {len(answers)} answers for {height}x{width}"
            assert np.isfinite(session.probs).all()
        print(name, engine.precision, size, len(shapes), "shapes")
"""

ISAS = {
    "AVX2": lambda: torch.cpu._is_avx2_supported(),
    "AVX512_CORE": lambda: torch.cpu._is_avx512_supported(),
    "AVX512_CORE_BF16": lambda: torch.cpu._is_avx512_bf16_supported(),
    "AVX512_CORE_AMX": lambda: torch.cpu._is_amx_tile_supported(),
}
"""What oneDNN may use -> whether this CPU has it."""


def same_bits(isa, rng, precision, every, *sizes):
    if not ISAS[isa]():
        pytest.skip(f"this CPU has no {isa}")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BITS, str(rng.integers(1 << 30)), precision, *map(str, (every, *sizes))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert done.stdout.count("shapes") == len(sizes) * len(list_models(pretrained=True))


@pytest.mark.parametrize("isa", ISAS)
def test_the_same_clicks_give_the_same_bits(isa, rng):
    """Of every network shape, in fresh sessions, with NaN in all free memory; the shipped weights take turns."""
    same_bits(isa, rng, "auto", 3, 256)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("isa", ISAS)
def test_the_same_clicks_give_the_same_bits_at_every_size(isa, precision, rng):
    same_bits(isa, rng, precision, 1, 256, 384, 448, 512)
