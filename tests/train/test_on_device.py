"""Steps whose samples, clicks and updates stay on the device do what the loop does."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from activefreq_engine.conventions import THRESHOLD
from activefreq_engine.errors import InvalidArgumentError
from activefreq_engine.models import create_model
from activefreq_engine.train import loop
from activefreq_engine.train.data import pack
from activefreq_engine.train.loop import parameter_groups, train
from activefreq_engine.train.losses import coarse_loss
from activefreq_engine.train.on_device import WARM, Batch, DeviceSteps, central_pixels, lassos, loose_boxes, scribbles
from activefreq_engine.train.prompts import SCRIBBLE, lasso, loose_box, scribble
from activefreq_engine.train.record import Record, read_log
from activefreq_engine.train.sampler import Sampler
from activefreq_engine.train.simulate import CLICKS, DEEPEST, OUTLINED, ClickBatch, network_clicks, simulate
from activefreq_engine.train.state import Ema
from activefreq_engine.train.steps import CoarseStep, trusted_attention

from .conftest import disk
from .tiny_run import OVERRIDES, tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums depend on the number of threads in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def packed(pairs, tmp_path_factory):
    return pack([pairs], tmp_path_factory.mktemp("packed"))


def test_clicks_fall_well_inside(rng):
    """Against all pairs of pixels, in double precision; the deepest pixel as often as it should."""
    regions = rng.random((6, 13, 18)) < np.array([0.95, 0.7, 0.4, 0.0, 1.0, 0.02])[:, None, None]
    ys, xs = np.mgrid[-1:14, -1:19]
    exact = []
    for region in regions:
        outside = ~np.pad(region, 1)
        away = np.stack([xs[outside], ys[outside]], 1)
        inside = np.argwhere(region)[:, ::-1]
        gaps = np.sqrt(((inside[:, None] - away[None]) ** 2).sum(2)).min(1) if len(inside) else np.zeros(0)
        depths = np.zeros(region.shape)
        depths[region] = gaps
        exact.append(depths)
    hit = []
    for _ in range(60):
        points, depth = central_pixels(torch.from_numpy(regions), torch.rand(6, 2))
        for depths, (x, y), d in zip(exact, points.int().tolist(), depth.tolist(), strict=True):
            assert d == pytest.approx(depths.max())
            if d:
                assert depths[y, x] > d / 2
        x, y = points[0].int().tolist()
        hit.append(exact[0][y, x] == exact[0].max())
    assert np.mean(hit) > DEEPEST - 0.25


def shapes(rng):
    """Regions of all kinds: a disk, one at the border, a thin one, nothing, everything, noise."""
    regions = np.zeros((6, 64, 64), bool)
    regions[0] = disk(64, 64, 30, 25, 15)
    regions[1] = disk(64, 64, 0, 60, 20)
    regions[2, 30:32, 5:60] = True
    regions[4] = True
    regions[5] = rng.random((64, 64)) > 0.9
    return regions


def test_outlines_are_those_of_the_loader(rng):
    """Boxes and lassos cover their regions as much as the loader's do, on average over many."""
    regions = shapes(rng)
    held = torch.from_numpy(regions)

    def facts(drawn):
        drawn = np.array(drawn)
        union = (drawn | regions).sum((2, 3)).clip(1)
        iou = (drawn & regions).sum((2, 3)) / union
        return np.stack([iou.mean(0), iou.std(0)])

    boxes = [loose_boxes(held, torch.rand(6, 5)).numpy() for _ in range(150)]
    theirs = []
    for _ in range(150):
        drawn = np.zeros_like(regions)
        for k, region in enumerate(regions):
            if found := loose_box(region, rng):
                drawn[k, found[1] : found[3], found[0] : found[2]] = True
        theirs.append(drawn)
    np.testing.assert_allclose(facts(boxes), facts(theirs), atol=0.06)
    exact = np.zeros((64, 64), bool)
    exact[10:41, 15:46] = True
    assert 0.3 < np.mean([(b[0] == exact).all() for b in boxes]) < 0.75

    lines = [lassos(held, torch.rand(6, 2), torch.randn(6, 1, 6, 6)).numpy() for _ in range(150)]
    theirs = [np.stack([lasso(region, rng) for region in regions]) for _ in range(150)]
    np.testing.assert_allclose(facts(lines), facts(theirs), atol=0.08)
    assert not any(drawn[3].any() for drawn in (*boxes, *lines))


