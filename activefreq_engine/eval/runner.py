"""The evaluation loop: robot clicks, masks, IoU; many samples side by side.

What is measured is a `Session` for each sample, just as programs embed it, zoom and refinement included.  Any other
segmenter can be evaluated if it has the three methods of `Predictor`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from activefreq_engine.conventions import DEFAULT_MODEL, THRESHOLD
from activefreq_engine.errors import DatasetError, InvalidArgumentError, InvalidMaskError
from activefreq_engine.eval.clickers import ClickerFactory, RobotClicker, check_clicker, make_clicker, sample_seed
from activefreq_engine.eval.datasets import Dataset, Rgb, Sample, Truth
from activefreq_engine.eval.metrics import iou
from activefreq_engine.eval.report import Failure, Report, SampleResult, Settings, dataset_digest, versions
from activefreq_engine.types import Click
from activefreq_engine.values import finite, short, whole

if TYPE_CHECKING:
    from activefreq_engine.runtime.engine import Engine

MAX_CLICKS = 20
MOST_CLICKS = 10_000
"""Most clicks a sample: its curve has a value for each of them, placed or not."""
MOST = 500
"""Most samples side by side: as many as one `click_batch` serves."""


class Clicked(Protocol):
    """What a click returns; a `ClickResult` is one."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """bool ``[H, W]`` at image resolution."""
        ...


class Predictor(Protocol):
    """A segmenter that can be evaluated; a `Session` is one.

    A predictor that has an attribute ``probs`` (float ``[H, W]``, the probabilities behind the last mask) also works
    with the ``acselect`` clicker.
    """

    def set_image(self, image: Rgb) -> object:
        """Take a new image, uint8 ``[H, W, 3]`` RGB, and forget all clicks."""
        ...

    def click(self, x: float, y: float, *, positive: bool = True) -> Clicked:
        """Add a click at pixel (x, y) and return the new mask."""
        ...

    def reset(self) -> object:
        """Forget all clicks and keep the image."""
        ...


ClickTogether = Callable[[Sequence[Any], Sequence[Click]], Sequence[Clicked]]
"""One click on each of several predictors at once -> their new masks, in the same order."""


def evaluate(
    data: Dataset,
    *,
    model: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    size: int | None = None,
    engine: "Engine | None" = None,
    predictors: Sequence[Predictor] | None = None,
    click_batch: ClickTogether | None = None,
    clicker: str | tuple[str, ClickerFactory] = "ritm",
    max_clicks: int = MAX_CLICKS,
    stop_at: float | None = None,
    threshold: float = THRESHOLD,
    zoom: bool = True,
    refine: bool = True,
    batch_size: int = 8,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    progress: bool | None = None,
    keep: Callable[[Report], None] | None = None,
) -> Report:
    """Run the protocol on a data set.

    By default sessions on one shared engine are evaluated.  For another segmenter give `predictors`; the options of
    sessions and their engine then have no effect, nor has `batch_size`.

    Args:
        data: the samples, see `load_dataset`.
        model: as for `Session`.  With `engine` or `predictors` it is only the name in the report; by default the
            engine's own, or the predictors' class.
        device, size: as for `Session`.
        precision: as for `Session`.  Default: "fp32", in which the other samples of a batch change at most the last bit
            of a float; in half precision on a GPU the results depend on them.
        engine: evaluate with this engine.
        predictors: as many as samples run side by side.
        click_batch: clicks on several `predictors` in one call; default: one after the other.
        clicker: ``ritm``, ``acselect`` or ``random``; or (name, factory), any other one under its name in the report.
        max_clicks: clicks a sample, and the NoC of a failure; at most `MOST_CLICKS`.
        stop_at: stop a sample at this IoU; default: all clicks run, which mIoU needs.
        threshold: probability above which a pixel belongs to the mask.
        zoom, refine: as for `Session`.
        batch_size: samples that run side by side.  It changes speed and memory; for results see `precision`.
        seed: seeds the clickers that draw, together with each sample's id.
        shard: (i, n), 0-based: only the i-th of n equal runs of consecutive samples; see `merge`.  They start and end
            with a batch, unless that leaves one without samples.
        progress: progress bar on stderr; default: only on a terminal.
        keep: called with the report so far after each batch, so that it can be stored before an interruption.

    Returns:
        The report, see `Report`.  A sample that cannot be read costs its own row: it is among the report's `failed`.

    Raises:
        InvalidArgumentError: an option is out of range or of another type, or the clicker needs probabilities that a
            predictor lacks.
        InvalidMaskError: a predictor returned something that is no mask of the image's size.
        DatasetError: no sample at all can be loaded, and it is no shard: the other shards may have some, and `merge`
            needs all.
        ModelLoadError, BackendUnavailableError: as for `Session`.
    """
    _check(isinstance(data, Dataset), f"data is a {type(data).__name__}; expected a Dataset, see load_dataset")
    if isinstance(clicker, str):
        check_clicker(clicker)
        clicker = clicker, partial(_registered, clicker)
    pair = isinstance(clicker, tuple) and len(clicker) == 2 and callable(clicker[1])
    _check(pair, f"clicker is {short(clicker)}; expected its name, or a name and a factory")
    robot_name, make_robot = clicker
    given = predictors is None or (isinstance(predictors, Sequence) and len(predictors) > 0)
    _check(given, f"predictors is {short(predictors)}; expected a list of at least one")
    _check(keep is None or callable(keep), f"keep is {short(keep)}; expected a function of a Report")
    max_clicks, batch_size, seed = whole("max_clicks", max_clicks), whole("batch_size", batch_size), whole("seed", seed)
    _check(max_clicks >= 1, f"max_clicks is {max_clicks}; it must be at least 1")
    _check(max_clicks <= MOST_CLICKS, f"max_clicks is {max_clicks}; it must be at most {MOST_CLICKS}")
    good = stop_at is None or 0 < (finite(stop_at) or 0) <= 1
    _check(good, f"stop_at is {short(stop_at)}; it is an IoU above 0 and at most 1")
    _check(0 < (finite(threshold) or 0) < 1, f"threshold is {short(threshold)}; it is a probability between 0 and 1")
    _check(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
    _check(batch_size <= MOST, f"batch_size is {batch_size}; it must be at most {MOST}")
    numbers = shard_range(len(data.samples), shard, batch_size if predictors is None else len(predictors))
    if predictors is None:
        _check(click_batch is None, "click_batch was given without predictors; give both or neither")
        if engine is None:
            from activefreq_engine.runtime.engine import Engine

            model = DEFAULT_MODEL if model is None else model
            engine = Engine.shared(model, device, precision, size)
        name = engine.name if model is None else model
        lanes, about = _sessions(batch_size, engine, threshold, zoom, refine)
    else:
        _check(len(predictors) > 0, "predictors is empty; give at least one")
        lanes, about = _Lanes(list(predictors), click_batch or _one_by_one), {}
        name = type(predictors[0]).__name__ if model is None else model
    settings = Settings(
        model=name,
        clicker=robot_name,
        max_clicks=max_clicks,
        stop_at=stop_at,
        seed=seed,
        batch_size=len(lanes.predictors),
        about=about,
        dataset=data.name,
        layout=data.layout,
        dataset_samples=len(data.samples),
        dataset_digest=dataset_digest(data),
        versions=versions(),
        ignore_label=data.ignore_label,
    )
    started = time.perf_counter()
    results: list[SampleResult] = []
    failed: list[Failure] = []

    def report(expected: int | None) -> Report:
        seconds = time.perf_counter() - started
        return Report(settings, tuple(results), seconds, shard, tuple(failed), expected)

    images = _LastImage()
    width = len(lanes.predictors)
    with tqdm(
        total=len(numbers) * max_clicks,
        desc=f"eval {robot_name}",
        unit="click",
        disable=None if progress is None else not progress,
    ) as bar:
        for start in range(0, len(numbers), width):
            chunk = numbers[start : start + width]
            runs = []
            for lane, n in enumerate(chunk):
                try:
                    runs.append(_start(n, data.samples[n], lane, lanes, images, make_robot, seed))
                except DatasetError as error:
                    failed.append(Failure(n, data.samples[n].id, str(error)))
                    bar.update(max_clicks)
            for _ in range(max_clicks):
                _click_all(runs, lanes, stop_at)
                bar.update(len(runs))
            results += [run.result(max_clicks) for run in runs]
            if keep is not None and results:
                keep(report(len(numbers)))
    if not results and not (failed and shard):
        why = (
            f"no sample of {data.name} can be used; the first: {failed[0].reason}" if failed else "there are no samples"
        )
        raise DatasetError(why)
    return report(None)


def shard_range(samples: int, shard: tuple[int, int] | None, batch: int = 1) -> range:
    """Numbers of the samples in a shard: consecutive, so that the objects of an image stay together, and whole batches
    where there are enough for all shards, so that the same samples run side by side as without shards.

    Raises:
        InvalidArgumentError: not 0 <= i < n <= samples, or no whole numbers.
    """
    if shard is None:
        return range(samples)
    _check(isinstance(shard, Sequence) and len(shard) == 2, f"shard is {short(shard)}; expected two numbers (i, n)")
    i, n = (whole("a part of shard", part) for part in shard)
    _check(0 <= i < n <= samples, f"shard {i} of {n} over {samples} samples; allowed is 0 <= i < n <= {samples}")
    step = batch if -(-samples // batch) >= n else 1
    batches = -(-samples // step)
    return range(i * batches // n * step, min((i + 1) * batches // n * step, samples))


class _LastImage:
    """The image decoded last.  Objects of one image follow each other, so each image is decoded once."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._image: Rgb | None = None

    def get(self, sample: Sample) -> Rgb:
        if self._image is None or self._id != sample.image_id:
            self._image = sample.load_image()
            self._id = sample.image_id
        return self._image


