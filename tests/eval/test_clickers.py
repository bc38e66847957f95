"""The robot clickers against a brute-force definition, and the rules of the protocol one by one."""

import cv2
import numpy as np
import pytest

from activefreq_engine.errors import InvalidArgumentError, InvalidMaskError
from activefreq_engine.eval.clickers import _Errors, list_clickers, make_clicker, sample_seed
from activefreq_engine.types import Click

from .fakes import blob
from .ritm_oracle import RitmOracle


def paint(mask, click, radius):
    """A new mask with a disk of the click's sign."""
    mask = mask.astype(np.uint8)
    cv2.circle(mask, (int(click.x), int(click.y)), radius, int(click.positive), -1)
    return mask.astype(bool)


@pytest.mark.parametrize("kind", ["blob", "blocks", "noise", "ignored"])
@pytest.mark.parametrize(("height", "width"), [(1, 9), (13, 1), (17, 23), (26, 15)])
def test_ritm_equals_brute_force_click_by_click(height, width, kind):
    for seed in range(4):
        random = np.random.default_rng([seed, height, width])
        if kind == "blocks":  # right angles and equal widths: many exact ties
            truth = np.kron(random.integers(0, 2, (height, width)), np.ones((4, 4), int))[:height, :width]
        elif kind == "noise":
            truth = random.integers(0, 2, (height, width))
        else:
            truth = blob(random, height, width).astype(int)
        if kind == "ignored":
            truth[random.random(truth.shape) < 0.1] = -1
        robot, oracle = make_clicker("ritm", truth), RitmOracle(truth)
        prediction = np.zeros((height, width), bool)
        for step in range(12):
            click, expected = robot.next_click(prediction), oracle.next_click(prediction)
            assert (click and (click.x, click.y, click.positive)) == expected, f"seed {seed}, click {step + 1}"
            if click is None:
                break
            # Sometimes the mask ignores the click: the clicked pixel must then not be chosen again.
            if random.random() < 0.7:
                prediction = paint(prediction, click, int(random.integers(0, 4)))


def test_ritm_on_large_masks_equals_distance_maps_of_the_whole_picture():
    # The clicker looks only at the box around the errors; here the map is that of the padded picture.
    def deepest(errors):
        padded = np.pad(errors, 1).astype(np.uint8)
        return np.sqrt(np.rint(cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1] ** 2))  # exact, so ties are

    random = np.random.default_rng(11)
    for height, width in [(301, 417), (260, 199)]:
        truth = blob(random, height, width)
        robot, prediction = make_clicker("ritm", truth), np.zeros(truth.shape, bool)
        free = np.ones(truth.shape)
        for _ in range(20):
            missed = deepest((truth == 1) & ~prediction) * free
            excess = deepest((truth == 0) & prediction) * free
            positive = missed.max() > excess.max()
            y, x = np.argwhere((missed if positive else excess) == max(missed.max(), excess.max()))[0]
            click = robot.next_click(prediction)
            assert click == Click(x, y, positive)
            free[y, x] = 0
            prediction = paint(prediction, click, int(random.integers(3, 20)))


def test_distances_are_roots_of_integers_to_the_last_bit(rng):
    # OpenCV's are not, and differ from call to call, so that the first of two equally deep pixels was drawn by lot
    for _ in range(10):
        truth = blob(rng, int(rng.integers(40, 200)), int(rng.integers(40, 200)))
        missed, _ = _Errors(truth).distances(np.zeros(truth.shape, bool), cv2.DIST_MASK_PRECISE)
        squares = np.rint(np.square(missed.map.astype(np.float64)))
        assert np.array_equal(missed.map, np.sqrt(squares).astype(np.float32))


def test_ritm_ties_between_the_signs_are_negative():
    truth = np.zeros((9, 20), np.int8)
    truth[2:7, 2:7] = 1  # missed, 5 x 5
    prediction = np.zeros((9, 20), bool)
    prediction[2:7, 12:17] = True  # excess, 5 x 5
    assert make_clicker("ritm", truth).next_click(prediction) == Click(14, 4, False)
    truth[1:8, 1:8] = 1  # now the missed square is larger
    assert make_clicker("ritm", truth).next_click(prediction) == Click(4, 4, True)


def test_ritm_takes_the_first_maximum_in_row_major_order():
    truth = np.zeros((20, 30), np.int8)
    truth[10:13, 2:5] = 1
    truth[3:6, 20:23] = 1  # the same square further right but higher up: first in row-major order
    assert make_clicker("ritm", truth).next_click(np.zeros(truth.shape, bool)) == Click(21, 4, True)


def test_ritm_counts_the_image_border_as_region_border():
    everything = np.ones((7, 11), np.int8)
    assert make_clicker("ritm", everything).next_click(np.zeros((7, 11), bool)) == Click(3, 3, True)


def test_ritm_means_the_largest_circle_not_the_largest_area():
    truth = np.zeros((40, 60), np.int8)
    truth[2:6, :] = 1  # area 240, inscribed radius 2
    truth[20:31, 10:21] = 1  # area 121, inscribed radius 6
    assert make_clicker("ritm", truth).next_click(np.zeros(truth.shape, bool)) == Click(15, 25, True)


