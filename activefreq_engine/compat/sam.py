"""SAM's and SAM 2's predictors, with the names, shapes and coordinate rules of Meta's code."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activefreq_engine.compat import prompts
from activefreq_engine.compat.prompts import LOW, THRESHOLDS, Extent, MaskPrompt
from activefreq_engine.compat.transforms import ResizeLongestSide
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.errors import (
    ActiveFreqError,
    InvalidArgumentError,
    InvalidClickError,
    InvalidImageError,
    InvalidPromptError,
    NoImageError,
)
from activefreq_engine.images import load_image
from activefreq_engine.memory import typed
from activefreq_engine.models import list_models
from activefreq_engine.runtime.engine import Engine
from activefreq_engine.session.arguments import check_box
from activefreq_engine.session.canvas import Canvas
from activefreq_engine.session.history import Picture
from activefreq_engine.session.zoom import resize

FRAME = 1024
"""Longer side of SAM's input frame, in which `predict_torch` takes its prompts."""

_log = logging.getLogger(__name__)

Answer = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]
"""Masks `[C, H, W]`, predicted IoU `[C]`, low-resolution logits `[C, 256, 256]`."""


class Sam:
    """Stands for SAM's model: here it is an engine of ours, made when it is first needed.

    Args:
        checkpoint (str | path | Engine, optional): a name of `activefreq_engine.list_models()`, a checkpoint of ours,
            or an engine.  SAM's own weights are not read: where they are named, ours for pictures of any kind answer
            (`conventions.DEFAULT_MODEL`).  The log says so.
        device (str): see `Engine`.
    """

    mask_threshold = 0.0
    """Logits above it are inside."""
    image_format = "RGB"

    def __init__(self, checkpoint: Any = None, device: str = "auto") -> None:
        self._engine = checkpoint if isinstance(checkpoint, Engine) else None
        self._model = DEFAULT_MODEL if checkpoint is None or self._engine is not None else str(checkpoint)
        if self._model not in list_models() and Path(self._model).suffix != ".safetensors":
            _log.warning("%s holds weights of SAM, which are not read here; %s answers", self._model, DEFAULT_MODEL)
            self._model = DEFAULT_MODEL
        self._device = device
        self.image_encoder = SimpleNamespace(img_size=FRAME)

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            ModelLoadError, BackendUnavailableError: see `Engine`.
        """
        return self._engine or Engine.shared(self._model, self._device)

    @property
    def device(self) -> torch.device:
        """The device that computes; tensors of prompts may lie on it."""
        return self.engine.device

    def to(self, device: Any) -> Sam:
        """Compute on another device from now on.

        Raises:
            InvalidArgumentError: this was made from an engine, which stays on its device.
        """
        if self._engine is not None and torch.device(device).type != self.device.type:
            raise InvalidArgumentError(
                f"the engine is on {self.device} and stays there; make another Engine on {device}"
            )
        self._device = str(device)
        return self

    def eval(self) -> Sam:
        """Does nothing: the model is always in evaluation mode."""
        return self

    def __call__(self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Masks for several pictures with their prompts, as SAM's model takes them.

        Args:
            batched_input: of each picture "image" (tensor `[3, h, w]`, 0 to 255, in the input frame), "original_size"
                (H, W), and "point_coords" `[B, N, 2]` with "point_labels" `[B, N]`, "boxes" `[B, 4]`, "mask_inputs"
                `[B, 1, 256, 256]`, in the input frame.
            multimask_output (bool): three masks for each prompt, or one.

        Returns:
            Of each picture "masks" (bool `[B, C, H, W]`), "iou_predictions" `[B, C]`, "low_res_logits"
            `[B, C, 256, 256]`.
        """
        found = []
        for item in batched_input:
            predictor = AtOncePredictor(self)
            predictor.set_torch_image(item["image"][None], item["original_size"])
            masks, scores, low = predictor.predict_torch(
                item.get("point_coords"),
                item.get("point_labels"),
                item.get("boxes"),
                item.get("mask_inputs"),
                multimask_output,
            )
            found.append({"masks": masks, "iou_predictions": scores, "low_res_logits": low})
        return found


