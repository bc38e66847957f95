"""The two programs that a newcomer runs first, with the shipped weights."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activefreq_engine import Session, list_models
from activefreq_engine.masks import to_polygons

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(cwd: Path, *command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embed_is_short_and_runs(tmp_path: Path) -> None:
    script = EXAMPLES / "embed.py"
    assert len(script.read_text("utf-8").splitlines()) <= 20
    assert re.match(r"\d+ pixels after one click", run(tmp_path, script))


def test_demo_prints_a_table_and_writes_a_picture(tmp_path: Path) -> None:
    out = run(tmp_path, EXAMPLES / "demo.py", "--clicks", "3")
    rows = re.findall(r"^(ISIC_\d+) +(\d+) +([+-]) +\( *\d+, +\d+\) +([\d.]+) +([\d.]+)$", out, re.M)
    assert [(row[0], row[1]) for row in rows] == [
        (p.stem, str(i)) for p in sorted((EXAMPLES / "images").glob("*.jpg")) for i in (1, 2, 3)
    ]
    assert all(float(row[3]) > 0.7 for row in rows if row[1] == "3"), out  # the weights know these images' kind
    picture = np.array(Image.open(tmp_path / "out" / "demo.png"))
    assert picture.shape[1] > picture.shape[0] > 900
    assert picture.std() > 30


def test_every_example_image_has_its_mask() -> None:
    images = sorted((EXAMPLES / "images").iterdir())
    masks = sorted((EXAMPLES / "masks").iterdir())
    assert [p.stem for p in images] == [p.stem for p in masks]
    for image, mask in zip(images, masks, strict=True):
        truth = np.array(Image.open(mask).convert("L"))
        assert truth.shape[::-1] == Image.open(image).size
        assert set(np.unique(truth)) == {0, 255}
        assert image.stem in (EXAMPLES / "README.md").read_text("utf-8")


@pytest.mark.parametrize("model", list_models(pretrained=True))
def test_shipped_weights_answer_boxes_and_lassos(model: str) -> None:
    """Weights that have not learnt them answer with next to nothing, and nothing else here would tell."""
    with Session(model, device="cpu") as session:
        for path in sorted((EXAMPLES / "images").glob("*.jpg")):
            truth = np.array(Image.open(EXAMPLES / "masks" / f"{path.stem}.png")) > 0
            ys, xs = truth.nonzero()
            session.set_image(path)
            boxed = session.box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1).mask
            session.reset()
            (outline, *_) = sorted(to_polygons(truth, holes="drop"), key=lambda p: -len(p.exterior))
            drawn = session.lasso(outline.exterior).mask
            for mask in (boxed, drawn):
                assert (mask & truth).sum() / (mask | truth).sum() > 0.6
