"""The session's calls beside their references, on one picture and one object.

The reference of whatever runs the network is the same session on an engine that runs the plain modules
(`Engine(plan=False)`).  Sizes are the long side of the network input.
"""

from functools import cache
from itertools import islice
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from activefreq_engine.kernels.region_stats import RegionStats
from scipy import ndimage

from activefreq_engine import Engine, Session, acselect
from activefreq_engine.images import image_digest
from activefreq_engine.runtime.engine import SIZES, RefineRequest, StepRequest
from activefreq_engine.runtime.levels import probabilities
from activefreq_engine.session import boxes, zoom
from bench.speed.test_region_stats import naive
from bench.tools import scene
from bench.tools.clicking import NETWORK, telling
from bench.tools.verify import measure, probabilities_agree, sessions_agree

IMPLEMENTATIONS = {"plain modules": False, "plan": True}
SCENE = scene.scene(1200, 1200, radius=180)
CLICKS = tuple(islice(SCENE.clicks(), 10))


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def engine(device: torch.device, size: int, plan: bool) -> Engine:
    return Engine(NETWORK, device=str(device), size=size, plan=plan)


def clicked(engine: Engine, clicks: int) -> Session:
    """A session on the picture after so many clicks."""
    session = Session(engine=engine)
    session.set_image(SCENE.image)
    for c in CLICKS[:clicks]:
        c = telling(session, c)
        session.click(c.x, c.y, c.positive)
    return session


def test_set_image(benchmark: Any, device: torch.device) -> None:
    """12 megapixels; the work of a session until it may be clicked on.  The floor is a copy of the array."""
    image = scene.scene(3000, 4000).image
    session = Session(engine=engine(device, 384, True))

    def check() -> float:
        session.set_image(image)
        assert session.state_dict()["image"]["sha256"] == image_digest(image)
        return 0.0

    measure(
        benchmark, group="set_image 12 MP", implementation="session", run=lambda: session.set_image(image),
        check=check, device=device,
    )  # fmt: skip


def test_set_image_copy(benchmark: Any, device: torch.device) -> None:
    image = scene.scene(3000, 4000).image
    measure(
        benchmark, group="set_image 12 MP", implementation="copy of the array", reference=True, run=image.copy,
        check=lambda: 0.0, device=device,
    )  # fmt: skip


def test_first_click(benchmark: Any, device: torch.device, size: int, implementation: str) -> None:
    """The click after `set_image`: nothing is known of the image yet."""
    session = clicked(engine(device, size, IMPLEMENTATIONS[implementation]), 0)
    first = CLICKS[0]

    def click() -> None:
        session.click(first.x, first.y, first.positive)

    def check() -> float:
        click()
        return sessions_agree(session, clicked(engine(device, size, False), 1))

    measure(
        benchmark, group=f"first click {size}", implementation=implementation, run=click, check=check, device=device,
        reference=implementation == "plain modules", setup=lambda: session.set_image(SCENE.image, copy=False),
    )  # fmt: skip


def test_next_click(benchmark: Any, device: torch.device, size: int, implementation: str) -> None:
    """The fifth click; the region is that of the click before, so its image features are known."""
    session = clicked(engine(device, size, IMPLEMENTATIONS[implementation]), 4)
    fifth = telling(session, CLICKS[4])

    def click() -> None:
        session.click(fifth.x, fifth.y, fifth.positive)

    def check() -> float:
        click()
        return sessions_agree(session, clicked(engine(device, size, False), 5))

    measure(
        benchmark, group=f"next click {size}", implementation=implementation, run=click, check=check, device=device,
        reference=implementation == "plain modules", setup=session.undo,
    )  # fmt: skip