class _Registry(Mapping[str, Any]):
    """Maps names to functions that make a `Sam`.  All kinds of SAM give the same here; names of ours give ours."""

    _kinds = ("default", "vit_h", "vit_l", "vit_b")

    def __getitem__(self, kind: str) -> Any:
        if kind not in self._kinds and kind not in list_models():
            raise KeyError(kind)
        return partial(Sam, kind) if kind in list_models() else Sam

    def __iter__(self) -> Iterator[str]:
        return iter((*self._kinds, *list_models()))

    def __len__(self) -> int:
        return len(list(iter(self)))


sam_model_registry: Mapping[str, Any] = _Registry()
"""``sam_model_registry["vit_h"](checkpoint=...)`` is a `Sam`; so is that of a name of `list_models()`."""


def build_sam2(config_file: str | None = None, ckpt_path: Any = None, device: str = "auto", **_: Any) -> Sam:
    """Makes the model for `SAM2ImagePredictor`.  `config_file` names SAM 2's network and is not used; `ckpt_path` is
    the `checkpoint` of `Sam`."""
    return Sam(ckpt_path, device)


class _Predictor(ABC):
    """What both predictors share: they hold pictures, and answer prompts in pixels of a picture with masks."""

    mask_threshold = 0.0
    _prepares = True
    """Whether the network looks at a picture before the first prompt comes."""

    def __init__(self, sam_model: Sam | Engine | str | None = None) -> None:
        self.model = sam_model if isinstance(sam_model, Sam) else Sam(sam_model)
        self._pictures: list[Picture] = []
        self._sizes: list[tuple[int, int]] = []
        """(H, W) of the masks to give."""

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.model.device

    def get_image_embedding(self) -> Tensor:
        """SAM's embedding of the picture, which does not exist here.

        Raises:
            ActiveFreqError: always.
        """
        raise ActiveFreqError(
            "there is no embedding of SAM's here: this network computes features for the part of a picture that is "
            "clicked in. Use predict, or a predictor of SAM's own package"
        )

    @abstractmethod
    def _extent(self, picture: Picture) -> Extent:
        """Where the low-resolution mask of a picture lies."""

    def _open(self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]] | None = None) -> None:
        pictures = [prompts.open_picture(image) for image in images]
        for picture in pictures if self._prepares else ():
            prompts.prepare(self.model.engine, picture)
        self._pictures = pictures
        self._sizes = [p.shape for p in self._pictures] if sizes is None else list(sizes)

    def _opened(self, index: int = 0) -> Picture:
        if not self._pictures:
            raise NoImageError("the predictor has no image; call set_image first")
        return self._pictures[index]

    def _masks(self, index: int, asked: Sequence[MaskPrompt], multimask: bool, logits: bool) -> list[Answer]:
        """The answer to each prompt."""
        picture = self._opened(index)
        return [
            self._answer(canvas, self._sizes[index], self._extent(picture), multimask, logits)
            for canvas in prompts.answer(self.model.engine, picture, asked)
        ]

    @staticmethod
    def _answer(canvas: Canvas, size: tuple[int, int], extent: Extent, multimask: bool, logits: bool) -> Answer:
        thresholds = THRESHOLDS if multimask else THRESHOLDS[:1]
        probs = canvas.probs()
        if probs.shape != size:
            probs = resize(probs, *size)
        masks = [probs > np.float32(t) for t in thresholds]
        scores = np.array([prompts.expected_iou(probs, m) for m in masks], np.float32)
        low = canvas.sample((0, 0, *extent), LOW, LOW)
        return (
            np.stack([prompts.to_logits(probs, t) for t in thresholds] if logits else masks),
            scores,
            np.stack([prompts.to_logits(low, t) for t in thresholds]),
        )


