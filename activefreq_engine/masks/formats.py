"""Converts masks to and from what annotation tools read: COCO, GeoJSON, LabelMe, YOLO.  All values are plain JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from activefreq_engine.errors import InvalidArgumentError, InvalidMaskError
from activefreq_engine.masks.outlines import Polygon, Ring, from_polygons, hole_free, to_polygons
from activefreq_engine.masks.png import array_of, as_mask
from activefreq_engine.masks.rle import to_coco_rle
from activefreq_engine.memory import typed
from activefreq_engine.values import finite, whole


@typed
def to_coco_annotation(
    mask: Any,
    *,
    segmentation: Literal["rle", "polygons"] = "rle",
    image_id: int = 1,
    category_id: int = 1,
    annotation_id: int = 1,
) -> dict[str, Any]:
    """Make one entry of the list ``annotations`` of a COCO file.

    Args:
        mask: see `as_mask`.
        segmentation: "rle" is exact and compact.  "polygons" is for tools that cannot read run lengths: rings along the
            edges of the pixels, which pycocotools fills exactly.  COCO's polygons have no holes, so pieces with holes
            are cut into several.
        image_id, category_id, annotation_id (int): the numbers that the file uses.

    Returns:
        ``id, image_id, category_id, segmentation, area`` (pixels), ``bbox`` (x, y, width, height), ``iscrowd`` 0.

    Raises:
        InvalidMaskError: the argument is not a mask, or an empty one.
        InvalidArgumentError: `segmentation` is neither "rle" nor "polygons".
    """
    mask = as_mask(mask)
    if not isinstance(segmentation, str) or segmentation not in ("rle", "polygons"):
        raise InvalidArgumentError(f"segmentation is {segmentation!r}; allowed are 'rle' and 'polygons'")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise InvalidMaskError("the mask is empty, for which COCO has no annotation; leave it out")
    x, y = int(columns[0]), int(rows[0])
    shape = to_coco_rle(mask) if segmentation == "rle" else [ring.ravel().tolist() for ring in hole_free(mask)]
    return {
        "id": whole("annotation_id", annotation_id),
        "image_id": whole("image_id", image_id),
        "category_id": whole("category_id", category_id),
        "segmentation": shape,
        "area": int(np.count_nonzero(mask)),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "iscrowd": 0,
    }


@typed
def to_geojson(mask: Any, *, tolerance: float = 0.0) -> dict[str, Any]:
    """Make a GeoJSON geometry, Polygon or MultiPolygon, in pixels with y down, for QuPath, shapely and others.

    Holes are kept.

    Args:
        mask: see `as_mask`.
        tolerance (float): as for `to_polygons`.

    Raises:
        InvalidMaskError: not a mask.
    """
    pieces = [[_closed(ring) for ring in (p.exterior, *p.holes)] for p in to_polygons(mask, tolerance=tolerance)]
    if len(pieces) == 1:
        return {"type": "Polygon", "coordinates": pieces[0]}
    return {"type": "MultiPolygon", "coordinates": pieces}


@typed
def from_geojson(geometry: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """Read a Polygon or MultiPolygon, or a Feature that has one: bool `[height, width]`.

    Raises:
        InvalidMaskError: the argument is anything else, or has points outside the image.
    """
    try:
        if geometry["type"] == "Feature":
            geometry = geometry["geometry"]
        if geometry["type"] in ("FeatureCollection", "GeometryCollection"):
            raise ValueError(f"a {geometry['type']} holds several; give each of its features")
        pieces = {"Polygon": lambda c: [c], "MultiPolygon": list}[geometry["type"]](geometry["coordinates"])
        polygons = [
            Polygon(array_of(rings[0], "ring"), tuple(array_of(r, "ring") for r in rings[1:])) for rings in pieces
        ]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise InvalidMaskError(f"not a GeoJSON Polygon or MultiPolygon: {type(error).__name__} {error}") from error
    return from_polygons(polygons, height, width)


@typed
def to_labelme(
    masks: Mapping[str, Any] | Sequence[tuple[str, Any]], image_path: str, *, tolerance: float = 0.0
) -> dict[str, Any]:
    """Make the content of a LabelMe file.

    LabelMe's polygons have no holes, so pieces with holes are cut; the pieces of an object share its ``group_id``.

    Args:
        masks (dict or pairs): label and mask of each object; all masks have one size.
        image_path (str): path of the picture, relative to the file.
        tolerance (float): as for `to_polygons`; above 0 holes are filled.

    Raises:
        InvalidMaskError: there is no mask, or they are not masks of one size.
    """
    objects = [(str(label), as_mask(mask)) for label, mask in _pairs(masks)]
    if not objects or len({mask.shape for _, mask in objects}) > 1:
        raise InvalidMaskError("LabelMe's file needs at least one mask, and all of one size")
    shapes = [
        {
            "label": label,
            "points": ring.astype(float).tolist(),
            "group_id": number,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for number, (label, mask) in enumerate(objects, 1)
        for ring in _plain(mask, tolerance)
    ]
    height, width = objects[0][1].shape
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": _text(image_path),
        "imageData": None,
        "imageHeight": int(height),
        "imageWidth": int(width),
    }


@typed
def from_labelme(document: Mapping[str, Any]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Read label and mask of each object of a LabelMe file; polygons of the same label and ``group_id`` are one object.

    Raises:
        InvalidMaskError: the content is damaged, or has shapes other than polygons.
    """
    found: dict[tuple[str, Any], list[Polygon]] = {}
    try:
        height, width = (whole(key, document[key]) for key in ("imageHeight", "imageWidth"))
        for i, shape in enumerate(document["shapes"]):
            if shape.get("shape_type", "polygon") != "polygon":
                raise InvalidMaskError(f"LabelMe shape {i} is a {shape['shape_type']}; only polygons are read")
            group = shape.get("group_id")
            key = (str(shape["label"]), f"shape {i}" if group is None else group)
            found.setdefault(key, []).append(Polygon(array_of(shape["points"], "points")))
    except InvalidMaskError:
        raise
    except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise InvalidMaskError(f"not a LabelMe file: {type(error).__name__} {error}") from error
    return [(label, from_polygons(polygons, height, width)) for (label, _), polygons in found.items()]