def coarse_and_request(engine: Engine) -> RefineRequest:
    """A focus box over half of the object, on the engine's own coarse answer."""
    side = engine.size
    reach, x, y = int(1.4 * SCENE.radius), SCENE.x, SCENE.y
    box = (x - reach, y - reach, x + reach, y + reach)
    focus = (x, y - reach // 2, x + reach, y + reach // 2)
    crop, points = zoom.crop_rgb(SCENE.image, box, side, side), zoom.point_slots(CLICKS[:3], box, side, side)
    answer = engine.run([StepRequest(crop, None, np.zeros((side, side), np.float32), points)])[0]
    s = engine.refine_size
    assert s is not None
    return RefineRequest(
        coarse=answer.coarse,
        box=(*boxes.to_network(*focus[:2], box, side, side), *boxes.to_network(*focus[2:], box, side, side)),
        crop=zoom.crop_rgb(SCENE.image, focus, s, s),
        points=zoom.point_slots(CLICKS[:3], focus, s, s),
    )


def test_refiner(benchmark: Any, device: torch.device, implementation: str) -> None:
    """Always on a crop of 256 pixels a side; the coarse answer is that of 384."""
    ours, plain = engine(device, 384, IMPLEMENTATIONS[implementation]), engine(device, 384, False)
    request = coarse_and_request(ours)

    def check() -> float:
        expected = plain.refine([coarse_and_request(plain)])[0]
        return probabilities_agree(*(probabilities(p) for p in (ours.refine([request])[0], expected)))

    measure(
        benchmark, group="refiner", implementation=implementation, run=lambda: ours.refine([request]), check=check,
        device=device, reference=implementation == "plain modules",
    )  # fmt: skip


def scipy_regions(candidates: torch.Tensor, probs: torch.Tensor, **_: Any) -> RegionStats:
    """`region_stats` by SciPy, a region at a time."""
    found = [naive(c, p) for c, p in zip(candidates.numpy(), probs.double().numpy(), strict=True)]
    counts = torch.tensor([len(rows) for _, rows in found])
    table = torch.from_numpy(np.concatenate([rows.reshape(-1, 10) for _, rows in found]))
    whole = table.long()
    return RegionStats(
        labels=torch.from_numpy(np.stack([labels for labels, _ in found])),
        counts=counts,
        image=torch.arange(len(found)).repeat_interleave(counts),
        label=torch.cat([torch.arange(1, int(n) + 1, dtype=torch.int32) for n in counts]),
        area=whole[:, 0],
        max_entropy=table[:, 1],
        mean_entropy=table[:, 2],
        mean_prob=table[:, 3],
        bbox=whole[:, 4:8],
        peak=whole[:, 8:],
        centroid=torch.full((len(table), 2), torch.nan, dtype=torch.float64),
    )


def scipy_points(labels: torch.Tensor, counts: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`inscribed_points` by SciPy, a region at a time."""
    points, radii = [], []
    for layer in labels.numpy():
        padded = np.pad(layer, 1)
        for k, box in enumerate(ndimage.find_objects(padded), 1):
            rows, columns = (slice(s.start - 1, s.stop + 1) for s in box)
            distance = ndimage.distance_transform_edt(padded[rows, columns] == k)
            y, x = np.unravel_index(distance.argmax(), distance.shape)
            points.append((x + columns.start - 1, y + rows.start - 1))
            radii.append(distance[y, x])
    return torch.tensor(points).reshape(-1, 2), torch.tensor(radii, dtype=torch.float64)


@pytest.mark.parametrize("by", ["session", "scipy"])
def test_suggest(benchmark: Any, by: str) -> None:
    """The same rule on region statistics of ours and of SciPy.  On the host, whatever device the network is on."""
    session = clicked(engine(torch.device("cpu"), 384, True), 3)
    replaced = mock.patch.multiple(acselect, region_stats=scipy_regions, inscribed_points=scipy_points)

    def suggest() -> list[Any]:
        if by == "session":
            return session.suggest(3)
        with replaced:
            return session.suggest(3)

    def check() -> float:
        with replaced:
            expected = session.suggest(3)
        assert expected, "there is nothing to suggest: the benchmark would measure nothing"
        found = suggest()
        assert [s.region_bbox for s in found] == [s.region_bbox for s in expected]
        error = max(abs(s.score - e.score) for s, e in zip(found, expected, strict=True))
        assert error < 1e-6
        return error

    measure(
        benchmark, group="suggest", implementation=by, reference=by == "scipy", run=suggest, check=check,
        device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("by", ["undo", "clicking again"])
def test_undo(benchmark: Any, device: torch.device, by: str) -> None:
    """From the sixth click back to the fifth mask, beside the five clicks on a blank object that lead there too."""
    session = clicked(engine(device, 384, True), 6)
    five = clicked(engine(device, 384, True), 5).mask

    def undo() -> np.ndarray:
        session.undo()
        return session.mask

    def again() -> np.ndarray:
        for c in CLICKS[:5]:
            c = telling(session, c)
            session.click(c.x, c.y, c.positive)
        return session.mask

    def sixth() -> None:
        session.redo()
        assert session.mask is not None  # painted, as after a click: so that undo has to paint the fifth again

    run, setup, rounds = (undo, sixth, 25) if by == "undo" else (again, session.reset, 3)

    def check() -> float:
        if by != "undo":
            session.reset()
        mask = run()
        if by == "undo":
            assert np.array_equal(mask, five), "undo must bring back the very same mask"
            return 0.0
        return float((mask != five).mean())

    measure(
        benchmark, group="undo", implementation=by, reference=by != "undo", run=run, check=check, device=device,
        setup=setup, rounds=rounds,
    )  # fmt: skip
