"""Exports the network as ONNX files that any runtime can load, with a manifest that says how to feed them.

The parts of a click are separate files, as in `runtime.plan`: `prepare` runs once for each image region, `click` for
each click, and `refine` after it where the model has a refiner.  Fourier transforms become matrix products of real
numbers.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activefreq_engine import __version__
from activefreq_engine.conventions import OUTLINED
from activefreq_engine.errors import BackendUnavailableError, InvalidArgumentError, ModelLoadError
from activefreq_engine.files import alone_in, write_file, writing
from activefreq_engine.values import whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from activefreq_engine.models import FreqFormer

OPSET = 18
IR_VERSION = 8
"""What opset 18 came with; exporters write a newer one, which ONNX Runtime before 1.18 refuses."""
MANIFEST = "manifest.json"


def export_onnx(
    model: str | os.PathLike[str] | FreqFormer,
    folder: str | os.PathLike[str],
    height: int = 256,
    width: int | None = None,
) -> list[Path]:
    """Write a model as ONNX files for batches of one image of one size, float32.

    ``prepare.onnx``: image `[1, 3, H, W]` -> c1 `[1, C1, H/4, W/4]`, p1 `[1, E, H/4, W/4]`.
    Of a network with a guide it also gives g2, g3, g4 (`models.freqformer.GuidedFeatures`).
    ``click.onnx``: all of these, clicks `[1, 3, H, W]` -> logits `[1, 1, H, W]`, embedding `[1, E, H/4, W/4]`.
    ``refine.onnx``, where the model has a refiner: embedding, logits, boxes `[1, 4]`, image `[1, 3, S, S]`,
    disks `[1, 2, S, S]` -> refined `[1, 1, S, S]` logits.
    ``manifest.json``: these shapes, the meaning of the inputs, normalisation, click radius and threshold.  It is
    written last: without it the files in a folder may be those of two exports.

    Args:
        model (str | path | FreqFormer): a name with shipped weights, a checkpoint file, or a model.
        folder (path): where to write; it is made if it is missing, and files of an earlier export are replaced.
        height (int): of the network input, a multiple of 32. Default: 256.
        width (int, optional): the same. Default: `height`.

    Returns:
        list[Path]: the files, the manifest last.

    Raises:
        BackendUnavailableError: onnx or onnxscript is missing, or torch's exporter cannot be imported.
        InvalidArgumentError: a side is not a positive multiple of 32, or `folder` is a file or no path.
        FileWriteError: the folder cannot be made, or a file not be written.
        ModelLoadError: the model cannot be loaded.
    """
    height = whole("height", height)
    width = height if width is None else whole("width", width)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(
            f'export needs {" and ".join(missing)}, not installed here; in the checkout run: pip install ".[export]"'
        )
    with writing(folder):
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InvalidArgumentError(f"{folder} is a file; name a directory to write to")

    import torch
    from tqdm import tqdm

    from activefreq_engine.models import FreqFormer
    from activefreq_engine.runtime.engine import resolve_model
    from activefreq_engine.runtime.plan import Folded

    name, module = resolve_model(model)
    if not isinstance(module, FreqFormer):
        raise ModelLoadError(f"model is a {type(module).__name__}; only a FreqFormer can be exported")
    module = copy.deepcopy(module).float().cpu().eval()
    with torch.inference_mode():
        plan = Folded(module, precision="fp32").plan(height, width, form="matmul")
        refine: Any = plan.refine
        if refine is not None:
            refine.heads = _convolution(refine.heads)
        halves = _examples(plan, module.config.refine_size)
    graphs: dict[str, Any] = {}
    manifest = folder / MANIFEST
    bar = tqdm(halves.items(), "export", file=sys.stderr, disable=None, leave=False)
    with alone_in(folder):
        contents: dict[Path, bytes] = {}
        for title, (half, inputs, outputs) in bar:
            contents[folder / f"{title}.onnx"], graphs[title] = _made(half, inputs, outputs, f"{title}.onnx")
        with writing(manifest):
            manifest.unlink(missing_ok=True)  # that of an earlier export, whose files are replaced one by one now
        for path, content in contents.items():
            write_file(path, content)
        write_file(manifest, (json.dumps(_manifest(name, module, plan, graphs), indent=2) + "\n").encode())
    return [*contents, manifest]


def _convolution(narrow: Any) -> nn.Module:
    """Compute `layers.NarrowConv` as a plain convolution; its `fold` would become Col2Im, which few runtimes have."""
    import torch
    from torch import nn

    outputs, inputs = narrow.bias.numel(), narrow.taps.shape[1]
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    weight = narrow.taps.unflatten(0, (outputs, 3, 3)).permute(0, 3, 1, 2).flip(2, 3)
    conv.load_state_dict({"weight": weight, "bias": narrow.bias.flatten()})

    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.permute(0, 3, 1, 2))

    return ChannelsLast()


_Half = tuple["nn.Module", dict[str, "Tensor"], dict[str, "Tensor"]]


def _examples(plan: Any, crop: int) -> dict[str, _Half]:
    """Each part to export, with named example inputs of the right shapes and the outputs that it gives for them."""
    import torch

    image = torch.zeros(1, 3, plan.height, plan.width)
    prepared = _named(plan.prepare(image))
    given = {**prepared, "clicks": torch.zeros_like(image)}
    answer = _named(plan.click(*given.values()))
    halves: dict[str, _Half] = {
        "prepare": (plan.prepare, {"image": image}, prepared),
        "click": (plan.click, given, answer),
    }
    if plan.refine is not None:
        boxes = torch.tensor([[0.0, 0.0, plan.width, plan.height]])
        detail = {"boxes": boxes, "image": torch.zeros(1, 3, crop, crop), "disks": torch.zeros(1, 2, crop, crop)}
        given = {"embedding": answer["embedding"], "logits": answer["logits"], **detail}
        halves["refine"] = (plan.refine, given, {"refined": plan.refine(*given.values())})
    return halves


def _named(result: Any) -> dict[str, Tensor]:
    """The tensors of a named tuple by name, in the memory layout that an exported file gets them in."""
    return {name: tensor.contiguous() for name, tensor in result._asdict().items()}


def _made(
    half: nn.Module, inputs: dict[str, Tensor], outputs: dict[str, Tensor], file: str
) -> tuple[bytes, dict[str, Any]]:
    """The content of one file, and its entry in the manifest."""
    import onnx
    import torch

    try:
        with _hushed():
            program = torch.onnx.export(
                half,
                tuple(t.clone() for t in inputs.values()),  # the exporter refuses tensors of inference mode
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                optimize=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        raise BackendUnavailableError(
            f"torch {torch.__version__} cannot export here ({error.__cause__}). torch 2.6 cannot beside Triton 3.3 or "
            "newer: install torch 2.7 or newer"
        ) from error
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
    proto.ir_version = IR_VERSION
    _add_zero_bias(proto)
    _multiply_before_erf(proto)
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    return content, {
        "file": file,
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": [{"name": name, "shape": list(t.shape), "dtype": "float32"} for name, t in inputs.items()],
        "outputs": [{"name": name, "shape": list(t.shape), "dtype": "float32"} for name, t in outputs.items()],
    }


def _add_zero_bias(proto: Any) -> None:
    """Give every LayerNormalization its optional bias, without which ONNX Runtime 1.15 crashes while it fuses nodes."""
    from onnx import numpy_helper

    tensors = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "LayerNormalization" and len(node.input) == 2:
            scale = numpy_helper.to_array(tensors[node.input[1]])
            name = f"zero_bias_{len(scale)}"
            if name not in tensors:
                tensors[name] = numpy_helper.from_array(0 * scale, name)
                proto.graph.initializer.append(tensors[name])
            node.input.append(name)


def _multiply_before_erf(proto: Any) -> None:
    """Write GELU's ``erf(x / sqrt(2))`` as ``erf(x * sqrt(1/2))``: OpenCV 5.0 crashes on the former."""
    from onnx import numpy_helper

    tensors = {t.name: t for t in proto.graph.initializer}
    makers = {node.output[0]: node for node in proto.graph.node}
    for node in proto.graph.node:
        divided = makers.get(node.input[0]) if node.op_type == "Erf" else None
        if divided is not None and divided.op_type == "Div" and divided.input[1] in tensors:
            divisor = tensors[divided.input[1]]
            name = f"{divisor.name}_inverse"
            if name not in tensors:
                value = numpy_helper.to_array(divisor)
                tensors[name] = numpy_helper.from_array((1 / value).astype(value.dtype), name)
                proto.graph.initializer.append(tensors[name])
            divided.op_type, divided.input[1] = "Mul", name
    used = {name for node in proto.graph.node for name in node.input}
    for tensor in [t for t in proto.graph.initializer if t.name not in used]:
        proto.graph.initializer.remove(tensor)