def test_ritm_hides_the_clicked_pixel_only():
    truth = np.zeros((9, 9), np.int8)
    truth[2:7, 2:7] = 1
    robot = make_clicker("ritm", truth)
    nothing = np.zeros((9, 9), bool)
    assert robot.next_click(nothing) == Click(4, 4, True)
    assert robot.next_click(nothing) == Click(3, 3, True)  # a neighbour, the first of the next deepest


@pytest.mark.parametrize("name", list_clickers())
def test_no_click_on_a_perfect_mask_nor_in_ignored_pixels(name):
    truth = blob(np.random.default_rng(3), 31, 22)
    probs = np.full(truth.shape, 0.5, np.float32)
    assert make_clicker(name, truth).next_click(truth == 1, probs) is None
    ignored = np.where(truth == 1, -1, 0)
    assert make_clicker(name, ignored).next_click(truth == 1, probs) is None


@pytest.mark.parametrize("name", list_clickers())
def test_every_wrong_pixel_is_clicked_once_and_then_no_more(name):
    truth = np.zeros((9, 14), np.int8)
    truth[3, 4:9] = 1
    prediction = np.zeros(truth.shape, bool)
    prediction[7, 1:3] = True
    robot = make_clicker(name, truth, seed=5)
    probs = np.full(truth.shape, 0.5, np.float32)
    clicks = []
    while (click := robot.next_click(prediction, probs)) is not None:
        clicks.append((int(click.x), int(click.y), click.positive))
    assert sorted(clicks) == sorted([(x, 3, True) for x in range(4, 9)] + [(1, 7, False), (2, 7, False)])


def test_acselect_scores_uncertainty_where_ritm_measures_distance():
    truth = np.zeros((60, 90), np.int8)
    truth[5:26, 5:26] = 1
    truth[30:49, 60:79] = 1  # slightly smaller
    probs = np.full(truth.shape, 0.02, np.float32)
    probs[30:49, 60:79] = 0.45  # but the model is unsure there
    nothing = np.zeros(truth.shape, bool)
    assert make_clicker("ritm", truth).next_click(nothing) == Click(15, 15, True)
    assert make_clicker("acselect", truth).next_click(nothing, probs) == Click(69, 39, True)


def test_acselect_says_what_it_lacks():
    truth = np.eye(8, dtype=np.int8)
    with pytest.raises(InvalidArgumentError, match="probabilities"):
        make_clicker("acselect", truth).next_click(np.zeros((8, 8), bool))


def test_random_draws_uniformly_in_the_inner_half():
    truth = np.zeros((15, 19), np.int8)
    truth[2:13, 4:15] = 1  # 11 x 11: distances 1..6, deeper than 3 is the middle 5 x 5
    nothing = np.zeros(truth.shape, bool)
    draws = [make_clicker("random", truth, seed=s).next_click(nothing) for s in range(1000)]
    counts = np.zeros(truth.shape, int)
    for click in draws:
        assert click.positive
        counts[int(click.y), int(click.x)] += 1
    assert counts[5:10, 7:12].sum() == 1000
    assert counts[5:10, 7:12].min() > 15  # 40 expected, standard deviation 6


def test_random_repeats_with_its_seed_only():
    truth = blob(np.random.default_rng(0), 40, 50)

    def sequence(seed):
        robot, mask, clicks = make_clicker("random", truth, seed=seed), np.zeros(truth.shape, bool), []
        for _ in range(5):
            clicks.append(robot.next_click(mask))
            mask = paint(mask, clicks[-1], 4)
        return clicks

    assert sequence(sample_seed(0, "a")) == sequence(sample_seed(0, "a"))
    assert sequence(sample_seed(0, "a")) != sequence(sample_seed(0, "b"))
    assert sequence(sample_seed(0, "a")) != sequence(sample_seed(1, "a"))


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [
        (np.full((4, 5), 2), np.zeros((4, 5), bool)),
        (np.zeros((4, 5, 1), int), np.zeros((4, 5), bool)),
        (np.zeros((0, 5), int), np.zeros((0, 5), bool)),
        (np.zeros((4, 5), int), np.zeros((5, 4), bool)),
        (np.zeros((4, 5), int), np.zeros((4, 5), np.uint8)),
        (np.zeros((1, 2), int), [[True, False]]),
    ],
    ids=["value 2", "three axes", "empty", "transposed", "not bool", "list"],
)
def test_unusable_masks_are_refused(truth, prediction):
    with pytest.raises(InvalidMaskError):
        make_clicker("ritm", truth).next_click(prediction)


def test_unknown_clicker():
    with pytest.raises(InvalidArgumentError, match="ritm, acselect, random"):
        make_clicker("area", np.zeros((2, 2), int))
    with pytest.raises(InvalidArgumentError, match="ritm, acselect, random"):
        make_clicker(["ritm"], np.zeros((2, 2), int))


@pytest.mark.parametrize("seed", [-1, "x", 1.5])
def test_seeds_that_are_none(seed):
    with pytest.raises(InvalidArgumentError, match="seed is"):
        make_clicker("random", np.zeros((2, 2), int), seed=seed)
