import itertools

import cv2
import numpy as np
import pytest

from activefreq_engine import BoxPrompt, Click
from activefreq_engine.runtime.levels import Stretched, stretch
from activefreq_engine.session import boxes, zoom
from activefreq_engine.session.boxes import mask_bbox
from activefreq_engine.session.canvas import Canvas, Layer, PackedMask, changed_bbox, merge
from activefreq_engine.session.click_tally import ClickTally
from activefreq_engine.session.history import Picture, SessionSettings

from .fakes import random_image


def centre_of_mass(values):
    values = values.astype(np.float64)
    ys, xs = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    return (values * xs).sum() / values.sum(), (values * ys).sum() / values.sum()


@pytest.mark.parametrize("size", [256, 384, 448, 512])
def test_network_shape(size):
    for width, height in [(1, 1), (640, 480), (480, 640), (4000, 3000), (5000, 3), (3, 5000), (33, 77)]:
        h, w = zoom.network_shape((10, 20, 10 + width, 20 + height), size)
        assert max(h, w) == size
        assert h % 32 == w % 32 == 0
        long = max(width, height)
        for side, length in ((w, width), (h, height)):
            assert abs(side - size * length / long) <= 16 or side == 32


@pytest.mark.parametrize("height", [31, 100, 301, 1000])
@pytest.mark.parametrize("width", [45, 256, 703])
def test_crop_to_network_and_back_does_not_shift(height, width):
    """A blob goes to the network's grid and back; its centre of mass stays within 0.1 pixel of an image's grid or of
    the network's, whichever is coarser, at all scales, and mixed ones."""
    box = (13, 7, 13 + width, 7 + height)
    image = np.zeros((height + 20, width + 30), np.uint8)
    ys, xs = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    cx, cy = box[0] + 0.37 * width, box[1] + 0.58 * height
    image[:] = 255 * np.exp(-(((xs - cx) / (width / 12)) ** 2) - ((ys - cy) / (height / 12)) ** 2)
    h, w = zoom.network_shape(box, 256)
    network = zoom.crop_rgb(image, box, h, w)[..., 0]
    ox, oy = centre_of_mass(image)
    nx, ny = centre_of_mass(network)
    u, v = boxes.to_network(ox, oy, box, h, w)
    assert abs(nx - u) < 0.1 * max(1, w / width)
    assert abs(ny - v) < 0.1 * max(1, h / height)
    back = Canvas(*image.shape, 0.49, (Layer.of(box, network.astype(np.float32) / 255),)).probs()
    bx, by = centre_of_mass(back)
    assert abs(bx - ox) < 0.1 * max(1, width / w)
    assert abs(by - oy) < 0.1 * max(1, height / h)


def test_resize_keeps_ramps_in_place(rng):
    """Linear ramps show a shift of any size.  Area averaging takes pixels as flat, which moves single values by up to
    an eighth of a pixel to either side; the mean stays."""
    for h, w, height, width in itertools.product((40, 64), (40, 60), (20, 96), (30, 150)):
        ys, xs = np.mgrid[:h, :w].astype(np.float32) + 0.5
        for ramp, scale in ((xs, width / w), (ys, height / h)):
            out = zoom.resize(ramp, height, width) * scale
            ys2, xs2 = np.mgrid[:height, :width] + 0.5
            wanted = xs2 if ramp is xs else ys2
            error = (out - wanted)[8:-8, 8:-8]
            assert np.abs(error).max() < 0.13
            assert abs(error.mean()) < 0.005


def test_clicks_land_on_their_pixel():
    box = (10, 20, 10 + 128, 20 + 64)
    clicks = [Click(10, 20, True), Click(137.9, 83.5, True), Click(9.9, 20, True), Click(50, 84, False)]
    slots = zoom.point_slots(clicks, box, 128, 256)
    assert slots[0].tolist() == [0.5, 0.5]  # the centre of image pixel 0 on a grid twice as fine
    assert slots[1].tolist() == [254.5, 126.5]
    assert (slots[2:] == -1).all()
    slots = zoom.point_slots(clicks, (0, 0, 4000, 3000), 192, 256)
    assert (slots[[0, 1, 2, 24]] >= 0).all()
    assert zoom.point_slots([Click(0, 0, True)], (0, 0, 4000, 3000), 192, 256)[0].tolist() == [0, 0]


