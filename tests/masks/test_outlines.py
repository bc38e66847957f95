"""Polygons and the files of annotation tools, held to pycocotools and shapely."""

import json

import numpy as np
import pytest
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from activefreq_engine import InvalidArgumentError, InvalidMaskError, masks

any_mask = hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 31)))
quick = settings(max_examples=60, deadline=None)


def decoded(segmentation: list, mask: np.ndarray) -> np.ndarray:
    """As a COCO tool reads polygons."""
    return coco.decode(coco.merge(coco.frPyObjects(segmentation, *mask.shape))).astype(bool)


def blobs(rng: np.random.Generator, height: int = 120, width: int = 170) -> np.ndarray:
    """Several round pieces, with holes and single pixels."""
    y, x = np.mgrid[:height, :width]
    mask = rng.random((height, width)) < 0.002
    for _ in range(8):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 30)
        mask ^= (y - cy) ** 2 + (x - cx) ** 2 < r * r
    mask[0, 0] = True
    return mask


@quick
@given(any_mask)
def test_polygons_are_the_mask(mask):
    polygons = masks.to_polygons(mask)
    assert np.array_equal(masks.from_polygons(polygons, *mask.shape), mask)
    assert np.array_equal(masks.from_polygons(polygons[::-1], *mask.shape), mask)
    shapes = [shapely.Polygon(p.exterior, p.holes) for p in polygons]
    assert all(s.is_valid for s in shapes)
    assert sum(s.area for s in shapes) == mask.sum()
    assert all(s.exterior.is_ccw and not any(h.is_ccw for h in s.interiors) for s in shapes)  # y points down
    outlines = masks.to_polygons(mask, holes="drop")
    assert all(not p.holes for p in outlines)
    assert (masks.from_polygons(outlines, *mask.shape) >= mask).all()


@quick
@given(any_mask)
def test_every_format_brings_the_mask_back(mask):
    if not mask.any():
        return
    height, width = mask.shape
    annotation = json.loads(json.dumps(masks.to_coco_annotation(mask, segmentation="polygons")))
    assert np.array_equal(decoded(annotation["segmentation"], mask), mask)
    rings = [shapely.Polygon(np.reshape(s, (-1, 2))) for s in annotation["segmentation"]]
    assert all(r.is_valid for r in rings)
    assert sum(r.area for r in rings) == annotation["area"] == mask.sum()
    geometry = json.loads(json.dumps(masks.to_geojson(mask)))
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert shape.area == mask.sum()
    assert np.array_equal(masks.from_geojson(geometry, height, width), mask)
    assert np.array_equal(masks.from_geojson({"type": "Feature", "geometry": geometry}, height, width), mask)
    category, back = masks.from_yolo(masks.to_yolo(mask, category=7), height, width)
    assert category == 7
    assert np.array_equal(back, mask)
    document = json.loads(json.dumps(masks.to_labelme([("a", mask), ("b", ~mask | mask)], "x.png")))
    (label, back), (other, whole) = masks.from_labelme(document)
    assert (label, other) == ("a", "b")
    assert np.array_equal(back, mask)
    assert whole.all()


def test_a_path_there_and_back_through_the_centre_of_a_pixel_adds_nothing():
    """The way from the first corner of the mask to that of the hole passes (14.5, 6.5)."""
    mask = np.ones((15, 29), np.bool_)
    mask[0, 0] = mask[13, 27] = False
    assert np.array_equal(masks.from_yolo(masks.to_yolo(mask), *mask.shape)[1], mask)


def test_coco_annotation(rng):
    mask = blobs(rng)
    rle = masks.to_coco_annotation(mask, image_id=3, category_id=4, annotation_id=5)
    assert (rle["id"], rle["image_id"], rle["category_id"], rle["iscrowd"]) == (5, 3, 4, 0)
    json.dumps(rle)
    assert np.array_equal(coco.decode(rle["segmentation"]), mask)
    assert rle["area"] == coco.area(rle["segmentation"])
    assert rle["bbox"] == coco.toBbox(rle["segmentation"]).tolist()
    with pytest.raises(InvalidMaskError, match="empty"):
        masks.to_coco_annotation(np.zeros((3, 4), bool))
    with pytest.raises(InvalidMaskError, match="empty"):
        masks.to_yolo(np.zeros((3, 4), bool))
    with pytest.raises(InvalidArgumentError, match="category"):
        masks.to_yolo(mask, category=-1)
    with pytest.raises(InvalidArgumentError, match="segmentation"):
        masks.to_coco_annotation(mask, segmentation="png")


