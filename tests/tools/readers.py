"""Run by test_readers.py in an environment with the tools' own readers: reads what we wrote, writes arrays.

readers.py FOLDER
"""

import json
import sys
from pathlib import Path

import geojson
import labelme
import numpy as np
import supervision

folder = Path(sys.argv[1])
found = {}

# LabelMe: its own loader, and how its own labelme2voc draws what was loaded
document = labelme.LabelFile(str(folder / "labelme.json"))
shape = labelme.utils.img_data_to_arr(document.imageData).shape
found["labelme"], _ = labelme.utils.shapes_to_label(shape, document.shapes, {"ring": 1, "dots": 2})

# YOLO: supervision's loader of the folders that ultralytics trains on
data = supervision.DetectionDataset.from_yolo(
    images_directory_path=str(folder / "images"),
    annotations_directory_path=str(folder / "labels"),
    data_yaml_path=str(folder / "data.yaml"),
    force_masks=True,
)
(_, _, detections) = data[0]
found["yolo"], found["yolo_classes"] = np.asarray(detections.mask), detections.class_id

# GeoJSON: the rules of the geojson package, which are those of RFC 7946
errors = {p.name: geojson.loads(p.read_text()).errors() for p in folder.glob("*.geojson")}
np.savez(folder / "found.npz", **found)
print(json.dumps({"errors": errors, "labelme": labelme.__version__, "supervision": supervision.__version__}))