def test_newest_24_clicks_of_each_sign_are_seen():
    clicks = [Click(i, 1, i % 2 == 0) for i in range(70)]
    slots = zoom.point_slots(clicks, (0, 0, 256, 256), 256, 256)
    assert slots[:24, 0].tolist() == [i for i in range(70) if i % 2 == 0][-24:]
    assert slots[24:, 0].tolist() == [i for i in range(70) if i % 2 == 1][-24:]


@pytest.mark.parametrize("size", [12, 400])
def test_clicks_come_to_the_same_one_by_one(rng, size):
    """In few pixels many are clicked again; in many, slots run out and the oldest clicks leave them."""
    known = ClickTally()
    marks = ()
    for k in range(120):
        if k % 40 == 0:
            x0, y0 = rng.integers(0, size // 2, 2).tolist()
            box = x0, y0, x0 + int(rng.integers(2, size // 2)), y0 + int(rng.integers(2, size // 2))
        new = tuple(Click(*rng.uniform(0, size, 2).tolist(), bool(rng.random() < 0.7)) for _ in range(1 + k % 3 // 2))
        marks = (*marks, *new)
        earlier = known.newest.copy(), known.inside, known.points(box, 64, 96).copy()
        known, before = known.then(new), known
        assert known.marks == marks
        assert known.points(box, 64, 96).tolist() == zoom.point_slots(marks, box, 64, 96).tolist()
        assert known.inside == zoom.said_inside(marks)
        assert known.labelled == zoom.said_inside(known.newest.values())
        assert known.new == new
        newest = {(int(c.x), int(c.y)): c for c in marks}
        assert known.newest == newest
        assert list(zip(*known.arrays, strict=True)) == [(x, y, c.positive) for (x, y), c in known.newest.items()]
        assert known.twice == {p for c in marks if c != newest[p := (int(c.x), int(c.y))]}
        assert (before.newest, before.inside) == earlier[:2]
        assert np.array_equal(before.points(box, 64, 96), earlier[2])
    boxed = ClickTally.of((BoxPrompt(1, 2, 3, 4), *marks))
    assert boxed.marks == (BoxPrompt(1, 2, 3, 4), *marks)
    assert list(boxed.newest.items()) == list(known.newest.items())
    assert known.then((BoxPrompt(1, 2, 3, 4),)) is None


def roi_of(height, width, mask_box, clicks, current):
    return zoom.next_roi(height, width, mask_box, zoom.said_inside(clicks), len(clicks), current)


def test_roi_rule():
    click = Click(500, 400, True)
    assert roi_of(800, 1000, None, [click], None) is None  # no mask yet: the whole image
    roi = roi_of(800, 1000, (400, 300, 700, 500), [click], None)
    assert roi == (340, 260, 760, 540)  # 300x200, times 1.4 about (550, 400)
    assert roi_of(800, 1000, (500, 400, 510, 410), [click], None) == (473, 373, 537, 437)  # at least 64
    assert roi_of(800, 1000, (0, 0, 10, 10), [Click(1, 1, True)], None) == (0, 0, 37, 37)  # clamped
    # the whole image where the region would hardly be enlarged, unless it is in use already or four clicks were no help
    assert roi_of(90, 70, (20, 20, 30, 30), [Click(25, 25, True)] * 4, None) is None
    assert roi_of(90, 70, (20, 20, 30, 30), [Click(25, 25, True)] * 5, None) == (0, 0, 57, 57)
    assert roi_of(90, 70, (20, 20, 30, 30), [Click(25, 25, True)], None) is None
    assert roi_of(800, 1000, (400, 300, 756, 500), [click], None) == (328, 260, 828, 540)
    assert roi_of(800, 1000, (400, 300, 759, 500), [click], None) is None
    assert roi_of(800, 1000, (400, 300, 759, 500), [click], (328, 260, 828, 540)) == (328, 260, 828, 540)
    # hysteresis: kept for a small change, for a negative click outside, not for a positive one, nor a large change
    assert roi_of(800, 1000, (390, 300, 700, 500), [click], roi) == roi
    assert roi_of(800, 1000, (390, 300, 700, 500), [click, Click(5, 5, False)], roi) == roi
    assert roi_of(800, 1100, (390, 300, 700, 500), [click, Click(761, 400, True)], roi)[2] > 761
    assert roi_of(800, 1000, (500, 380, 560, 420), [click], roi) != roi
    # positive clicks belong to the object even where the mask does not cover them
    grown = roi_of(1600, 2000, (400, 300, 700, 500), [click, Click(900, 700, True)], None)
    assert grown[2] == 1002  # 400 to 901, times 1.4, rounded outwards
    assert grown[3] == 782  # 300 to 701


def square(x0, y0, x1, y1, height=200, width=256):
    out = np.zeros((height, width), np.float32)
    out[y0:y1, x0:x1] = 1
    return out


def test_focus_box():
    nothing = square(0, 0, 0, 0)
    assert zoom.focus_box(nothing, nothing, (5, 5), 0.49) is None
    # first mask: the object, times 1.4
    assert zoom.focus_box(nothing, square(100, 50, 150, 150), (120, 70), 0.49) == pytest.approx((90, 30, 160, 170))
    # a large change that holds the click
    before, after = square(50, 50, 100, 150), square(50, 50, 150, 150)
    assert zoom.focus_box(before, after, (120, 70), 0.49) == pytest.approx((90, 30, 160, 170))
    # a change under a third of the object in height: the click and its surroundings
    after = np.maximum(before, square(100, 60, 140, 70))
    assert zoom.focus_box(before, after, (120, 65), 0.49) == pytest.approx((100.5, 45.5, 140.5, 85.5))
    # a change somewhere else, and none at all
    assert zoom.focus_box(before, after, (20, 20), 0.49) == pytest.approx((0.5, 0.5, 40.5, 40.5))
    assert zoom.focus_box(before, before, (250, 199), 0.49) == pytest.approx((230.5, 179.5, 256, 200))
    # only the component that holds the click counts, by 8 neighbours
    after = square(50, 50, 100, 150)
    after[150:200, 100:140] = 1
    after[60:64, 142:147] = 1
    assert zoom.focus_box(before, after, (110, 160), 0.49) == pytest.approx((92, 140, 148, 200))
    # everything removed: the object that was
    assert zoom.focus_box(before, nothing, (60, 60), 0.49) == pytest.approx((40, 30, 110, 170))


# --- canvas ---


def test_painting_by_strips_equals_painting_at_once(rng, monkeypatch):
    layers = (
        Layer.of((3, 5, 140, 95), rng.random((64, 96), np.float32)),
        Layer.of((50, 40, 61, 88), rng.random((64, 64), np.float32)),  # finer than the image
    )
    given = PackedMask.of(rng.random((101, 150)) > 0.5)
    clicks = (Click(7, 100, True), Click(60, 60, False), Click(60.5, 60, True))
    for fixed in (None, given):
        canvas = Canvas(101, 150, 0.49, layers, clicks, fixed)
        whole, mask = canvas.probs(), canvas.mask()
        monkeypatch.setattr("activefreq_engine.session.canvas._STRIP_VALUES", 150 * 7)
        assert np.array_equal(canvas.probs(), whole)
        assert np.array_equal(canvas.mask(), mask)
        monkeypatch.undo()
        assert np.array_equal(whole > 0.49, mask)
        assert whole[100, 7] == whole[60, 60] == 1
        if fixed:
            agree = mask == given.unpack()
            assert agree.sum() >= agree.size - 2  # all but clicked pixels
        else:
            assert whole[:5].max() == whole[:, 140:].max() == 0
            assert np.array_equal(canvas.sample((3, 5, 140, 95), 64, 96)[:10], canvas_values(layers[0])[:10])


def canvas_values(layer):
    return layer.values.astype(np.float32) / np.float32(65535)


@pytest.mark.parametrize("width", [300, 5000])
def test_many_layers_become_one_with_the_same_mask(rng, width):
    """Also where that one has fewer values than the image pixels, and when it becomes a part of another one."""
    canvas = Canvas(60, width, 0.49)
    for _ in range(28):  # the 18th and the 26th make one of nine
        x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, 40))
        layer = Layer.of((x, y, x + 40, y + 20), rng.random((9, 15), np.float32))
        before, kept = canvas.mask(), canvas.beside(layer.box)
        canvas = Canvas(60, width, 0.49, (*kept, layer))
        mask = canvas.mask()
        before[y : y + 20, x : x + 40] = mask[y : y + 20, x : x + 40]
        assert np.array_equal(mask, before)
    assert len(canvas.layers) < 18
    assert np.array_equal(canvas.probs() > 0.49, mask)
    assert np.array_equal(canvas.packed().mask(), mask)
    within = canvas.reach()
    assert boxes.union(within, mask_bbox(mask)) == within


def test_sample_of_the_same_grid_is_exact(rng):
    probs = rng.random((96, 256), np.float32)
    canvas = Canvas(400, 900, 0.49, (Layer.of((11, 30, 700, 290), probs),))
    assert np.array_equal(canvas.sample((11, 30, 700, 290), 96, 256), canvas_values(canvas.layers[0]))
    assert np.abs(canvas.sample((11, 30, 700, 290), 96, 256) - probs).max() < 1e-5


def test_strips_are_interpolated_as_the_whole_is(rng):
    values = rng.random((40, 70), np.float32)
    for h, w in ((1, 1), (64, 90), (65, 3), (200, 70)):
        rows, columns = (
            zoom.neighbours(np.sort(rng.uniform(-1, n, m)), n) for n, m in zip(values.shape, (h, w), strict=True)
        )
        out = np.full((h + 2, w + 1), np.nan, np.float32)[1:-1, 1:]
        stretch(values, rows, columns, out)
        expected = zoom.interpolate(zoom.interpolate(values, *rows).T, *columns).T
        assert np.array_equal(out, expected)


def test_a_grid_is_what_is_sampled(rng):
    """As levels where that is possible, and the same bit by bit."""
    box, fixed = (11, 30, 700, 290), PackedMask.of(rng.random((400, 900)) > 0.5)
    under = Layer.of((50, 60, 300, 200), rng.random((40, 50), np.float32))
    for shape, lower, given, as_levels in (
        ((96, 256), (), None, True),
        ((96, 256), (under,), None, True),  # which the last layer hides
        ((193, 512), (), None, True),
        ((194, 512), (), None, False),
        ((96, 513), (), None, False),
        ((96, 256), (), fixed, False),
    ):
        layer = Layer.of(box, rng.random(shape, np.float32))
        canvas = Canvas(400, 900, 0.49, (*lower, layer), fixed=given)
        found, expected = canvas.grid(box, 193, 512), canvas.sample(box, 193, 512)
        assert found.shape == expected.shape
        assert isinstance(found, Stretched) == as_levels
        assert np.array_equal(np.asarray(found), expected)
    assert not isinstance(Canvas(400, 900, 0.49, (layer, under)).grid(box, 193, 512), Stretched)
    assert not isinstance(Canvas(400, 900, 0.49, (layer,)).grid((12, 30, 700, 290), 193, 512), Stretched)
    assert not Canvas(400, 900, 0.49).grid(box, 193, 512).any()


def test_sample_follows_what_is_painted():
    """Sampling coarsely is about the same as painting and shrinking."""
    ys, xs = np.mgrid[:64, :96] / 64
    smooth = (0.5 + 0.4 * np.sin(5 * xs) * np.cos(4 * ys)).astype(np.float32)
    canvas = Canvas(300, 410, 0.49, (Layer.of((20, 30, 390, 280), smooth), Layer.of((100, 90, 205, 150), smooth)))
    box = (60, 10, 400, 300)
    wanted = zoom.resize(canvas.probs()[box[1] : box[3], box[0] : box[2]], 29, 34)
    got = canvas.sample(box, 29, 34)
    assert np.median(np.abs(got - wanted)) < 0.01
    assert (np.abs(got - wanted) > 0.05).mean() < 0.2  # only along the layers' edges


def test_sample_does_not_shift():
    """Ramps in a layer come back as the same ramps, finer, coarser, and from inside the layer."""
    ys, xs = np.mgrid[:64, :96].astype(np.float32) + 0.5
    for ramp, column in ((xs / 96, True), (ys / 64, False)):
        canvas = Canvas(300, 410, 0.49, (Layer.of((20, 30, 390, 280), ramp),))
        for h, w in ((50, 60), (200, 180), (20, 500)):
            box = (80, 60, 333, 250)
            at_x = box[0] + (np.arange(w) + 0.5) * (box[2] - box[0]) / w
            at_y = box[1] + (np.arange(h) + 0.5) * (box[3] - box[1]) / h
            wanted = (at_x[None] - 20) / 370 if column else (at_y[:, None] - 30) / 250
            assert np.abs(canvas.sample(box, h, w) - wanted).max() < 0.13 / 64


def test_packed_mask_round_trip(rng):
    for shape in ((1, 1), (3, 8), (5, 9), (64, 47)):
        mask = rng.random(shape) > 0.5
        packed = PackedMask.of(mask)
        assert np.array_equal(packed.unpack(), mask)
    assert len(PackedMask.of(np.zeros((2000, 3000), bool)).data) < 5000


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (33, 20)])
def test_packed_layer_round_trip(rng, shape):
    layer = Layer((3, 4, 50, 60), shape, rng.integers(0, 65536, shape).astype(np.uint16))
    packed = layer.packed()
    assert np.array_equal(packed.values, layer.values)
    assert packed.values.dtype == np.uint16
    assert packed.packed() is packed


def test_a_packed_layer_is_small(rng):
    """A smooth rim, with noise in the lowest bits as the network leaves it."""
    y, x = np.mgrid[:384, :352]
    probs = 1 / (1 + np.exp((np.hypot(y - 180, x - 170) - 120) / 4 + rng.normal(0, 0.02, (384, 352))))
    layer = Layer.of((0, 0, 704, 768), probs.astype(np.float32))
    assert len(layer.packed().data) < 0.26 * layer.values.nbytes


def test_changed_bbox(rng, monkeypatch):
    monkeypatch.setattr(boxes, "_READ", 40)
    before = random_image(rng, 30, 45, 1) > 128
    after = before.copy()
    assert changed_bbox(before, after, (0, 0, 45, 30)) is None
    after[7, 40] ^= True
    after[20:22, 13] ^= True
    assert changed_bbox(before, after, (0, 0, 45, 30)) == (13, 7, 41, 22)
    assert changed_bbox(before, after, (20, 0, 45, 30)) == (40, 7, 41, 8)
    assert changed_bbox(before, after, None) is None


@pytest.mark.parametrize("read", [1, 7, 60, 1000])
def test_a_box_found_from_the_sides_is_the_mask_s(rng, monkeypatch, read):
    monkeypatch.setattr(boxes, "_READ", read)
    for _ in range(60):
        mask = np.zeros((23, 31), bool)
        for _ in range(rng.integers(0, 5)):
            mask[rng.integers(0, 23), rng.integers(0, 31)] = True
        assert boxes.bbox_from_sides(lambda b, m=mask: m[b[1] : b[3], b[0] : b[2]], (0, 0, 31, 23)) == mask_bbox(mask)


def test_the_inside_of_an_object_is_not_read_for_its_box():
    mask = np.zeros((2100, 2900), bool)
    mask[60:2040, 70:2850] = True
    read = 0

    def part(box):
        nonlocal read
        read += (box[2] - box[0]) * (box[3] - box[1])
        return mask[box[1] : box[3], box[0] : box[2]]

    assert boxes.bbox_from_sides(part, (0, 0, 2900, 2100)) == (70, 60, 2850, 2040)
    assert read < mask.size / 8


def test_a_mask_lies_within_the_reach_of_its_canvas(rng):
    """And the reach is wider by two pixels of the layer at most, here 2 * 12.8 and 2 * 5 pixels of the image."""
    for _ in range(20):
        coarse, fine = np.zeros((20, 25), np.float32), np.zeros((40, 30), np.float32)
        coarse[tuple(rng.integers(0, (20, 25)))] = rng.uniform(0.45, 1)
        fine[tuple(rng.integers(0, (40, 30)))] = rng.uniform(0.45, 1)
        layers = (Layer.of((11, 7, 331, 207), coarse), Layer.of((100, 20, 250, 90), fine))
        clicks = (Click(rng.uniform(0, 410), 3, True), Click(2, 250, False))
        canvas = Canvas(300, 410, 0.49, layers, clicks)
        box, reach = mask_bbox(canvas.mask()), canvas.reach()
        assert boxes.union(box, reach) == reach
        for layer in layers:
            own = Canvas(300, 410, 0.49, (layer,))
            box, reach = mask_bbox(own.mask()), own.reach()
            if box is not None:
                assert max(abs(a - b) for a, b in zip(box, reach, strict=True)) <= 26
    assert Canvas(300, 410, 0.49).reach() is None


def test_merge_changes_one_component():
    before = np.zeros((20, 30), bool)
    before[5:15, 5:15] = True
    after = before.copy()
    after[5:10, 15:20] = True  # grows to the right ...
    after[10, 20] = True  # ... on over a corner: 8 neighbours
    after[18, 28] = True  # something else far away
    after[5, 5] = False
    merged = merge(before, after, Click(17, 7, True), (0, 0, 30, 20))
    wanted = before.copy()
    wanted[5:10, 15:20] = True
    wanted[10, 20] = True
    assert np.array_equal(merged, wanted)
    assert np.array_equal(merge(before, after, Click(8, 8, True), (0, 0, 30, 20)), before)  # agrees
    assert np.array_equal(merge(before, after, Click(28, 3, False), (0, 0, 30, 20)), before)
    assert np.array_equal(merge(before, after, Click(28, 3, True), (0, 0, 30, 20)), before)  # denied by a newer click
    # nothing outside what the network saw
    narrow = merge(before, after, Click(17, 7, True), (10, 0, 18, 20))
    wanted = before.copy()
    wanted[5:10, 15:18] = True
    assert np.array_equal(narrow, wanted)


# --- crops of large images ---


def test_halvings_leave_two_pixels_for_one():
    assert zoom.halvings((0, 0, 511, 4000), 256) == 0
    assert zoom.halvings((0, 0, 1023, 1024), 256) == 0
    assert zoom.halvings((7, 5, 1031, 1029), 256) == 1
    assert zoom.halvings((0, 0, 4100, 4100), 256) == 3


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("shape", [(40, 32), (40, 31), (37, 50, 3), (1, 9, 3)])
def test_shrunk(rng, shape, step):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    small = zoom.shrunk(image, step)
    assert small.shape == (-(-shape[0] // step), -(-shape[1] // step), *shape[2:])
    for y, x in np.ndindex(small.shape[:2]):
        square = image[y * step : (y + 1) * step, x * step : (x + 1) * step].astype(float)
        assert np.abs(small[y, x] - square.mean(axis=(0, 1))).max() <= 0.51


def test_aligned():
    whole = (0, 0, 101, 203)
    assert boxes.aligned((3, 4, 9, 13), 4, whole, whole) == (0, 4, 12, 16)
    assert boxes.aligned((97, 200, 101, 203), 4, whole, whole) == (96, 200, 101, 203)
    assert boxes.aligned((3, 5, 9, 13), 1, whole, whole) == (3, 5, 9, 13)
    assert boxes.aligned((3, 6, 97, 183), 4, whole, (2, 5, 99, 183)) == (4, 8, 96, 180)
    assert boxes.aligned((9, 5, 101, 203), 4, whole, (9, 3, 101, 203)) == (12, 4, 101, 203)


@pytest.mark.parametrize("shape", [(2600, 3001), (2201, 2700, 3)])
def test_a_crop_of_a_shrunk_image_is_a_crop_of_the_image(rng, shape):
    """Within a grey level or two: shrinking rounds."""
    image = cv2.GaussianBlur(rng.integers(0, 256, shape, dtype=np.uint8), (0, 0), 3)
    picture = Picture(image, None, SessionSettings(0.49, True, True))
    whole = 0, 0, shape[1], shape[0]
    box = boxes.aligned((13, 101, shape[1], shape[0] - 7), 4, whole, whole)
    difference = picture.crop(box, 2, 64, 64).astype(int) - zoom.crop_rgb(image, box, 64, 64).astype(int)
    assert np.abs(difference).max() <= 2
    assert list(picture.shrunk) == [2]
    assert np.array_equal(picture.crop(box, 0, 64, 64), zoom.crop_rgb(image, box, 64, 64))