def test_a_square_a_pixel_and_a_hole():
    mask = np.zeros((20, 31), bool)
    mask[2:18, 3:29] = True
    mask[5:15, 6:26] = False
    mask[8:12, 10:20] = True  # an island in the hole
    mask[0, 0] = True
    with_holes = masks.to_polygons(mask)
    assert sorted(len(p.holes) for p in with_holes) == [0, 0, 1]
    pixel, frame, _ = with_holes
    assert sorted(pixel.exterior.tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert sorted(frame.exterior.tolist()) == [[3, 2], [3, 18], [29, 2], [29, 18]]  # (x, y) of the pixels' edges
    assert sorted(frame.holes[0].tolist()) == [[6, 5], [6, 15], [26, 5], [26, 15]]
    with pytest.raises(InvalidMaskError, match="holes"):
        masks.to_polygons(mask, holes="maybe")


def test_pixels_that_touch_by_a_corner():
    for mask in (np.eye(5, dtype=bool), np.eye(5, dtype=bool)[::-1], ~np.eye(6, dtype=bool)):
        polygons = masks.to_polygons(mask)
        assert all(shapely.Polygon(p.exterior, p.holes).is_valid for p in polygons)
        assert np.array_equal(masks.from_polygons(polygons, *mask.shape), mask)


def thin(rng: np.random.Generator) -> np.ndarray:
    """Lines, noise and blobs that lie closer together than outlines may move."""
    height, width = rng.integers(4, 45, 2)
    y, x = np.mgrid[:height, :width]
    mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.5])
    for _ in range(rng.integers(1, 9)):
        cy, cx, stretched = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.1, 1)
        mask ^= ((y - cy) / stretched) ** 2 + (x - cx) ** 2 < rng.uniform(1, 25) ** 2
    return mask


def test_simplified_outlines_are_valid_and_within_the_tolerance(rng):
    """Of masks too thin for the tolerance: no ring crosses itself or another, none changes its side."""
    exact_corners = corners = 0
    for _ in range(150):
        mask, tolerance = thin(rng), float(rng.choice([0.4, 1, 2.5, 6, 30]))
        exact, fewer = masks.to_polygons(mask), masks.to_polygons(mask, tolerance=tolerance)
        geometry = shapely.geometry.shape(masks.to_geojson(mask, tolerance=tolerance))
        assert geometry.is_valid, shapely.is_valid_reason(geometry)
        for a, b in zip(exact, fewer, strict=True):
            assert len(a.holes) == len(b.holes)
            for ring, simple in zip((a.exterior, *a.holes), (b.exterior, *b.holes), strict=True):
                exact_corners, corners = exact_corners + len(ring), corners + len(simple)
                assert set(map(tuple, simple.tolist())) <= set(map(tuple, ring.tolist()))
                away = shapely.distance(shapely.LinearRing(simple), shapely.points(ring))
                assert away.max() <= tolerance + 1e-9
        assert all(shapely.Polygon(p.exterior, p.holes).exterior.is_ccw for p in fewer)
    assert corners < 0.97 * exact_corners


def test_a_tolerance_of_a_pixel_halves_the_corners(rng):
    y, x = np.mgrid[:300, :410]
    mask = abs(np.hypot((x - 200) / 1.3, y - 150) - 90) < rng.uniform(10, 40)  # a ring
    assert sum(len(p.exterior) for p in masks.to_polygons(mask, tolerance=1)) < 0.5 * sum(
        len(p.exterior) for p in masks.to_polygons(mask)
    )
    masks.from_labelme(masks.to_labelme({"a": mask}, "x.png", tolerance=1))
    masks.from_yolo(masks.to_yolo(mask, tolerance=1), *mask.shape)
    for bad in (-1, "2", float("nan")):
        with pytest.raises(InvalidArgumentError, match="tolerance"):
            masks.to_polygons(mask, tolerance=bad)


