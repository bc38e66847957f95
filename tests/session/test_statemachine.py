"""Random sequences of all calls, good and bad, against a simple model of what a history is."""

import json

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from activefreq_engine import (
    Click,
    Engine,
    InvalidArgumentError,
    InvalidClickError,
    InvalidImageError,
    InvalidMaskError,
    Session,
)

from .fakes import SquareModel

HEIGHT, WIDTH = 23, 37
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ENGINE = Engine(SquareModel(refine_size=32))

xs, ys = st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)
clicks = st.builds(Click, xs.map(float), ys.map(float), st.booleans())
boxes = st.tuples(xs, ys, st.integers(1, WIDTH), st.integers(1, HEIGHT))


def box_mask(box):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return mask


class Object:
    """The model: what happened and what was seen then."""

    def __init__(self):
        self.done = []  # (event, clicks, mask, probs)
        self.undone = []

    @property
    def clicks(self):
        return self.done[-1][1] if self.done else ()

    @property
    def start(self):
        masks = [event for event, *_ in self.done if not isinstance(event, Click)]
        return masks[-1] if masks else None


class SessionMachine(RuleBasedStateMachine):
    @initialize(zoom=st.booleans(), refine=st.booleans())
    def start(self, zoom, refine):
        self.session = Session(engine=ENGINE, zoom=zoom, refine=refine)
        self.session.set_image(IMAGE)
        self.objects = [Object()]
        self.current = 0

    @property
    def object(self):
        return self.objects[self.current]

    def note(self, event, clicks):
        self.object.done.append((event, clicks, self.session.mask.copy(), self.session.probs))
        self.object.undone.clear()

    @rule(click=clicks)
    def click(self, click):
        before = self.session.mask.copy()
        result = self.session.click(click.x, click.y, click.positive)
        self.note(click, (*self.object.clicks, click))
        changed = np.argwhere(before ^ result.mask)
        expected = (*changed.min(0)[::-1], *(changed.max(0)[::-1] + 1)) if len(changed) else None
        assert result.changed_bbox == expected
        assert result.clicks == len(self.object.clicks)

    @rule(box=boxes)
    def load_mask(self, box):
        result = self.session.load_mask(box_mask(box))
        assert np.array_equal(result.mask, box_mask(box))
        self.note(box, ())

    @rule()
    def undo(self):
        assert self.session.undo() == bool(self.object.done)
        if self.object.done:
            self.object.undone.append(self.object.done.pop())

    @rule()
    def redo(self):
        assert self.session.redo() == bool(self.object.undone)
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
            self.session.select_object(number)
            self.current = number - 1
        else:
            with pytest.raises(InvalidArgumentError):
                self.session.select_object(number)

    @rule(keep=st.integers(0, 3), more=st.lists(clicks, max_size=2), restart=st.booleans())
    def predict(self, keep, more, restart):
        """The list shares a prefix with the current one; the outcome is that of a fresh session."""
        wanted = [*self.object.clicks[:keep], *more]
        start = None if restart else self.object.start
        given = None if start is None else box_mask(start)
        result = self.session.predict([(c.x, c.y) for c in wanted], [c.positive for c in wanted], given)
        assert result.clicks == len(wanted)
        with Session(engine=ENGINE, zoom=self.session._settings.zoom, refine=self.session._settings.refine) as fresh:
            fresh.set_image(IMAGE)
            if given is not None:
                fresh.load_mask(given)
            for c in wanted:
                fresh.click(c.x, c.y, c.positive)
            assert np.array_equal(self.session.probs, fresh.probs)
        target = self.object
        if start != target.start:
            self.objects[self.current] = target = Object()
        common = 0
        while common < min(len(wanted), len(target.clicks)) and wanted[common] == target.clicks[common]:
            common += 1
        while len(target.clicks) > common:
            target.undone.append(target.done.pop())
        for i in range(common, len(wanted)):
            if target.undone and target.undone[-1][0] == wanted[i]:
                target.done.append(target.undone.pop())
            else:
                # a mid-list outcome was never shown; undo will show it
                target.done.append((wanted[i], tuple(wanted[: i + 1]), None, None))
                target.undone.clear()
        if target.done:
            target.done[-1] = (*target.done[-1][:2], self.session.mask.copy(), self.session.probs)

    @rule(
        bad=st.sampled_from(
            [
                (InvalidClickError, lambda s: s.click(WIDTH, 0)),
                (InvalidClickError, lambda s: s.click(0, -1)),
                (InvalidClickError, lambda s: s.click(float("nan"), 0)),
                (InvalidClickError, lambda s: s.click(1, 2, "no")),
                (InvalidClickError, lambda s: s.predict([[1, 2], [0, HEIGHT]], [1, 1])),
                (InvalidClickError, lambda s: s.predict([[1, 2]], [3])),
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

    @precondition(lambda self: sum(len(o.done) + len(o.undone) for o in self.objects) <= 6)
    @rule()
    def save_and_restore(self):
        state = json.loads(json.dumps(self.session.state_dict()))
        self.session = Session.restore(state, IMAGE, engine=ENGINE)
        assert self.session.state_dict() == state

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
        assert s.clicks == o.clicks
        if not o.done:
            assert not s.probs.any()
        elif o.done[-1][2] is not None:
            assert np.array_equal(s.mask, o.done[-1][2])
            assert np.array_equal(s.probs, o.done[-1][3])
        assert np.array_equal(s.mask, s.probs > s.threshold)
        for pixel, positive in {(int(c.x), int(c.y)): c.positive for c in s.clicks}.items():
            assert s.mask[pixel[1], pixel[0]] == positive
        assert np.array_equal(s.labels == s.object_number, s.mask) or self.current + 1 < len(self.objects)


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
