"""Exported files against the model they were made from, run by ONNX Runtime."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from activefreq_engine.kernels.click_maps import click_maps
from numpy.typing import NDArray

from activefreq_engine import Engine, Session, create_model, export
from activefreq_engine.cli import main
from activefreq_engine.errors import BackendUnavailableError, FileWriteError, InvalidArgumentError, ModelLoadError
from activefreq_engine.export import export_onnx
from activefreq_engine.images import load_image
from activefreq_engine.models import FreqFormer, normalise
from tests.compiler import clash

EXAMPLE = Path(__file__).parent.parent / "examples" / "images" / "ISIC_0014809.jpg"
H, W = 128, 96
TOLERANCE = 1e-4
"""Of logits, which reach +-10: float32 sums in another order.  Measured: 1e-5."""


@pytest.fixture(scope="module")
def model() -> FreqFormer:
    return create_model("freqformer_b0", pretrained=True).eval()


@pytest.fixture(scope="module")
def folder(model: FreqFormer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if clash():
        pytest.skip("torch 2.6 cannot export beside Triton 3.3 or newer")
    folder = tmp_path_factory.mktemp("exported") / "new"
    files = export_onnx(model, folder, H, W)
    assert [f.name for f in files] == ["prepare.onnx", "click.onnx", "refine.onnx", "manifest.json"]
    assert sorted(f.name for f in folder.iterdir()) == sorted(f.name for f in files)
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


class Exported:
    """The files, run by a program that knows only the manifest."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        ort = pytest.importorskip("onnxruntime")
        self.graphs = manifest["graphs"]
        self.sessions = {
            name: ort.InferenceSession(folder / graph["file"], providers=["CPUExecutionProvider"])
            for name, graph in self.graphs.items()
        }

    def __call__(self, name: str, *inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        given = {i["name"]: a for i, a in zip(self.graphs[name]["inputs"], inputs, strict=True)}
        return self.sessions[name].run([o["name"] for o in self.graphs[name]["outputs"]], given)


@pytest.fixture(scope="module")
def exported(folder: Path, manifest: dict[str, Any]) -> Exported:
    return Exported(folder, manifest)


def resampled(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """As the manifest says: first the axes that shrink, then those that grow."""
    small = min(width, values.shape[1]), min(height, values.shape[0])
    values = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)


def test_the_manifest_is_enough_to_answer_a_box(
    model: FreqFormer, exported: Exported, manifest: dict[str, Any], rng: np.random.Generator
) -> None:
    """A program that knows only the files, against a session that looks at the same region at the same size."""
    engine = Engine(model, device="cpu", precision="fp32", plan=False)
    engine.size = H  # smaller than users may choose: what was exported here
    pixels = load_image(EXAMPLE)
    height, width = pixels.shape[:2]
    for _ in range(3):
        tall = int(rng.integers(90, 170))  # of 183 the region is 256: pixel centres lie exactly on the box's edge then
        wide = 0.75 * tall
        # regions, 1.4 times as large as the box, that the image's edge does not cut to another shape than H x W
        y0 = int(rng.integers(tall // 4, height - tall - tall // 4))
        x0 = float(rng.uniform(0.25 * wide, width - 1.25 * wide))
        x1, y1 = x0 + wide, y0 + tall
        session = Session(engine=engine, refine=False)
        session.set_image(pixels)
        session.box(x0, y0, x1, y1)
        expected = session.probs

        says = manifest["prompts"]["box"]
        times, least = says["region"]["times"], says["region"]["least"]
        inner = [int(np.floor(x0)), y0, int(np.ceil(x1)), y1]
        middle = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
        half = [max(times * (inner[i + 2] - inner[i]), least) / 2 for i in (0, 1)]
        left, top = (max(0, int(np.floor(middle[i] - half[i]))) for i in (0, 1))
        right, bottom = (min((width, height)[i], int(np.ceil(middle[i] + half[i]))) for i in (0, 1))
        crop = resampled(pixels[top:bottom, left:right], H, W)
        image = ((crop / 255 - manifest["image"]["mean"]) / manifest["image"]["std"]).astype(np.float32)
        xs = left + (np.arange(W) + 0.5) * (right - left) / W
        ys = top + (np.arange(H) + 0.5) * (bottom - top) / H
        inside = ((xs > inner[0]) & (xs < inner[2])) & ((ys > inner[1]) & (ys < inner[3]))[:, None]
        clicks = np.zeros((1, 3, H, W), np.float32)
        clicks[0, 0] = np.where(inside, says["inside"], says["outside"])
        c1, p1 = exported("prepare", image.transpose(2, 0, 1)[None])
        logits = exported("click", c1, p1, clicks)[0][0, 0]
        probs = np.zeros((height, width), np.float32)
        probs[top:bottom, left:right] = resampled(1 / (1 + np.exp(-logits)), bottom - top, right - left)
        assert expected.max() > 0.05  # there is something to compare
        assert np.abs(probs - expected).max() < 1e-3
        assert manifest["mask"]["threshold"] == session.threshold


def test_the_manifest_is_enough_to_refine(model: FreqFormer, exported: Exported, manifest: dict[str, Any]) -> None:
    """A first click with the refiner, against a session that sees the picture at the same size."""
    pixels = load_image(EXAMPLE)[:, 40:328]
    height, width = pixels.shape[:2]
    across, down = width / W, height / H
    says, radius, threshold = manifest["refine"], manifest["clicks"]["radius"], manifest["mask"]["threshold"]
    assert max(across, down) > says["sharp"]
    engine = Engine(model, device="cpu", precision="fp32", plan=False)
    engine.size = H  # smaller than users may choose: what was exported here
    session = Session(engine=engine, zoom=False)
    session.set_image(pixels)
    x, y = 130, 190
    expected = session.click(x, y).mask.copy()

    def scaled(part: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
        values = (resampled(part, rows, columns) / 255 - manifest["image"]["mean"]) / manifest["image"]["std"]
        return values.astype(np.float32).transpose(2, 0, 1)[None]

    def disk(u: float, v: float, rows: int, columns: int) -> NDArray[np.bool_]:
        ys, xs = np.mgrid[:rows, :columns] + 0.5
        return np.hypot(xs - u, ys - v) <= radius

    clicks = np.zeros((1, 3, H, W), np.float32)
    clicks[0, 1] = disk((x + 0.5) / across, (y + 0.5) / down, H, W)
    c1, p1 = exported("prepare", scaled(pixels, H, W))
    logits, embedding = exported("click", c1, p1, clicks)
    found = 1 / (1 + np.exp(-logits[0, 0]))
    probs = resampled(found, height, width)
    coarse = probs > threshold

    rows, columns = np.nonzero(found > threshold)
    box = []  # (low, high) along the width, then along the height
    for places, scale, most in ((columns, across, width), (rows, down, height)):
        low, high = places.min(), places.max() + 1
        half = max(says["times"] * (high - low), says["least"]) / 2
        middle = (low + high) / 2
        box.append((max(0, int(np.floor((middle - half) * scale))), min(most, int(np.ceil((middle + half) * scale)))))
    (x0, x1), (y0, y1) = box
    side = manifest["graphs"]["refine"]["inputs"][3]["shape"][2]
    disks = np.zeros((1, 2, side, side), np.float32)
    disks[0, 0] = disk((x + 0.5 - x0) * side / (x1 - x0), (y + 0.5 - y0) * side / (y1 - y0), side, side)
    boxes = np.array([[x0 / across, y0 / down, x1 / across, y1 / down]], np.float32)
    refined = exported("refine", embedding, logits, boxes, scaled(pixels[y0:y1, x0:x1], side, side), disks)[0][0, 0]
    probs[y0:y1, x0:x1] = resampled(1 / (1 + np.exp(-refined)), y1 - y0, x1 - x0)
    mask = probs > threshold
    assert (coarse != expected).sum() > 100  # the refiner has something to add
    assert (mask != expected).sum() <= 10  # pixels at the threshold


def random(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def largest(a: NDArray[np.float32], b: torch.Tensor) -> float:
    assert a.shape == tuple(b.shape)
    return float(np.abs(a - b.numpy()).max())


@torch.inference_mode()
def test_parity_on_random_inputs(model: FreqFormer, exported: Exported, rng: np.random.Generator) -> None:
    for _ in range(3):
        image, clicks = random(rng, 1, 3, H, W), (random(rng, 1, 3, H, W) > 1).float()
        want = model.decode_clicks(model.encode_image(image), clicks)
        c1, p1 = exported("prepare", image.numpy())
        logits, embedding = exported("click", c1, p1, clicks.numpy())
        assert want.logits.std() > 0.1  # there is something to compare
        assert largest(logits, want.logits) <= TOLERANCE
        assert largest(embedding, want.embedding) <= TOLERANCE

        side = model.config.refine_size
        boxes = torch.tensor([[5.5, 20.0, 70.25, 100.0]])
        crop, disks = random(rng, 1, 3, side, side), (random(rng, 1, 2, side, side) > 2).float()
        refined = model.refine(want, boxes, crop, disks)
        (got,) = exported("refine", embedding, logits, boxes.numpy(), crop.numpy(), disks.numpy())
        assert largest(got, refined) <= TOLERANCE


OPENCV = """
import sys, cv2, numpy as np
folder, given = sys.argv[1], np.load(sys.argv[2])
answers = {}
for name, inputs, outputs in (
    ("prepare", ["image"], ["c1", "p1"]), ("click", ["c1", "p1", "clicks"], ["logits", "embedding"])
):
    net = cv2.dnn.readNetFromONNX(f"{folder}/{name}.onnx")
    for i in inputs:
        net.setInput(answers.get(i, given[i] if i in given else None), i)
    answers.update(zip(outputs, net.forward(outputs)))
np.savez(sys.argv[2], **answers)
"""


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 cannot read them, as the manifest says")
def test_opencv_answers_as_onnx_runtime(
    folder: Path, manifest: dict[str, Any], exported: Exported, rng: np.random.Generator, tmp_path: Path
) -> None:
    image, clicks = random(rng, 1, 3, H, W).numpy(), (random(rng, 1, 3, H, W) > 1).float().numpy()
    np.savez(tmp_path / "given.npz", image=image, clicks=clicks)
    # in a process of its own: what OpenCV cannot read has ended it
    command = [sys.executable, "-c", OPENCV, str(folder), str(tmp_path / "given.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "given.npz")
    c1, p1 = exported("prepare", image)
    logits, embedding = exported("click", c1, p1, clicks)
    for name, wanted in (("logits", logits), ("embedding", embedding)):
        assert np.abs(answers[name].reshape(wanted.shape) - wanted).max() <= TOLERANCE
    assert set(manifest["runtimes"]) == {"onnxruntime", "opencv dnn"}


@torch.inference_mode()
def test_the_manifest_is_enough_to_segment_an_image(
    model: FreqFormer, exported: Exported, manifest: dict[str, Any]
) -> None:
    """Two clicks, prepared as it says with NumPy alone, against the library's own preparation and the model."""
    pixels = load_image(EXAMPLE)[::3, 16 : 16 + 3 * W : 3]
    x, y, radius = 40.0, 70.0, manifest["clicks"]["radius"]
    assert pixels.shape == (manifest["height"], manifest["width"], 3)

    says = manifest["image"]
    image = ((pixels / 255 - np.array(says["mean"])) / np.array(says["std"])).astype(np.float32)
    rows, columns = np.mgrid[:H, :W]
    clicks = np.zeros((1, 3, H, W), np.float32)
    clicks[0, 1] = np.hypot(columns - x, rows - y) <= radius
    c1, p1 = exported("prepare", image.transpose(2, 0, 1)[None])
    logits = exported("click", c1, p1, clicks)[0]
    clicks[0, 0] = 1 / (1 + np.exp(-logits[0, 0]))
    clicks[0, 2] = np.hypot(columns - 80, rows - 20) <= radius
    logits = exported("click", c1, p1, clicks)[0]
    mask = 1 / (1 + np.exp(-logits)) > manifest["mask"]["threshold"]

    features = model.encode_image(normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]))
    points = torch.tensor([[[x, y], [-1, -1]]])
    first = torch.cat([torch.zeros(1, 1, H, W), click_maps(points, H, W, model.config.click_radius)], dim=1)
    previous = model.decode_clicks(features, first).logits.sigmoid()
    points = torch.tensor([[[x, y], [80, 20]]])
    second = torch.cat([previous, click_maps(points, H, W, model.config.click_radius)], dim=1)
    want = model.decode_clicks(features, second).logits
    assert largest(logits, want) <= TOLERANCE
    differ = mask != (want.sigmoid() > Session(device="cpu").threshold).numpy()
    assert not (differ & (np.abs(want.numpy()) > 0.1)).any()
    assert 0.05 < mask.mean() < 0.95  # neither nothing nor everything


def test_the_manifest_says_where_clicks_and_scribbles_lie(
    model: FreqFormer, exported: Exported, manifest: dict[str, Any], rng: np.random.Generator
) -> None:
    """On a picture of fewer pixels than the network has, so that half a pixel of the picture is seen."""
    engine = Engine(model, device="cpu", precision="fp32", plan=False)
    engine.size = H
    pixels = np.ascontiguousarray(load_image(EXAMPLE)[::5, ::5][: H // 2, : W // 2])
    height, width = pixels.shape[:2]
    assert (height, width) == (H // 2, W // 2)
    says, radius = manifest["prompts"]["scribble"], manifest["clicks"]["radius"]
    crop = resampled(pixels, H, W)
    image = ((crop / 255 - manifest["image"]["mean"]) / manifest["image"]["std"]).astype(np.float32)
    rows, columns = np.mgrid[:H, :W] + 0.5

    def answer(places: NDArray[np.float64]) -> NDArray[np.float32]:
        """For positive disks on a blank mask, given in pixels of the picture."""
        clicks = np.zeros((1, 3, H, W), np.float32)
        for x, y in places * (W / width, H / height):
            clicks[0, 1] = np.maximum(clicks[0, 1], np.hypot(columns - x, rows - y) <= radius)
        c1, p1 = exported("prepare", image.transpose(2, 0, 1)[None])
        logits = exported("click", c1, p1, clicks)[0][0, 0]
        return resampled(1 / (1 + np.exp(-logits)), height, width)

    for points in ([[20, 30]], [[33.9, 12.1]], [[5, 50], [40, 12.9]], rng.uniform(0, (width, height), (3, 2)).tolist()):
        session = Session(engine=engine, refine=False, zoom=False)
        session.set_image(pixels)
        centres = np.floor(np.array(points)) + 0.5
        if len(points) == 1:
            session.click(*points[0])
            places = centres
        else:
            session.scribble(points)
            ends = np.r_[0, np.cumsum(np.hypot(*(np.diff(centres, axis=0) * (W / width, H / height)).T))]
            count = int(np.clip(ends[-1] // (says["apart"] * radius), 1, says["most"]))
            at = np.linspace(0, ends[-1], count) if count > 1 else ends[-1:] / 2
            places = np.floor(np.stack([np.interp(at, ends, c) for c in centres.T], 1)) + 0.5
        expected = session.probs
        assert 0.05 < expected.mean() < 0.95
        beside = expected < 1  # the pixels of the prompts are in the mask whatever the network says
        assert np.abs(answer(places) - expected)[beside].max() < 1e-3


def test_the_manifest_tells_the_truth(folder: Path, manifest: dict[str, Any], model: FreqFormer) -> None:
    onnx = pytest.importorskip("onnx")
    assert "centre of the image pixel" in manifest["clicks"]["position"]
    assert manifest["clicks"]["radius"] == model.config.click_radius
    for graph in manifest["graphs"].values():
        content = (folder / graph["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == graph["sha256"]
        proto = onnx.load_from_string(content)
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", manifest["opset"])]
        for told, values in ((graph["inputs"], proto.graph.input), (graph["outputs"], proto.graph.output)):
            shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
            assert [t["name"] for t in told] == [v.name for v in values]
            assert [t["shape"] for t in told] == shapes
            assert {v.type.tensor_type.elem_type for v in values} == {onnx.TensorProto.FLOAT}


def test_the_files_have_standard_operators_and_no_paths(folder: Path, manifest: dict[str, Any]) -> None:
    onnx = pytest.importorskip("onnx")
    for graph in manifest["graphs"].values():
        content = (folder / graph["file"]).read_bytes()
        proto = onnx.load_from_string(content)
        assert proto.ir_version == 8  # 10 shuts out ONNX Runtime before 1.18
        nodes = proto.graph.node
        assert all(len(n.input) == 3 for n in nodes if n.op_type == "LayerNormalization")  # 1.15 dies of a missing bias
        assert {n.domain for n in nodes} == {""}
        assert not {n.op_type for n in nodes} & {"DFT", "STFT", "Loop", "If", "Col2Im"}
        assert b".py" not in content


def test_the_given_model_is_left_alone(model: FreqFormer) -> None:
    given = create_model("freqformer_b0").train()
    before = {name: t.clone() for name, t in given.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match="multiple of 32"):
        export_onnx(given, "unused", 100)
    assert given.training
    assert not Path("unused").exists()
    assert all(torch.equal(t, before[name]) for name, t in given.state_dict().items())


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that must fail as bad input does."""
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    return captured.err


def test_missing_packages_are_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name))
    with pytest.raises(BackendUnavailableError, match="onnx and onnxscript"):
        export_onnx("freqformer_b0", tmp_path / "new")
    assert 'pip install ".[export]"' in fails(capsys, "export", "freqformer_b0", "--out", tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_torch_that_cannot_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> None:
        try:
            raise ImportError("cannot import name 'AttrsDescriptor'")
        except ImportError as error:
            raise torch.onnx.OnnxExporterError("Failed to export the model") from error

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(BackendUnavailableError, match=r"AttrsDescriptor.*install torch 2\.7"):
        export_onnx("freqformer_b0", tmp_path / "new", 64)


def test_a_manifest_never_stands_beside_files_of_two_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, names = create_model("freqformer_b0"), {"prepare.onnx", "click.onnx", "refine.onnx", export.MANIFEST}
    parts = {"prepare": (None, {}, {}), "click": (None, {}, {}), "refine": (None, {}, {})}
    monkeypatch.setattr(export, "_examples", lambda plan, crop: parts)

    def export_(content: bytes, failing: str = "") -> None:
        def made(half: object, inputs: object, outputs: object, file: str) -> tuple[bytes, dict[str, Any]]:
            if file == failing:
                raise BackendUnavailableError("cannot be exported")
            return content, {"file": file}

        monkeypatch.setattr(export, "_made", made)
        export_onnx(model, tmp_path, 32)

    def there() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    export_(b"one")
    before = there()
    assert set(before) == names
    with pytest.raises(BackendUnavailableError):
        export_(b"two", failing="click.onnx")
    assert there() == before
    (tmp_path / "click.onnx").unlink()
    (tmp_path / "click.onnx").mkdir()
    with pytest.raises(FileWriteError, match="directory"):
        export_(b"two")
    assert not (tmp_path / export.MANIFEST).exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("new", "64"), InvalidArgumentError),
        (("new", None), InvalidArgumentError),
        (("new", 64, 0), InvalidArgumentError),
        (("new", 64, "96"), InvalidArgumentError),
        ((None, 64), InvalidArgumentError),
        ((5, 64), InvalidArgumentError),
        (("a\0b", 64), InvalidArgumentError),
        (("file/new", 64), FileWriteError),
    ],
)
def test_wrong_arguments_end_in_errors_of_ours(tmp_path: Path, monkeypatch, arguments, error) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(error):
        export_onnx("freqformer_b0", *arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_it_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="freqformer_b0"):
        export_onnx("no_such_model", tmp_path / "new")
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in fails(capsys, "export", "freqformer_b0", "--out", file)
    assert "multiple of 32" in fails(capsys, "export", "freqformer_b0", "--out", tmp_path, "--size", "0")
    assert "onnx" in fails(capsys, "export", "freqformer_b0", "--out", tmp_path, "--format", "torchscript")
    assert not (tmp_path / "new").exists()
