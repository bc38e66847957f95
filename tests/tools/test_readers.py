"""Our files in the tools' own readers: LabelMe, YOLO (by supervision), GeoJSON (by geojson)."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from activefreq_engine import masks

from .driving import run

HEIGHT, WIDTH = 91, 140


@pytest.fixture
def objects(rng: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """A ring with an island in its hole, and pieces that lie apart, some of one pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    away = np.hypot(x - 60, y - 45)
    dots = rng.random((HEIGHT, WIDTH)) < 0.01
    dots[5:20, 100:130] = True
    return {"ring": (away < 35) & (away > 18) | (away < rng.uniform(4, 9)), "dots": dots}


def near(path: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The pixels on both sides of a line."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.polylines(canvas, [np.rint(path).astype(np.int32)[:, None]], True, 1)
    return cv2.dilate(canvas, np.ones((3, 3), np.uint8)) > 0


def test_the_tools_read_what_we_write(
    tools: Path, tmp_path: Path, objects: dict[str, NDArray[np.bool_]], rng: np.random.Generator
) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    picture = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    picture.save(tmp_path / "images" / "a.png")
    (tmp_path / "labelme.json").write_text(json.dumps(masks.to_labelme(objects, "images/a.png")))
    lines = [masks.to_yolo(mask, category=i) for i, mask in enumerate(objects.values())]
    (tmp_path / "labels" / "a.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "data.yaml").write_text(f"names: {list(objects)}\n")
    for name, mask in objects.items():
        for tolerance in (0, 1.5):
            text = json.dumps(masks.to_geojson(mask, tolerance=tolerance))
            (tmp_path / f"{name}{tolerance}.geojson").write_text(text)

    python = tools / "readers" / "bin" / "python"
    script = Path(__file__).with_name("readers.py")
    said = run(python, script, tmp_path, cwd=tmp_path)
    print(said)
    assert set(json.loads(said)["errors"]) == {f"{n}{t}.geojson" for n in objects for t in (0, 1.5)}
    assert not any(json.loads(said)["errors"].values())
    found = np.load(tmp_path / "found.npz")

    # Both tools fill polygons with their outline, by Pillow and by OpenCV: up to a pixel more than they enclose.
    ring, dots = objects.values()
    outlines = {
        name: np.logical_or.reduce(
            [near(p) for piece in masks.to_polygons(mask) for p in (piece.exterior, *piece.holes)]
        )
        for name, mask in objects.items()
    }
    drawn = found["labelme"]
    assert not ((drawn == 2) != dots)[~outlines["dots"]].any()
    assert not ((drawn == 1) != ring)[~outlines["dots"] & ~outlines["ring"] & (drawn != 2)].any()
    assert (drawn == 1)[ring & ~outlines["dots"]].all()

    assert found["yolo_classes"].tolist() == [0, 1]
    for mask, seen, line in zip(objects.values(), found["yolo"], lines, strict=True):
        path = np.array([float(v) for v in line.split()[1:]]).reshape(-1, 2) * (WIDTH, HEIGHT)
        assert seen.shape == mask.shape
        assert not (seen != mask)[~near(path)].any()
        assert (seen & mask).sum() > 0.95 * mask.sum()
