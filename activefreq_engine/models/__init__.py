"""The models: plain PyTorch modules, which training uses, and the reference for all faster ways to run them."""

from .checkpoint import load_checkpoint, read_metadata, save_checkpoint
from .freqformer import (
    IMAGE_MEAN,
    IMAGE_STD,
    Coarse,
    FreqFormer,
    FreqFormerConfig,
    GuidedFeatures,
    ImageFeatures,
    normalise,
)
from .registry import create_model, list_models

__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "Coarse",
    "FreqFormer",
    "FreqFormerConfig",
    "GuidedFeatures",
    "ImageFeatures",
    "create_model",
    "list_models",
    "load_checkpoint",
    "normalise",
    "read_metadata",
    "save_checkpoint",
]
