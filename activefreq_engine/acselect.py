"""AcSelect: which region of a mask is worth the next click, and where to click in it.

Policy only: regions and their statistics come from `activefreq_engine.kernels.region_stats`, the click point from
`activefreq_engine.kernels.distance`.

The method is the one of ActiveFreq (arXiv 2603.11498), which names three scores of a region, Maximum Pixel Entropy
(MPE), Average Pixel Entropy (APE) and Regional Group Uncertainty (RGU), and a Region Score (RS) that picks one region.
The formulas are not public.  What is here is a reconstruction: H is the binary entropy of a pixel in bits,
MPE = max H, APE = mean H, RGU is one of `RGU_VARIANTS`, RS = their weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from activefreq_engine.conventions import THRESHOLD
from activefreq_engine.errors import BackendUnavailableError, InvalidArgumentError
from activefreq_engine.host import settings_aside
from activefreq_engine.kernels import cupy_impl
from activefreq_engine.kernels.distance import inscribed_points
from activefreq_engine.kernels.region_stats import RegionStats, binary_entropy, region_stats
from activefreq_engine.kernels.uncertain import COLUMNS
from activefreq_engine.memory import typed
from activefreq_engine.types import Suggestion

Array = NDArray[Any] | torch.Tensor

RGU_VARIANTS = {
    "mean_prob": "H(mean p): the entropy of the region seen as one unit",
    "entropy_share": "sum of H over the region / sum of H over all regions: the joint entropy of its pixels if they "
    "were independent; grows with area",
    "ripu": "H(share of mask pixels in the region's box, grown by one pixel) * mean H: impurity times uncertainty",
    "variance": "4 * variance of p over the region: largest where the region disagrees with itself",
}
"""Names of the Regional Group Uncertainty variants; each lies in 0..1.  "ripu" follows region impurity and prediction
uncertainty (Xie et al., CVPR 2022), whose windows are squares; here the window is the region's own box."""

BACKENDS = ("auto", "reference", "cupy")
"""Ways to compute the statistics of regions."""

TAU, TAU_FLIPPED = 0.9, 0.4
"""Entropies in bits from which `AcSelect.suggest` takes a pixel for uncertain by default; see there."""

Finder = Callable[
    [Any, Any, NDArray[np.bool_], "tuple[float, float, float]"],
    "NDArray[np.float64] | None",
]
"""Looks for uncertain regions.  Takes probabilities, those of the step before, valid pixels, and (threshold, tau,
tau_flipped); returns the table of `kernels.uncertain`, or None where it cannot look for them."""

_RANKED_BY = ("area", "max_entropy", "mean_entropy", "mean_prob", "radius")
_COLUMNS = ("x", "y", "sign", "area", "radius", "mpe", "ape", "rgu", "score", "rank")


