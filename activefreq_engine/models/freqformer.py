"""FreqFormer: encoder, late click fusion, FreqNet decoder and refiner (ActiveFreq, Figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .freqnet import Axes, Filter, FreqNet
from .guide import Guide
from .layers import Encoder, init_weights
from .mit import MIT_SPECS, MixTransformer, OverlapPatchEmbed, to_map
from .refiner import Refined, Refiner
from .tinyvit import TINYVIT_SPECS, TinyViT

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FreqFormerConfig:
    """Everything that shapes the network.  Stored in each checkpoint; two models with equal configs are the same."""

    encoder: str = "mit_b0"
    embed_dim: int = 128  # width E of the decoder's fused map
    freq_depth: int = 1  # Freq blocks per Freq layer
    axes: Axes = "multi"
    filter: Filter = "complex"
    ffn_ratio: int = 2
    drop_path: float = 0.1
    refiner_width: int = 32  # 0: no refiner
    refine_size: int = 192  # side of the refiner's image crop, pixels
    click_radius: float = 5.0  # disks in the click maps, network pixels
    guide: str | None = None  # a frozen encoder that sees the image alone, see `models.guide`


BOUNDS: dict[str, tuple[type, float, float]] = {
    "embed_dim": (int, 1, 8192),
    "freq_depth": (int, 1, 16),
    "ffn_ratio": (int, 1, 16),
    "drop_path": (float, 0, 0.999),
    "refiner_width": (int, 0, 1024),
    "refine_size": (int, 8, 4096),
    "click_radius": (float, 0.5, 100),
}
"""Of each number in a configuration: its type, and what it may be.  Some say nothing about the shape of any weight, so
a file may hold any of them: without bounds one could ask for a million blocks or for a crop of terabytes."""


class ImageFeatures(NamedTuple):
    """Maps that depend on the image alone, so that they can be kept for every further click on the same crop."""

    c1: Tensor  # [B, C1, H/4, W/4], stage 1, before the clicks are added
    f1: Tensor  # [B, C1, H/4, W/4], c1 after its Freq layer


class GuidedFeatures(NamedTuple):
    """As `ImageFeatures`, for a network with a guide, which adds g2, g3, g4 to the tokens of stages 2, 3, 4."""

    c1: Tensor  # [B, C1, H/4, W/4]
    f1: Tensor  # [B, C1, H/4, W/4]
    g2: Tensor  # [B, C2, H/8, W/8]
    g3: Tensor  # [B, C3, H/16, W/16]
    g4: Tensor  # [B, C4, H/32, W/32]


class Coarse(NamedTuple):
    """The decoder's answer to a set of clicks, before the refiner."""

    logits: Tensor  # [B, 1, H, W]
    embedding: Tensor  # [B, E, H/4, W/4]