class SamPredictor(_Predictor):
    """``segment_anything.SamPredictor``: a picture, then masks for points, boxes and earlier masks.

    `predict` has no memory: the same prompts have the same answer, whatever was asked before.  For a person who clicks,
    a `Session` is better: it shows the network its own last answer, undoes, and suggests.

    Args:
        sam_model (Sam | Engine | str, optional): a model of `sam_model_registry`, an engine, or a name or checkpoint of
            ours. Default: "freqformer_b0_guided".

    Example:
        >>> picture = np.full((90, 120, 3), 220, np.uint8)
        >>> picture[30:60, 40:80] = (120, 60, 50)
        >>> predictor = SamPredictor("freqformer_b0")
        >>> predictor.set_image(picture)
        >>> masks, scores, logits = predictor.predict(np.array([[60, 45]]), np.array([1]))
        >>> masks.shape, scores.shape, logits.shape
        ((3, 90, 120), (3,), (3, 256, 256))
    """

    def __init__(self, sam_model: Sam | Engine | str | None = None) -> None:
        super().__init__(sam_model)
        self.transform = ResizeLongestSide(FRAME)

    @property
    def is_image_set(self) -> bool:
        """Whether there is a picture."""
        return bool(self._pictures)

    @property
    def original_size(self) -> tuple[int, int]:
        """(H, W) of the picture, and of masks."""
        self._opened()
        return self._sizes[0]

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of the picture in the input frame."""
        return self.transform.get_preprocess_shape(*self.original_size, FRAME)

    @typed
    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        """Start on a picture; the one before is forgotten.

        Args:
            image: uint8 `[H, W, 3]`, or anything that `Session.set_image` takes.
            image_format (str): "RGB" or "BGR", the order of an array's channels.

        Raises:
            InvalidImageError, InvalidArgumentError: it cannot be used.
        """
        if image_format not in ("RGB", "BGR"):
            raise InvalidArgumentError(f"image_format is {image_format!r}; allowed are 'RGB' and 'BGR'")
        self._open([load_image(image, bgr=image_format == "BGR")])

    @typed
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Start on a picture that is in the input frame already.

        Args:
            transformed_image: `[1, 3, h, w]`, 0 to 255, the longer side 1024.
            original_image_size: (H, W) of the masks to give.

        Raises:
            InvalidImageError: another shape.
        """
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != FRAME:
            raise InvalidImageError(f"the image has shape {shape}; expected [1, 3, h, w] with a longer side of {FRAME}")
        pixels = transformed_image[0].permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8).cpu().numpy()
        height, width = (int(n) for n in original_image_size)
        self._open([np.ascontiguousarray(pixels)], [(height, width)])

    def reset_image(self) -> None:
        """Forget the picture."""
        self._pictures, self._sizes = [], []

    @typed
    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Answer:
        """Masks for prompts on the picture.

        Args:
            point_coords: `[N, 2]`, (x, y) in pixels of the picture.
            point_labels: `[N]`: 1 inside, 0 outside, -1 no point.
            box: `[4]`, (x0, y0, x1, y1) in pixels of the picture; not together with `mask_input`.
            mask_input: `[1, 256, 256]`: the low-resolution logits of an earlier answer.  Without points or a box the
                answer is that mask.
            multimask_output (bool): three masks instead of one: as in a session (probability above 0.49), surely inside
                (above 0.8), possibly inside (above 0.2).
            return_logits (bool): float32 logits instead of masks, above 0 inside.

        Returns:
            Masks bool `[C, H, W]`; their expected IoU `[C]`; low-resolution logits `[C, 256, 256]` float32 of the
            square of the picture's longer side, to pass as `mask_input`: the network then starts from that mask.

        Raises:
            NoImageError: there is no picture.
            InvalidClickError, InvalidPromptError, InvalidArgumentError, InvalidMaskError: a prompt cannot be used.
        """
        picture = self._opened()
        scale = 1.0 if picture.shape == self.original_size else self.transform.factors(self.original_size)
        points = None if point_coords is None else _numbers(point_coords, "point_coords", 2) * scale
        given = None if box is None else _numbers(box, "box", 4)
        if given is not None and given.size != 4:
            raise InvalidPromptError(
                f"box has shape {given.shape}; expected [4], one box. predict_torch takes several, [B, 4]"
            )
        corners = None if given is None else (given.reshape(2, 2) * scale).ravel()
        asked = _prompt(picture, points, point_labels, corners, mask_input, self._extent(picture))
        return self._masks(0, [asked], multimask_output, return_logits)[0]

    @typed
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for several prompts at once, in one pass of the network for up to 16 of them.

        Args:
            point_coords: `[B, N, 2]`, (x, y) in the input frame, see `ResizeLongestSide.apply_coords_torch`.
            point_labels: `[B, N]`.
            boxes: `[B, 4]`, (x0, y0, x1, y1) in the input frame.
            mask_input: `[B, 1, 256, 256]`.
            multimask_output, return_logits: as `predict`.

        Returns:
            `[B, C, H, W]`, `[B, C]`, `[B, C, 256, 256]`, as `predict`, on `device`.

        Raises:
            NoImageError, InvalidClickError, InvalidPromptError, InvalidMaskError: as `predict`.
            InvalidArgumentError: as `predict`; or prompts of different numbers.
        """
        picture = self._opened()
        # the picture itself may be in the frame
        factors = self.transform.factors(picture.shape)
        points = None if point_coords is None else _settled(_numbers(point_coords, "point_coords", 2) / factors)
        corners = None
        if boxes is not None:
            corners = _settled(_numbers(boxes, "boxes", 4).reshape(-1, 2, 2) / factors).reshape(-1, 4)
        asked = _prompts(picture, points, _numpy(point_labels), corners, _numpy(mask_input), self._extent(picture))
        found = self._masks(0, asked, multimask_output, return_logits)
        masks, scores, low = (torch.from_numpy(np.stack(part)).to(self.device) for part in zip(*found, strict=True))
        return masks, scores, low

    def _extent(self, picture: Picture) -> Extent:
        return (max(picture.shape),) * 2


class AtOncePredictor(SamPredictor):
    """A `SamPredictor` for prompts that come together with the picture.  It does not let the network look at the whole
    picture first: a box is answered from its surroundings alone."""

    _prepares = False


class SAM2ImagePredictor(_Predictor):
    """``sam2.sam2_image_predictor.SAM2ImagePredictor``.  It differs from `SamPredictor` as SAM 2 differs from SAM:
    masks are float32, `predict` takes several prompts at once, and low-resolution logits cover the picture, not its
    square.

    Args:
        sam_model: as `SamPredictor`.
    """

    @classmethod
    def from_pretrained(cls, model_id: str, **_: Any) -> SAM2ImagePredictor:
        """A predictor for a name of ours.  A name of SAM 2's gives our weights for any kind of picture, as in `Sam`."""
        return cls(Sam(model_id))

    @typed
    def set_image(self, image: Any) -> None:
        """Start on a picture: `[H, W, 3]`, a PIL image, or anything that `Session.set_image` takes.

        Raises:
            InvalidImageError: it cannot be used.
        """
        self._open([load_image(image)])

    @typed
    def set_image_batch(self, image_list: Sequence[Any]) -> None:
        """Start on several pictures, for `predict_batch`.

        Raises:
            InvalidImageError: one cannot be used.
        """
        self._open([load_image(image) for image in image_list])

    def reset_predictor(self) -> None:
        """Forget the picture."""
        self._pictures, self._sizes = [], []

    @typed
    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> Answer:
        """Masks for prompts on the picture.

        Args:
            point_coords: `[N, 2]` (x, y), or `[B, N, 2]` for several prompts.
            point_labels: `[N]` or `[B, N]`: 1 inside, 0 outside, -1 no point.
            box: `[4]` or `[B, 4]`, (x0, y0, x1, y1).
            mask_input: `[1, 256, 256]` or `[B, 1, 256, 256]`, of an earlier answer.
            multimask_output, return_logits: as `SamPredictor.predict`.
            normalize_coords (bool): False: points and boxes are given as parts of width and height, 0 to 1.

        Returns:
            As `SamPredictor.predict`, but masks float32, 0 and 1; with a leading B where there are several prompts.

        Raises:
            NoImageError, InvalidClickError, InvalidPromptError, InvalidArgumentError, InvalidMaskError: as
                `SamPredictor.predict`.
        """
        return self._predict(
            0, point_coords, point_labels, box, mask_input, multimask_output, return_logits, normalize_coords
        )

    @typed
    def predict_batch(
        self,
        point_coords_batch: Sequence[Any] | None = None,
        point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None,
        mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[NDArray[Any]], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """`predict` for each of several pictures: lists of what it takes, and of what it returns.

        Raises:
            NoImageError: there are none.
            InvalidArgumentError: lists of another length than that of the pictures; else as `predict`.
        """
        self._opened()
        columns = [point_coords_batch, point_labels_batch, box_batch, mask_input_batch]
        count = len(self._pictures)
        if wrong := [len(c) for c in columns if c is not None and len(c) != count]:
            raise InvalidArgumentError(
                f"there are {count} pictures, but prompts for {wrong[0]}; give prompts for each picture"
            )
        found = []
        for i in range(count):
            coords, labels, box, mask = (None if c is None else c[i] for c in columns)
            found.append(self._predict(i, coords, labels, box, mask, multimask_output, return_logits, normalize_coords))
        masks, scores, low = (list(part) for part in zip(*found, strict=True))
        return masks, scores, low

    def _predict(
        self,
        index: int,
        coords: Any,
        labels: Any,
        box: Any,
        mask_input: Any,
        multimask: bool,
        logits: bool,
        normalize: bool,
    ) -> Answer:
        picture = self._opened(index)
        height, width = picture.shape
        size = np.array([width, height], np.float64)
        points = None if coords is None else _numbers(coords, "point_coords", 2)
        corners = None if box is None else _numbers(box, "box", 4).reshape(-1, 4)
        if not normalize:
            points = None if points is None else _settled(points * size)
            corners = None if corners is None else _settled(corners * np.tile(size, 2))
        labels, given = _numpy(labels), _numpy(mask_input)
        if points is not None and points.ndim == 2:
            points, labels = points[None], None if labels is None else np.asarray(labels)[None]
        if given is not None and np.ndim(given) == 3:
            given = np.asarray(given)[None]
        asked = _prompts(picture, points, labels, corners, given, self._extent(picture))
        found = self._masks(index, asked, multimask, logits)
        masks, scores, low = (np.stack(part) if len(asked) > 1 else part[0] for part in zip(*found, strict=True))
        return masks.astype(np.float32), scores, low

    def _extent(self, picture: Picture) -> Extent:
        return picture.shape[1], picture.shape[0]


def _prompts(picture: Picture, points: Any, labels: Any, corners: Any, masks: Any, extent: Extent) -> list[MaskPrompt]:
    """Batches of prompts in pixels of the picture, one by one."""
    if points is not None and points.ndim != 3:
        raise InvalidClickError(f"point_coords has shape {points.shape}; expected [B, N, 2]")
    given = [np.atleast_1d(column) for column in (points, labels, corners, masks) if column is not None]
    counts = {len(column) for column in given}
    if len(counts) != 1 or 0 in counts:
        raise InvalidArgumentError(
            f"prompts for {sorted(counts)} masks at once; expected the same number of each kind, and at least one"
        )
    (count,) = counts
    columns = [[None] * count if c is None else list(c) for c in (points, labels, corners, masks)]
    return [_prompt(picture, p, sign, c, m, extent) for p, sign, c, m in zip(*columns, strict=True)]


def _prompt(picture: Picture, points: Any, labels: Any, corners: Any, mask: Any, extent: Extent) -> MaskPrompt:
    """One prompt in pixels of the picture, checked."""
    if points is None and corners is None and mask is None:
        raise InvalidArgumentError("nothing says what to segment; give points, a box or mask_input")
    if corners is not None and mask is not None:
        raise InvalidArgumentError("box and mask_input are both a start; give only one of them")
    return MaskPrompt(
        prompts.read_points(picture, points, labels),
        None if corners is None else check_box(picture, corners.tolist()),
        None if mask is None else prompts.read_logits(mask, extent, picture),
    )


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _numbers(values: Any, name: str, last: int) -> NDArray[np.float64]:
    """float64 `[..., last]`; an empty list of points will do."""
    try:
        array = np.asarray(_numpy(values), np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidClickError(f"{name} cannot be read as numbers: {error}") from error
    if array.size == 0:
        return array.reshape(0, last)
    if array.shape[-1:] != (last,):
        raise InvalidClickError(f"{name} has shape {array.shape}; expected [..., {last}]")
    return array


def _settled(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points that came from the input frame or from parts of the picture, with the rounding of whole numbers undone: it
    must not move a point or the edge of a box into the next pixel or out of the picture."""
    whole = np.rint(points)
    rounding = np.maximum(1e-3, 4 * np.finfo(np.float32).eps * np.abs(whole))  # of float32, in several steps
    return np.where(np.abs(points - whole) < rounding, whole, points)
