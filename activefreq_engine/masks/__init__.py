"""Masks out and in: PNG, run lengths, polygons, and the files of annotation tools.

Masks are bool `[H, W]`.  Everything here is exact unless a tolerance is given.  Needs NumPy, OpenCV and Pillow, nothing
of the engine.
"""

from activefreq_engine.masks.brush import to_label_studio_rle
from activefreq_engine.masks.formats import (
    from_geojson,
    from_labelme,
    from_yolo,
    to_coco_annotation,
    to_geojson,
    to_labelme,
    to_yolo,
)
from activefreq_engine.masks.outlines import Polygon, from_polygons, to_polygons
from activefreq_engine.masks.png import as_mask, load_labels_png, save_labels_png, save_png
from activefreq_engine.masks.rle import from_coco_rle, to_coco_rle

__all__ = [
    "Polygon",
    "as_mask",
    "from_coco_rle",
    "from_geojson",
    "from_labelme",
    "from_polygons",
    "from_yolo",
    "load_labels_png",
    "save_labels_png",
    "save_png",
    "to_coco_annotation",
    "to_coco_rle",
    "to_geojson",
    "to_label_studio_rle",
    "to_labelme",
    "to_polygons",
    "to_yolo",
]
