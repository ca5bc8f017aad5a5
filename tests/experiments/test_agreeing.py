"""Two processes read checkpoints, one of them in vain: both do the same thing then."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.child import child_environment

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import errno, json, os, signal, sys, time
from pathlib import Path
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
told = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", 1)
from unimp_jax.processes import ProcessesConfig, join
join(ProcessesConfig(told["coordinator"], 2, told["index"]))
from jax.sharding import NamedSharding, PartitionSpec
from unimp_jax.training import reading
from unimp_jax.training.checkpoint import CheckpointConfig, CheckpointError, Checkpoints, abstract
from unimp_jax.training.preemption import EndRequest
reading.WAITS = (0.1, 0.1)
sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
def state(step):
    return {"weights": jax.make_array_from_callback((4,), sharding, lambda index: jnp.arange(4.0)[index] + step)}
with Checkpoints(Path(told["folder"]), CheckpointConfig()) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state(step), {"step": step})
restore, tried = ocp.StandardCheckpointHandler.restore, []
def failing(self, directory, *arguments, **options):
    tried.append(str(directory))
    if told["index"] == 1 and "/2/" in tried[-1] and len(tried) <= told["times"]:
        stale = told["error"] == "stale"
        raise OSError(errno.ESTALE, "Stale file handle") if stale else ValueError("DATA_LOSS: CRC-32C")
    return restore(self, directory, *arguments, **options)
ocp.StandardCheckpointHandler.restore = failing
with Checkpoints(Path(told["folder"]), CheckpointConfig()) as checkpoints:
    try:
        read, notes = checkpoints.restore_latest(abstract(state(0)))
        print(json.dumps([notes["step"], float(read["weights"].addressable_data(0)[0])]), flush=True)
    except CheckpointError as error:
        print(json.dumps(str(error)), flush=True)
if told["asked"]:
    with EndRequest() as end:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
"""


def both(folder: Path, error: str, times: int, *, asked: bool = False) -> tuple[list, list[int]]:
    """(what each of the processes says, their exit statuses); the second one fails to read step 2 so often."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = child_environment()
    told = {"folder": str(folder / "checkpoints"), "coordinator": coordinator, "error": error, "times": times}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(told | {"index": index, "asked": asked})],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in running]
    lines = [out.splitlines() for out, _ in said]
    assert all(lines), "\n\n".join(error for _, error in said)
    return [json.loads(line[-1]) for line in lines], [process.returncode for process in running]


def test_an_error_that_passes_for_one_delays_both(tmp_path):
    assert both(tmp_path, "stale", times=2) == ([[2, 2.0], [2, 4.0]], [0, 0])
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_what_one_finds_damaged_both_set_aside(tmp_path):
    assert both(tmp_path, "broken", times=99) == ([[1, 1.0], [1, 3.0]], [0, 0])
    assert os.listdir(tmp_path / "damaged") == ["2.1"]


@pytest.mark.slow
def test_what_one_cannot_reach_both_tell_and_sigterm_ends_both_before_the_first_step(tmp_path):
    (first, second), statuses = both(tmp_path, "stale", times=99, asked=True)
    assert "step 2 could not be read in 3 attempts (another process of this run failed to read it)" in first
    assert "step 2 could not be read in 3 attempts ([Errno" in second
    assert os.listdir(tmp_path) == ["checkpoints"]
    assert -15 in statuses  # the first one to end takes the other with it, through JAX's coordination
    assert 0 not in statuses