def test_scribbles_lie_in_their_regions(rng):
    regions = shapes(rng)
    counts, theirs = [], []
    for _ in range(100):
        xy, valid = scribbles(torch.from_numpy(regions), torch.rand(6, 4), 6.0)
        assert xy.shape == (6, SCRIBBLE, 2)
        x, y = xy.int().numpy().transpose(2, 0, 1)
        for k in range(6):
            assert regions[k][y[k], x[k]][valid[k].numpy()].all()
        counts.append(valid.sum(1).tolist())
        theirs.append([len(scribble(region, rng, 6.0)) for region in regions])
    ours, theirs = np.mean(counts, 0), np.mean(theirs, 0)
    assert ours[3] == 0
    assert (ours[[0, 1, 2, 4]] >= 1).all()
    np.testing.assert_allclose(ours[[0, 1, 2, 4]], theirs[[0, 1, 2, 4]], atol=2.5)


def test_first_prompts_have_their_shares(pairs, packed):
    config = tiny(pairs, batch=64, prompts=(("click", 0.4), ("box", 0.2), ("lasso", 0.2), ("scribble", 0.2)))
    steps = steps_of(packed, config)
    steps._sample(batch := Batch(64, 64, steps.slots, CPU), 64)
    steps._begin(batch)
    points, there = (batch.points[:, :, 0] >= 0).sum(1), (batch.label == 1).flatten(1).any(1)
    outlined = (batch.previous == OUTLINED).flatten(1).any(1)
    assert set(batch.previous.unique().tolist()) == {0.0, OUTLINED}
    assert (points[outlined] == 0).all()
    assert (points[~outlined & ~there] <= 1).all()
    assert 0.15 < outlined[there].float().mean() < 0.7
    assert (points[there] > 1).any()
    for b, k in (batch.points[:, :, 0] >= 0).nonzero().tolist():
        x, y = batch.points[b, k].int().tolist()
        assert batch.label[b, 0, y, x] == (1 if k < batch.slots else 0)


def test_crops_serve_several_steps_with_other_clicks(pairs, packed):
    """The same crops for so many steps, wherever a run goes on; the first step is that of a run with one."""
    one, two = steps_of(packed, tiny(pairs)), steps_of(packed, tiny(pairs, per_crop=2))
    seen = []
    for steps, numbers in ((one, (0, 1)), (two, (0, 1, 2)), (steps_of(packed, tiny(pairs, per_crop=2)), (3,))):
        for step in numbers:
            steps(step, 64, 1, 0.0, True, 0.1)
            batch = steps.batches[64]
            seen.append((batch.image.clone(), batch.points.clone()))
    (first, points), (second, _), (mine, same), (again, others), (third, _), (resumed, _) = seen
    assert torch.equal(first, mine)
    assert torch.equal(points, same)
    assert torch.equal(mine, again)
    assert not torch.equal(same, others)
    assert torch.equal(second, third)
    assert torch.equal(third, resumed)


def steps_of(packed, config, device=CPU, **changes):
    torch.manual_seed(0)
    module = CoarseStep(create_model("freqformer_b0", **{**OVERRIDES, "drop_path": 0.0, **changes}).to(device))
    ema = Ema(module.model, 0.9)
    cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(module, 0.02), lr=1e-3, fused=True, capturable=cuda)
    return DeviceSteps(module, optimizer, ema, Sampler(packed, config.seed, None, device), config, None)


def clicks_of(batch):
    """The clicks in a batch's slots, as the loop keeps them."""
    clicks = ClickBatch(len(batch.points))
    for b, slots in enumerate(batch.points.tolist()):
        for k, (x, y) in enumerate(slots):
            if x >= 0:
                clicks.add(b, int(x), int(y), k < batch.slots)
    return clicks


@pytest.mark.parametrize("frozen", [False, True])
def test_an_update_is_that_of_the_loop(pairs, packed, frozen, monkeypatch, rng):
    """The loop's step on the same samples and clicks: the same loss, weights, statistics and averages."""
    config = tiny(pairs, iterations=((2, 1.0),))
    steps, twin = steps_of(packed, config), steps_of(packed, config)
    run = loop._TrainRun(config, packed, CPU, 1, 0)
    run.model, run.step_module, run.scaler, run.step = twin.model, twin.module, None, 7
    run.ema = Ema(twin.model, 0.9)
    run.optimizer = torch.optim.AdamW(parameter_groups(twin.module, 0.02), lr=1e-3)
    loss = steps(3, 64, 2, 1e-3, frozen, 1 - run.ema.decay_at(7))
    batch = steps.batches[64]
    given = network_clicks(batch.previous, clicks_of(batch), 5.0)
    monkeypatch.setattr("activefreq_engine.train.steps.simulate", lambda *_: (given, None))
    run.step_module.frozen = frozen
    theirs = run.step_module(batch.image, batch.label, 2, rng)
    run._update(theirs)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, value in steps.model.state_dict().items():
        torch.testing.assert_close(value, twin.model.state_dict()[name], rtol=1e-4, atol=2e-5, msg=name)
        torch.testing.assert_close(steps.ema.state[name], run.ema.state[name], rtol=1e-4, atol=2e-5, msg=name)


