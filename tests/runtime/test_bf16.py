"""bfloat16 on the CPU against float32 modules: real images, the shipped weights, several clicks in a session."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from activefreq_engine import Engine, Session, create_model
from activefreq_engine.models import normalise
from activefreq_engine.runtime import cpu
from activefreq_engine.runtime.plan import Folded

from .measures import disagreement
from .modules import random_model, relative

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(p.stem for p in (EXAMPLES / "images").glob("*.jpg"))
LOGITS = 0.03  # relative error in the Euclidean norm; 0.006 was seen
PIXELS = 1e-3  # of the mask, outside of a band of 2 pixels around its outline


@pytest.fixture(scope="module")
def model():
    return create_model("freqformer_b0", pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_a_session(model, name, rng):
    with Image.open(EXAMPLES / "images" / f"{name}.jpg") as file:
        image = np.array(file.convert("RGB"))
    with Image.open(EXAMPLES / "masks" / f"{name}.png") as file:
        truth = np.array(file.convert("L")) > 127
    fast, exact = (Session(engine=Engine(model, precision=p)) for p in ("bf16", "fp32"))
    fast.set_image(image)
    exact.set_image(image)
    for i in range(6):
        inside = i < 2 or bool(rng.integers(2))
        ys, xs = np.nonzero(truth == inside)
        k = int(rng.integers(len(ys)))
        got, expected = (s.click(int(xs[k]), int(ys[k]), positive=inside).mask for s in (fast, exact))
        print(f"click {i + 1}: {100 * (got != expected).mean():.4f} % of the pixels differ")
        assert disagreement(got, expected) <= PIXELS


@torch.inference_mode()
def test_logits(model):
    height, width = 192, 256
    with Image.open(EXAMPLES / "images" / f"{NAMES[0]}.jpg") as file:
        picture = np.array(file.convert("RGB").resize((width, height)))
    image = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None])
    clicks = torch.zeros(1, 3, height, width)
    clicks[:, 1, 90:100, 120:130] = 1
    plan = Folded(model, precision="bf16").plan(height, width)
    answer = plan.click(*plan.prepare(image), clicks)
    assert answer.embedding.dtype == torch.bfloat16
    assert answer.logits.dtype == torch.float32
    error = relative(answer.logits, model.decode_clicks(model.encode_image(image), clicks).logits)
    print("relative error", error)
    assert error <= LOGITS


def test_auto_is_bf16_only_where_it_is_native(monkeypatch):
    model = random_model(dtype=torch.float32, refiner_width=0)
    for native, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(cpu, "has_bf16", lambda native=native: native)
        assert Folded(model).precision == precision
        assert Engine(model).precision == precision
