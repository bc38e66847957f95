"""Checkpoints: safetensors with metadata.  Nothing here ever unpickles."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import beside
from ..host import settings_aside
from .freqformer import FreqFormer, FreqFormerConfig

FORMAT = "activefreq-1"
ARCHITECTURE = "FreqFormer"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LATER = {"guide"}
"""Fields of the configuration that older files lack; one that has its default is not written."""


def weights_digest(state: dict[str, torch.Tensor]) -> str:
    """sha256 (hex) over names, dtypes, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_checkpoint(
    model: FreqFormer,
    path: str | Path,
    metadata: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights, configuration and metadata to one safetensors file.

    Args:
        model (FreqFormer): the model; its floating-point weights are stored as `dtype`.
        path (path): the target, which is written whole or not at all.
        metadata (dict, optional): JSON-able facts: training data, metrics, licence, recipe.
        dtype (torch.dtype): storage type. Default: float16.

    Raises:
        ValueError: a weight is not finite as `dtype`, so that the file could not be loaded.
    """
    path = Path(path)
    state = {
        k: (v.to(dtype) if v.is_floating_point() else v).detach().cpu().contiguous().clone()
        for k, v in model.state_dict().items()
    }
    for k, v in state.items():
        if v.is_floating_point() and not v.isfinite().all():
            largest = float(model.state_dict()[k].abs().max())
            raise ValueError(f"{k} reaches {largest:g}, which {dtype} cannot hold; store dtype=torch.float32 if finite")
    header = {
        "format": FORMAT,
        "architecture": ARCHITECTURE,
        "config": json.dumps(_described(model.config), sort_keys=True),
        "sha256": weights_digest(state),
        "metadata": json.dumps(metadata or {}, sort_keys=True),
    }
    with beside(path) as partial:
        save_file(state, partial, metadata=header)


def _described(config: FreqFormerConfig) -> dict[str, Any]:
    """The configuration as it is stored: newer fields only where they are used, for older versions to read."""
    default = asdict(FreqFormerConfig())
    return {k: v for k, v in asdict(config).items() if k not in LATER or v != default[k]}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a checkpoint says about itself: format, architecture, config, sha256, metadata.  Reads no weights.

    Raises:
        ModelLoadError: the file is missing, damaged, or not one of our checkpoints.
    """
    from ..errors import ModelLoadError

    try:
        with open(path, "rb"):  # tells why it cannot be opened; safetensors says "No such file" in every case
            pass
    except FileNotFoundError:
        raise ModelLoadError(f"no checkpoint at {path}") from None
    except (OSError, ValueError) as e:
        raise ModelLoadError(f"cannot read the checkpoint {path}: {e}") from e
    try:
        with safe_open(str(path), framework="pt") as f:
            header = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise ModelLoadError(
            f"{path} is not a readable safetensors file ({e}); pickled checkpoints (.pt, .pth) are never loaded, "
            "convert them with save_checkpoint"
        ) from None
    if header.get("format") != FORMAT:
        raise ModelLoadError(
            f"{path} has format {header.get('format')!r}, expected {FORMAT!r}: it was not written by save_checkpoint"
        )
    try:
        read = {name: json.loads(header[name]) for name in ("config", "metadata")}
        return {**header, **read, "sha256": header["sha256"], "architecture": header["architecture"]}
    except (KeyError, ValueError, RecursionError) as e:  # ValueError: also a number of thousands of digits
        raise ModelLoadError(f"{path} has a damaged header: {e!r}") from None


def load_checkpoint(path: str | Path, *, expected: FreqFormerConfig | None = None) -> FreqFormer:
    """Rebuild the model that a checkpoint holds, float32, in evaluation mode.

    Args:
        path (path): a file written by `save_checkpoint`.
        expected (FreqFormerConfig, optional): refuse the file unless it holds exactly this configuration.

    Raises:
        ModelLoadError: missing or damaged file, another architecture, unknown configuration, missing, unexpected or
            misshapen weights, non-finite weights, or a sha256 that does not match.
    """
    from ..errors import ModelLoadError

    header = read_metadata(path)
    known = {f.name for f in fields(FreqFormerConfig)}
    if header.get("architecture") != ARCHITECTURE:
        raise ModelLoadError(f"{path} holds a {header.get('architecture')!r}; this package loads {ARCHITECTURE!r}")
    if not isinstance(header["config"], dict) or set(header["config"]) | LATER != known:
        raise ModelLoadError(f"{path} has the configuration {header['config']}; expected the fields {sorted(known)}")
    config = FreqFormerConfig(**header["config"])
    if expected is not None and config != expected:
        ours, theirs = asdict(expected), asdict(config)
        differ = "; ".join(f"{k}: {theirs[k]!r} in the file, {ours[k]!r} wanted" for k in ours if ours[k] != theirs[k])
        raise ModelLoadError(f"{path} holds another model ({differ}); create it with the file's values")
    try:
        with torch.device("meta"):  # shapes only: a damaged configuration may ask for any amount of memory
            wanted = FreqFormer(config).state_dict()
    except (ValueError, TypeError, RuntimeError, OverflowError) as e:
        raise ModelLoadError(f"{path} describes a model that cannot be built: {str(e).splitlines()[0]}") from None
    with settings_aside(), safe_open(str(path), framework="pt") as f:
        state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (a safetensors handle is not a dict)
    if weights_digest(state) != header.get("sha256"):
        raise ModelLoadError(f"{path}: the weights do not match their sha256; the file is damaged, fetch it again")
    problems = [f"missing {k}" for k in wanted if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in wanted]
    problems += [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    problems += [
        f"{k} is {state[k].dtype}, expected {'floats of 16 to 64 bits' if v.is_floating_point() else v.dtype}"
        for k, v in wanted.items()
        if k in state and state[k].dtype not in (FLOATS if v.is_floating_point() else (v.dtype,))
    ]
    problems += [f"{k} is not finite" for k, v in state.items() if v.dtype in FLOATS and not v.isfinite().all()]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ModelLoadError(f"{path} does not fit its own configuration: {'; '.join(problems[:3])}{more}")
    with settings_aside(), torch.random.fork_rng(devices=[]):  # what it draws is replaced, and the host's seed its own
        model = FreqFormer(config).float()
    model.load_state_dict(state)
    return model.eval()
