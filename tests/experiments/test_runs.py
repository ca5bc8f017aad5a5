"""Whole runs: killed and continued, refused in words, evaluated and reported."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from experiments import lock
from experiments.baselines.sasrec import SASRecConfig
from experiments.config import DataConfig, load_config, to_json
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_run
from experiments.report import write_report
from experiments.results import load_evaluation
from experiments.train import open_run, train_run
from tests.child import child_environment
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.training.checkpoint import CheckpointConfig, CheckpointError, Checkpoints
from unimp_jax.training.guard import GuardConfig, TrainingError
from unimp_jax.training.log import read_log

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
PROGRAM = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 2)
from experiments.train import open_run, train_run
from tests.experiments.tiny_run import experiment
train_run(experiment(Path(sys.argv[1]), steps={steps}), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


def start(data: Path, run: Path, program: str = PROGRAM) -> subprocess.Popen:
    environment = child_environment(
        JAX_COMPILATION_CACHE_DIR=str(data / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        PYTHONUNBUFFERED="1",
    )
    command = [sys.executable, "-c", program.format(steps=STEPS), str(data), str(run)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(data: Path, run: Path, program: str = PROGRAM) -> str:
    process = start(data, run, program)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    return output.decode()


def outcome(run: Path):
    """The losses of every step, and the bytes of the last parameters and optimizer state."""
    losses = {
        (line["step"], line["kind"]): (line.get("loss"), line.get("NDCG@10"))
        for line in read_log(run / "metrics.jsonl")
    }
    with ocp.StandardCheckpointer() as checkpointer:
        folder = (run / "checkpoints" / str(STEPS) / "state").absolute()
        state = checkpointer.restore(folder)
    return losses, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(3000):
        if any(line["step"] >= step for line in read_log(run / "metrics.jsonl")) or process.poll() is not None:
            return
        time.sleep(0.02)


def test_a_killed_run_continues_bit_for_bit(data, tmp_path):
    finish(data, tmp_path / "undisturbed")
    disturbed = tmp_path / "disturbed"
    for step, delay in ((1, 0.0), (5, 0.01), (8, 0.05)):
        process = start(data, disturbed)
        wait_for_step(disturbed, step, process)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(data, disturbed)
    losses, state = outcome(tmp_path / "undisturbed")
    assert len([step for step, kind in losses if kind == "train"]) == STEPS
    assert outcome(disturbed) == (losses, state)


RARELY = """
import dataclasses, os, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 2)
from experiments import lock
from experiments.data import ExperimentData
from experiments.train import open_run, train_run
from tests.experiments.tiny_run import experiment
from unimp_jax.training.loop import LoopConfig
all_batches = ExperimentData.training
def training(*arguments):
    for number, batch in enumerate(all_batches(*arguments), start=1):
        if number == {asked}:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
ExperimentData.training = training
loop = LoopConfig(steps={steps}, log_every=6, validate_every=12, save_every=12)
train_run(dataclasses.replace(experiment(Path(sys.argv[1])), loop=loop), Path(sys.argv[2]))
"""


def test_a_run_that_is_asked_to_end_saves_and_continues_bit_for_bit(data, tmp_path):
    """Between the steps at which it would log, save or validate, too."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    finish(data, undisturbed, RARELY.replace("{asked}", "0"))
    for asked, step in ((5, 4), (6, 9)):  # a batch is fetched while the step before its own runs
        told = finish(data, disturbed, RARELY.replace("{asked}", str(asked)))
        assert f"asked to end: step {step} is saved" in told
    finish(data, disturbed, RARELY.replace("{asked}", "0"))
    assert outcome(disturbed) == outcome(undisturbed)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(data, tmp_path, capsys):
    damaged = tmp_path / "run"
    train_run(experiment(data, steps=STEPS), damaged)
    undisturbed = outcome(damaged)
    latest = damaged / "checkpoints" / str(STEPS) / "state"
    for file in sorted(latest.rglob("*")):
        if file.is_file() and file.stat().st_size > 300:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    train_run(experiment(data, steps=STEPS), damaged)
    told = capsys.readouterr().err
    assert f"step {STEPS} cannot be read" in told
    assert f"continuing from step {STEPS - 2} instead" in told
    assert [folder.name for folder in (damaged / "damaged").iterdir()] == [f"{STEPS}.1"]
    assert outcome(damaged) == undisturbed


def test_a_run_that_makes_no_sense_any_more_stops_at_its_last_good_checkpoint(data, tmp_path):
    config = experiment(data, steps=STEPS)
    guard = GuardConfig(spike=1.0000001, memory=0.0, after=4, patience=3)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, guard=guard))
    # from the fifth step on, a norm above the one before is a spike, and stays one, as that one does not move
    with pytest.raises(TrainingError, match=r"the last 3 steps were skipped.*learning_rate"):
        train_run(dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=200)), tmp_path)
    left_out = [line["steps_left_out"] for line in read_log(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert left_out[-3:] == [1, 1, 1]
    assert not any(left_out[:4])


@pytest.fixture(scope="module")
def opened(data, tmp_path_factory):
    """The folder of a run that has not made its first step."""
    folder = tmp_path_factory.mktemp("opened") / "run"
    open_run(experiment(data), folder)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train_run(experiment(data), folder)
    return folder


def test_what_does_not_train_is_saved_once_and_stays(data, tmp_path):
    config = experiment(data, steps=4)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, trains=("gated", "embeddings")))
    train_run(config, tmp_path)
    assert (tmp_path / "frozen").is_dir()
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((tmp_path / "checkpoints" / "4" / "state").absolute())
    assert set(state["trainable"]) == {"gated", "embeddings"}
    evaluation = evaluate_run(tmp_path, EvaluationConfig(rivals=(), tasks=("search", "selection")))
    assert [table.task for table in evaluation.tables] == ["search", "text-search", "selection"]
    assert not evaluation.samples  # which are of recommendations