@typed
def to_yolo(mask: Any, *, category: int = 0, tolerance: float = 0.0) -> str:
    """Make one line of a YOLO segmentation file: the category, then x and y of each point of one ring, from 0 to 1.

    A line can hold only one ring.  So several pieces and holes are joined by paths that run there and back, as
    ultralytics joins them; filled by the even-odd rule, the ring gives the mask.

    Args:
        mask: see `as_mask`.
        category (int): number of the class.
        tolerance (float): as for `to_polygons`.

    Raises:
        InvalidMaskError: not a mask, or an empty one.
        InvalidArgumentError: `category` is not a whole number from 0.
    """
    mask = as_mask(mask)
    if whole("category", category) < 0:
        raise InvalidArgumentError(f"category is {category}; allowed are whole numbers from 0")
    rings = [ring for p in to_polygons(mask, tolerance=tolerance) for ring in (p.exterior, *p.holes)]
    if not rings:
        raise InvalidMaskError("the mask is empty, for which YOLO has no line; leave it out")
    path = np.concatenate([np.concatenate([ring, ring[:1]]) for ring in rings])
    # and back to the first ring, from start to start
    back = [ring[:1] for ring in rings[-2::-1]]
    path = np.concatenate([path, *back]) if back else path[:-1]
    height, width = mask.shape
    numbers = (path / np.array([width, height], np.float64)).ravel()
    return f"{whole('category', category)} " + " ".join(f"{v:.9g}" for v in numbers.tolist())


@typed
def from_yolo(line: str, height: int, width: int) -> tuple[int, NDArray[np.bool_]]:
    """Read a line of a YOLO segmentation file: its category, and the mask, bool `[height, width]`.

    Raises:
        InvalidMaskError: the text is not such a line, or has points outside the image.
    """
    try:
        if len(line.strip().splitlines()) > 1:  # three lines have as many numbers as one line may have
            raise ValueError("it has several lines, each for one object; give them one by one")
        category, *numbers = line.split()
        if len(numbers) == 4:
            raise ValueError("it holds a box (x, y, width, height), no outline")
        height, width = whole("height", height), whole("width", width)
        points = np.array([float(v) for v in numbers]).reshape(-1, 2) * np.array([width, height], np.float64)
        if int(category) < 0:
            raise ValueError(f"category {category}")
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidMaskError(f"not a line of a YOLO segmentation file: {error}") from error
    near = np.rint(points)
    # with nine digits the corners of pixels are read back only nearly
    points = np.where(np.abs(points - near) < 1e-4, near, points)
    return int(category), from_polygons([Polygon(points)], height, width)  # type: ignore[arg-type]


def _text(path: Any) -> str:
    try:
        return os.fsdecode(path)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"image_path is a {type(path).__name__}; expected a path") from error


def _closed(ring: Ring) -> list[list[int]]:
    return [*ring.tolist(), ring[0].tolist()]


def _pairs(masks: Any) -> list[tuple[Any, Any]]:
    try:
        return [(label, mask) for label, mask in (masks.items() if isinstance(masks, Mapping) else masks)]
    except (TypeError, ValueError) as error:
        raise InvalidMaskError("masks are pairs of a label and a mask, or a dictionary of them") from error


def _plain(mask: NDArray[np.bool_], tolerance: float) -> list[Ring]:
    if finite(tolerance) == 0:
        return hole_free(mask)
    return [p.exterior for p in to_polygons(mask, holes="drop", tolerance=tolerance)]
