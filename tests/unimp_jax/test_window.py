"""Lines of the log: what was left out is summed by kind, also over a restart."""

import dataclasses
import json

import numpy as np
import pytest

from unimp_jax.training.feed import Feed
from unimp_jax.training.loop import Run, _Window
from unimp_jax.training.step import StepMetrics

RUN = Run(None, None, None, None, tasks=("search", "selection"), flops=1.0, peak_flops=1.0, tokens=64)


@dataclasses.dataclass
class Loaded:
    left_out: dict[str, int]
    num_examples: int = 3
    num_images: int = 2
    fill: float = 0.5


def metrics(loss: float) -> StepMetrics:
    one = np.float32(1)
    return StepMetrics(np.float32(loss), one, np.ones(2, np.float32), np.ones(2, np.float32), np.bool_(False), 0 * one)


def window(notes=()) -> _Window:
    return _Window(RUN, notes, Feed(iter(()), None))


def test_examples_left_out_are_summed_by_kind_over_a_restart():
    before = window()
    before.add(Loaded({"a title too long": 2}), metrics(1.0))
    before.add(Loaded({}), metrics(2.0))
    after = window(json.loads(json.dumps(before.notes())))
    after.add(Loaded({"a title too long": 1, "met everything": 4}), metrics(6.0))
    logged, in_a_row = after.close()
    assert {name: x for name, x in logged.items() if name.startswith("left_out/")} == {
        "left_out/a title too long": 3.0,
        "left_out/met everything": 4.0,
    }
    assert (logged["loss"], logged["steps_left_out"], in_a_row) == (3.0, 0.0, 0)


def test_notes_of_checkpoints_that_knew_of_none_are_read():
    before = window()
    before.add(Loaded({}), metrics(1.0))
    (note,) = before.notes()
    del note["batch"]["left_out"]
    after = window([note])
    after.add(Loaded({}), metrics(2.0))
    logged, _ = after.close()
    assert logged["loss"] == pytest.approx(1.5)
    assert not any(name.startswith("left_out/") for name in logged)