@dataclass(frozen=True, slots=True)
class RegionScores:
    """Every region with its scores, best first: what `AcSelect` decided, and from which numbers.

    Arrays of length R.  ``print(scores)`` shows the table; `rows` gives it as dictionaries.
    """

    point: NDArray[np.int64]
    """`[R, 2]`: (x, y) of the largest inscribed circle's centre, the place to click."""
    positive: NDArray[np.bool_]
    """`[R]`: sign of the click."""
    bbox: NDArray[np.int64]
    """`[R, 4]`: (x0, y0, x1, y1), half-open."""
    area: NDArray[np.int64]
    """`[R]`: pixels."""
    radius: NDArray[np.float64]
    """`[R]`: radius of the largest inscribed circle, pixels; 1 for a region one or two pixels wide."""
    mpe: NDArray[np.float64]
    """`[R]`: maximum pixel entropy, bits."""
    ape: NDArray[np.float64]
    """`[R]`: average pixel entropy, bits."""
    rgu: NDArray[np.float64]
    """`[R]`: regional group uncertainty."""
    score: NDArray[np.float64]
    """`[R]`: weighted sum of the three."""
    rank: NDArray[np.int64]
    """`[R]`: 0 for wide regions, 1 for those narrow compared with the widest one, 2 for those below the minimum size.
    Regions are ordered by rank first, then by score."""

    def __len__(self) -> int:
        return len(self.area)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a region: x, y, sign ("+" or "-"), area, radius, mpe, ape, rgu, score, rank."""
        columns = (
            *self.point.T.tolist(),
            ["+" if positive else "-" for positive in self.positive],
            *(getattr(self, name).tolist() for name in _COLUMNS[3:]),
        )
        return [dict(zip(_COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]

    def __str__(self) -> str:
        cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in self.rows()]
        return "\n".join("".join(cell.rjust(9) for cell in line) for line in [list(_COLUMNS), *cells])

    def suggestions(self, limit: int | None = None) -> list[Suggestion]:
        """The first `limit` regions (all by default) that are not below the minimum size."""
        return [self._suggestion(i) for i in np.flatnonzero(self.rank < 2)[:limit]]

    def _suggestion(self, i: int) -> Suggestion:
        x, y = self.point[i].tolist()
        x0, y0, x1, y1 = self.bbox[i].tolist()
        return Suggestion(
            x=x,
            y=y,
            positive=bool(self.positive[i]),
            score=float(self.score[i]),
            region_bbox=(x0, y0, x1, y1),
            area=int(self.area[i]),
            mpe=float(self.mpe[i]),
            ape=float(self.ape[i]),
            rgu=float(self.rgu[i]),
        )


class AcSelect:
    """Scores regions and proposes clicks.  Holds settings only, so one object serves any number of images and threads.

    MPE, APE and most variants of RGU do not depend on a region's size, and the least certain pixels are those along a
    mask's contour.  So on their own these scores choose slivers along the contour, where a click changes next to
    nothing, and pass over wide errors of which the model is sure, where a click is worth most.  Therefore the default
    RGU is the variant that grows with area; bench/quality/acselect.py compares all of them.  Two more rules, both
    inferred and not in the paper: regions below a minimum area or inscribed radius are dropped, and regions narrower
    than `prominence` times the widest one come after all wider ones.  With ``prominence=1`` the widest error wins
    whatever its score (the robot clicker's distance rule, by region); with 0 only the score counts.

    Args:
        weights: of MPE, APE and RGU in the score; finite, not negative, not all zero.
        rgu: one of `RGU_VARIANTS`.
        min_area: pixels a region must have.
        min_radius: inscribed radius in pixels a region must have.  2 is a region at least three pixels wide.
        prominence: 0..1, see above.
        threshold: a pixel is in the mask when its probability is above it; used where no mask is given.
        backend: for the statistics of regions and their inner points: "auto" and "reference" compute on the CPU,
            "cupy" on the current CUDA device.

    Example:
        >>> probs = np.full((40, 60), 0.05)
        >>> probs[10:20, 10:30] = 0.6  # a region that the model is not sure of
        >>> best = AcSelect().suggest(probs)[0]
        >>> best.positive, best.region_bbox
        (False, (10, 10, 30, 20))

    Raises:
        InvalidArgumentError: an argument is out of its range.
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        rgu: str = "entropy_share",
        min_area: int = 16,
        min_radius: float = 2.0,
        prominence: float = 0.5,
        threshold: float = THRESHOLD,
        backend: str = "auto",
    ) -> None:
        if len(weights) != 3:
            raise InvalidArgumentError(f"weights is {weights!r}; pass three numbers, for MPE, APE and RGU")
        for weight in weights:
            _check_range("a weight", weight, 0, math.inf)
        if not any(weights):
            raise InvalidArgumentError(f"weights is {weights!r}; at least one must be above 0")
        if rgu not in RGU_VARIANTS:
            raise InvalidArgumentError(f"rgu is {rgu!r}; allowed are {', '.join(RGU_VARIANTS)}")
        _check_range("min_area", min_area, 0, math.inf)
        _check_range("min_radius", min_radius, 0, math.inf)
        _check_range("prominence", prominence, 0, 1)
        _check_range("threshold", threshold, 0, 1)
        if backend not in BACKENDS:
            raise InvalidArgumentError(f"backend is {backend!r}; allowed are {', '.join(BACKENDS)}")
        self.weights = tuple(float(w) for w in weights)
        self.rgu = rgu
        self.min_area = min_area
        self.min_radius = min_radius
        self.prominence = prominence
        self.threshold = threshold
        self.backend = backend

    def __repr__(self) -> str:
        return f"AcSelect({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @typed
    def oracle(self, probs: Array, prediction: Array, truth: Array, valid: Array | None = None) -> list[Suggestion]:
        """Rank the mislabelled regions of a prediction whose ground truth is known.  For evaluation and training.

        The regions are the 8-connected components of the false negatives (FN) and those of the false positives (FP),
        not of their union: so each region has one sign, positive for missing pixels and negative for superfluous ones.
        An FN and an FP region that touch are two regions.

        Args:
            probs: float `[H, W]` in 0..1, array or tensor.
            prediction: bool `[H, W]`, the mask.
            truth: bool `[H, W]`, the ground truth.
            valid: bool `[H, W]`; where false a pixel is never an error, as if it were outside the image.  For ignored
                ground truth, and for pixels clicked before, which then are not proposed again.

        Returns:
            Suggestions, best first.  Empty exactly if no valid pixel is wrong: if every region is below the minimum
            size, the one of largest area is returned (then the widest, then the one of best score).

        Raises:
            InvalidArgumentError: wrong shape or dtype, or a probability that is not in 0..1.
            BackendUnavailableError: the backend asked for by name cannot run.
        """
        scores = self.oracle_scores(probs, prediction, truth, valid)
        suggestions = scores.suggestions()
        if suggestions or not len(scores):
            return suggestions
        largest = np.lexsort((-scores.radius, -scores.area))[0]
        return [scores._suggestion(int(largest))]

    @settings_aside()
    @typed
    def oracle_scores(self, probs: Array, prediction: Array, truth: Array, valid: Array | None = None) -> RegionScores:
        """The table behind `oracle`, with the regions that it drops.  Arguments and errors are those of `oracle`."""
        p = _probabilities("probs", probs)
        mask = _mask("prediction", prediction, p)
        target = _mask("truth", truth, p)
        allowed = torch.ones_like(mask) if valid is None else _mask("valid", valid, p)
        missing, superfluous = target & ~mask & allowed, mask & ~target & allowed
        return self._score(torch.stack([missing, superfluous]), p, mask)

    @typed
    def suggest(
        self,
        probs: Array,
        previous_probs: Array | None = None,
        tau: float = TAU,
        k: int = 3,
        *,
        tau_flipped: float = TAU_FLIPPED,
        valid: Array | None = None,
    ) -> list[Suggestion]:
        """Propose clicks to a person, without ground truth.  A person must look at a proposal before it is carried out.

        A pixel is uncertain if H > `tau`, or if its label has changed since the previous step and H > `tau_flipped`.
        A change alone is not enough: a pixel that changed and is certain now is what the last click asked for, and a
        proposal to undo it would contradict the person who has just clicked.

        The regions are the 8-connected components of the uncertain pixels inside the mask and of those outside.  So
        each has one sign, as in `oracle`: the opposite of the mask there, since a click that agrees with the mask would
        change nothing.  A suggestion means "if the mask is wrong here, this is the click to make"; if the mask is
        right, ignore it.  Without the division by sign the band along the contour would be one region and be clicked in
        its middle, on the contour itself, where even a justified click changes little.

        Args:
            probs: float `[H, W]` in 0..1, array or tensor.
            previous_probs: float `[H, W]`, the probabilities one step earlier; None at the first step.
            tau: bits, 0..1.  0.9 is a probability of 0.32 to 0.68.
            k: most suggestions, at least 1.
            tau_flipped: bits, 0..tau.  0.4 is a probability of 0.08 to 0.92.
            valid: bool `[H, W]`; where false nothing is proposed, for example around earlier clicks.

        Returns:
            0 to k suggestions, best first.  Empty when no uncertain region has the minimum size: the mask is as good
            as this model can say.

        Raises:
            InvalidArgumentError: wrong shape or dtype, or a value out of its range.
            BackendUnavailableError: the backend asked for by name cannot run.
        """
        return self.suggest_scores(probs, previous_probs, tau, tau_flipped=tau_flipped, valid=valid).suggestions(
            check_count(k)
        )

    @settings_aside()
    @typed
    def suggest_scores(
        self,
        probs: Array,
        previous_probs: Array | None = None,
        tau: float = TAU,
        *,
        tau_flipped: float = TAU_FLIPPED,
        valid: Array | None = None,
    ) -> RegionScores:
        """The table behind `suggest`, with the regions that it drops.  Arguments and errors are those of `suggest`."""
        _check_range("tau", tau, 0, 1)
        _check_range("tau_flipped", tau_flipped, 0, tau)
        p = _probabilities("probs", probs)
        mask = p > self.threshold
        entropy = binary_entropy(p)
        candidates = entropy > tau
        if previous_probs is not None:
            previous = _probabilities("previous_probs", previous_probs)
            _check_same_shape("previous_probs", previous, p)
            flipped = mask != (previous > self.threshold)
            candidates |= flipped & (entropy > tau_flipped)
        if valid is not None:
            candidates &= _mask("valid", valid, p)
        return self._score(torch.stack([candidates & ~mask, candidates & mask]), p, mask)

    def _score(self, candidates: torch.Tensor, probs: torch.Tensor, mask: torch.Tensor) -> RegionScores:
        """Score the regions of every layer of `candidates` `[L, H, W]`; `probs` and `mask` are `[H, W]`."""
        rows, columns = _box_with_margin(candidates.any(0))
        candidates, probs, mask = candidates[:, rows, columns], probs[rows, columns], mask[rows, columns]
        corner = np.array([columns.start, rows.start])
        stats, point, radius = self._measured(candidates, probs)
        return self._ranked(
            point=point + corner,
            positive=~mask.numpy()[point[:, 1], point[:, 0]],
            bbox=stats.bbox.numpy() + np.tile(corner, 2),
            area=stats.area.numpy(),
            radius=radius,
            mpe=stats.max_entropy.numpy(),
            ape=stats.mean_entropy.numpy(),
            rgu=self._group_uncertainty(stats, probs, mask),
        )

    def _ranked(self, **found: NDArray[Any]) -> RegionScores:
        """The regions, best first; `found` has the columns of `RegionScores` without score and rank."""
        score, rank, order = self._order(*(found[name] for name in ("area", "radius", "mpe", "ape", "rgu")))
        return RegionScores(
            **{name: column[order] for name, column in found.items()}, score=score[order], rank=rank[order]
        )

    def _order(
        self,
        area: NDArray[Any],
        radius: NDArray[np.float64],
        mpe: NDArray[np.float64],
        ape: NDArray[np.float64],
        rgu: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.intp]]:
        """Score and rank of each region, and the regions' indices, best first."""
        score = self.weights[0] * mpe + self.weights[1] * ape + self.weights[2] * rgu
        rank = np.where(radius >= self.prominence * radius.max(initial=0), 0, 1)
        rank[(area < self.min_area) | (radius < self.min_radius)] = 2
        return score, rank, np.lexsort((-area, -score, rank))  # stable: equal ones stay in layer and row-major order

    @settings_aside()
    @typed
    def suggest_by(
        self,
        find: Finder,
        probs: Any,
        previous_probs: Any,
        valid: NDArray[np.bool_],
        k: int = 3,
        tau: float = TAU,
    ) -> list[Suggestion]:
        """`suggest`, with the regions found by `find`, for example on a device.

        The regions and their order are the same; scores may differ by rounding, since a device adds entropies up in
        units of 2^-20.  If there are more regions than the table holds, or RGU needs more than the table has, the host
        looks for the regions itself.

        Args:
            find: returns the table of `kernels.uncertain`, or None.
            probs, previous_probs: float32 arrays `[H, W]` as `suggest` takes them, or objects of which `np.asarray`
                makes such arrays; `find` is given them as they are.
            valid: bool `[H, W]`.
            k (int): most suggestions, at least 1.
            tau (float): bits, as `suggest` takes it.

        Raises:
            InvalidArgumentError: as `suggest`.
        """
        rules = (self.threshold, tau, min(TAU_FLIPPED, tau))
        table = find(probs, previous_probs, valid, rules) if self._by_table else None
        counts = [0, 0] if table is None else [int(n) for n in table[:, 0, 0].tolist()]
        # if probabilities are out of range, the host raises and says where
        if table is None or table[0, 0, 1] or max(counts) >= table.shape[1]:
            before = None if previous_probs is None else np.asarray(previous_probs)
            return self.suggest(np.asarray(probs), before, tau, k, tau_flipped=rules[2], valid=valid)
        check_count(k)
        rows = np.concatenate([layer[1 : n + 1] for layer, n in zip(table, counts, strict=True)])
        area, mpe, ape, mean, radius = (rows[:, COLUMNS.index(name)] for name in _RANKED_BY)
        if self.rgu == "mean_prob":
            rgu = binary_entropy(torch.from_numpy(mean.copy())).numpy()
        else:
            mass = ape * area
            total = mass.sum()
            rgu = mass / total if total > 0 else mass
        score, rank, order = self._order(area, radius, mpe, ape, rgu)
        found = []
        for i in order[:k].tolist():  # not all of them as `RegionScores`: that takes as long as all the rest
            if rank[i] < 2:
                row = dict(zip(COLUMNS, rows[i].tolist(), strict=True))
                x, y, x0, y0, x1, y1 = (int(row[name]) for name in ("x", "y", "x0", "y0", "x1", "y1"))
                scores = {"mpe": row["max_entropy"], "ape": row["mean_entropy"], "rgu": float(rgu[i])}
                positive, pixels = i < counts[0], int(row["area"])
                found.append(Suggestion(x, y, positive, float(score[i]), (x0, y0, x1, y1), pixels, **scores))
        return found

    @property
    def _by_table(self) -> bool:
        """Whether scores can be computed from a table of regions alone, and the host was not asked for by name."""
        return self.rgu in ("mean_prob", "entropy_share") and self.backend in ("auto", "cupy")

    def _measured(
        self, candidates: torch.Tensor, probs: torch.Tensor
    ) -> tuple[RegionStats, NDArray[np.int64], NDArray[np.float64]]:
        """Statistics, inner points and radii of the regions, on the host; where CuPy was asked for, from the device."""
        if self.backend == "cupy":
            usable, reason = cupy_impl.verify_machine()
            if not usable:
                raise BackendUnavailableError(f"AcSelect cannot run on the cupy backend: {reason}")
            candidates, probs = candidates.cuda(), probs.cuda()
        stats = region_stats(candidates, probs.expand(candidates.shape), backend=self.backend)
        point, radius = inscribed_points(stats.labels, stats.counts, backend=self.backend)
        stats = RegionStats(*(getattr(stats, f.name).cpu() for f in fields(stats)))
        return stats, point.cpu().numpy(), radius.cpu().numpy()

    def _group_uncertainty(self, stats: RegionStats, probs: torch.Tensor, mask: torch.Tensor) -> NDArray[np.float64]:
        """RGU `[R]` of every region, by the chosen variant of `RGU_VARIANTS`."""
        if self.rgu == "mean_prob":
            return binary_entropy(stats.mean_prob).numpy()
        if self.rgu == "entropy_share":
            mass = stats.mean_entropy * stats.area
            total = mass.sum()
            return (mass / total if total > 0 else mass).numpy()
        if self.rgu == "ripu":
            share = _mean_in_boxes(mask.numpy(), stats.bbox.numpy(), margin=1)
            return binary_entropy(torch.from_numpy(share)).numpy() * stats.mean_entropy.numpy()
        return 4 * _variance(stats, probs)


