"""The second labeller, with a stand-in for MobileSAM that sees one disk around each point."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bench.quality import second_labeller
from bench.quality.second_labeller import GRID, SHARED, SMALLEST, grid, new_objects, proposals


def disk(shape, x, y, radius):
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def stand_in(radius=8.0, sharpness=20.0, quality=0.95):
    """A model whose three masks of a point are the same disk around it, `radius` and position in 256ths of 1024."""
    ys, xs = torch.meshgrid(torch.arange(256) + 0.5, torch.arange(256) + 0.5, indexing="ij")

    def mask_decoder(embedding, places, sparse, dense, multimask_output):
        assert multimask_output
        x, y = (sparse[0, :, 0] / 4).unbind(-1)
        logits = sharpness * (radius - ((xs - x[:, None, None]) ** 2 + (ys - y[:, None, None]) ** 2).sqrt())
        return logits[None, :, None].expand(-1, -1, 3, -1, -1), torch.full((1, len(x), 3), quality)

    return SimpleNamespace(
        encoder=lambda image: image.new_zeros(1),
        prompt_encoder=lambda points, labels, *rest: (points, None),
        mask_decoder=mask_decoder,
        places=lambda: None,
    )


@pytest.mark.parametrize("shape", [(90, 150), (150, 90)])
def test_masks_lie_where_the_points_are(shape, rng):
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    known = np.zeros(shape, bool)
    known[:, : shape[1] // 2] = True
    found = proposals(stand_in(), image, known)
    assert len(found) == 3 * GRID * GRID // 2
    centres = {
        (shape[1] * (i + 0.5) / GRID, shape[0] * (j + 0.5) / GRID) for i in range(GRID // 2, GRID) for j in range(GRID)
    }
    pixel = max(shape) / 256  # of the model's masks
    for score, mask in found:
        assert score == pytest.approx(0.95)
        ys, xs = np.nonzero(mask)
        x, y = xs.mean() + 0.5, ys.mean() + 0.5
        nearest = min(centres, key=lambda c: (c[0] - x) ** 2 + (c[1] - y) ** 2)
        assert np.hypot(nearest[0] - x, nearest[1] - y) < 1
        assert mask.sum() == pytest.approx(np.pi * (8 * pixel) ** 2, rel=0.1)


def test_masks_that_the_model_doubts_are_left_out(rng):
    image, known = rng.integers(0, 256, (90, 150, 3), np.uint8), np.zeros((90, 150), bool)
    assert not proposals(stand_in(quality=0.87), image, known)
    assert not proposals(stand_in(sharpness=0.5), image, known)  # 2 pixels of 8 more and less at the thresholds


def test_no_points_on_what_is_labelled(rng):
    known = rng.random((61, 47)) < 0.5
    points = grid(known, (1024, 789)).numpy()
    x, y = points[:, 0] * 47 / 789, points[:, 1] * 61 / 1024
    assert not known[y.astype(int), x.astype(int)].any()
    assert 0 < len(points) < GRID * GRID
    assert len(grid(np.ones((61, 47), bool), (1024, 789))) == 0


def test_new_objects_are_apart():
    shape = (100, 100)
    known = disk(shape, 20, 20, 15)
    whole, part, beside = disk(shape, 60, 60, 20), disk(shape, 65, 60, 8), disk(shape, 60, 85, 6)
    speck, known_again = disk(shape, 90, 10, 1), disk(shape, 22, 20, 15)
    assert speck.sum() < SMALLEST * 100 * 100
    found = [(0.99, known_again), (0.98, whole), (0.97, part), (0.96, np.ones(shape, bool)), (0.95, beside)]
    labels = new_objects(known, found)
    assert labels.dtype == np.uint16
    assert labels.max() == 2
    assert (labels[whole] == 1).all()
    assert ((labels == 2) == (beside & ~whole)).all()
    assert (beside & whole).sum() <= SHARED * beside.sum()
    assert not new_objects(np.ones(shape, bool), found).any()


def test_a_set_is_written(tmp_path, monkeypatch, rng):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "masks").mkdir()
    for name, known in (("a", np.zeros((90, 150), bool)), ("b", np.ones((90, 150), bool))):
        Image.fromarray(rng.integers(0, 256, (90, 150, 3), np.uint8)).save(data / "images" / f"{name}.png")
        Image.fromarray(known.astype(np.uint8) * 255).save(data / "masks" / f"{name}.png")
    known = np.zeros((90, 150), np.uint8)
    known[:45, :75] = 255
    Image.fromarray(known).save(data / "masks" / "a.png")
    monkeypatch.setattr(second_labeller, "mobile_sam", lambda checkpoint: stand_in())
    out, sheet = tmp_path / "out", tmp_path / "sheet.jpg"
    second_labeller.main(data, out, tmp_path / "mobile_sam.pt", sheet)
    assert [f.name for f in (out / "images").iterdir()] == ["a.png"]  # all of b is labelled
    assert (out / "images" / "a.png").read_bytes() == (data / "images" / "a.png").read_bytes()
    labels = np.asarray(Image.open(out / "instances" / "a.png"))
    assert labels.shape == (90, 150)
    assert labels.max() >= GRID
    assert ((labels > 0) & (known > 0)).mean() < 0.02
    assert Image.open(sheet).size[0] > 1000