@pytest.mark.parametrize(
    ("tasks", "said"), [((), r"tasks \(none\); give one"), (("search", "serch"), "tasks serch; give one or more of")]
)
def test_tasks_that_are_none_are_refused(tasks, said):
    with pytest.raises(ValueError, match=said):
        EvaluationConfig(tasks=tasks)


def test_a_run_of_another_configuration_is_refused(data, opened):
    config = experiment(data)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5))
    with pytest.raises(DataError, match=r"another configuration \(optimizer.learning_rate: 0.01, now 0.5\)"):
        train_run(config, opened)


def test_a_run_that_trains_just_now_is_refused(data, opened, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0)
    with (
        lock.alone_in(opened),
        pytest.raises(DataError, match=rf"{opened} is in use by another training \(process {os.getpid()} on"),
    ):
        train_run(experiment(data), opened)


def test_threads_and_mesh_may_change(data, run):
    config = experiment(data)
    loader = dataclasses.replace(config.loader, threads=1)
    train_run(dataclasses.replace(config, loader=loader), run)


def test_rows_that_the_mesh_does_not_divide_are_refused_before_the_run_is_made(data, tmp_path):
    """Else the same command with other rows would be told that the folder holds another run."""
    config = experiment(data)
    with pytest.raises(ValueError, match="a batch of 6 rows is not a multiple of 8"):
        train_run(
            dataclasses.replace(config, loader=dataclasses.replace(config.loader, batch_size=6)), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_saving_is_reported_and_the_last_checkpoint_stays(data, tmp_path):
    """A limit on the size of files fails writes as a full disk does."""
    folder = tmp_path / "run"
    train_run(experiment(data, steps=2), folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["loop"]["steps"] = 6
    (folder / "config.json").write_text(json.dumps(saved))
    program = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + PROGRAM.format(steps=6)
    program = program.replace("train_run(exp", "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); train_run(exp")
    done = subprocess.run(
        [sys.executable, "-c", program, str(data), str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "CheckpointError" in done.stderr
    assert "the last complete checkpoint is of step 2" in done.stderr
    train_run(experiment(data, steps=6), folder)
    assert (folder / "checkpoints" / "6").is_dir()


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    train_run(experiment(data, steps=2), tmp_path)
    for path in (tmp_path / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="step 2 cannot be read"):
        evaluate_run(tmp_path, EvaluationConfig(rivals=()))


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(DataError, match=r"is .* the folder of a run"):
        evaluate_run(tmp_path, EvaluationConfig())


def test_the_configuration_is_read_back_as_it_was(data, opened):
    assert to_json(load_config(opened / "config.json"))["loop"] == to_json(experiment(data))["loop"]


def test_evaluation_and_report(data, run):
    evaluation = evaluate_run(run, EvaluationConfig(sasrec_config=SASRecConfig(steps=3, seconds=None, validations=1)))
    assert [table.task for table in evaluation.tables] == [
        "recommendation",
        "search",
        "text-search",
        "rating",
        "selection",
    ]
    for table in evaluation.tables:
        for row in table.rows:
            for metric in row.metrics.values():
                assert metric.low <= metric.mean <= metric.high
    assert load_evaluation(run / "evaluation" / "test.json") == evaluation
    for table in evaluation.tables:
        answers = pq.read_table(run / "evaluation" / f"test-{table.task}.parquet").to_pydict()
        assert len(answers["user"]) == len(set(answers["user"])) == table.users
        if table.task in ("recommendation", "search"):
            metrics = next(row.metrics for row in table.rows if row.model == "UniMP")
            assert np.mean(answers["UniMP: HR@10"]) == pytest.approx(metrics["HR@10"].mean)
            assert np.mean(np.array(answers["UniMP: rank, filtered"]) <= 10) == pytest.approx(metrics["HR@10"].mean)
            assert all(len(set(items)) == len(items) > 0 for items in answers["items"])
    (start,) = json.loads((run / "started.json").read_text())
    assert start["devices"] == "8 x cpu, 1 process(es)"
    page = write_report([run]).read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "data:image/jpeg;base64," in page
    assert "http:" not in page
    assert "https:" not in page
    assert "Training cross entropy, recommendation, nats per token" in page
    assert not list(run.glob("*.partial"))


def test_without_validation_users_a_run_trains_and_its_latest_checkpoint_is_the_best(tmp_path, capsys):
    """As where a source prescribes its splits and has no validation part."""
    source = tmp_path / "source" / "movielens-1m"
    source.mkdir(parents=True)
    films = [{"item_id": n, "title": f"Film {n}", "year": 1990, "genres": ["Drama"]} for n in range(1, 13)]
    (source / "items.jsonl").write_text("".join(json.dumps(film) + "\n" for film in films))
    users = [
        {"user": n, "history": [1 + (n + k) % 12 for k in range(6)], "validation": None, "test": 1 + (n + 7) % 12}
        for n in range(20)
    ]
    (source / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    prepare("movielens_1m", tmp_path / "data", tmp_path / "source")
    config = experiment(tmp_path / "data", steps=4)
    train_run(dataclasses.replace(config, data=DataConfig("movielens_1m", tmp_path / "data")), tmp_path / "run")
    assert "there are no validation interactions, so nothing is validated" in capsys.readouterr().out
    with Checkpoints(tmp_path / "run" / "checkpoints", CheckpointConfig(), reads_only=True) as checkpoints:
        assert checkpoints.best() == checkpoints.latest() == 4
