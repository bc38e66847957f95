"""ONNX Runtime and OpenVINO as executors of the click half on the CPU, beside the plain modules and the plan.

    pip install onnxruntime openvino
    python -m bench.speed.cpu_executors             # the table, two minutes
    python -m bench.speed.cpu_executors --write     # and record it in bench/results/cpu_executors.csv

What is timed is one more click on prepared features, NumPy arrays in and out; each executor's speed is relative to the
plan's in the same precision.  Masks are compared with the plain modules' on other spots than the timed one.  The
exported files are kept in out/onnx and used again.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from activefreq_engine.kernels.click_maps import click_maps
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine.conventions import THRESHOLD
from activefreq_engine.export import MANIFEST, export_onnx
from activefreq_engine.files import beside
from activefreq_engine.models import create_model, normalise
from activefreq_engine.runtime.plan import Folded
from bench.tools.clicking import NETWORK
from bench.tools.cpu import describe, side_by_side
from bench.tools.scene import scene

RESULT = Path(__file__).parents[1] / "results" / "cpu_executors.csv"
FILES = Path(__file__).parents[2] / "out" / "onnx"
LOGIT = float(np.log(THRESHOLD / (1 - THRESHOLD)))
BAND = 0.1  # logits this close to the threshold may fall on either side of it
COLUMNS = ["executor", "precision", "size", "threads", "median_ms", "lower_ms", "upper_ms", "times_as_fast_as_plan"]
COLUMNS += ["largest_logit_error", "pixels_that_differ", "of_them_clearly", "machine"]

Array = NDArray[np.float32]


class OfTorch:
    """The plain modules, or a plan."""

    def __init__(self, prepare: Any, click: Any) -> None:
        self.prepare, self.click = prepare, click

    def see(self, image: Array) -> None:
        self.features = self.prepare(torch.from_numpy(image))

    def __call__(self, clicks: Array) -> Array:
        return self.click(self.features, torch.from_numpy(clicks))[0].float().numpy()


class OfOnnxRuntime:
    def __init__(self, folder: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the engine must not spin either
        providers = ["CPUExecutionProvider"]
        self.prepare, self.click = (
            onnxruntime.InferenceSession(folder / f"{half}.onnx", options, providers) for half in ("prepare", "click")
        )

    def see(self, image: Array) -> None:
        self.features = dict(zip(("c1", "p1"), self.prepare.run(["c1", "p1"], {"image": image}), strict=True))

    def __call__(self, clicks: Array) -> Array:
        return self.click.run(["logits", "embedding"], {**self.features, "clicks": clicks})[0]


class OfOpenVino:
    def __init__(self, folder: Path, threads: int, precision: str) -> None:
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
        core = openvino.Core()
        self.prepare, self.click = (
            core.compile_model(folder / f"{half}.onnx", "CPU", settings).create_infer_request()
            for half in ("prepare", "click")
        )

    def see(self, image: Array) -> None:
        out = self.prepare.infer({"image": image})
        self.features = {name: np.array(out[name]) for name in ("c1", "p1")}

    def __call__(self, clicks: Array) -> Array:
        return np.array(self.click.infer({**self.features, "clicks": clicks}, share_inputs=True)["logits"])


def exported(size: int) -> Path:
    folder = FILES / f"{NETWORK}_{size}"
    if not (folder / MANIFEST).exists():
        print(f"exporting to {folder}", file=sys.stderr)
        export_onnx(NETWORK, folder, size)
    assert json.loads((folder / MANIFEST).read_text())["height"] == size
    return folder


def executors(size: int, threads: int) -> dict[tuple[str, str], Any]:
    model: Any = create_model(NETWORK, pretrained=True).eval()
    torch.set_num_threads(threads)
    result: dict[tuple[str, str], Any] = {("modules", "fp32"): OfTorch(model.encode_image, model.decode_clicks)}
    for precision in ("fp32", "bf16"):
        plan = Folded(model, precision=precision).plan(size, size)
        result["plan", precision] = OfTorch(plan.prepare, lambda features, c, plan=plan: plan.click(*features, c))
    folder = exported(size)
    result["ONNX Runtime", "fp32"] = OfOnnxRuntime(folder, threads)
    for precision in ("fp32", "bf16"):
        result["OpenVINO", precision] = OfOpenVino(folder, threads, precision)
    return result


def inputs(size: int, seed: int, before: Any = None) -> tuple[Array, Array]:
    """A spot, and on it the second click; `before` answers the first one, else there was none."""
    picture = scene(size, size, radius=size // 8 + size // 40 * seed, seed=seed)
    image = normalise(torch.from_numpy(picture.image).permute(2, 0, 1)[None]).contiguous()
    made = picture.clicks(seed)
    points = [next(made) for _ in range(2)]
    slots = torch.tensor([[[points[0].x, points[0].y], [-1, -1]]], dtype=torch.float32)
    previous = np.zeros((1, 1, size, size), np.float32)
    maps = click_maps(slots, size, size).numpy()
    if before is not None:
        before.see(image.numpy())
        previous = 1 / (1 + np.exp(-before(np.concatenate([previous, maps], axis=1))))
        slots = torch.tensor([[[p.x, p.y] for p in points] + [[-1.0, -1.0]] * 2])
        maps = click_maps(slots, size, size).numpy()
    return image.numpy(), np.concatenate([previous, maps], axis=1)


def compare(run: Any, reference: Any, size: int, pictures: int = 5) -> tuple[float, float, int]:
    """Largest difference of logits; share of pixels on the other side of the threshold; how many of them clearly."""
    error, differ, clearly = 0.0, 0.0, 0
    for seed in range(1, pictures + 1):
        image, clicks = inputs(size, seed, reference)
        run.see(image)
        got, want = run(clicks), reference(clicks)
        assert 0.01 < (want > LOGIT).mean() < 0.9, "there is no mask to compare"
        error = max(error, float(np.abs(got - want).max()))
        other = (got > LOGIT) != (want > LOGIT)
        differ += float(other.mean()) / pictures
        clearly += int((other & (np.abs(want - LOGIT) > BAND)).sum())
    return error, differ, clearly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record the table in bench/results")
    parser.add_argument("--samples", type=int, default=30, help="of each executor (default: 30)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default: 1 2)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384], help="network inputs (default: 256 384)")
    options = parser.parse_args()
    machine = describe("torch", "onnxruntime", "openvino")
    rows: list[list[object]] = []
    with torch.inference_mode():
        for threads, size in tqdm([(t, s) for t in options.threads for s in options.sizes], file=sys.stderr):
            runs = executors(size, threads)
            reference = runs["modules", "fp32"]
            agreement = {name: compare(run, reference, size) for name, run in runs.items()}
            image, clicks = inputs(size, 0, reference)
            for run in runs.values():
                run.see(image)
            calls = {" ".join(name): lambda run=run, clicks=clicks: run(clicks) for name, run in runs.items()}
            times = side_by_side(calls, options.samples, turn=5)
            for name in runs:
                t = times[" ".join(name)]
                error, differ, clearly = agreement[name]
                speed = times[f"plan {name[1]}"].median / t.median  # in the same precision
                numbers = [f"{v / 1e3:.2f}" for v in (t.median, t.lower, t.upper)]
                row = [*name, size, threads, *numbers, f"{speed:.2f}", f"{error:.1e}", f"{differ:.1e}", clearly]
                rows.append(row)
                print(*row, sep="\t", flush=True)
    if options.write:
        with beside(RESULT) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([*row, machine] for row in rows)


if __name__ == "__main__":
    main()