@dataclass(slots=True)
class _Lanes:
    """Predictors side by side, and how to click on several at once."""

    predictors: list[Any]
    click_batch: ClickTogether
    image_ids: dict[int, str] = field(default_factory=dict)

    def begin(self, lane: int, sample: Sample, image: Rgb) -> None:
        """Start an object; a lane that holds its image already is only reset."""
        if self.image_ids.get(lane) == sample.image_id:
            self.predictors[lane].reset()
        else:
            self.predictors[lane].set_image(image)
            self.image_ids[lane] = sample.image_id


def _one_by_one(predictors: Sequence[Any], clicks: Sequence[Click]) -> list[Clicked]:
    return [p.click(c.x, c.y, positive=c.positive) for p, c in zip(predictors, clicks, strict=True)]


def _sessions(
    count: int, engine: "Engine", threshold: float, zoom: bool, refine: bool
) -> tuple[_Lanes, dict[str, Any]]:
    """Sessions on one engine, and what the report says about them."""
    from activefreq_engine.session import Session, click_batch

    sessions = [Session(engine=engine, threshold=threshold, zoom=zoom, refine=refine) for _ in range(count)]
    about = {
        "threshold": threshold,
        "zoom": zoom,
        "refine": refine,
        "size": engine.size,
        "device": str(engine.device),
        "precision": engine.precision,
        "weights_sha256": engine.weights,
    }
    return _Lanes(sessions, click_batch), about


