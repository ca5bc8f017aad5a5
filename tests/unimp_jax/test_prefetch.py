"""Batches one ahead of the steps that train on them."""

import time

import numpy as np

from unimp_jax.training.prefetch import LoadedBatch, Prefetcher


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
        yield LoadedBatch({"number": np.array(number)}, position=number + 1, counts={})


def test_batches_come_in_order_and_one_ahead():
    taken: list[int] = []
    prefetcher = Prefetcher(batches(0, taken), lambda arrays: arrays["number"] + 100)
    for step in range(5):
        loaded, on_device = prefetcher.take()
        assert (loaded.arrays["number"], on_device) == (step, step + 100)
        assert taken == list(range(step + 1))
        prefetcher.fetch(Result(0))
        assert taken == list(range(step + 2))


def test_waiting_counts_only_while_devices_are_idle():
    prefetcher = Prefetcher(batches(0.05, []), lambda arrays: arrays)
    prefetcher.take()
    assert 0.04 < prefetcher.waited() < 0.5
    prefetcher.fetch(Result(time.perf_counter() + 1))  # the step runs on after the batch has come
    assert prefetcher.waited() == 0
    prefetcher.take()
    prefetcher.fetch(Result(0))
    assert 0.04 < prefetcher.waited() < 0.5


def test_the_host_is_one_step_ahead_at_most():
    prefetcher = Prefetcher(batches(0, []), lambda arrays: arrays)
    prefetcher.take()
    first = Result(time.perf_counter() + 0.1)
    prefetcher.fetch(first)
    assert not first.is_ready()
    prefetcher.take()
    prefetcher.fetch(Result(time.perf_counter() + 5))
    assert first.is_ready()
