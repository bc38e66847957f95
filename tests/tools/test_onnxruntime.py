"""Exported files of every shipped kind of network, in the oldest ONNX Runtime that the manifest names and in ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from activefreq_engine import create_model
from activefreq_engine.export import export_onnx

from .driving import run

H, W = 128, 96
TOLERANCE = 1e-4
"""Of logits, which reach +-10: float32 sums in another order."""
RUN = """
import json, sys
import numpy as np, onnxruntime
folder, data = sys.argv[1:]
graphs = json.load(open(folder + "/manifest.json"))["graphs"]
values = dict(np.load(data))
for name in ("prepare", "click", "refine"):
    # the refiner's crop has the name of the picture that prepare sees
    given = {i["name"]: values["crop" if (name, i["name"]) == ("refine", "image") else i["name"]]
             for i in graphs[name]["inputs"]}
    session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx", providers=["CPUExecutionProvider"])
    outputs = [o["name"] for o in graphs[name]["outputs"]]
    values.update(zip(outputs, session.run(outputs, given)))
np.savez(data, **values)
print(onnxruntime.__version__)
"""


@pytest.mark.parametrize("name", ["freqformer_b0", "freqformer_b0_general", "freqformer_b0_guided"])
@torch.inference_mode()
def test_onnx_runtime_answers_as_torch(name: str, tools: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    model = create_model(name, pretrained=True).eval()
    export_onnx(model, tmp_path, H, W)
    side = model.config.refine_size
    given = {
        "image": rng.standard_normal((1, 3, H, W), np.float32),
        "clicks": (rng.standard_normal((1, 3, H, W)) > 1).astype(np.float32),
        "crop": rng.standard_normal((1, 3, side, side), np.float32),
        "disks": (rng.standard_normal((1, 2, side, side)) > 2).astype(np.float32),
        "boxes": np.array([[5.5, 20, 70.25, 100]], np.float32),
    }
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    coarse = model.decode_clicks(model.encode_image(tensors["image"]), tensors["clicks"])
    refined = model.refine(coarse, tensors["boxes"], tensors["crop"], tensors["disks"])
    wanted = {"logits": coarse.logits, "embedding": coarse.embedding, "refined": refined}
    assert json.loads((tmp_path / "manifest.json").read_text())["runtimes"]["onnxruntime"].startswith("1.15 and newer")
    for python, version in ((tools / "onnxruntime" / "bin" / "python", "1.15."), (Path(sys.executable), "")):
        np.savez(tmp_path / "data.npz", **given)
        said = run(python, "-c", RUN, tmp_path, tmp_path / "data.npz", cwd=tmp_path)
        assert said.startswith(version)
        answers = np.load(tmp_path / "data.npz")
        apart = {key: float(np.abs(answers[key] - value.numpy()).max()) for key, value in wanted.items()}
        print(name, "onnxruntime", said.strip(), apart)
        assert wanted["logits"].std() > 0.1
        assert max(apart.values()) <= TOLERANCE
