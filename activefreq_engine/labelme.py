"""labelme with this engine among the models of its "AI-Points" and "AI-Box" modes:

    python -m activefreq_engine.labelme [labelme's own arguments]

labelme knows the models of osam, and the list in its window is a part of its code.  So this adds to osam's list and to
labelme's before labelme starts, and changes nothing else.  docs/labelme.md has the rest.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from activefreq_engine import Engine, InvalidArgumentError
from activefreq_engine.conventions import DEFAULT_MODEL
from activefreq_engine.cvat import Prompted

MODELS = {
    "activefreq:latest": ("ActiveFreq", DEFAULT_MODEL),
    "activefreq:lesions": ("ActiveFreq (skin lesions)", "freqformer_b0"),
}
"""osam's name for a model -> the name that labelme shows, and the weights."""

LABELME = "6.3"
"""The oldest labelme whose list of models is where we look for it."""


def main() -> None:
    """Start labelme with the models in its list.

    Raises:
        InvalidArgumentError: labelme is not installed, or is another than this was written for.
    """
    add_models()
    from labelme.__main__ import main as start

    start()


def add_models() -> None:
    """Put the models into osam's list and labelme's, before labelme has a window.  A second call changes nothing.

    Raises:
        InvalidArgumentError: as `main`.
    """
    try:
        import osam
        from labelme.widgets import AiAssistedAnnotationWidget as Panel
    except ImportError as error:
        raise InvalidArgumentError(f'labelme is needed: pip install "labelme>={LABELME}" ({error})') from error
    listed = getattr(Panel, "_available_models", None)
    if not isinstance(listed, list):
        from labelme import __version__ as version

        raise InvalidArgumentError(
            f"labelme {version} has no list of models where labelme {LABELME} has it; install {LABELME}"
        )
    for name, (shown, weights) in MODELS.items():
        if (name, shown) not in listed:
            osam.apis.registered_model_types.append(_model(name, weights))
            listed.append((name, shown))
    # Before there is a window: torch loads Triton's library, which crashes once a screen's OpenGL is in the process.
    Engine.shared(MODELS["activefreq:latest"][1])


def blue_first() -> bool:
    """Whether labelme hands over pictures with red and blue exchanged, in the order of Qt's memory.  6.3 does."""
    import imgviz
    from labelme.utils import img_qt_to_arr
    from PyQt5.QtGui import QColor, QImage

    image = QImage(1, 1, QImage.Format_RGB32)
    image.fill(QColor(255, 0, 0))
    return bool(imgviz.asrgb(img_qt_to_arr(image))[0, 0, 0] == 0)


def _model(name: str, weights: str) -> Any:
    """A model as osam has them: a class whose objects answer requests."""
    from osam import types
    from pydantic import PrivateAttr

    class Opened(types.ImageEmbedding):
        """What labelme keeps of a picture.  Its embedding is only a placeholder: osam's types require one."""

        _prompted: Prompted = PrivateAttr()

    class Model(types.Model):
        metadata = types.ModelMetadata(
            license_name="Apache License 2.0",
            license_url="https://www.apache.org/licenses/LICENSE-2.0",
            source_url="",
            license_spdx="Apache-2.0",
        )
        _blobs: ClassVar[dict[str, types.Blob]] = {}  # nothing to download

        def __init__(self) -> None:
            super().__init__()
            self._engine = Engine.shared(weights)

        def encode_image(self, image: Any) -> Opened:
            height, width = image.shape[:2]
            opened = Opened(original_height=height, original_width=width, embedding=np.zeros((1, 1, 1), np.float32))
            opened._prompted = Prompted(self._engine, image[..., ::-1] if blue_first() else image)
            opened._prompted.prepare()
            return opened

        def generate(self, request: types.GenerateRequest) -> types.GenerateResponse:
            opened, prompt = request.image_embedding, request.prompt
            if not isinstance(opened, Opened):
                opened = self.encode_image(request.image)
            if prompt is None or prompt.points is None or prompt.point_labels is None:
                raise InvalidArgumentError(
                    "this model takes points or a box, and no text; choose another model for text"
                )
            points = np.clip(prompt.points, 0, (opened.original_width, opened.original_height))
            inside, outside, first, second = (points[prompt.point_labels == label] for label in (1, 0, 2, 3))
            box = (first[-1], second[-1]) if len(first) and len(second) else None
            mask, score = opened._prompted.mask(inside, outside, box)
            found = []
            if mask.any():
                ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                place = types.BoundingBox(xmin=xs[0], ymin=ys[0], xmax=xs[-1], ymax=ys[-1])
                part = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
                found.append(types.Annotation(bounding_box=place, mask=part, score=score))
            return types.GenerateResponse(model=self.name, image_embedding=opened, annotations=found)

    Model.name = name
    return Model


if __name__ == "__main__":
    main()
