"""Robot clickers: where the next click of an evaluation falls, given the truth and the present mask.

``ritm``
    The clicker of the standard protocol (RITM, `inference/clicker.py`): the deepest point of the largest error.
    Deterministic, and exact to the pixel.
``acselect``
    ActiveFreq's robot: the region of errors that AcSelect scores highest, clicked at its largest inscribed point.
``random``
    The rule that training uses: a random pixel in the inner half of the largest error.

All three share one life cycle: one clicker object is made for one sample (it remembers the pixels it has clicked) and
is asked for a click after every new mask.  The mask before the first click is all False.  Coordinates are (x, y)
pixels, arrays are ``[H, W]`` with rows first.
"""

import hashlib
from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from activefreq_engine.acselect import AcSelect
from activefreq_engine.errors import InvalidArgumentError, InvalidMaskError
from activefreq_engine.types import Click
from activefreq_engine.values import whole

IGNORE = -1
"""Truth value of pixels that count neither for clicks nor for IoU."""

_PRECISE = cv2.DIST_MASK_PRECISE  # exact Euclidean distances: ties then fall as in the protocol
_TRAINING = cv2.DIST_MASK_5  # the approximation that the training rule uses


class RobotClicker(Protocol):
    """Clicks on one sample like a tireless annotator who knows the truth."""

    needs_probs: bool
    """True when `next_click` reads the probabilities."""

    def next_click(self, prediction: NDArray[np.bool_], probs: NDArray[np.floating] | None = None) -> Click | None:
        """Choose the next click and remember its pixel as clicked.

        Args:
            prediction: present mask, bool ``[H, W]``.
            probs: present probabilities in 0..1, float ``[H, W]``; read only when `needs_probs`.

        Returns:
            The click, or None when there is nothing left to click: the mask is perfect, or every wrong pixel has
            been clicked before.

        Raises:
            InvalidMaskError: `prediction` is not bool, or not of the truth's shape.
            InvalidArgumentError: probabilities are needed and missing.
        """
        ...


class _Errors:
    """What every clicker keeps: the truth, and which pixels may still be clicked."""

    needs_probs = False

    def __init__(self, truth: NDArray[np.integer]):
        truth = np.asarray(truth)
        if truth.ndim != 2 or truth.size == 0 or not np.isin(truth, (0, 1, IGNORE)).all():
            raise InvalidMaskError(
                f"truth of shape {truth.shape}, dtype {truth.dtype}; a robot clicker needs [H, W] with the values "
                f"1 (object), 0 (background) and {IGNORE} (ignored)"
            )
        self.object = truth == 1
        self.valid = truth != IGNORE
        self.not_clicked = np.ones(truth.shape, dtype=bool)

    def check(self, prediction: NDArray[np.bool_]) -> None:
        if not isinstance(prediction, np.ndarray):
            raise InvalidMaskError(
                f"prediction is a {type(prediction).__name__}; the truth needs a bool mask of shape {self.object.shape}"
            )
        if prediction.shape != self.object.shape or prediction.dtype != np.bool_:
            raise InvalidMaskError(
                f"prediction of shape {prediction.shape}, dtype {prediction.dtype}; the truth needs a bool mask of "
                f"shape {self.object.shape}"
            )

    def distances(self, prediction: NDArray[np.bool_], mask_size: int) -> tuple["_Distances", "_Distances"]:
        """Distance maps of the false negatives and of the false positives, zero at clicked pixels."""
        missed = self.object & ~prediction
        excess = ~self.object & prediction & self.valid
        return _Distances(missed, self.not_clicked, mask_size), _Distances(excess, self.not_clicked, mask_size)

    def click_at(self, x: int, y: int, positive: bool) -> Click:
        self.not_clicked[y, x] = False
        return Click(float(x), float(y), positive)


