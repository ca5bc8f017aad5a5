"""The soak test, and that it sees what it is there to see."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from data_pipelines.object_store import make_path
from data_pipelines.prepare import prepare
from experiments.config import save_config
from experiments.presets import PRESETS
from tests.experiments.soak import allowed_statuses, differences
from tests.object_store import environment, running
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints

ROOT = Path(__file__).resolve().parents[2]


def made(folder: Path, *, weight: float = 1.0, seconds: float = 1.0) -> Path:
    """The folder of a run of two steps."""
    (folder / "vocabulary").mkdir(parents=True)
    (folder / "vocabulary" / "tokenizer.json").write_text("{}")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / f"events.out.tfevents.{seconds}.here").write_text("")
    save_config(PRESETS["tiny"], folder / "config.json")
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
    assert differences(right, made(tmp_path / "disturbed", seconds=2.0)) == []


def test_one_bit_of_an_array_is_seen(right, tmp_path):
    other = made(tmp_path / "disturbed", weight=1.0000001)
    assert differences(right, other) == [
        f"the {which} step: ['trainable']['kernel'] differs" for which in ("latest", "best")
    ]


def test_arrays_that_do_not_train_are_seen(right, run):
    shutil.rmtree(run / "frozen")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(run / "frozen", {"bias": jnp.ones(3), "kernel": jnp.ones(1)})
    assert {"frozen: ['bias'] differs", "frozen: ['kernel'] differs"} <= set(differences(right, run))


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda lines: lines[:1], {2}),
        (lambda lines: [*lines, lines[-1]], {3}),
        (lambda lines: [lines[0], *lines], {2, 3}),
        (lambda lines: [lines[0].replace("1.0", "1.5", 1), lines[1]], {1}),
        (lambda lines: [lines[1], lines[0]], {1, 2}),
    ],
)
def test_a_line_that_is_missing_doubled_or_different_is_seen(right, run, change, lines):
    path = run / "metrics.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    assert set(differences(right, run)) == {f"metrics.jsonl, line {line} differs" for line in lines}


def test_what_a_run_begins_with_is_compared(right, run):
    (run / "vocabulary" / "tokenizer.json").write_text("{")
    with (run / "config.json").open("a") as file:
        file.write("\n")
    assert differences(right, run) == ["the content of config.json differs", "the content of tokenizer.json differs"]


@pytest.mark.parametrize(
    "stray",
    [
        "checkpoints/3.orbax-checkpoint-tmp",
        "checkpoints/deleted",
        "checkpoints/2/state.orbax-checkpoint-tmp",
        "frozen.orbax-checkpoint-tmp",
        ".vocabulary.partial",
        ".config.json.partial",
        "damaged",
    ],
)
def test_what_is_left_behind_is_seen(right, run, stray):
    (run / stray).mkdir()
    (left,) = differences(right, run)
    assert left.split(".")[-1] == f"{stray.split('.')[-1].replace('/2/', '/*/')} differs"


def test_a_checkpoint_that_is_there_in_part_is_seen(right, run):
    shutil.rmtree(run / "checkpoints" / "1" / "state" / "d")
    with pytest.raises(Exception, match="checkpoints/1/state"):
        differences(right, run)


def test_a_run_that_has_begun_must_save_when_it_is_asked_to_end():
    assert allowed_statuses([SIGTERM], begun=True) == {0}
    assert allowed_statuses([SIGTERM], begun=False) == {0, -15}
    assert allowed_statuses([SIGKILL], begun=True) == {-9}
    assert allowed_statuses([SIGTERM, SIGKILL], begun=True) == {0, -9}


@pytest.mark.slow
def test_a_run_that_is_killed_now_and_then_ends_as_one_that_never_was(tmp_path):
    prepare("movielens_small", tmp_path / "data")
    assert soak(tmp_path, 4, "--data", str(tmp_path / "data"), "--steps", "30")


@pytest.mark.slow
def test_so_does_one_in_an_object_store(tmp_path):
    with running() as server:
        prepare("movielens_small", make_path("s3://bucket/data"))
        options = ["--data", "s3://bucket/data", "--store", "s3://bucket/soak", "--steps", "24"]
        own = {"UNIMP_STAGING": str(tmp_path / "staged")}
        assert soak(tmp_path, 3, *options, environment=environment(server) | own)


def soak(folder, kills, *options, environment=None):
    command = [sys.executable, "-m", "tests.experiments.soak", "--folder", str(folder / "soak"), "--kills", str(kills)]
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return f"{kills} kills: the same bit for bit, and nothing is left behind" in done.stdout