RUNTIMES = {
    "onnxruntime": "1.15 and newer: prepare, click, refine",
    "opencv dnn": "5.0 and newer: prepare and click; it has no GridSample for refine. 4.x cannot read them",
}
"""Other runtimes that were tried: their versions, and the parts that give the same answers there as the model."""


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Hide the exporter's notes about itself: deprecations, and that torchvision is missing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _manifest(name: str, model: FreqFormer, plan: Any, graphs: dict[str, Any]) -> dict[str, Any]:
    from activefreq_engine.models import IMAGE_MEAN, IMAGE_STD
    from activefreq_engine.session import Session

    threshold = inspect.signature(Session).parameters["threshold"].default

    return {
        "format": "activefreq-onnx",
        "format_version": 1,
        "activefreq_engine": __version__,
        "model": name,
        "opset": OPSET,
        "height": plan.height,
        "width": plan.width,
        "image": {
            "channels": ["red", "green", "blue"],
            "scale": "value / 255, minus mean, divided by std",
            "mean": list(IMAGE_MEAN),
            "std": list(IMAGE_STD),
        },
        "clicks": {
            "channels": ["probability of the previous mask, zeros at first", "positive disks", "negative disks"],
            "position": "a click, a point of a scribble and each of a scribble's disks are moved to the centre of the "
            "image pixel in which they lie",
            "radius": model.config.click_radius,
            "disk": "1 where a pixel's centre is at most the radius from a click, else 0; in network pixels",
        },
        "region": {
            "geometry": "pixel i covers i to i + 1; the part of the image that is looked at is stretched onto the "
            "whole input, edge to edge",
            "resampling": "area averages along an axis that shrinks, linear along one that grows",
        },
        "prompts": _prompts(),
        "boxes": "x0, y0, x1, y1, half-open, in network pixels; the part that the refiner redraws",
        "refine": _refining(),
        "mask": {"probability": "sigmoid of the logits", "threshold": threshold, "inside": "probability > threshold"},
        "runtimes": RUNTIMES,
        "graphs": graphs,
    }