def test_polygons_of_others_are_filled_by_their_pixels_centres(rng):
    """As shapely says which centres lie inside; overlapping polygons add up, a ring that crosses itself is even-odd."""
    y, x = np.mgrid[:23, :35]
    centres = shapely.points(x + 0.5, y + 0.5)
    polygons, expected = [], np.zeros((23, 35), bool)
    for _ in range(4):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(3, 10, 9)
        ring = np.stack([17 + radius * np.cos(angles), 11.4 + radius * np.sin(angles)], 1)
        polygons.append(masks.Polygon(ring))
        expected |= shapely.contains(shapely.Polygon(ring), centres)
    assert np.array_equal(masks.from_polygons(polygons, 23, 35), expected)
    bow = masks.Polygon(np.array([[0, 0], [10, 10], [10, 0], [0, 10]]))
    assert masks.from_polygons([bow], 10, 10).sum() == 2 * 20 + 10
    assert not masks.from_polygons([], 3, 4).any()


@pytest.mark.parametrize(
    ("polygon", "says"),
    [
        (masks.Polygon(np.array([[0, 0], [7, 0], [5, 3]])), "outside"),
        (masks.Polygon(np.array([[0, 0], [np.nan, 0], [5, 3]])), "outside"),
        (masks.Polygon(np.zeros((2, 2))), "three points"),
        (masks.Polygon(np.array([["a", "b"]] * 3)), "numbers"),
        (masks.Polygon([[1, 2], [1]]), "array"),
        ("polygon", "no Polygon"),
    ],
)
def test_polygons_that_are_none(polygon, says):
    with pytest.raises(InvalidMaskError, match=says):
        masks.from_polygons([polygon], 4, 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: masks.from_geojson({"type": "Point", "coordinates": [1, 2]}, 3, 4),
        lambda: masks.from_geojson({"type": "Polygon", "coordinates": 3}, 3, 4),
        lambda: masks.from_geojson(None, 3, 4),
        lambda: masks.from_labelme({"imageHeight": 3}),
        lambda: masks.from_labelme(
            {"imageHeight": 3, "imageWidth": 4, "shapes": [{"label": "a", "points": [], "shape_type": "circle"}]}
        ),
        lambda: masks.from_yolo("", 3, 4),
        lambda: masks.from_yolo("0 0.1 0.2 0.3", 3, 4),
        lambda: masks.from_yolo("cat 0 0 0 1 1 1", 3, 4),
        lambda: masks.from_yolo("0 0 0 0 1 2 1", 3, 4),
        lambda: masks.to_labelme({}, "x.png"),
        lambda: masks.to_labelme([1], "x.png"),
        lambda: masks.to_labelme({"a": np.zeros((2, 3), bool), "b": np.zeros((3, 3), bool)}, "x.png"),
        lambda: masks.as_mask([[1, 2], [1]]),
        lambda: masks.save_labels_png("/dev/null", [[1, 2], [1]]),
        lambda: masks.from_coco_rle({"size": [np.int32(65536)] * 2, "counts": []}),
    ],
)
def test_bad_input_ends_in_a_typed_error(call):
    with pytest.raises(InvalidMaskError):
        call()


def test_what_other_tools_write_beside_outlines_is_named() -> None:
    collection = {"type": "FeatureCollection", "features": []}
    shape = {"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "rectangle"}
    labelme = {"imageHeight": 3, "imageWidth": 4, "shapes": [shape]}
    for call, words in (
        (lambda: masks.from_geojson(collection, 3, 4), "give each of its features"),
        (lambda: masks.from_yolo("0 0.5 0.5 0.1 0.1", 3, 4), "a box"),
        (lambda: masks.from_yolo("0 0 0 1 0 1 1\n" * 3, 3, 4), "several lines"),
        (lambda: masks.from_labelme(labelme), "^LabelMe shape 0 is a rectangle; only polygons are read"),
    ):
        with pytest.raises(InvalidMaskError, match=words):
            call()