def test_clicks_are_on_errors_and_of_their_sign(pairs, packed):
    config = tiny(pairs, iterations=((3, 1.0),), batch=8)
    steps = steps_of(packed, config)
    seen = []
    add = steps._add

    def noted(batch, wanted, unwanted, prefer):
        before = batch.points.clone()
        add(batch, wanted, unwanted, prefer)
        seen.append((before, batch.points.clone(), wanted.clone(), unwanted.clone()))

    steps._add = noted
    steps(0, 64, 3, 0.0, True, 0.0)
    assert len(seen) == 4
    for before, after, wanted, unwanted in seen:
        new = (after != before).any(2)
        assert (new.sum(1) <= 1).all()
        for b, k in new.nonzero().tolist():
            x, y = after[b, k].int().tolist()
            positive = k < steps.slots
            assert (wanted if positive else unwanted)[b, y, x]
        none = ~new.any(1)
        assert not (wanted | unwanted)[none].any()
    first = seen[0]
    assert torch.equal((first[1][:, : steps.slots] >= 0).flatten(1).any(1), first[2].flatten(1).any(1))


def test_the_previous_mask_answers_the_clicks_before_the_last(pairs, packed):
    config = tiny(pairs, batch=3)
    steps = steps_of(packed, config)
    inputs = []
    given = steps._inputs

    def noted(batch):
        inputs.append(given(batch).clone())
        return inputs[-1]

    steps._inputs = noted
    steps(0, 32, 1, 0.0, True, 0.0)
    first, second = inputs
    assert not first[:, 0].any()
    steps.model.eval()
    with torch.no_grad():
        answer = steps.model(steps.batches[32].image, first).sigmoid()
    torch.testing.assert_close(second[:, :1], answer, rtol=1e-4, atol=1e-5)
    assert (second[:, 1:] >= first[:, 1:]).all()
    assert ((answer[:, 0] > THRESHOLD) != (steps.batches[32].label[:, 0] == 1)).any()


class Watch(TorchDispatchMode):
    """Notes the operators that look at values on the host, or bring constants from it."""

    WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "unique", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        self.calls += 1
        if name.startswith(self.WAITING):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


def test_no_part_of_a_step_waits_for_the_device(pairs, packed, monkeypatch):
    """What a CUDA graph cannot hold, seen on a CPU: values read by the host and constants copied from it."""
    monkeypatch.setattr("activefreq_engine.train.sampler.may_wait", lambda tensor: False)
    steps = steps_of(packed, tiny(pairs), drop_path=0.1)
    steps(0, 64, 1, 1e-3, False, 0.1)  # makes what is kept
    batch = steps.batches[64]
    parts = (
        lambda: steps._sample(batch, 64),
        lambda: steps._begin(batch),
        lambda: steps._encode(batch),
        lambda: steps._click(batch),
        lambda: steps._learn(batch, False),
    )
    for part in parts:
        with Watch() as watch:
            part()
        assert watch.calls > 5
        assert not watch.seen
    with Watch() as watch:
        float(steps.skipped)
    assert watch.seen  # it does see what waits


def test_it_learns_as_the_loop_does(pairs, packed, tmp_path, monkeypatch):
    """The mean loss of each third of a short run is that of the loop's; other crops, so within a tenth."""
    monkeypatch.setattr(Record, "EVERY", 15)
    losses = []
    for on_device in (False, True):
        config = tiny(pairs, steps=45, sizes=((0.0, 32),), ema=0.9, lr=1e-2, frozen_norms=1.0, on_device=on_device)
        train(config, tmp_path / str(on_device), device="cpu", packed=packed)
        losses.append([float(r["loss"]) for r in read_log(tmp_path / str(on_device) / "log.csv")])
    host, device = np.array(losses)
    assert (device[-1] < 0.9 * device[0]).all()
    np.testing.assert_allclose(device, host, rtol=0.1)