def _refining() -> dict[str, Any]:
    """Text of the manifest: what the graph `refine` is given, where there is one, and what its answer is for."""
    from activefreq_engine.session import zoom

    return {
        "when": "after a click, if a network pixel covers more than `sharp` image pixels along the longer side of the "
        "region; without it the mask is that of `click`",
        "sharp": zoom.SHARP,
        "part": "any part of the region. For a first mask: the box around it, each side `times` as long about the same "
        "centre and at least `least` network pixels, rounded outwards to whole image pixels and cut off at the region. "
        "Later, where the last click changed the mask",
        "times": zoom.EXPANSION,
        "least": zoom.MIN_FOCUS,
        "image": "the part, cut out of the image and stretched onto this input; resampling and scale as for `prepare`",
        "disks": "positive disks and negative disks as for `clicks`, of the same radius, in pixels of this input",
        "refined": "logits of the part, in place of those of `click`, in the mask and, by area averages, in the first "
        "channel of the next click",
    }


def _prompts() -> dict[str, Any]:
    """Text of the manifest: how prompts other than clicks are drawn into the three channels of `clicks`."""
    from activefreq_engine.session import prompts, zoom

    region = {
        "times": zoom.EXPANSION,
        "least": zoom.MIN_OUTLINED,
        "means": "the box about the same centre, each side so many times as long and at least so many image pixels, "
        "rounded outwards to whole pixels and cut off at the image",
    }
    return {
        "box": {
            "means": "a fresh start: earlier prompts no longer count. Look at the region. The first channel is "
            "`inside` where a pixel's centre lies in the box, rounded outwards to whole image pixels, else `outside`; "
            "no disks. Later prompts have the answer in the first channel",
            "inside": OUTLINED,
            "outside": 0.0,
            "region": region,
        },
        "scribble": {
            "means": "disks of its sign, spread evenly along the part of the line that lies in the region, its ends "
            "included. Their number is its length / (`apart` * radius), rounded down, but 1 to `most`; a single one "
            "lies in its middle. In the mask every image pixel under the line, one pixel wide, takes its sign",
            "apart": 2,
            "most": prompts.MOST_DISKS,
        },
        "lasso": {
            "means": "its pixels are those whose centres the closed line goes around. Positive, nothing found yet: as "
            "a box, with its own pixels. Positive otherwise: the first channel is at least `inside` there. Negative: "
            "it is `outside` there, with a negative disk at the pixel that is farthest from the line; in the mask they "
            "are outside",
            "inside": OUTLINED,
            "outside": 0.0,
            "region": region,
        },
    }


class Format(str, Enum):
    """Formats that `activefreq export` can write."""

    onnx = "onnx"


def export_command(
    model: Annotated[str, typer.Argument(help="A model with shipped weights, or a checkpoint file.")],
    out: Annotated[Path, typer.Option(help="Folder for the files; made if it is missing.")],
    format: Annotated[Format, typer.Option(help="File format.")] = Format.onnx,
    size: Annotated[int, typer.Option(help="Side of the network input, pixels: a multiple of 32.")] = 256,
) -> None:
    """Write a model as ONNX files for other runtimes: prepare (once an image region), click, refine, manifest."""
    for path in export_onnx(model, out, size):
        typer.echo(f"wrote {path}")
