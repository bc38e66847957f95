"""Random sequences of all calls, good and bad, against a simple model of what a history is."""

import json
import linecache
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from activefreq_engine import (
    BoxPrompt,
    Click,
    Engine,
    InvalidArgumentError,
    InvalidClickError,
    InvalidImageError,
    InvalidMaskError,
    InvalidPromptError,
    Lasso,
    Scribble,
    Session,
)
from activefreq_engine.masks.outlines import enclosed
from activefreq_engine.session import history

from .fakes import SquareModel

HEIGHT, WIDTH = 23, 37
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SESSION = str(Path(history.__file__).parent)
ENGINE = Engine(SquareModel(refine_size=32))

xs, ys = st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)
clicks = st.builds(Click, xs.map(float), ys.map(float), st.booleans())
boxes = st.tuples(xs, ys, st.integers(1, WIDTH), st.integers(1, HEIGHT))
pixels = st.tuples(st.floats(0, WIDTH, exclude_max=True), st.floats(0, HEIGHT, exclude_max=True))
corners = st.tuples(st.integers(0, WIDTH).map(float), st.integers(0, HEIGHT).map(float))


def box_mask(box):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return mask


class Object:
    """The model: what happened and what was seen then."""

    def __init__(self):
        self.done = []  # (prompts, start, mask, probs)
        self.undone = []

    @property
    def prompts(self):
        return self.done[-1][0] if self.done else ()

    @property
    def clicks(self):
        return tuple(p for p in self.prompts if isinstance(p, Click))

    @property
    def start(self):
        """The box of the loaded mask."""
        return self.done[-1][1] if self.done else None


def bounds(pixels):
    at = np.argwhere(pixels)
    return (*at.min(0)[::-1], *(at.max(0)[::-1] + 1)) if len(at) else None


def raises_at(line, call):
    """Run it with a KeyboardInterrupt at the so-manieth line that runs in `session/`; whether it got there.

    The end of a `with` is no such line: no interrupt is dealt with between a block's last instruction and the call that
    gives the lock back, only tracing can raise there.
    """
    left = line
    entered = set()

    def trace(frame, event, _):
        nonlocal left
        if SESSION not in frame.f_code.co_filename:
            return None
        if event == "line":
            where = id(frame), frame.f_lineno
            again = where in entered
            if linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                entered.add(where)
            left -= 1
            if left <= 0 and not again:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


