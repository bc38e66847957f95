"""X-AnyLabeling's own client of remote servers, asking a server of ours.  Runs in X-AnyLabeling's environment, with the
server's address as its argument; see test_x_anylabeling.py."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
from anylabeling import config
from anylabeling.services.auto_labeling.remote_server import RemoteServer
from PyQt6.QtGui import QImage
from PyQt6.QtWidgets import QApplication

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURE = EXAMPLES / "images" / "ISIC_0014809.jpg"


def main() -> None:
    application = QApplication([])
    said: list[str] = []
    settings = Path.home() / ".xanylabelingrc"  # where X-AnyLabeling keeps a user's settings
    settings.write_text(json.dumps({"remote_server_settings": {"server_url": sys.argv[1]}}))
    config.current_config_file = str(settings)
    model = {"type": "remote_server", "name": "remote", "display_name": "Remote-Server"}
    client = RemoteServer(model, said.append)
    (name,) = client.get_available_models()
    client.set_model_id(name)
    assert client.get_batch_processing_mode() is None
    truth = cv2.imread(str(EXAMPLES / "masks" / "ISIC_0014809.png"), 0) > 0
    ys, xs = np.nonzero(truth)
    marks = [{"type": "point", "data": [int(xs.mean()), int(ys.mean())], "label": 1}]
    client.set_mask_fineness(0.001)

    def ask() -> float:
        client.set_auto_labeling_marks(marks)
        result = client.predict_shapes(QImage(str(PICTURE)), str(PICTURE))
        assert not said, said
        assert result.replace is False
        assert {s.label for s in result.shapes} == {"AUTOLABEL_OBJECT"}, result.shapes
        mask = np.zeros(truth.shape, np.uint8)
        for shape in result.shapes:
            assert shape.shape_type == "polygon"
            cv2.fillPoly(mask, [np.array([[p.x(), p.y()] for p in shape.points], np.int32)], 1)
        return float((truth & (mask > 0)).sum() / (truth | (mask > 0)).sum())

    clicked = ask()
    marks.append({"type": "point", "data": [8, 370], "label": 0})
    corrected = ask()
    corners = [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
    marks[:] = [{"type": "rectangle", "data": corners, "label": 1}]
    boxed = ask()
    assert min(clicked, corrected, boxed) > 0.5, (clicked, corrected, boxed)
    print(f"IoU {clicked:.2f} by a point, {corrected:.2f} by two, {boxed:.2f} by a box")
    application.quit()


if __name__ == "__main__":
    main()