@dataclass(slots=True)
class _SampleRun:
    """One sample under way."""

    number: int
    sample: Sample
    lane: int
    truth: Truth
    clicker: RobotClicker
    mask: NDArray[np.bool_]
    probs: NDArray[np.floating] | None
    iou: float
    active: bool = True
    ious: list[float] = field(default_factory=list)
    clicks: list[Click] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def result(self, max_clicks: int) -> SampleResult:
        """The curve's remaining entries repeat the last value: a stopped or perfect mask stays as it is."""
        curve = self.ious + [self.iou] * (max_clicks - len(self.ious))
        return SampleResult(
            number=self.number,
            id=self.sample.id,
            object=self.sample.object,
            ious=tuple(curve),
            clicks=tuple(self.clicks),
            milliseconds=tuple(self.milliseconds),
        )


def _registered(name: str, truth: Truth, seed: int) -> RobotClicker:
    return make_clicker(name, truth, seed=seed)


def _start(
    number: int, sample: Sample, lane: int, lanes: _Lanes, images: _LastImage, make_robot: ClickerFactory, seed: int
) -> _SampleRun:
    truth = sample.load_mask()
    image = images.get(sample)
    if image.shape[:2] != truth.shape:
        raise DatasetError(
            f"sample {sample.id}: the image is {image.shape[1]} x {image.shape[0]} (width x height) but its mask is "
            f"{truth.shape[1]} x {truth.shape[0]}; they must agree"
        )
    robot = make_robot(truth, sample_seed(seed, sample.id))
    if not (truth == 1).any():  # of a data set that was not loaded by us
        raise DatasetError(f"sample {sample.id} has no object pixel; leave it out")
    lanes.begin(lane, sample, image)
    mask = np.zeros(truth.shape, dtype=bool)
    probs = np.zeros(truth.shape, dtype=np.float32) if robot.needs_probs else None
    return _SampleRun(number, sample, lane, truth, robot, mask, probs, iou(mask, truth))


def _click_all(runs: Sequence[_SampleRun], lanes: _Lanes, stop_at: float | None) -> None:
    """One click on every sample that is still active."""
    clicked: list[_SampleRun] = []
    for run in runs:
        if run.active:
            click = run.clicker.next_click(run.mask, run.probs)
            if click is None:
                run.active = False
            else:
                run.clicks.append(click)
                clicked.append(run)
    if not clicked:
        return
    started = time.perf_counter()
    steps = lanes.click_batch([lanes.predictors[run.lane] for run in clicked], [run.clicks[-1] for run in clicked])
    milliseconds = (time.perf_counter() - started) * 1000  # masks are on the host now: nothing is left in flight
    for run, step in zip(clicked, steps, strict=True):
        run.mask = _checked_mask(step.mask, run)
        if run.clicker.needs_probs:
            run.probs = getattr(lanes.predictors[run.lane], "probs", None)
        run.iou = iou(run.mask, run.truth)
        run.ious.append(run.iou)
        run.milliseconds.append(milliseconds)
        run.active = stop_at is None or np.float32(run.iou) < np.float32(stop_at)


def _checked_mask(mask: NDArray[np.bool_], run: _SampleRun) -> NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != run.truth.shape:
        got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InvalidMaskError(
            f"the predictor returned {got} for sample {run.sample.id}; expected a numpy bool array of shape "
            f"{run.truth.shape}"
        )
    return mask


def _check(good: bool, message: str) -> None:
    if not good:
        raise InvalidArgumentError(message)