class SessionMachine(RuleBasedStateMachine):
    @initialize(zoom=st.booleans(), refine=st.booleans())
    def start(self, zoom, refine):
        self.session = Session(engine=ENGINE, zoom=zoom, refine=refine)
        self.session.set_image(IMAGE)
        self.objects = [Object()]
        self.current = 0
        self.view = None

    @property
    def object(self):
        return self.objects[self.current]

    def note(self, prompts, start):
        self.object.done.append((prompts, start, self.session.mask.copy(), self.session.probs))
        self.object.undone.clear()

    @rule(click=clicks)
    def click(self, click):
        before, seen = self.session.mask.copy(), ENGINE._executor.model.count["decode"]
        result = self.session.click(click.x, click.y, click.positive)
        self.note((*self.object.prompts, click), self.object.start)
        assert result.changed_bbox == bounds(before ^ result.mask)
        assert result.clicks == len(self.object.clicks)
        if self.view is None and before[int(click.y), int(click.x)] == click.positive:
            assert result.changed_bbox is None
            assert ENGINE._executor.model.count["decode"] == seen
        elif self.view is not None:
            x0, y0, x1, y1 = self.view
            if x0 <= click.x < x1 and y0 <= click.y < y1:  # outside of it nothing changes
                before[y0:y1, x0:x1] = result.mask[y0:y1, x0:x1]
                assert np.array_equal(before, result.mask)

    @rule(box=boxes)
    def box(self, box):
        before = self.session.mask.copy()
        corners = box[0], box[1], box[0] + box[2], box[1] + box[3]
        result = self.session.box(*corners)
        assert result.changed_bbox == bounds(before ^ result.mask)
        assert result.clicks == 0
        self.note((BoxPrompt(*corners),), None)

    def drawn(self, before, seen, prompt, result):
        self.note((*self.object.prompts, prompt), self.object.start)
        assert result.changed_bbox == bounds(before ^ result.mask)
        assert result.clicks == len(self.object.clicks)
        model = ENGINE._executor.model
        assert model.count["decode"] <= seen + 1
        if self.view is None and model.count["decode"] == seen:
            assert result.changed_bbox is None

    @rule(points=st.lists(pixels, min_size=1, max_size=5), positive=st.booleans())
    def scribble(self, points, positive):
        before, seen = self.session.mask.copy(), ENGINE._executor.model.count["decode"]
        result = self.session.scribble(points, positive)
        self.drawn(before, seen, Scribble(tuple(points), positive), result)
        assert all(result.mask[int(y), int(x)] == positive for x, y in points)

    @rule(points=st.lists(corners, min_size=3, max_size=6), positive=st.booleans())
    def lasso(self, points, positive):
        before, seen = self.session.mask.copy(), ENGINE._executor.model.count["decode"]
        try:
            result = self.session.lasso(points, positive)
        except InvalidPromptError:
            assert not enclosed(np.array(points), HEIGHT, WIDTH).any()
            return
        self.drawn(before, seen, Lasso(tuple(points), positive), result)
        if not positive:
            inside = self.session._scene.history.step.canvas.marks[-1]
            x0, y0, x1, y1 = inside.box
            assert not result.mask[y0:y1, x0:x1][inside.inside()].any()

    @rule(box=boxes)
    def load_mask(self, box):
        result = self.session.load_mask(box_mask(box))
        assert np.array_equal(result.mask, box_mask(box))
        self.note((), box)

    @rule(box=st.none() | boxes)
    def look(self, box):
        self.view = None if box is None else (box[0], box[1], min(WIDTH, box[0] + box[2]), min(HEIGHT, box[1] + box[3]))
        before = self.session.mask
        self.session.look(*(self.view or (None,)))
        assert self.session.mask is before

    def changed(self, before, result, expected):
        assert (result is not None) == expected
        if result is not None:
            assert result.mask is self.session.mask
            assert result.changed_bbox == bounds(before ^ result.mask)
            assert result.clicks == len(self.session.clicks)

    @rule()
    def undo(self):
        before = self.session.mask.copy()
        self.changed(before, self.session.undo(), bool(self.object.done))
        if self.object.done:
            self.object.undone.append(self.object.done.pop())

    @rule()
    def redo(self):
        before = self.session.mask.copy()
        self.changed(before, self.session.redo(), bool(self.object.undone))
        if self.object.undone:
            self.object.done.append(self.object.undone.pop())

    @rule()
    def reset(self):
        self.session.reset()
        self.objects[self.current] = Object()

    @rule()
    def next_object(self):
        if self.objects[-1].done or self.objects[-1].undone:
            self.objects.append(Object())
        self.current = len(self.objects) - 1
        assert self.session.next_object() == self.current + 1

    @rule(number=st.integers(0, 4))
    def select_object(self, number):
        if 1 <= number <= len(self.objects):
            before = self.session.mask.copy()
            self.changed(before, self.session.select_object(number), True)
            self.current = number - 1
        else:
            with pytest.raises(InvalidArgumentError):
                self.session.select_object(number)

    @rule(number=st.integers(1, 3))
    def delete_object(self, number):
        if number > len(self.objects):
            with pytest.raises(InvalidArgumentError):
                self.session.delete_object(number)
            return
        del self.objects[number - 1]
        if self.current >= number:
            self.current -= 1 if self.current > number - 1 else 0
        self.objects = self.objects or [Object()]
        self.current = min(self.current, len(self.objects) - 1)
        assert self.session.delete_object(number) == self.current + 1

    @rule(keep=st.integers(0, 3), more=st.lists(clicks, max_size=3), restart=st.booleans())
    def predict(self, keep, more, restart):
        """The list shares a beginning with the current one."""
        wanted = (*self.object.clicks[:keep], *more)
        start = None if restart else self.object.start
        box = next((p for p in self.object.prompts if isinstance(p, BoxPrompt) and not restart), None)
        before, seen = self.session.mask.copy(), ENGINE._executor.model.count["decode"]
        result = self.session.predict(
            [(c.x, c.y) for c in wanted],
            [c.positive for c in wanted],
            None if start is None else box_mask(start),
            None if box is None else (box.x0, box.y0, box.x1, box.y1),
        )
        assert ENGINE._executor.model.count["decode"] <= seen + 1 + (box is not None)
        assert result.clicks == len(wanted)
        assert result.changed_bbox == bounds(before ^ result.mask)
        prompts = wanted if box is None else (box, *wanted)
        if (prompts, start) != (self.object.prompts, self.object.start):
            self.note(prompts, start)

    @rule(
        what=st.sampled_from(["click", "box", "scribble", "lasso", "undo", "predict", "next_object", "load_mask"]),
        line=st.integers(1, 90),
    )
    def interrupt(self, what, line):
        """Ctrl-C at any line of the session's own code: the call has happened as a whole or not at all."""
        before = json.dumps(self.session.state_dict())
        twin = Session.restore(json.loads(before), IMAGE, engine=ENGINE) if self.small else None

        def call(session):
            {
                "click": lambda: session.click(5, 7),
                "box": lambda: session.box(3, 4, 20.5, 15),
                "scribble": lambda: session.scribble([(5, 7), (30, 20)], False),
                "lasso": lambda: session.lasso([(3, 4), (30, 5), (20, 21)], False),
                "undo": session.undo,
                "predict": lambda: session.predict([[1, 2], [30, 20]], [1, 1]),
                "next_object": session.next_object,
                "load_mask": lambda: session.load_mask(box_mask((3, 4, 5, 6))),
            }[what]()

        interrupted = raises_at(line, lambda: call(self.session))
        after = json.dumps(self.session.state_dict())
        assert not self.session._lock.locked()
        if not interrupted or after != before:
            if twin is not None:
                twin.look(*(self.view or (None,)))
                call(twin)
                assert json.dumps(twin.state_dict()) == after
            self.read_anew()

    @property
    def small(self):
        return sum(len(o.done) + len(o.undone) for o in self.objects) <= 6

    def read_anew(self):
        """Take what happened for what was wanted."""
        scene = self.session._scene
        while len(self.objects) < len(scene.objects):
            self.objects.append(Object())
        self.current = scene.selected
        done, undone = scene.history.done, scene.history.undone
        mine = self.object
        if len(done) < len(mine.done):
            mine.undone.append(mine.done.pop())
        elif len(done) > len(mine.done):
            start = done[-1].start
            box = None
            if start is not None:
                x0, y0, x1, y1 = bounds(start.unpack())
                box = x0, y0, x1 - x0, y1 - y0
            self.note(self.session.prompts, box)
        assert (len(done), len(undone)) == (len(mine.done), len(mine.undone))

    @rule(
        bad=st.sampled_from(
            [
                (InvalidClickError, lambda s: s.click(WIDTH, 0)),
                (InvalidClickError, lambda s: s.click(0, -1)),
                (InvalidClickError, lambda s: s.click(float("nan"), 0)),
                (InvalidClickError, lambda s: s.click(1, 2, "no")),
                (InvalidClickError, lambda s: s.predict([[1, 2], [0, HEIGHT]], [1, 1])),
                (InvalidClickError, lambda s: s.predict([[1, 2]], [3])),
                (InvalidPromptError, lambda s: s.box(5, 5, 5, 9)),
                (InvalidPromptError, lambda s: s.scribble([(1, 2), (1, HEIGHT)])),
                (InvalidPromptError, lambda s: s.lasso([(1, 2), (9, 2), (4, 2)], False)),
                (InvalidPromptError, lambda s: s.predict([[1, 2]], [1], box=(0, 0, 0, 1))),
                (InvalidMaskError, lambda s: s.predict([[1, 2]], [1], np.zeros((WIDTH, HEIGHT), bool))),
                (InvalidMaskError, lambda s: s.load_mask(np.zeros((WIDTH, HEIGHT), bool))),
                (InvalidImageError, lambda s: s.set_image(np.zeros((0, 4, 3), np.uint8))),
                (InvalidImageError, lambda s: s.set_image(np.full((4, 4), np.nan))),
                (InvalidArgumentError, lambda s: s.select_object(99)),
                (InvalidArgumentError, lambda s: s.suggest(k=0)),
            ]
        )
    )
    def bad_input(self, bad):
        error, call = bad
        before = json.dumps(self.session.state_dict())
        with pytest.raises(error):
            call(self.session)
        assert json.dumps(self.session.state_dict()) == before

    @precondition(lambda self: self.small)
    @rule()
    def save_and_restore(self):
        state = json.loads(json.dumps(self.session.state_dict()))
        self.session = Session.restore(state, IMAGE, engine=ENGINE)
        assert self.session.state_dict() == state
        self.session.look(*(self.view or (None,)))

    @rule()
    def suggest(self):
        for s in self.session.suggest():
            assert 0 <= s.x < WIDTH
            assert 0 <= s.y < HEIGHT
            assert s.positive != self.session.mask[s.y, s.x]

    @invariant()
    def agrees_with_the_model(self):
        s, o = self.session, self.object
        assert (s.object_number, s.object_count) == (self.current + 1, len(self.objects))
        assert (s.clicks, s.prompts) == (o.clicks, o.prompts)
        if not o.done:
            assert not s.probs.any()
        else:
            assert np.array_equal(s.mask, o.done[-1][2])
            assert np.array_equal(s.probs, o.done[-1][3])
        assert np.array_equal(s.mask, s.probs > s.threshold)
        if not any(isinstance(p, (Scribble, Lasso)) for p in s.prompts):  # these may overrule a click
            for pixel, positive in {(int(c.x), int(c.y)): c.positive for c in s.clicks}.items():
                assert s.mask[pixel[1], pixel[0]] == positive
        assert np.array_equal(s.mask_of(s.object_number), s.mask)
        labels = np.zeros((HEIGHT, WIDTH), np.int32)
        for number in range(1, s.object_count + 1):
            labels[s.mask_of(number)] = number
        assert np.array_equal(s.labels, labels)


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
