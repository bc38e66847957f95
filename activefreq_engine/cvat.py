"""CVAT: the function that `cvat-cli` registers and runs as an agent, and what its Nuclio function needs.

    cvat-cli function create-native activefreq --function-module activefreq_engine.cvat
    cvat-cli function run-agent ID --function-module activefreq_engine.cvat -p model=str:freqformer_b0_guided

docs/cvat.md has the rest.  Coordinates are (x, y) in pixels of the picture, floats, as CVAT has them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import Engine, InvalidArgumentError, Session
from activefreq_engine.compat.prompts import expected_iou
from activefreq_engine.conventions import DEFAULT_MODEL

Point = Sequence[float]


class Prompted:
    """A picture for which every request brings all prompts, with positive and negative points in two lists.

    Prompts that came with the last request too are taken to be older than the others, so that the network answers them
    in the order in which they were made.  Safe in several threads.

    Args:
        engine (Engine): answers.
        image: anything that `Session.set_image` takes.
    """

    def __init__(self, engine: Engine, image: Any) -> None:
        self._session = Session(engine=engine, wait=math.inf)
        self._session.set_image(image)
        self._order: list[tuple[float, float, bool]] = []
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Let the network look at the picture before the first request comes; see `Session.prepare`."""
        self._session.prepare()

    def mask(
        self, positive: Iterable[Point], negative: Iterable[Point], box: Sequence[Point] | None = None
    ) -> tuple[NDArray[np.bool_], float]:
        """The mask for prompts, and the IoU to expect of it.

        Args:
            positive, negative: (x, y), inside the object and outside of it.
            box (optional): two opposite corners.

        Raises:
            InvalidClickError, InvalidPromptError: a prompt cannot be used.
        """
        height, width = self._session.shape
        wanted = dict.fromkeys(
            (edge_inside(float(x), width), edge_inside(float(y), height), sign)
            for points, sign in ((positive, True), (negative, False))
            for x, y in points
        )
        corners = None
        if box is not None:
            (x0, y0), (x1, y1) = box
            corners = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        with self._lock:
            kept = [c for c in self._order if c in wanted]
            self._order = [*kept, *(c for c in wanted if c not in kept)]
            points, signs = [(x, y) for x, y, _ in self._order], [s for _, _, s in self._order]
            mask = self._session.predict(points, signs, box=corners).mask
            score = expected_iou(self._session.probs, mask)
            self._session.prepare(background=True)  # last: it takes the cores from what is waited for
            return mask, score


def edge_inside(value: float, size: int) -> float:
    """A coordinate, moved into the last pixel if it lies on the far edge.  Clients that count whole pixels place the
    edge half a pixel farther out.  What is beyond that stays outside, where it is refused."""
    return min(value, size - 0.5) if value <= size + 0.5 else value


def create(model: str = DEFAULT_MODEL, device: str = "auto") -> Any:
    """The function object for `cvat-cli`.

    Args:
        model (str): a shipped model's name, or a checkpoint's path.
        device (str): see `Engine`.

    Raises:
        InvalidArgumentError: cvat-sdk is not installed.
        ModelLoadError, BackendUnavailableError: see `Engine`.
    """
    try:
        from cvat_sdk import auto_annotation, models
        from cvat_sdk.masks import encode_mask
    except ImportError as error:
        raise InvalidArgumentError(f'CVAT needs cvat-sdk: pip install "cvat-sdk>=2.80" cvat-cli ({error})') from error
    engine = Engine.shared(model, device)
    engine.warmup()

    class Function:
        spec = auto_annotation.InteractionFunctionSpec(min_pos_points=1, min_neg_points=0, min_bounding_boxes=0)

        def preprocess_image(self, context: Any, image: Any) -> Prompted:
            prompted = Prompted(engine, image)
            prompted.prepare()
            return prompted

        def detect(self, context: Any, pp_image: Prompted, prompts: Any) -> list[Any]:
            mask, iou = pp_image.mask(prompts.pos_points, prompts.neg_points, prompts.bounding_box)
            if not mask.any():
                return []
            spec_id = int(auto_annotation.InteractionResultAttributes.CONFIDENCE)
            confidence = models.AttributeValRequest(spec_id=spec_id, value=f"{iou:.3f}")
            shape = auto_annotation.InteractionResultShape
            return [shape(type="mask", points=encode_mask(mask), attributes=[confidence])]

    return Function()
