"""Batches one ahead of the steps that train on them."""

import dataclasses
import time

import numpy as np

from unimp_jax.training.feed import Feed


@dataclasses.dataclass
class Loaded:
    arrays: dict


class Result:
    """A result of a step that is done at a certain time."""

    def __init__(self, done: float):
        self.done = done

    def is_ready(self) -> bool:
        return time.perf_counter() >= self.done

    def block_until_ready(self) -> None:
        time.sleep(max(self.done - time.perf_counter(), 0))


def batches(seconds, taken):
    for number in range(10):
        time.sleep(seconds)
        taken.append(number)
        yield Loaded({"number": np.array(number)})


def test_batches_come_in_order_and_one_ahead():
    taken: list[int] = []
    feed = Feed(batches(0, taken), lambda arrays: arrays["number"] + 100)
    for step in range(5):
        loaded, on_device = feed.take()
        assert (loaded.arrays["number"], on_device) == (step, step + 100)
        assert taken == list(range(step + 1))
        feed.fetch(Result(0))
        assert taken == list(range(step + 2))


def test_waiting_counts_only_while_devices_are_idle():
    feed = Feed(batches(0.05, []), lambda arrays: arrays)
    feed.take()
    assert 0.04 < feed.waited() < 0.5
    feed.fetch(Result(time.perf_counter() + 1))  # the step runs on after the batch has come
    assert feed.waited() == 0
    feed.take()
    feed.fetch(Result(0))
    assert 0.04 < feed.waited() < 0.5


def test_the_host_is_one_step_ahead_at_most():
    feed = Feed(batches(0, []), lambda arrays: arrays)
    feed.take()
    first = Result(time.perf_counter() + 0.1)
    feed.fetch(first)
    assert not first.is_ready()
    feed.take()
    feed.fetch(Result(time.perf_counter() + 5))
    assert first.is_ready()