class FreqFormer(nn.Module):
    """Click segmentation network.

    The clicks have a patch embedding of their own, added to the *output* of stage 1 (as in FocalClick's SegFormer
    variant, arXiv 2204.02574).  The decoder reads stage 1 without clicks, so stage 1 and its Freq layer are computed
    once per image crop.
    """

    def __init__(self, config: FreqFormerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FreqFormerConfig()
        for name, (kind, low, high) in BOUNDS.items():
            value = getattr(config, name)
            if type(value) not in (int, kind) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r:.40}; allowed: {kind.__name__} from {low} to {high}")
        self.encoder = build_encoder(config.encoder, config.drop_path)
        channels = self.encoder.channels
        self.guide: Guide | None = None
        if config.guide is not None:
            if not isinstance(self.encoder, MixTransformer):
                raise ValueError(f"a guide needs a Mix Transformer as encoder; this one is {config.encoder!r}")
            self.guide = Guide(config.guide, channels)
        self.click_embed = OverlapPatchEmbed(3, channels[0], 7, 4)
        self.click_embed.apply(init_weights)
        self.decoder = FreqNet(
            channels, config.embed_dim, config.freq_depth, config.axes, config.filter, config.ffn_ratio
        )
        self.refiner = Refiner(config.embed_dim, config.refiner_width) if config.refiner_width else None

    def forward(self, image: Tensor, clicks: Tensor) -> Tensor:
        """The coarse mask.

        Args:
            image (Tensor): `[B, 3, H, W]`, RGB in [0, 1] normalised by IMAGE_MEAN and IMAGE_STD; H and W multiples
                of 32.
            clicks (Tensor): `[B, 3, H, W]`: previous soft mask (zeros at first), positive disks, negative disks.

        Returns:
            Tensor: `[B, 1, H, W]` logits.

        Raises:
            ValueError: if a shape does not fit.
        """
        check_inputs(image, clicks)
        return self.decode_clicks(self.encode_image(image), clicks).logits

    def encode_image(self, image: Tensor, seen: Sequence[Tensor] | None = None) -> ImageFeatures | GuidedFeatures:
        """Compute everything that does not depend on clicks.

        Args:
            image (Tensor): `[B, 3, H, W]`, normalised.
            seen (optional): result of `Guide.look` for this image, where it is known already.

        Returns:
            `ImageFeatures`, or `GuidedFeatures` for a network with a guide.
        """
        stage, freq = self.encoder.stages[0], self.decoder.freq_layers[0]
        if self.guide is None:
            c1 = stage(image)
            return ImageFeatures(c1, freq(c1))
        g1, *rest = self.guide(self.guide.look(image) if seen is None else seen)
        c1 = stage(image, g1)
        return GuidedFeatures(c1, freq(c1), *rest)

    def decode_clicks(self, features: ImageFeatures | GuidedFeatures, clicks: Tensor) -> Coarse:
        """The part that runs at every click: from the image's features and clicks `[B, 3, H, W]` to `Coarse`."""
        return self.decode_maps(features, self.encode_clicks(features, clicks))

    def encode_clicks(self, features: ImageFeatures | GuidedFeatures, clicks: Tensor) -> list[Tensor]:
        """Run stages 2 to 4 of the encoder with the clicks; their outputs, at strides 8, 16, 32."""
        x = features.c1 + to_map(*self.click_embed(clicks))
        maps = []
        added = features[2:]  # the maps of a guide
        for i, stage in enumerate(list(self.encoder.stages)[1:]):
            x = stage(x, added[i]) if added else stage(x)
            maps.append(x)
        return maps

    def decode_maps(self, features: ImageFeatures | GuidedFeatures, maps: list[Tensor]) -> Coarse:
        """Run the decoder: from the image's features and the outputs of `encode_clicks` to `Coarse`."""
        out = self.decoder([features.f1, *maps], first_is_filtered=True)
        size = [4 * side for side in features.c1.shape[2:]]
        return Coarse(F.interpolate(out.logits, size=size, mode="bilinear", align_corners=False), out.embedding)

    def refine(self, coarse: Coarse, boxes: Tensor, image_crop: Tensor, disks: Tensor) -> Tensor:
        """Redraw the mask inside focus boxes.

        Args:
            coarse (Coarse): the decoder's answer for a batch of B.
            boxes (Tensor): `[B, 4]` float, (x0, y0, x1, y1), half-open, in network pixels.
            image_crop (Tensor): `[B, 3, S, S]` the boxes' image content, normalised, S = `config.refine_size`.
            disks (Tensor): `[B, 2, S, S]` positive and negative disks in crop pixels.

        Returns:
            Tensor: `[B, 1, S, S]` logits on the boxes.

        Raises:
            ValueError: this model has no refiner.
        """
        return self.refine_maps(coarse, boxes, image_crop, disks).logits

    def refine_maps(self, coarse: Coarse, boxes: Tensor, image_crop: Tensor, disks: Tensor) -> Refined:
        """As `refine`, but returns all maps that the training losses need."""
        if self.refiner is None:
            raise ValueError("this model has no refiner (config.refiner_width is 0)")
        return self.refiner(image_crop, disks, coarse.embedding, coarse.logits, boxes)


def build_encoder(name: str, drop_path: float) -> Encoder:
    """An encoder by name; its last map has stride 32 (Mix Transformer) or 16 (TinyViT), which the decoder resizes."""
    if name in MIT_SPECS:
        return MixTransformer(MIT_SPECS[name], drop_path)
    if name in TINYVIT_SPECS:
        return TinyViT(TINYVIT_SPECS[name], drop_path)
    raise ValueError(f"encoder is {name!r}; allowed: {', '.join([*MIT_SPECS, *TINYVIT_SPECS])}")


def check_inputs(image: Tensor, clicks: Tensor) -> None:
    """Raise ValueError unless image and clicks have the shapes that `FreqFormer.forward` states."""
    for name, t in (("image", image), ("clicks", clicks)):
        if t.dim() != 4 or t.shape[1] != 3:
            raise ValueError(f"{name} has shape {tuple(t.shape)}; expected [B, 3, H, W]")
        if t.shape[2] % 32 or t.shape[3] % 32 or 0 in t.shape:
            raise ValueError(f"{name} is {t.shape[2]}x{t.shape[3]} (HxW); both sides must be positive multiples of 32")
    if image.shape != clicks.shape:
        raise ValueError(f"image {tuple(image.shape)} and clicks {tuple(clicks.shape)} differ in shape")


def normalise(image: Tensor) -> Tensor:
    """Normalise RGB images `[B, 3, H, W]`, uint8 or float in [0, 255], as the network expects them: float32."""
    mean = torch.tensor(IMAGE_MEAN, dtype=torch.float32, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, dtype=torch.float32, device=image.device).view(1, 3, 1, 1)
    return (image.float() / 255.0 - mean) / std
