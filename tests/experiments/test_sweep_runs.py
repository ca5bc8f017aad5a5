"""`unimp sweep` by its real command line: killed, started again, each cell trained and measured once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.results import load_evaluation
from tests.child import child_environment
from tests.experiments.tiny_run import prepare_source
from unimp_jax.training.log import read_log

pytestmark = pytest.mark.slow  # each cell is a training and an evaluation
ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "--loop.steps", "8", "--loop.log-every", "2", "--loop.validate-every", "4", "--loop.save-every", "2",
    "--tasks.id-items", "8", "--training.validation-users", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


def start(data: Path, *words: str) -> subprocess.Popen:
    environment = child_environment(
        PYTHONPATH=str(ROOT),
        JAX_COMPILATION_CACHE_DIR=str(data / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        PYTHONUNBUFFERED="1",
    )
    command = [sys.executable, "-m", "experiments.cli", "sweep", *words, "--train", "--data.folder", str(data), *SHORT]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(data: Path, *words: str, status: int = 0) -> str:
    process = start(data, *words)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output
    return output


def commands(cell: Path) -> list[str]:
    """The commands of a cell that were started, in their order."""
    log = cell / "log.txt"
    return re.findall(r"^\$ .* experiments\.cli (\w+)", log.read_text(), re.MULTILINE) if log.exists() else []


def logged(run: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["kind"]) for line in read_log(run / "metrics.jsonl")]


def wait_for(condition, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_sweep_killed_halfway_and_started_again_does_each_cell_once(data, tmp_path):
    folder = tmp_path / "sweep"
    words = ["ablations", "--only", "base", "no_images", "gamma_2", "--folder", str(folder), "--devices", "cpu"]
    names = ["base-seed0", "no_images-seed0", "gamma_2-seed0"]
    process = start(data, *words)
    wait_for(lambda: (folder / "base-seed0" / "done.json").exists() and logged(folder / "no_images-seed0"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    output = finish(data, *words)
    assert "3 cells: 3 done" in output
    killed = commands(folder / names[1])  # in the middle of training, or with all of it done
    assert killed in (["train", "train", "evaluate"], ["train", "evaluate"])
    assert commands(folder / names[0]) == commands(folder / names[2]) == ["train", "evaluate"]
    for name in names:
        assert [step for step, kind in logged(folder / name) if kind == "train"] == [2, 4, 6, 8]
        evaluation = load_evaluation(folder / name / "evaluation" / "test.json")
        assert evaluation.step == 8
        assert list((folder / name / "evaluation").glob("test-*.parquet"))
    told = json.loads((folder / "sweep.json").read_text())
    assert [cell["folder"] for cell in told["cells"]] == names
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name == "metrics.jsonl"}
    assert "3 cells: 3 done" in finish(data, *words)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


def test_cells_that_begin_with_others(data, tmp_path):
    """Task-specific fine-tuning, which at first fails, and semantic ids."""
    folder = tmp_path / "sweep"
    more = ["--folder", str(folder), "--devices", "cpu"]
    broken = folder / "half_of_all_tasks-seed0" / "config.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    output = finish(data, "ablations", "--only", "finetuned_search", *more, status=1)
    assert "2 cells: 1 failed, 1 not run" in output
    assert "config.json: the file: Invalid JSON" in output
    broken.unlink()
    output = finish(data, "ablations", "--only", "finetuned_search", "semantic_ids", *more)
    assert "4 cells: 4 done" in output
    assert (folder / "semantic_ids-seed0" / "item_codes.parquet").exists()
    config = json.loads((folder / "finetuned_search-seed0" / "config.json").read_text())
    assert config["init_from"] == str(folder / "half_of_all_tasks-seed0")
    assert config["loop"]["steps"] == 4


def test_a_search_by_the_real_command(data, tmp_path):
    pytest.importorskip("optuna")
    folder = tmp_path / "search"
    words = ["search", "tiny", "--space", "optimizer.learning_rate=log:1e-4,1e-2", "--trials"]
    more = ["--folder", str(folder), "--devices", "cpu"]
    process = start(data, *words, "2", *more)
    wait_for(lambda: (folder / "trial-0000" / "done.json").exists() and logged(folder / "trial-0001"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    output = finish(data, *words, "2", *more)
    assert "2 trials, 2 of them complete" in output
    assert "the best: unimp train tiny" in output
    assert commands(folder / "trial-0000") == ["train"]
    assert all((folder / f"trial-000{number}" / "done.json").exists() for number in (0, 1))
    assert not list(folder.glob("*/evaluation"))
