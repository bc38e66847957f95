"""Masks as files: PNG, indexed PNG, COCO JSON, GeoJSON, NIfTI."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activefreq_engine import __version__, masks
from activefreq_engine.images.volumes import label_file
from activefreq_engine.serve.errors import ConflictError
from activefreq_engine.serve.work import Work

Export = tuple[bytes, str, str]
"""Content, media type, ending of the file's name."""


async def mask_png(work: Work) -> Export:
    """The current object on the current slice: grey, 0 and 255."""
    return _png(masks.save_png, await work.mask(work.current)), "image/png", f"-object{work.current}.png"


async def labels_png(work: Work) -> Export:
    """All objects on the current slice: an indexed PNG, the index being the object's number."""
    return _png(masks.save_labels_png, await work.labels()), "image/png", "-labels.png"


async def coco(work: Work) -> Export:
    """All objects as one COCO file; each slice of a volume is an image of its own."""
    return _json(await coco_document(work, work.opened().name)), "application/json", "-coco.json"


def empty_coco() -> dict[str, Any]:
    """COCO's "instances" document without any annotation."""
    info = {"description": f"activefreq_engine {__version__}"}
    return {"info": info, "images": [], "annotations": [], "categories": []}


async def coco_document(work: Work, file_name: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """COCO's "instances" for all objects, added to `document` if one is given.  Masks are run lengths, so holes are
    kept.

    Objects of one name share a category; those without a name are called "object".
    """
    document = empty_coco() if document is None else document
    images, annotations = document["images"], document["annotations"]
    categories = {c["name"]: c["id"] for c in document["categories"]}
    picture = work.opened()
    for index in work.touched_slices() if picture.slices > 1 else [0]:
        image: dict[str, Any] = {"id": len(images) + 1, "file_name": file_name}
        image.update(width=picture.width, height=picture.height)
        if picture.slices > 1:
            image["slice"] = index
        if picture.region is not None:
            image["region"] = picture.region.box
        images.append(image)
        for number, name in work.objects.items():
            mask = await work.mask(number, index)
            if not mask.any():
                continue
            category = categories.setdefault(name or "object", len(categories) + 1)
            annotations.append(
                masks.to_coco_annotation(
                    mask, image_id=image["id"], category_id=category, annotation_id=len(annotations) + 1
                )
            )
    document["categories"] = [{"id": i, "name": name} for name, i in categories.items()]
    return document


async def geojson(work: Work) -> Export:
    """All objects on the current slice as polygons with their holes, in image pixels with y downwards.  For a region of
    a slide, in pixels of the slide's full size."""
    return _json(feature_collection(await features(work))), "application/geo+json", ".geojson"


def feature_collection(found: list[dict[str, Any]]) -> dict[str, Any]:
    """GeoJSON's document of some features."""
    return {"type": "FeatureCollection", "features": found}


async def features(work: Work) -> list[dict[str, Any]]:
    """GeoJSON's features, one for each object on the current slice."""
    features = []
    for number, name in work.objects.items():
        geometry = masks.to_geojson(await work.mask(number))
        if not geometry["coordinates"]:
            continue
        if (region := work.opened().region) is not None:
            x0, y0, x1, y1 = region.box
            scale = (x1 - x0) / work.opened().width, (y1 - y0) / work.opened().height
            geometry["coordinates"] = _placed(geometry["coordinates"], (x0, y0), scale)
        properties = {"objectType": "annotation", "object": number, "classification": {"name": name or "object"}}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return features


def _placed(coordinates: Any, corner: tuple[float, float], scale: tuple[float, float]) -> Any:
    """Nested lists of points, scaled and moved."""
    if isinstance(coordinates[0], (int, float)):
        return [round(c + v * s, 3) for v, c, s in zip(coordinates, corner, scale, strict=True)]
    return [_placed(part, corner, scale) for part in coordinates]


async def nifti(work: Work) -> Export:
    """All objects on all slices as a label volume with the picture's own origin, spacing and direction."""
    if find_spec("SimpleITK") is None:
        raise ConflictError('NIfTI needs SimpleITK on the server: pip install ".[medical]" in the checkout')
    picture = work.opened()
    labels = np.zeros((picture.slices, picture.height, picture.width), np.uint16)
    for index in work.touched_slices():
        labels[index] = await work.labels(index)
    return label_file(labels, picture.geometry, "export.nii.gz"), "application/gzip", "-labels.nii.gz"


FORMATS: dict[str, Callable[[Work], Awaitable[Export]]] = {
    "png": mask_png,
    "labels": labels_png,
    "coco": coco,
    "geojson": geojson,
    "nifti": nifti,
}


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _png(save: Callable[[Any, Any], None], array: NDArray[Any]) -> bytes:
    """The bytes that `save` writes for an array."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.png"
        save(path, array)
        return path.read_bytes()
