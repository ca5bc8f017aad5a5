"""The soak test sees what it is there to see."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from data_pipelines.prepare import prepare
from experiments.config import save_config
from experiments.presets import TINY
from experiments.soak.compare import compare, leftovers
from experiments.soak.disturb import draw_moment, draw_signals, rightly
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints

ROOT = Path(__file__).resolve().parents[2]


def made(folder: Path, *, weight: float = 1.0, seconds: float = 1.0) -> Path:
    """The folder of a run of two steps."""
    (folder / "vocabulary").mkdir(parents=True)
    (folder / "vocabulary" / "tokenizer.json").write_text("{}")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / f"events.out.tfevents.{seconds}.here").write_text("")
    save_config(TINY, folder / "config.json")
    lines = [{"step": step, "kind": "train", "loss": 1.0 / step, "step_seconds": seconds} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Checkpoints(folder / "checkpoints", CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            state = {"step": jnp.int32(step), "trainable": {"kernel": jnp.array([0.5, weight])}}
            checkpoints.save(step, state, {"position": step}, {"NDCG@10": 1.0 - step / 10})
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "frozen", {"bias": jnp.zeros(3)})
    return folder


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return made(tmp_path_factory.mktemp("runs") / "undisturbed")


@pytest.fixture
def run(right, tmp_path):
    return shutil.copytree(right, tmp_path / "disturbed")


def test_equal_runs_are_equal_whatever_their_speed(right, tmp_path):
    other = made(tmp_path / "disturbed", seconds=2.0)
    assert [*compare(right, other), *leftovers(right, other)] == []


def test_one_bit_of_an_array_is_seen(right, tmp_path):
    other = made(tmp_path / "disturbed", weight=1.0000001)
    assert list(compare(right, other)) == [
        f"checkpoints/{step}/state: ['trainable']['kernel'] differs" for step in (2, 1)
    ]  # the latest one, and the best one


def test_arrays_that_do_not_train_are_seen(right, run):
    shutil.rmtree(run / "frozen")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(run / "frozen", {"bias": jnp.ones(3), "kernel": jnp.ones(1)})
    assert list(compare(right, run)) == ["frozen: ['bias'] differs", "frozen: only one run has ['kernel']"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: lines[:1], 2),
        (lambda lines: [*lines, lines[-1]], 3),
        (lambda lines: [lines[0], *lines], 2),
        (lambda lines: [lines[0].replace("1.0", "1.5", 1), lines[1]], 1),
        (lambda lines: [lines[1], lines[0]], 1),
    ],
)
def test_a_line_that_is_missing_doubled_or_different_is_seen(right, run, change, line):
    path = run / "metrics.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    assert [text.split(":")[0] for text in compare(right, run)] == [f"metrics.jsonl, line {line}"]


def test_what_a_run_begins_with_is_compared(right, run):
    (run / "vocabulary" / "tokenizer.json").write_text("{")
    whole = shutil.copy(run / "config.json", run / "config.partial")
    (run / "config.json").write_bytes(Path(whole).read_bytes() + b"\n")
    assert list(compare(right, run)) == [
        "config.json differs, or is missing",
        "vocabulary/tokenizer.json differs, or is missing",
    ]
    assert list(leftovers(right, run)) == ["config.partial is left behind"]


@pytest.mark.parametrize(
    "stray",
    [
        "checkpoints/3.orbax-checkpoint-tmp",
        "checkpoints/deleted",
        "checkpoints/2/state.orbax-checkpoint-tmp",
        "frozen.orbax-checkpoint-tmp",
        "vocabulary.partial",
        "damaged",
    ],
)
def test_what_is_left_behind_is_seen(right, run, stray):
    (run / stray).mkdir()
    assert list(leftovers(right, run)) == [f"{stray} is left behind"]


def test_a_checkpoint_that_is_there_in_part_is_seen(right, run):
    shutil.rmtree(run / "checkpoints" / "1" / "state" / "d")
    (said,) = leftovers(right, run)
    assert said.startswith("checkpoint 1 cannot be read")


def test_signals_are_mixed_and_moments_leave_steps_for_those_to_come():
    signals = draw_signals(50, random.Random(0))
    assert [signals.count(one) for one in ((signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGKILL))] == [
        22,
        23,
        5,
    ]
    rng = random.Random(0)
    for kill, sent in enumerate(signals):
        moment = draw_moment(kill, 50, sent, at=0, steps=300, start=10.0, rng=rng)
        assert moment.number <= max(8, 0.9 * 300 * (kill + 1) / 50)
        assert (moment.when == "setting up") == (kill < 5)


def test_a_run_that_has_begun_must_save_when_it_is_asked_to_end():
    assert rightly((signal.SIGTERM,), begun=True) == {0}
    assert rightly((signal.SIGTERM,), begun=False) == {0, -15}
    assert rightly((signal.SIGKILL,), begun=True) == {-9}
    assert rightly((signal.SIGTERM, signal.SIGKILL), begun=True) == {0, -9}


@pytest.mark.slow
def test_a_run_that_is_killed_now_and_then_ends_as_one_that_never_was(tmp_path):
    prepare("movielens_small", tmp_path / "data")
    command = [sys.executable, "-m", "experiments.soak", "--folder", str(tmp_path / "soak")]
    options = ["--data", str(tmp_path / "data"), "--kills", "4", "--steps", "30"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills" in done.stdout
    assert "the same bit for bit, and nothing is left behind" in done.stdout