def check_count(k: Any) -> int:
    """The number of suggestions as an int; raises InvalidArgumentError unless it is an integer of at least 1."""
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise InvalidArgumentError(f"k is {k!r}; pass an integer of at least 1")
    return int(k)


def _box_with_margin(mask: torch.Tensor) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around the true pixels of `mask` `[H, W]`, grown by one pixel within the
    image; one pixel if there are none.  Work on an object in a large image should not pay for the whole image."""
    spans = []
    for dimension in (1, 0):
        occupied = mask.any(dimension).nonzero()
        first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, 0)
        spans.append(slice(max(first - 1, 0), min(last + 2, mask.shape[1 - dimension])))
    return spans[0], spans[1]


def _variance(stats: RegionStats, probs: torch.Tensor) -> NDArray[np.float64]:
    """Population variance `[R]` of `probs` `[H, W]` over each region."""
    layer, y, x = stats.labels.nonzero(as_tuple=True)
    start = torch.cumsum(stats.counts, 0) - stats.counts  # row of each layer's first region
    region = start[layer] + stats.labels[layer, y, x] - 1
    deviation = probs[y, x].double() - stats.mean_prob[region]
    return (torch.bincount(region, weights=deviation**2, minlength=len(stats)) / stats.area).numpy()


def _mean_in_boxes(mask: NDArray[np.bool_], boxes: NDArray[np.int64], margin: int) -> NDArray[np.float64]:
    """Share of true pixels of `mask` `[H, W]` in each of `boxes` `[R, 4]`, grown by `margin`, clipped to the image."""
    height, width = mask.shape
    integral = np.zeros((height + 1, width + 1), np.int64)
    integral[1:, 1:] = mask.cumsum(0).cumsum(1)
    x0, y0 = np.maximum(boxes[:, :2].T - margin, 0)
    x1, y1 = np.minimum(boxes[:, 2:].T + margin, [[width], [height]])
    inside = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    return inside / ((x1 - x0) * (y1 - y0))


def _probabilities(name: str, value: Array) -> torch.Tensor:
    """`value` as a float32 or float64 `[H, W]` tensor on the CPU, checked."""
    tensor = _tensor(name, value)
    if not tensor.dtype.is_floating_point:
        raise InvalidArgumentError(f"{name} has dtype {tensor.dtype}; pass floating-point probabilities in 0..1")
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise InvalidArgumentError(f"{name} has shape {tuple(tensor.shape)}; pass [H, W] with at least one pixel")
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)
    if not (low >= 0 and high <= 1):  # so also at NaN
        bad = ~((tensor >= 0) & (tensor <= 1))
        y, x = bad.nonzero()[0].tolist()
        raise InvalidArgumentError(
            f"{name} holds {int(bad.sum())} values that are not in 0..1, the first is {tensor[y, x].item()} at x={x}, "
            f"y={y}; pass probabilities, not logits, and none that is NaN"
        )
    return tensor


def _mask(name: str, value: Array, probs: torch.Tensor) -> torch.Tensor:
    """`value` as a bool tensor on the CPU of the shape of `probs`, checked."""
    tensor = _tensor(name, value)
    if tensor.dtype != torch.bool:
        raise InvalidArgumentError(f"{name} has dtype {tensor.dtype}; pass bool, for example `mask > 0`")
    _check_same_shape(name, tensor, probs)
    return tensor


def _tensor(name: str, value: Array) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        # A copy, as torch shares no memory that is read-only, has negative strides or a foreign byte order.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    got = f"an array of dtype {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise InvalidArgumentError(f"{name} is {got}; pass a numeric NumPy array or a torch tensor")


def _check_same_shape(name: str, tensor: torch.Tensor, probs: torch.Tensor) -> None:
    if tensor.shape != probs.shape:
        raise InvalidArgumentError(
            f"{name} has shape {tuple(tensor.shape)}, probs {tuple(probs.shape)}; both must have the same shape"
        )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low <= value <= high or value == math.inf:
        allowed = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise InvalidArgumentError(f"{name} is {value!r}; pass a finite number, {allowed}")
