"""Rows of the log: examples left out are summed by reason, also over a restart."""

import json

import numpy as np
import pytest

from unimp_jax.training.metrics import StepMetrics, UniMPWindow
from unimp_jax.training.prefetch import LoadedBatch


def window_of(notes=None) -> UniMPWindow:
    return UniMPWindow(notes, tasks=("search", "selection"), flops=1.0, peak_flops=1.0, tokens=64)


def loaded(left_out: dict[str, int], block: int = 0) -> LoadedBatch:
    counts = {"num_examples": 3, "num_images": 2, "fill": 0.5, "left_out": left_out}
    return LoadedBatch({}, {"block": block, "row": 0}, counts)


def metrics(loss: float) -> StepMetrics:
    one = np.float32(1)
    return StepMetrics(np.float32(loss), one, np.ones(2, np.float32), np.ones(2, np.float32), np.bool_(False), 0 * one)


def test_examples_left_out_are_summed_by_kind_over_a_restart():
    before = window_of()
    before.add(loaded({"a title too long": 2}), metrics(1.0))
    before.add(loaded({}), metrics(2.0))
    after = window_of(json.loads(json.dumps(before.notes())))
    after.add(loaded({"a title too long": 1, "met everything": 4}), metrics(6.0))
    logged, skips = after.close(waited=0.0)
    assert {name: x for name, x in logged.items() if name.startswith("left_out/")} == {
        "left_out/a title too long": 3.0,
        "left_out/met everything": 4.0,
    }
    assert (logged["loss"], logged["steps_left_out"], skips) == (3.0, 0.0, {"": 0})


def test_notes_of_checkpoints_that_knew_of_none_are_read():
    before = window_of()
    before.add(loaded({}), metrics(1.0))
    notes = before.notes()
    del notes["window"][0]["counts"]["left_out"]
    after = window_of(notes)
    after.add(loaded({}), metrics(2.0))
    logged, _ = after.close(waited=0.0)
    assert logged["loss"] == pytest.approx(1.5)
    assert not any(name.startswith("left_out/") for name in logged)


def test_a_checkpoint_continues_with_the_batch_after_the_last_one():
    window = window_of({"position": {"block": 1, "row": 0}, "window": []})
    assert window.notes() == {"position": {"block": 1, "row": 0}, "window": []}
    window.add(loaded({}, block=2), metrics(1.0))
    assert window.notes()["position"] == {"block": 2, "row": 0}
    window.close(waited=0.0)
    assert window.notes() == {"position": {"block": 2, "row": 0}, "window": []}


def test_steps_that_an_earlier_version_had_not_logged_are_not_in_the_row():
    old = {"metrics": {"loss": 5.0, "left_out": False}, "batch": {"fill": 1.0}}
    window = window_of({"position": {"block": 1, "row": 0}, "window": [old]})
    window.add(loaded({}), metrics(2.0))
    row, _ = window.close(waited=0.0)
    assert row["loss"] == 2.0
