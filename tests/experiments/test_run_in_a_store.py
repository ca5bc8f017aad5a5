"""A run in an object store: what it trains, answers and exports is what one on the disk does."""

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
import pytest

from data_pipelines.object_store import make_path, objects_in, store
from data_pipelines.prepare import prepare
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evaluate import evaluate_run
from experiments.export import ExportConfig, export_run
from experiments.generate import generate
from experiments.report import write_report
from experiments.results import load_evaluation
from experiments.train import train_run
from tests.child import child_environment, free_port
from tests.experiments.test_export import IDEFICS
from tests.experiments.tiny_run import experiment, prepare_source
from tests.experiments.untrained_run import write_run
from tests.object_store import environment, running
from unimp_jax.training.checkpoint import CheckpointError
from unimp_jax.training.log import read_log

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
STORE = "s3://bucket"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running() as one, pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIMP_STAGING", str(tmp_path_factory.mktemp("staged")))
        yield one


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def stored(server, data):
    """The same records in the store."""
    prepare("movielens_small", make_path(f"{STORE}/data"), data.parent / "source")
    return make_path(f"{STORE}/data")


def outcome(run: Path, folder: Path):
    """The log without times, and the bytes of the last parameters and optimizer state; `folder` gets a copy."""
    timed = ("seconds", "second", "share", "mfu", "goodput", "slowest_host")
    log = [
        {key: value for key, value in line.items() if not key.endswith(timed)}
        for line in read_log(run / "metrics.jsonl")
    ]
    if not isinstance(run, Path):
        store(run).get(str(run / "checkpoints" / str(STEPS)), str(folder), recursive=True)
        run = None
    place = (folder if run is None else run / "checkpoints" / str(STEPS)).absolute() / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:  # as NumPy arrays, whatever devices wrote them
        tree = checkpointer.metadata(place).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(place, args=ocp.args.PyTreeRestore(restore_args=whole))
    return log, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train_run(experiment(data, steps=STEPS), folder / "run")
    return outcome(folder / "run", folder)


@pytest.mark.slow
def test_it_trains_what_one_on_the_disk_trains_though_the_store_fails(server, stored, undisturbed, tmp_path):
    """Once for a moment, and then for good: the run ends, and goes on from what is whole."""
    run = make_path(f"{STORE}/failed")
    moment = iter([503, 500, 503])
    server.fault = lambda method, path: next(moment, None) if method == "PUT" and "/4/state/" in path else None
    train_run(experiment(stored, steps=STEPS), run)
    assert outcome(run, tmp_path / "failed") == undisturbed
    run = make_path(f"{STORE}/stopped")
    server.fault = lambda method, path: 403 if method == "PUT" and "/8/state/" in path else None
    with pytest.raises(CheckpointError, match="the last complete checkpoint is of step 6"):
        train_run(experiment(stored, steps=STEPS), run)
    server.fault = lambda *_: None
    train_run(experiment(stored, steps=STEPS), run)
    assert outcome(run, tmp_path / "stopped") == undisturbed
    events = list((run / "tensorboard").glob("*"))
    assert len(events) == 2
    assert not (run / "training.lock").exists()


PROGRAM = """
import json, sys
import jax
told = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", told["devices"])
from unimp_jax.processes import ProcessesConfig, join
join(ProcessesConfig(**told["processes"]))
from data_pipelines.object_store import make_path
from experiments.train import train_run
from tests.experiments.tiny_run import experiment
train_run(experiment(make_path(told["data"]), steps=12), make_path(told["run"]))
"""


def start(server, folder: Path, run: str, count: int) -> list[subprocess.Popen]:
    """Processes as of so many hosts, each with a disk of its own, and nothing shared but the store."""
    port, started = free_port(), []
    for index in range(count):
        joined = {"coordinator": f"localhost:{port}", "count": count, "index": index} if count > 1 else {}
        told = {"devices": 8 // count, "processes": joined, "data": f"{STORE}/data", "run": run}
        home = folder / f"host{index}"
        home.mkdir(exist_ok=True, parents=True)
        own = {"UNIMP_STAGING": str(home / "staged"), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
        kept = environment(server) | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(told)],
                cwd=home,
                env=child_environment(**{**kept, **own}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    return started


@pytest.mark.slow
def test_hosts_that_share_no_disk_train_one_run_and_go_on_after_a_kill(server, stored, tmp_path):
    """Bit for bit as two that nobody killed."""
    runs = [f"{STORE}/two/undisturbed", f"{STORE}/two/killed"]
    for run in runs:
        if run == runs[1]:
            killed = start(server, tmp_path, run, 2)
            while not (make_path(run) / "checkpoints" / "4" / "commit_success.txt").exists():
                assert all(process.poll() is None for process in killed), killed[0].communicate()
                time.sleep(0.05)
            for process in killed:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            assert not (make_path(run) / "checkpoints" / str(STEPS)).exists()
        for process in start(server, tmp_path, run, 2):
            told = process.communicate(timeout=600)[0].decode()
            assert process.returncode == 0, told
    one, other = (outcome(make_path(run), tmp_path / str(number)) for number, run in enumerate(runs))
    assert one == other
    assert all(os.listdir(tmp_path / f"host{index}" / "staged") for index in range(2))


@pytest.mark.slow
def test_it_is_evaluated_asked_reported_and_exported_as_one_on_the_disk(server, stored, data, tmp_path):
    runs = [write_run(experiment(data, model=IDEFICS), tmp_path / "run", scale=1.5)]
    runs.append(write_run(experiment(stored, model=IDEFICS), make_path(f"{STORE}/asked"), scale=1.5))
    exports = [tmp_path / "exported", make_path(f"{STORE}/exported")]
    config = EvaluationConfig(users=6, tasks=("recommendation", "rating"), rivals=())
    tables = []
    for run, export in zip(runs, exports, strict=True):
        evaluate_run(run, config)
        tables.append(load_evaluation(run / "evaluation" / "test.json").tables)
        assert write_report([run]) == run / "report.html"
        export_run(run, export, ExportConfig())
    assert tables[0] == tables[1]
    written = sorted(file.relative_to(exports[0]).as_posix() for file in exports[0].rglob("*") if file.is_file())
    assert sorted({*objects_in(exports[1])} - {"whole.json"}) == written
    asked = GenerateConfig(user="5", k=5, json=True)
    answers = [generate(folder, asked, None) for folder in (*runs, *exports)]
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]
    pages = [(run / "report.html").read_text(encoding="utf-8") for run in runs]
    assert len(pages[0].splitlines()) == len(pages[1].splitlines())