class _Distances:
    """Distance of every error pixel to the nearest pixel that is no error; outside the image nothing is an error.

    The map covers only the box around the errors plus one pixel.  That is exact: the frame around the box holds no
    error, and on the way to any pixel beyond it a nearer pixel of the frame is passed.
    """

    def __init__(self, errors: NDArray[np.bool_], not_clicked: NDArray[np.bool_], mask_size: int):
        as_bytes = errors.view(np.uint8)
        self.x0, self.y0, width, height = cv2.boundingRect(as_bytes)
        if width == 0:
            self.map: NDArray[np.floating] = np.zeros((1, 1), np.float32)
        else:
            box = np.s_[self.y0 : self.y0 + height, self.x0 : self.x0 + width]
            padded = cv2.copyMakeBorder(as_bytes[box], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
            distances = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, mask_size), np.float32)[1:-1, 1:-1]
            if mask_size == _PRECISE:
                # OpenCV's last bits differ from call to call, and so would ties; the square of a distance is an integer
                distances = np.sqrt(np.rint(np.square(distances)))
            self.map = distances * not_clicked[box]
        self.max = float(self.map.max())

    def first_maximum(self) -> tuple[int, int]:
        """(x, y) of the maximum that comes first in row-major order."""
        row, column = divmod(int(np.argmax(self.map)), self.map.shape[1])
        return self.x0 + column, self.y0 + row

    def inner_half(self) -> NDArray[np.intp]:
        """(x, y) of every pixel deeper than half the maximum, row-major, ``[n, 2]``."""
        rows, columns = np.nonzero(self.map > self.max / 2)
        return np.stack((self.x0 + columns, self.y0 + rows), axis=1)


class RitmClicker:
    """The deterministic clicker of the standard protocol.

    1. False negatives and false positives each get an exact Euclidean distance map in which the image border and
       ignored pixels count as region border.
    2. Pixels clicked before are zeroed in both maps (those pixels only, not their neighbourhood).
    3. The click is positive if the maximum over the false negatives is strictly larger; a tie is a negative click.
    4. It falls on the first pixel, in row-major order, where the winning map has its maximum.

    "Largest error" therefore means the largest inscribed circle, not the largest area.  On a perfect mask the
    published code clicks negative at (0, 0) again and again; this one returns None.

    Args:
        truth: integer ``[H, W]``: 1 object, 0 background, -1 ignored.

    Raises:
        InvalidMaskError: `truth` is empty, not two-dimensional or holds another value.
    """

    needs_probs = False

    def __init__(self, truth: NDArray[np.integer]):
        self._errors = _Errors(truth)

    def next_click(self, prediction: NDArray[np.bool_], probs: NDArray[np.floating] | None = None) -> Click | None:
        """See `RobotClicker.next_click`."""
        self._errors.check(prediction)
        missed, excess = self._errors.distances(prediction, _PRECISE)
        if missed.max == 0 and excess.max == 0:
            return None
        positive = missed.max > excess.max
        return self._errors.click_at(*(missed if positive else excess).first_maximum(), positive)


class RandomClicker:
    """The training rule: uniformly among the pixels deeper than half the maximum of the larger error.

    As in training, distances are the approximation with mask size 5; unlike training, a pixel is not clicked twice.

    Args:
        truth: integer ``[H, W]``: 1 object, 0 background, -1 ignored.
        seed: seeds the draws of this sample.

    Raises:
        InvalidMaskError: `truth` is empty, not two-dimensional or holds another value.
    """

    needs_probs = False

    def __init__(self, truth: NDArray[np.integer], seed: int):
        self._errors = _Errors(truth)
        self._random = np.random.default_rng(seed)

    def next_click(self, prediction: NDArray[np.bool_], probs: NDArray[np.floating] | None = None) -> Click | None:
        """See `RobotClicker.next_click`."""
        self._errors.check(prediction)
        missed, excess = self._errors.distances(prediction, _TRAINING)
        if missed.max == 0 and excess.max == 0:
            return None
        positive = missed.max > excess.max
        inner = (missed if positive else excess).inner_half()
        x, y = inner[self._random.integers(len(inner))]
        return self._errors.click_at(int(x), int(y), positive)


