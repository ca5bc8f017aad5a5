"""The loop, around a step that adds numbers: interrupted anywhere, it logs and saves what it would have without."""

import functools
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints, abstract
from unimp_jax.training.guard import TrainingError, check_skips
from unimp_jax.training.log import RunLog, read_log
from unimp_jax.training.loop import LoopConfig, train
from unimp_jax.training.preemption import EndRequest
from unimp_jax.training.prefetch import LoadedBatch, Prefetcher
from unimp_jax.training.window import Window

CONFIG = LoopConfig(steps=10, log_every=3, validate_every=6, save_every=3)


@flax.struct.dataclass
class State:
    step: jax.Array
    total: jax.Array


@flax.struct.dataclass
class Metrics:
    loss: jax.Array
    skips: jax.Array


class Sums(Window):
    step_metrics = Metrics

    def row(self, seconds, waited):
        losses = [one.loss for one in self.metrics]
        return {"loss": float(np.mean(losses)), "odd": sum(one["odd"] for one in self.counts)}

    def progress(self, row):
        return {"loss": str(row["loss"])}

    def consecutive_skips(self):
        return {" of the sum": int(self.metrics[-1].skips)}


class EndBefore(EndRequest):
    """A request that comes between two steps."""

    def __init__(self, step: int):
        super().__init__()
        self._step = step

    def at(self, step: int) -> bool:
        return step == self._step


@jax.jit
def add(state, number):
    return State(state.step + 1, state.total + number), Metrics(number / 7, jnp.maximum(number - 5, 0))


def run(folder, end=0, config=CONFIG, patience=9):
    """(the last state, whether all steps are done), from the latest checkpoint on."""

    def validate(state):
        return {"NDCG@10": float(state.total)}

    with Checkpoints(folder / "checkpoints", CheckpointConfig()) as checkpoints, EndBefore(end) as request:
        state = State(jnp.int32(0), jnp.float32(0))
        state, notes = checkpoints.restore_latest(abstract(state)) or (state, None)
        first = 1 if notes is None else notes["position"]
        batches = (LoadedBatch(np.float32(n), n + 1, {"odd": n % 2}) for n in range(first, config.steps + 1))
        with RunLog(folder, step=int(state.step), steps=config.steps) as log:
            return train(
                state, add, Prefetcher(batches, jnp.asarray), validate,
                config=config, window=Sums(notes), check_skips=functools.partial(check_skips, patience, "guard.spike"),
                checkpoints=checkpoints, log=log, end=request,
            )  # fmt: skip


def without_seconds(run):
    rows = read_log(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def test_a_row_says_where_the_time_since_the_row_before_went(tmp_path):
    """Data come slowly in steps 1 to 3, steps 4 to 6 are slow themselves, and the save after step 6 is."""

    def slowly(state, number):
        time.sleep(0.2 if 4 <= int(state.step) + 1 <= 6 else 0)
        return add(state, number)

    def numbers():
        for number in range(1, 10):
            time.sleep(0.2 if number <= 3 else 0)
            yield LoadedBatch(np.float32(number), None, {"odd": 0})

    class SlowCheckpoints(Checkpoints):
        def save(self, step, *arguments):
            time.sleep(0.7 if step == 6 else 0)
            super().save(step, *arguments)

    config = LoopConfig(steps=9, log_every=3, validate_every=9, save_every=3)
    state = State(jnp.int32(0), jnp.float32(0))
    jax.block_until_ready(add(state, jnp.float32(0)))  # compiled
    with (
        SlowCheckpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints,
        RunLog(tmp_path, step=0, steps=9) as log,
    ):
        train(
            state, slowly, Prefetcher(numbers(), jnp.asarray), lambda _: {}, config=config, window=Sums(None),
            check_skips=lambda *_: None, checkpoints=checkpoints, log=log, end=EndBefore(0),
        )  # fmt: skip
    rows = [row for row in read_log(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    for number, phase in enumerate(("waiting_for_data", "computing", "saving")):
        seconds = [row[f"{phase}_seconds"] for row in rows]
        assert np.argmax(seconds) == number, (phase, seconds)
        assert seconds[number] > 0.5
    assert not any("host" in name for name in rows[0])  # there is one process


def test_it_logs_validates_and_saves_when_it_should(tmp_path):
    state, finished = run(tmp_path)
    assert (int(state.step), float(state.total), finished) == (10, 55.0, True)
    rows = [(row["step"], row["kind"]) for row in read_log(tmp_path / "metrics.jsonl")]
    assert rows == [
        (3, "train"), (6, "train"), (6, "validation"), (9, "train"), (10, "train"), (10, "validation"),
    ]  # fmt: skip
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), reads_only=True) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (10, 10)


@pytest.mark.parametrize("ends", [(1,), (2, 5), (4, 5, 6), (8, 10)])
def test_asked_to_end_between_any_steps_it_continues_with_the_same_rows(tmp_path, ends):
    run(tmp_path / "undisturbed")
    for end in ends:
        state, finished = run(tmp_path / "disturbed", end)
        assert (int(state.step), finished) == (end - 1, False)
    state, finished = run(tmp_path / "disturbed")
    assert (float(state.total), finished) == (55.0, True)
    logs = [without_seconds(tmp_path / name) for name in ("undisturbed", "disturbed")]
    assert logs[0] == logs[1]


def test_it_stops_after_so_many_consecutive_skips_and_keeps_what_was_saved(tmp_path):
    """The numbers from 6 on count as skips."""
    message = r"step 9: the last 4 steps of the sum were skipped.*step 6 is older than these.*raise guard\.spike"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, patience=4)
    assert read_log(tmp_path / "metrics.jsonl")[-1]["step"] == 9


def test_before_anything_is_saved_it_says_so():
    check_skips(3, "guard.spike", 5, {"": 2}, lambda: None)
    with pytest.raises(TrainingError, match=r"step 6: the last 3 steps were skipped.*nothing was saved yet"):
        check_skips(3, "guard.spike", 6, {"": 3}, lambda: None)


def test_goodput_is_of_steps_that_were_kept_and_of_all_time_since_the_first_start(tmp_path):
    began = time.time() - 100
    with RunLog(tmp_path, step=0, steps=10, began=began) as log:
        log.write(5, "train", {"step_seconds": 2.0})
        log.write(5, "validation", {"NDCG@10": 0.1})
        log.write(10, "train", {"step_seconds": 4.0})
    with RunLog(tmp_path, step=5, steps=10, began=began) as log:  # it was killed after the checkpoint of step 5
        log.write(10, "train", {"step_seconds": 3.0})
    rows = read_log(tmp_path / "metrics.jsonl")
    assert ["goodput" in row for row in rows] == [True, False, True]
    assert [row["goodput"] for row in rows[::2]] == pytest.approx([0.1, 0.25], rel=0.1)  # of 100 s and some
