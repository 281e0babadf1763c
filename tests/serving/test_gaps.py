"""The thread that computes learns while nobody waits."""

import time
from threading import Event
from types import SimpleNamespace

from specblock.serving.decoding.worker import Worker


class Learner:
    """Has ``steps`` steps of 50 ms to do."""

    def __init__(self, steps):
        self.left, self.told, self.begun = steps, [], Event()

    def rest(self, waiting):
        if self.left:
            self.begun.set()
            for _ in range(50):
                if not waiting():
                    time.sleep(0.001)
            self.left -= 1
        return bool(self.left)

    def came(self, gap, delays):
        self.told.append((gap, delays))


class OneStepEngine:
    """Every request is answered by the next step."""

    def __init__(self):
        self.open = []

    def add(self, answer):
        handle = SimpleNamespace(over=False, cancel=lambda: None)
        handle.ready = lambda: ([], handle.over)
        self.open.append(handle)
        return handle

    def advance(self):
        for handle in self.open:
            handle.over = True


def nothing(*_arguments, **_named):
    pass


def test_a_step_makes_room_for_a_request():
    learner, over = Learner(1000), Event()
    watch = SimpleNamespace(asked=nothing, progressed=nothing, left=nothing, stepped=nothing)
    worker = Worker(OneStepEngine(), watch, learner)
    worker.start()
    assert learner.begun.wait(10)
    worker.ask(["an answer"], [lambda pieces, ended, error: over.set()])
    assert over.wait(10)
    (gap, delays), *_ = learner.told
    assert len(delays) == 1
    assert 0 <= delays[0] < 0.5
    assert gap < 10
    done = 1000 - learner.left
    time.sleep(0.3)
    assert 1000 - learner.left > done, "it goes on when all are answered"
    assert worker.stop(5)


def test_a_thread_with_nothing_to_learn_sleeps():
    learner = Learner(1)
    watch = SimpleNamespace(asked=nothing, progressed=nothing, left=nothing, stepped=nothing)
    worker = Worker(OneStepEngine(), watch, learner)
    calls, rest = [], learner.rest
    learner.rest = lambda waiting: calls.append(1) or rest(waiting)
    worker.start()
    assert learner.begun.wait(10)
    time.sleep(0.3)
    assert len(calls) <= 2
    assert worker.stop(5)


def test_a_server_that_stops_learns_no_more_and_still_answers():
    learner, over = Learner(1000), Event()
    watch = SimpleNamespace(asked=nothing, progressed=nothing, left=nothing, stepped=nothing)
    worker = Worker(OneStepEngine(), watch, learner)
    worker.start()
    assert learner.begun.wait(10)
    worker.stop_learning()
    left = learner.left
    worker.ask(["an answer"], [lambda pieces, ended, error: over.set()])
    assert over.wait(10)
    time.sleep(0.2)
    assert left - learner.left <= 1  # the step that was under way
    assert worker.stop(10)


def test_a_step_that_is_waited_for_is_told(caplog):
    learner, go_on = Learner(1), Event()
    learner.rest = lambda waiting: learner.begun.set() or (go_on.wait(10) and False)
    worker = Worker(OneStepEngine(), None, learner)
    worker.start()
    assert learner.begun.wait(10)
    assert not worker.stop(0.01)
    assert "Waiting for the step under way" in caplog.text
    go_on.set()
    assert worker.stop(10)