class AcSelectClicker:
    """ActiveFreq's robot: clicks the largest inscribed point of the mislabelled region with the highest score.

    Regions are the 8-connected components of missed and of excess pixels; `AcSelect.oracle` scores them.  Pixels
    clicked before are hidden from it, so that a click that changed nothing is not repeated.

    Args:
        truth: integer ``[H, W]``: 1 object, 0 background, -1 ignored.
        policy: the scoring; default `AcSelect()`.

    Raises:
        InvalidMaskError: `truth` is empty, not two-dimensional or holds another value.
    """

    needs_probs = True

    def __init__(self, truth: NDArray[np.integer], policy: AcSelect | None = None):
        self._errors = _Errors(truth)
        self._policy = AcSelect() if policy is None else policy

    def next_click(self, prediction: NDArray[np.bool_], probs: NDArray[np.floating] | None = None) -> Click | None:
        """See `RobotClicker.next_click`."""
        self._errors.check(prediction)
        if not isinstance(probs, np.ndarray) or probs.shape != prediction.shape:
            got = f"an array of shape {probs.shape}" if isinstance(probs, np.ndarray) else f"a {type(probs).__name__}"
            raise InvalidArgumentError(
                f"the acselect clicker reads the model's probabilities, [H, W] = {prediction.shape}; got {got}. "
                "Use a predictor that has `probs`, or the ritm clicker"
            )
        valid = self._errors.valid & self._errors.not_clicked
        ranked = self._policy.oracle(probs, prediction, self._errors.object, valid)
        if not ranked:
            return None
        return self._errors.click_at(ranked[0].x, ranked[0].y, ranked[0].positive)


ClickerFactory = Callable[[NDArray[np.integer], int], RobotClicker]
"""(truth, the sample's seed) -> the clicker of one sample; truth as for `make_clicker`."""


def sample_seed(seed: int, sample_id: str) -> int:
    """A seed that depends on the run's seed and the sample's id only: batching and sharding do not change it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample_id}".encode(errors="surrogatepass")).digest()[:8], "little")


_CLICKERS: dict[str, ClickerFactory] = {
    "ritm": lambda truth, seed: RitmClicker(truth),
    "acselect": lambda truth, seed: AcSelectClicker(truth),
    "random": RandomClicker,
}


def list_clickers() -> list[str]:
    """Names that `make_clicker` knows."""
    return list(_CLICKERS)


def make_clicker(name: str, truth: NDArray[np.integer], *, seed: int = 0) -> RobotClicker:
    """Make the robot clicker of one sample.

    Args:
        name: ``ritm``, ``acselect`` or ``random``.
        truth: integer ``[H, W]``: 1 object, 0 background, -1 ignored.
        seed: the sample's seed (see `sample_seed`); only ``random`` uses it.

    Example:
        >>> truth = np.zeros((9, 12), int)
        >>> truth[2:7, 3:8] = 1
        >>> make_clicker("ritm", truth).next_click(np.zeros((9, 12), bool))  # the middle of what is missing
        Click(x=5.0, y=4.0, positive=True)

    Raises:
        InvalidArgumentError: unknown name, or a seed that is no whole number from 0.
        InvalidMaskError: unusable truth.
    """
    check_clicker(name)
    seed = whole("seed", seed)
    if seed < 0:
        raise InvalidArgumentError(f"seed is {seed}; it must be at least 0")
    return _CLICKERS[name](truth, seed)


def check_clicker(name: str) -> None:
    """Raise InvalidArgumentError unless `name` is a clicker."""
    if not isinstance(name, str) or name not in _CLICKERS:
        raise InvalidArgumentError(f"unknown clicker {name!r}; choose one of {', '.join(_CLICKERS)}")
