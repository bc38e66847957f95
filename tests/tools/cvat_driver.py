"""CVAT's own agent driver with our function, in this process; a stand-in for its pool of processes and its server's
pictures.  Runs in CVAT's environment; see test_cvat.py."""

import concurrent.futures
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from cvat_cli._internal import agent_driver
from cvat_cli._internal.agent import get_function_driver_class
from cvat_sdk.masks import decode_mask

from activefreq_engine.cvat import create

EXAMPLES = Path(__file__).parents[2] / "examples"


class InProcess:
    """The pool."""

    def submit(self, function: Any, *arguments: Any) -> Any:
        future: Any = concurrent.futures.Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def result(self, future: Any) -> Any:
        return future.result()


def main() -> None:
    function = create(model="freqformer_b0")
    calls = []
    real = function.preprocess_image
    function.preprocess_image = lambda context, image: (calls.append(image.size), real(context, image))[1]
    agent_driver.set_worker_current_function(function)
    kind = get_function_driver_class(function.spec)
    kind.init_worker(None)
    driver = kind(None, InProcess(), function.spec)
    fields = kind.get_remote_function_fields(function.spec)
    assert fields == {"min_pos_points": 1, "min_neg_points": 0, "startswith_box_optional": True}, fields
    picture = Image.open(EXAMPLES / "images" / "ISIC_0014809.jpg").crop((0, 0, 384, 300))  # W != H
    truth = np.asarray(Image.open(EXAMPLES / "masks" / "ISIC_0014809.png"))[:300] > 0
    sample = SimpleNamespace(media=SimpleNamespace(load_image=lambda: picture))
    driver._get_sample_from_ar_params = lambda params: (sample, None)
    asked: dict[str, Any] = {"type": "interact", "task": 1, "frame": 0, "neg_points": [], "obj_bbox": []}
    ys, xs = np.nonzero(truth)
    asked["pos_points"] = [[float(xs.mean()), float(ys.mean())]]

    def ask() -> np.ndarray:
        (shape,) = driver.calculate_result_for_ar(asked, lambda **_: None)["shapes"]
        assert shape["type"] == "mask", shape
        assert 0 < float(shape["attributes"][0]["value"]) <= 1, shape["attributes"]
        return decode_mask(shape["points"], image_width=384, image_height=300)

    def iou(mask: np.ndarray) -> float:
        return float((mask & truth).sum() / (mask | truth).sum())

    first = ask()
    assert first[int(ys.mean()), int(xs.mean())]
    assert iou(first) > 0.5, iou(first)
    asked["neg_points"] = [[370.0, 10.0], [384.0, 300.0]]
    second = ask()
    assert not second[10, 370]
    assert not second[299, 383]
    asked["obj_bbox"] = [[float(xs.min()), float(ys.min())], [float(xs.max()) + 1, float(ys.max()) + 1]]
    boxed = ask()
    assert iou(boxed) > 0.5, iou(boxed)
    asked.update(neg_points=[], obj_bbox=[])
    assert (ask() == first).mean() > 0.99
    assert calls == [(384, 300)], calls
    asked["pos_points"] = []
    try:
        driver.calculate_result_for_ar(asked, lambda **_: None)
        raise AssertionError("a request without points was accepted")
    except agent_driver.BadArError as error:
        print(f"one picture, four requests, IoU {iou(first):.2f} by a point, {iou(boxed):.2f} by a box; then: {error}")


if __name__ == "__main__":
    main()
