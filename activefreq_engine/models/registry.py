"""Creates models by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..host import settings_aside
from .checkpoint import load_checkpoint
from .freqformer import FreqFormer, FreqFormerConfig

CONFIGS = {
    "freqformer_b0": FreqFormerConfig(encoder="mit_b0", embed_dim=128),
    "freqformer_b0_general": FreqFormerConfig(encoder="mit_b0", embed_dim=128),  # the same network, other weights
    "freqformer_b0_guided": FreqFormerConfig(encoder="mit_b0", embed_dim=128, guide="tinyvit_5m"),
    "freqformer_b1": FreqFormerConfig(encoder="mit_b1", embed_dim=256),
    "freqformer_b2": FreqFormerConfig(encoder="mit_b2", embed_dim=256),
    "freqformer_b3": FreqFormerConfig(encoder="mit_b3", embed_dim=512),
    "freqformer_tinyvit": FreqFormerConfig(encoder="tinyvit_5m", embed_dim=128),
}
WEIGHTS = Path(__file__).parent.parent / "weights"


def list_models(*, pretrained: bool = False) -> list[str]:
    """The names that `create_model` knows; with `pretrained`, only those with shipped weights."""
    return [name for name in CONFIGS if not pretrained or (WEIGHTS / f"{name}.safetensors").exists()]


def create_model(
    name: str = "freqformer_b0", *, pretrained: bool = False, checkpoint: str | Path | None = None, **overrides: Any
) -> FreqFormer:
    """Build a model in evaluation mode.

    Args:
        name (str): one of `list_models()`.
        pretrained (bool): load the weights shipped with the package.
        checkpoint (path, optional): a file with weights to load instead; its configuration must equal the model's.
        overrides: fields of `FreqFormerConfig`, for a model without shipped weights.

    Example:
        >>> model = create_model("freqformer_b0", pretrained=True)
        >>> model.config.encoder, model.training
        ('mit_b0', False)

    Raises:
        ModelLoadError: unknown name, no shipped weights, or weights that do not fit.
    """
    from ..errors import ModelLoadError

    if name not in CONFIGS:
        raise ModelLoadError(f"unknown model {name!r}; known models: {', '.join(CONFIGS)}")
    try:
        config = replace(CONFIGS[name], **overrides)
    except TypeError as e:
        fields = ", ".join(FreqFormerConfig.__dataclass_fields__)
        raise ModelLoadError(f"cannot configure {name}: {e}; FreqFormerConfig has: {fields}") from None
    if pretrained and checkpoint is None:
        checkpoint = WEIGHTS / f"{name}.safetensors"
        if not checkpoint.exists():
            shipped = ", ".join(list_models(pretrained=True)) or "none"
            raise ModelLoadError(f"no weights are shipped for {name}; shipped: {shipped}; pass checkpoint=PATH instead")
    if checkpoint is not None:
        return load_checkpoint(checkpoint, expected=config)
    try:
        with settings_aside():
            return FreqFormer(config).float().eval()
    except (ValueError, TypeError) as e:
        raise ModelLoadError(f"cannot configure {name}: {e}") from None