def test_a_run_that_is_cut_in_two_ends_alike(pairs, packed, tmp_path, monkeypatch):
    config = tiny(pairs, steps=6, on_device=True)
    whole = train(config, tmp_path / "whole", device="cpu", packed=packed)
    call = DeviceSteps.__call__

    def cut(self, step, *rest):
        if step == 4:
            raise KeyboardInterrupt
        return call(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(DeviceSteps, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", device="cpu", packed=packed, save_every=0)
    again = train(config, tmp_path / "cut", device="cpu", packed=packed)
    for name in ("state.safetensors", "model.safetensors"):
        a, b = load_file(whole.with_name(name)), load_file(again.with_name(name))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_gradient_that_is_not_finite_is_skipped(pairs, packed, tmp_path, monkeypatch, caplog):
    calls = []

    def poisoned(logits, labels):
        calls.append(1)
        return logits.mean() * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr("activefreq_engine.train.on_device.coarse_loss", poisoned)
    with caplog.at_level(logging.WARNING):
        train(tiny(pairs, steps=3, on_device=True), tmp_path, device="cpu", packed=packed)
    assert "1 steps before step 3 had no finite gradient" in caplog.text
    assert all(v.isfinite().all() for v in load_file(tmp_path / "state.safetensors").values())


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
def test_what_is_not_served_is_refused(pairs, tmp_path, monkeypatch):
    for changes in ({"clicker": "acselect"}, {"teacher": "t"}, {"stage": "refiner", "init": "i"}):
        with pytest.raises(InvalidArgumentError, match="on_device"):
            replace(tiny(pairs, on_device=True), **changes)
    monkeypatch.setattr(loop, "precision", lambda device: torch.float16)
    with pytest.raises(InvalidArgumentError, match="bfloat16"):
        train(tiny(pairs, on_device=True), tmp_path, device="cpu")


def test_simulated_clicks_match_the_loops_on_average(pairs, packed, rng):
    """How good the answer to n clicks is depends on where they fall: the same on the same samples, within noise."""
    config = tiny(pairs, batch=48, iterations=((2, 1.0),), prompts=CLICKS)
    steps = steps_of(packed, config)
    steps(0, 64, 2, 0.0, True, 0.0)
    batch = steps.batches[64]
    _, clicks = simulate(steps.model.eval(), batch.image, batch.label, 2, rng)

    def facts(points):
        signs = [(len(p), len(n)) for p, n in points.clicks]
        return np.array(signs, float)

    ours, theirs = facts(clicks_of(batch)), facts(clicks)
    assert abs(ours.mean(0) - theirs.mean(0)).max() < 0.35
    assert (ours.sum(1) == theirs.sum(1)).mean() > 0.9


def test_steps_leave_out_cudnns_attention_and_the_host_keeps_it(pairs, packed, monkeypatch):
    steps, seen = steps_of(packed, tiny(pairs)), []
    learn = steps._learn
    monkeypatch.setattr(
        steps, "_learn", lambda *args: seen.append(torch.backends.cuda.cudnn_sdp_enabled()) or learn(*args)
    )
    before = torch.backends.cuda.cudnn_sdp_enabled()
    steps(0, 32, 0, 1e-3, True, 0.1)
    assert seen == [False]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.gpu
@pytest.mark.parametrize("size", [192, 256, 320])
def test_gradients_in_bfloat16_are_those_in_float32(size):
    """Of MiT-B0, whose attention at 256 pixels gave NaN where torch took cuDNN's."""
    device = torch.device("cuda")
    model = create_model("freqformer_b0", pretrained=True).to(device)  # in evaluation mode: nothing is dropped
    image = torch.randn(8, 3, size, size, device=device)
    label = (torch.rand(8, 1, size, size, device=device) > 0.5).float()
    clicks = torch.rand(8, 3, size, size, device=device)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        model.zero_grad()
        with trusted_attention(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            logits = model.decode_clicks(model.encode_image(image), clicks).logits
            coarse_loss(logits, label).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    half, full = found
    assert torch.isfinite(half).all()
    assert (half - full).norm() < 0.4 * full.norm()  # 0.14 on a CPU at 192 pixels; another gradient is 1 and more away


@pytest.mark.gpu
def test_captured_steps_give_what_steps_do_launch_by_launch(pairs, packed):
    config = tiny(pairs, iterations=((2, 1.0),))
    captured, eager = (steps_of(packed, config, torch.device("cuda")) for _ in range(2))
    eager.eager = True
    host = steps_of(packed, config)
    for step in range(3 * WARM):
        ours, theirs = (s(step, 64, 2, 1e-3, step > 6, 0.1) for s in (captured, eager))
        assert captured.settle() == eager.settle() == 0
        assert ours.item() == pytest.approx(theirs.item(), rel=0.02)
        for name in ("index", "image", "label"):
            assert torch.equal(getattr(captured.batches[64], name), getattr(eager.batches[64], name))
    assert not captured.eager
    assert {key[0] for key in captured.graphs} == {"sample", "begin", "encode", "click", "learn"}
    host(step, 64, 2, 1e-3, True, 0.1)
    there, here = captured.batches[64], host.batches[64]
    assert (there.label.cpu() != here.label).float().mean() < 1e-3  # a pixel on an edge may fall to either side
    assert ((there.image.cpu() - here.image).abs() > 0.03).float().mean() < 1e-3
