"""Asked to end by SIGTERM while XLA compiles: the process is gone within seconds, nothing is half-written or lost."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.child import child_environment
from tests.experiments.tiny_run import prepare_source
from unimp_jax.training.log import read_log

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
"""Within so many a process ends: half as long as it sleeps below, and longer than a busy machine takes to save."""
# What stands for a long compilation goes on, as XLA's does, when a signal comes: no handler written in Python runs
# before it returns.
PROGRAM = """
import dataclasses, signal, sys, time
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_disable_most_optimizations", True)  # of the compiler, which takes longer than four steps
from experiments import train
from tests.experiments.tiny_run import experiment
from unimp_jax.training.loop import LoopConfig
def slowly(name, function):
    def slow(*arguments, **options):
        if name == sys.argv[3]:
            print("in " + name, flush=True)
            compile_for(120)
        return function(*arguments, **options)
    return slow
def compile_for(seconds):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # of this thread: another one gets it
    time.sleep(seconds)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
train.compile_step = slowly("compiling", train.compile_step)
train.restore_or_init = slowly("restoring", train.restore_or_init)
train.rank_catalogue = slowly("validating", train.rank_catalogue)
loop = LoopConfig(steps=4, log_every=1, validate_every=3, save_every=4)
train.train_run(dataclasses.replace(experiment(Path(sys.argv[1])), loop=loop), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


def start(data: Path, run: Path, slow: str) -> subprocess.Popen:
    environment = child_environment()
    command = [sys.executable, "-u", "-c", PROGRAM, str(data), str(run), slow]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def asked_in(data: Path, run: Path, slow: str) -> tuple[int, float, str]:
    """(exit status, seconds from SIGTERM until the end, what was printed)."""
    process = start(data, run, slow)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if f"in {slow}" in line:
            break
    time.sleep(1)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        rest, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, time.monotonic() - asked, "".join(lines) + rest


def finished(data: Path, run: Path) -> list[tuple]:
    process = start(data, run, "nothing")
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    return [
        (line["step"], line["kind"], line.get("loss"), line.get("NDCG@10")) for line in read_log(run / "metrics.jsonl")
    ]


def halves(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if re.search(r"partial|orbax-checkpoint-tmp", path.name)]


@pytest.mark.slow
def test_it_ends_within_seconds_wherever_it_is_and_the_same_command_goes_on(data, tmp_path):
    undisturbed, run = finished(data, tmp_path / "undisturbed"), tmp_path / "run"
    for slow in ("restoring", "compiling"):
        status, seconds, told = asked_in(data, run, slow)
        assert status == -signal.SIGTERM, told
        assert seconds < SECONDS
        assert halves(run) == []
        assert not (run / "checkpoints" / "1").exists()
    status, seconds, told = asked_in(data, run, "validating")
    assert status == 0, told
    assert "asked to end: step 3 is saved" in told
    assert seconds < SECONDS
    assert halves(run) == []
    assert (run / "checkpoints" / "3").is_dir()
    assert finished(data, run) == undisturbed
    metrics = [
        json.loads((each / "checkpoints" / "3" / "metrics" / "metrics").read_text())
        for each in (tmp_path / "undisturbed", run)
    ]
    assert metrics[0] == metrics[1] != {}
