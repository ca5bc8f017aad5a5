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
restore = ocp.StandardCheckpointHandler.restore
def read(folder, error, times):
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"step": step})
    tried = []
    def failing(self, directory, *arguments, **options):
        tried.append(str(directory))
        if told["index"] == 1 and "/2/" in tried[-1] and len(tried) <= times:
            raise OSError(errno.ESTALE, "Stale file handle") if error == "stale" else ValueError("DATA_LOSS: CRC-32C")
        return restore(self, directory, *arguments, **options)
    ocp.StandardCheckpointHandler.restore = failing
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        try:
            read, notes = checkpoints.restore_latest(abstract(state(0)))
            print(json.dumps([notes["step"], float(read["weights"].addressable_data(0)[0])]), flush=True)
        except CheckpointError as error:
            print(json.dumps(str(error)), flush=True)
for error, times in told["cases"]:
    read(Path(told["folder"], error, "checkpoints"), error, times)
if told["asked"]:
    with EndRequest() as end:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
"""


def both(folder: Path, *cases: tuple[str, int], asked: bool = False) -> tuple[list[list], list[int]]:
    """(what each of the processes says in each case, their exit statuses); the second one fails to read step 2 with an
    error so many times."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = child_environment()
    told = {"folder": str(folder), "coordinator": coordinator, "cases": cases, "asked": asked}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(told | {"index": index})],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in running]
    lines = [out.splitlines()[-len(cases) :] for out, _ in said]
    assert [len(line) for line in lines] == [len(cases)] * 2, "\n\n".join(error for _, error in said)
    return [[json.loads(text) for text in line] for line in lines], [process.returncode for process in running]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """(the folder, what both say where step 2 is stale for a while, and where it is broken), of the same processes."""
    folder = tmp_path_factory.mktemp("agreeing")
    said, statuses = both(folder, ("stale", 2), ("broken", 99))
    assert statuses == [0, 0]
    return folder, *map(list, zip(*said, strict=True))


def test_an_error_that_passes_for_one_delays_both(read):
    folder, stale, _ = read
    assert stale == [[2, 2.0], [2, 4.0]]
    assert os.listdir(folder / "stale") == ["checkpoints"]


def test_what_one_finds_damaged_both_set_aside(read):
    folder, _, broken = read
    assert broken == [[1, 1.0], [1, 3.0]]
    assert os.listdir(folder / "broken" / "damaged") == ["2.1"]


@pytest.mark.slow
def test_what_one_cannot_reach_both_tell_and_sigterm_ends_both_before_the_first_step(tmp_path):
    ([first], [second]), statuses = both(tmp_path, ("stale", 99), asked=True)
    assert "step 2 could not be read in 3 attempts (another process of this run failed to read it)" in first
    assert "step 2 could not be read in 3 attempts ([Errno" in second
    assert os.listdir(tmp_path / "stale") == ["checkpoints"]
    assert -15 in statuses  # the first one to end takes the other with it, through JAX's coordination
    assert 0 not in statuses
