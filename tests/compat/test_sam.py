"""SAM's and SAM 2's calls: their shapes, their coordinates, no memory, and logits that can be fed back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from activefreq_engine import (
    ActiveFreqError,
    Engine,
    InvalidArgumentError,
    InvalidClickError,
    InvalidImageError,
    InvalidMaskError,
    InvalidPromptError,
    NoImageError,
    Session,
)
from activefreq_engine.compat import (
    ResizeLongestSide,
    SAM2ImagePredictor,
    SamPredictor,
    build_sam2,
    prompts,
    sam_model_registry,
)
from activefreq_engine.compat.sam import AtOncePredictor, Sam, _settled
from activefreq_engine.session import zoom
from tests.session.fakes import SquareModel

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.shared("freqformer_b0", "cpu")


@pytest.fixture
def lesion() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture with W != H, and the object in it."""
    image = np.asarray(Image.open(EXAMPLES / "images" / "ISIC_0014809.jpg"))
    mask = np.asarray(Image.open(next((EXAMPLES / "masks").glob("ISIC_0014809*")))) > 0
    rows, columns = image.shape[0] * 3 // 4, image.shape[1]
    return np.ascontiguousarray(image[:rows, :columns]), mask[:rows, :columns]


def blob(rng: np.random.Generator, width: int, height: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A dark blob on light noise, and its middle, off the diagonal."""
    x0, y0 = 0.3 * width, 0.62 * height
    y, x = np.mgrid[:height, :width]
    inside = ((x - x0) / (0.17 * width)) ** 2 + ((y - y0) / (0.2 * height)) ** 2 < 1
    image = np.where(inside, 70, 190)[..., None] + rng.normal(0, 8, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), (round(x0), round(y0))


def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def test_the_calls_of_sams_notebook(lesion: Any, caplog: pytest.LogCaptureFixture) -> None:
    image, truth = lesion
    with caplog.at_level(logging.WARNING, "activefreq_engine.compat.sam"):
        sam = sam_model_registry["vit_h"](checkpoint="sam_vit_h_4b8939.pth")
    assert "not read here" in caplog.text
    sam.to(device="cpu")
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    ys, xs = np.nonzero(truth)
    point, label = np.array([[int(xs.mean()), int(ys.mean())]]), np.array([1])
    masks, scores, logits = predictor.predict(point_coords=point, point_labels=label, multimask_output=True)
    assert masks.shape == (3, *image.shape[:2])
    assert masks.dtype == np.bool_
    assert scores.shape == (3,)
    assert logits.shape == (3, 256, 256)
    best = logits[np.argmax(scores), :, :]
    points, labels = np.array([point[0], [3, 3]]), np.array([1, 0])
    masks, _, _ = predictor.predict(points, labels, mask_input=best[None, :, :], multimask_output=False)
    assert masks.shape == (1, *image.shape[:2])
    assert iou(masks[0], truth) > 0.6
    coords = torch.tensor(np.stack([points, points]), device=predictor.device)
    coords = predictor.transform.apply_coords_torch(coords, image.shape[:2])
    many, scores_t, low = predictor.predict_torch(coords, torch.tensor([[1, 0], [1, 0]]), multimask_output=False)
    assert many.shape == (2, 1, *image.shape[:2])
    assert many.dtype == torch.bool
    assert scores_t.shape == (2, 1)
    assert low.shape == (2, 1, 256, 256)
    # boxes: one, one with a point, several
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    for how in ({}, {"point_coords": points, "point_labels": labels}):
        masks, _, _ = predictor.predict(box=box, multimask_output=False, **how)
        assert iou(masks[0], truth) > 0.5
    boxes = predictor.transform.apply_boxes_torch(torch.tensor(np.stack([box, box - 20])), image.shape[:2])
    boxed, _, _ = predictor.predict_torch(None, None, boxes=boxes, multimask_output=False)
    assert boxed.shape == (2, 1, *image.shape[:2])
    assert iou(boxed[0, 0].numpy(), truth) > 0.5
    # "end-to-end batched inference"
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    scaled = torch.as_tensor(resize.apply_image(image)).permute(2, 0, 1).contiguous()
    item = {"image": scaled, "original_size": image.shape[:2], "point_coords": coords, "point_labels": torch.ones(2, 2)}
    item["point_labels"][:, 1] = 0
    (found,) = sam([item], multimask_output=False)
    assert found["masks"].shape == (2, 1, *image.shape[:2])
    assert iou(found["masks"][0, 0].numpy(), many[0, 0].numpy()) > 0.85  # the picture was scaled up, and its masks back


def test_it_has_no_memory_and_agrees_with_a_session(engine: Engine, rng: np.random.Generator) -> None:
    image, (x, y) = blob(rng, 203, 121)
    predictor = SamPredictor(engine)
    predictor.set_image(image)
    a = predictor.predict(np.array([[x, y], [5, 5]]), np.array([1, 0]))
    predictor.predict(np.array([[200, 3]]), np.array([1]), multimask_output=False)
    again = predictor.predict(np.array([[x, y], [5, 5]]), np.array([1, 0]))
    for first, second in zip(a, again, strict=True):
        np.testing.assert_array_equal(first, second)
    with Session(engine=engine) as session:
        session.set_image(image)
        expected = session.predict([[x, y], [5, 5]], [1, 0]).mask
    np.testing.assert_array_equal(a[0][0], expected)
    assert a[0][1].sum() <= a[0][0].sum() <= a[0][2].sum()  # surely inside, inside, maybe inside
    assert a[0][0][y, x]


def test_logits_are_above_zero_where_the_mask_is(engine: Engine, rng: np.random.Generator) -> None:
    image, (x, y) = blob(rng, 97, 151)
    predictor = SamPredictor(engine)
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(np.array([[x, y]]), np.array([1]))
    logits, same, _ = predictor.predict(np.array([[x, y]]), np.array([1]), return_logits=True)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    undecided = np.abs(logits) < 1e-5  # rounding
    assert ((logits > 0) == masks)[~undecided].all()
    assert undecided.mean() < 1e-3
    np.testing.assert_array_equal(scores, same)


@pytest.mark.parametrize("kind", [SamPredictor, SAM2ImagePredictor])
@pytest.mark.parametrize("size", [(231, 118), (118, 231), (700, 520)])
def test_an_answer_can_be_fed_back(kind: Any, size: tuple[int, int], engine: Engine, rng: np.random.Generator) -> None:
    image, (x, y) = blob(rng, *size)
    predictor = kind(engine)
    predictor.set_image(image)
    masks, _, low = predictor.predict(np.array([[x, y]]), np.array([1]))
    masks = masks > 0
    for chosen in range(3):
        back, _, _ = predictor.predict(mask_input=low[chosen][None], multimask_output=False)
        if masks[chosen].sum() > 400:
            assert iou(back[0] > 0, masks[chosen]) > 0.9  # on a grid of 256, but in place
    h, w = masks.shape[1:]
    side = max(h, w) if kind is SamPredictor else None
    rows, columns = (256 * h / side, 256 * w / side) if side else (256, 256)
    assert low.shape == (3, 256, 256)
    assert (low[0] > 0)[int(y * rows / h), int(x * columns / w)]
    assert not (low[:, int(np.ceil(rows)) :] > 0).any()
    assert not (low[:, :, int(np.ceil(columns)) :] > 0).any()
    # and a click goes on from it: what is far from the click stays
    more, _, _ = predictor.predict(
        np.array([[w - 2, 1]]), np.array([0]), mask_input=low[0][None], multimask_output=False
    )
    assert iou(more[0] > 0, masks[0]) > 0.9
    # also one that disagrees, alone
    less, _, _ = predictor.predict(np.array([[x, y]]), np.array([0]), mask_input=low[0][None], multimask_output=False)
    assert ((less[0] > 0) != masks[0]).sum() > 10


def test_a_box_is_a_sessions_box(engine: Engine, rng: np.random.Generator) -> None:
    image, (x, y) = blob(rng, 190, 131)
    predictor = SamPredictor(engine)
    predictor.set_image(image)
    corners = (x - 40, y - 30, x + 37.5, y + 30)
    with Session(engine=engine) as session:
        session.set_image(image)
        alone = session.predict([], [], box=corners).mask
        session.reset()
        expected = session.predict([[x, y], [5, 5]], [1, 0], box=corners).mask
    found, _, _ = predictor.predict(box=np.array(corners), multimask_output=False)
    np.testing.assert_array_equal(found[0], alone)
    found, _, _ = predictor.predict(np.array([[x, y], [5, 5]]), np.array([1, 0]), np.array(corners))
    np.testing.assert_array_equal(found[0], expected)
    sam2 = SAM2ImagePredictor(engine)
    sam2.set_image(image)
    many, _, _ = sam2.predict(box=np.array([corners, corners]), multimask_output=False)
    assert many.shape == (2, 1, 131, 190)
    assert ((many[1, 0] > 0) != alone).mean() < 0.01
    parts = np.array(corners) / [190, 131, 190, 131]
    one, _, _ = sam2.predict(box=parts, multimask_output=False, normalize_coords=False)
    assert ((one[0] > 0) != alone).mean() < 0.01
    with pytest.raises(InvalidPromptError, match="no part"):
        predictor.predict(box=np.array([300, 5, 400, 40]))
    with pytest.raises(InvalidPromptError, match="predict_torch takes several"):
        predictor.predict(box=np.array([corners, corners]))
    with pytest.raises(InvalidArgumentError, match="both a start"):
        predictor.predict(box=np.array(corners), mask_input=np.zeros((1, 256, 256)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_numbers_stay_whole_in_other_coordinates(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    """Rounding must not move a point, or the edge of a box, into the pixel before."""
    asked: list[prompts.MaskPrompt] = []

    def answer(_: Any, picture: Any, given: Any) -> list[Any]:
        asked.extend(given)
        return [prompts._start(picture, prompts.MaskPrompt()).canvas] * len(given)

    monkeypatch.setattr(prompts, "answer", answer)
    height, width = 97, 181
    x, y = (v.ravel() for v in np.meshgrid(np.arange(0, width, 7), np.arange(0, height, 5)))
    points = np.stack([x, y], 1)
    boxes = np.concatenate([points // 2, points // 2 + [60, 40]], 1)
    image = np.zeros((height, width, 3), np.uint8)
    predictor, sam2 = SamPredictor(engine), SAM2ImagePredictor(engine)
    predictor.set_image(image)
    frame = predictor.transform
    framed = frame.apply_coords_torch(torch.from_numpy(points.astype(dtype)), image.shape[:2])
    predictor.predict_torch(framed[:, None], torch.ones(len(points), 1), multimask_output=False)
    predictor.predict_torch(
        None,
        None,
        frame.apply_boxes_torch(torch.from_numpy(boxes.astype(dtype)), image.shape[:2]),
        multimask_output=False,
    )
    sam2.set_image(image)
    size = np.array([width, height])
    how: dict[str, Any] = {"multimask_output": False, "normalize_coords": False}
    sam2.predict((points / size).astype(dtype)[:, None], np.ones((len(points), 1)), **how)
    sam2.predict(box=(boxes / np.tile(size, 2)).astype(dtype), **how)
    clicked = [(c.x, c.y) for prompt in asked for c in prompt.clicks]
    assert clicked == 2 * [(a, b) for a, b in points.tolist()]
    drawn = [(b.x0, b.y0, b.x1, b.y1) for prompt in asked if (b := prompt.box) is not None]
    assert drawn == 2 * [tuple(b) for b in boxes.tolist()]


@pytest.mark.parametrize(("height", "width"), [(100, 100_000), (20_000, 6000)])
def test_whole_numbers_stay_whole_in_long_pictures(height: int, width: int, rng: np.random.Generator) -> None:
    points = rng.integers(0, (width, height), (5000, 2))
    frame = ResizeLongestSide(1024)
    framed = frame.apply_coords_torch(torch.from_numpy(points).float(), (height, width)).double().numpy()
    np.testing.assert_array_equal(_settled(framed / frame.factors((height, width))), points)
    parts = (points / (width, height)).astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(_settled(parts * (width, height)), points)


def test_a_mask_on_the_grid_is_read_as_it_is(engine: Engine, rng: np.random.Generator) -> None:
    predictor = SamPredictor(engine)
    predictor.set_image(rng.integers(0, 255, (256, 256, 3)).astype(np.uint8))
    mask = rng.random((256, 256)) < 0.5
    back, _, low = predictor.predict(mask_input=np.where(mask, 9.0, -9.0)[None], multimask_output=False)
    np.testing.assert_array_equal(back[0], mask)
    np.testing.assert_allclose(np.sign(low[0]), np.where(mask, 1, -1))


def test_a_long_list_is_seen_whole(rng: np.random.Generator) -> None:
    """As `Session.predict` does it: the network sees 24 clicks of a sign at once."""
    engine = Engine(SquareModel())
    image = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    places = 10 * rng.permutation(np.argwhere(np.ones((30, 30), bool)))[:60] + 5
    labels = rng.permutation([1] * 40 + [0] * 20)
    predictor = SamPredictor(engine)
    predictor.set_image(image)
    masks, _, _ = predictor.predict(places, labels, multimask_output=False)
    session = Session(engine=engine)
    session.set_image(image)
    assert np.array_equal(masks[0], session.predict(places, labels).mask)


def test_many_prompts_are_answered_as_one_by_one(engine: Engine, rng: np.random.Generator) -> None:
    image, (x, y) = blob(rng, 187, 99)
    predictor = SamPredictor(engine)
    predictor.set_image(image)
    points = np.array([[[x, y], [9, 9]], [[x, y], [150, 20]], [[150.5, 20.25], [x, y]]])
    labels = np.array([[1, -1], [1, 0], [1, 0]])
    coords = predictor.transform.apply_coords_torch(torch.from_numpy(points), predictor.original_size)
    masks, scores, low = predictor.predict_torch(coords, torch.from_numpy(labels))
    for i in range(3):
        alone = predictor.predict(points[i], labels[i])
        # the batch decides the last bits
        assert (masks[i].numpy() != alone[0]).mean() < 0.01
        np.testing.assert_allclose(scores[i], alone[1], atol=0.03)
        assert (np.abs(low[i].numpy() - alone[2]) > 0.7).mean() < 0.02


def test_the_expected_iou_is_what_it_says(rng: np.random.Generator) -> None:
    probs = rng.random((13, 29)).astype(np.float32)
    mask = probs > 0.7
    drawn = [iou(mask, rng.random(probs.shape) < probs) for _ in range(3000)]
    assert abs(prompts.expected_iou(probs, mask) - np.mean(drawn)) < 0.01
    assert prompts.expected_iou(np.zeros((3, 4), np.float32), np.zeros((3, 4), np.bool_)) == 0


def test_sam2s_shapes(engine: Engine, rng: np.random.Generator) -> None:
    image, (x, y) = blob(rng, 140, 90)
    predictor = SAM2ImagePredictor(build_sam2("sam2_hiera_l.yaml", None, device="cpu"))
    predictor = SAM2ImagePredictor(engine)
    predictor.set_image(Image.fromarray(image))
    masks, scores, low = predictor.predict(np.array([[x, y]]), np.array([1]))
    assert (masks.shape, scores.shape, low.shape) == ((3, 90, 140), (3,), (3, 256, 256))
    assert masks.dtype == np.float32
    assert masks[0, y, x] == 1
    parts, _, _ = predictor.predict(
        np.array([[(x + 0.5) / 140, (y + 0.5) / 90]]), np.array([1]), multimask_output=False, normalize_coords=False
    )
    assert iou(parts[0] > 0, masks[0] > 0) > 0.98
    many, scores, low = predictor.predict(
        np.array([[[x, y]], [[130, 5]]]), np.array([[1], [1]]), multimask_output=False
    )
    assert (many.shape, scores.shape, low.shape) == ((2, 1, 90, 140), (2, 1), (2, 1, 256, 256))
    predictor.set_image_batch([image, image[:, ::-1]])
    coords = [np.array([[x, y]]), np.array([[139 - x, y]])]
    both, _, _ = predictor.predict_batch(coords, [np.array([1])] * 2, multimask_output=False)
    assert [m.shape for m in both] == [(1, 90, 140)] * 2
    assert both[0][0, y, x] == both[1][0, y, 139 - x] == 1
    predictor.reset_predictor()
    with pytest.raises(NoImageError):
        predictor.predict(np.array([[x, y]]), np.array([1]))


def test_the_batches_of_sam2s_notebook(engine: Engine, rng: np.random.Generator) -> None:
    predictor = SAM2ImagePredictor(engine)
    (one, (x1, y1)), (two, (x2, y2)) = blob(rng, 151, 90), blob(rng, 80, 121)
    predictor.set_image_batch([one, two])
    boxes = [np.array([[x - 30, y - 25, x + 30, y + 25], [2, 3, 40, 31]]) for x, y in ((x1, y1), (x2, y2))]
    boxed, scores, low = predictor.predict_batch(None, None, box_batch=boxes, multimask_output=False)
    assert [m.shape for m in boxed] == [(2, 1, 90, 151), (2, 1, 121, 80)]
    assert [s.shape for s in scores] == [(2, 1)] * 2
    assert [m.shape for m in low] == [(2, 1, 256, 256)] * 2
    points = [np.array([[[x, y]], [[5, 6]]]) for x, y in ((x1, y1), (x2, y2))]
    masks, scores, _ = predictor.predict_batch(points, [np.array([[1], [1]])] * 2, box_batch=None)
    best = [m[range(len(m)), np.argmax(s, axis=-1)] for m, s in zip(masks, scores, strict=True)]
    assert [m.shape for m in best] == [(2, 90, 151), (2, 121, 80)]
    assert masks[0][0, 0, y1, x1] == masks[1][0, 0, y2, x2] == 1
    assert ((boxed[0][0, 0] > 0) & (boxed[0][1, 0] > 0)).mean() < 0.05  # each box has its own answer


def test_what_is_refused(engine: Engine) -> None:
    predictor = SamPredictor(engine)
    with pytest.raises(NoImageError, match="set_image"):
        predictor.predict(np.array([[1, 1]]), np.array([1]))
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    one = np.array([1])
    with pytest.raises(InvalidClickError, match="x comes first"):
        predictor.predict(np.array([[50, 45]]), one)
    with pytest.raises(InvalidClickError, match="belong together"):
        predictor.predict(np.array([[5, 5]]))
    with pytest.raises(InvalidClickError, match="numbers"):
        predictor.predict([["a", "b"]], one)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="nothing says"):
        predictor.predict()
    with pytest.raises(InvalidMaskError, match="shape"):
        predictor.predict(np.array([[5, 5]]), one, mask_input=np.zeros((1, 40, 60)))
    with pytest.raises(InvalidMaskError, match="NaN"):
        predictor.predict(np.array([[5, 5]]), one, mask_input=np.full((1, 256, 256), np.nan))
    with pytest.raises(InvalidArgumentError, match="BGR"):
        predictor.set_image(np.zeros((40, 60, 3), np.uint8), "HSV")
    with pytest.raises(InvalidImageError, match="1024"):
        predictor.set_torch_image(torch.zeros(1, 3, 40, 60), (40, 60))
    with pytest.raises(InvalidArgumentError, match="same number"):
        predictor.predict_torch(torch.zeros(2, 1, 2), torch.ones(3, 1))
    with pytest.raises(InvalidArgumentError, match="at least one"):  # a detector found nothing
        predictor.predict_torch(None, None, torch.zeros(0, 4))
    with pytest.raises(ActiveFreqError, match="no embedding"):
        predictor.get_image_embedding()
    with pytest.raises(KeyError):
        sam_model_registry["vit_x"]
    predictor.reset_image()
    assert not predictor.is_image_set


def test_bgr_and_models_of_ours(engine: Engine, rng: np.random.Generator) -> None:
    image, (x, y) = blob(rng, 80, 64)
    image[..., 0] //= 2
    rgb, bgr = SamPredictor(engine), SamPredictor(sam_model_registry["freqformer_b0"]())
    rgb.set_image(image)
    bgr.set_image(image[..., ::-1], image_format="BGR")
    point = np.array([[x, y]]), np.array([1])
    np.testing.assert_array_equal(rgb.predict(*point)[0], bgr.predict(*point)[0])


def test_a_box_that_comes_with_its_picture_is_the_only_place_looked_at(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A predictor's `set_image` also looks at the whole picture, for the click that a person makes later."""
    engine = Engine(SquareModel())
    looked_at: list[tuple[int, int]] = []
    crop_rgb = zoom.crop_rgb

    def noted(image: NDArray[np.uint8], box: tuple[int, int, int, int], h: int, w: int) -> NDArray[np.uint8]:
        looked_at.append((box[2] - box[0], box[3] - box[1]))
        return crop_rgb(image, box, h, w)

    monkeypatch.setattr(zoom, "crop_rgb", noted)
    image = rng.integers(0, 256, (1024, 1024, 3), np.uint8)
    box = np.array([100, 100, 200, 200])
    ours = AtOncePredictor(engine)
    ours.set_image(image)
    assert not looked_at
    masks, _, _ = ours.predict(box=box)
    assert looked_at == [(140, 140)]
    looked_at.clear()
    item = {"image": torch.from_numpy(image).permute(2, 0, 1), "original_size": (1024, 1024)}
    (found,) = Sam(engine)([{**item, "boxes": torch.from_numpy(box[None])}], multimask_output=True)
    assert looked_at == [(140, 140)]
    looked_at.clear()
    theirs = SamPredictor(engine)
    theirs.set_image(image)
    assert looked_at == [(1024, 1024)]
    expected, _, _ = theirs.predict(box=box)
    np.testing.assert_array_equal(masks, expected)
    np.testing.assert_array_equal(found["masks"][0].numpy(), expected)
