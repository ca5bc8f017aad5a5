"""Several processes are one: what they train, save and restore is what one process does."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.experiments.tiny_run import prepare_source
from unimp_jax.processes import ProcessesConfig, several
from unimp_jax.training.log import read_log

ROOT = Path(__file__).resolve().parents[2]
# Adam divides by the size of gradients; where that is nearly 0, as of gated blocks in their first steps, it would make
# the last bit of a sum, which depends on who adds first, 1e-5 of a parameter: hence its large eps.
PROGRAM = """
import dataclasses, json, os, signal, sys, time
from pathlib import Path
import jax
told = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", told["devices"])
from unimp_jax.processes import ProcessesConfig, join
join(ProcessesConfig(**told["processes"]))
from experiments.data import ExperimentData
from experiments.train import train_run
from tests.experiments.tiny_run import experiment
from unimp_jax.sharding import MeshConfig
all_batches = ExperimentData.training
def training(*arguments):
    for number, batch in enumerate(all_batches(*arguments), start=1):
        if number == 2 and jax.process_index() in told["asked"]:
            os.kill(os.getpid(), signal.SIGTERM)
        if told["asked"]:
            time.sleep(0.5)  # JAX's service looks once a second whether the signal has come
        yield batch
ExperimentData.training = training
config = experiment(Path(told["data"]), steps=8, mesh=MeshConfig(**told["mesh"]))
config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, eps=1e-4))
train_run(config, Path(told["run"]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


def train(
    data: Path, run: Path, mesh: dict[str, int], processes: int, devices: int, asked: Sequence[int] = ()
) -> list[str]:
    """What each process prints; those `asked` are sent SIGTERM before their second step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    running = []
    for index in range(processes):
        joined = {"coordinator": f"localhost:{port}", "count": processes, "index": index} if processes > 1 else {}
        told = {"devices": devices, "processes": joined, "data": str(data), "run": str(run), "mesh": mesh}
        told["asked"] = list(asked)
        command = [sys.executable, "-c", PROGRAM, json.dumps(told)]
        running.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    told = [process.communicate(timeout=300)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n\n".join(told)
    return told


def outcome(run: Path, first: int = 1):
    """The losses from step `first` on, and the parameters after the last one."""
    lines = [line for line in read_log(run / "metrics.jsonl") if line["kind"] == "train" and line["step"] >= first]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        folder = (run / "checkpoints" / "8" / "state").absolute()
        saved = checkpointer.metadata(folder).item_metadata.tree
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        state = checkpointer.restore(folder, shapes)
    return [(line["step"], line["loss"]) for line in lines], jax.device_get(state["trainable"])


def assert_alike(one, other, tolerance=1e-6):
    np.testing.assert_allclose(one[0], other[0], rtol=tolerance)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), one[1], other[1])


@pytest.fixture(scope="module")
def of_one(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    train(data, run, {"fsdp": 8}, processes=1, devices=8)
    return run


@pytest.fixture(scope="module")
def of_two(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / "run"
    train(data, run, {"fsdp": 8}, processes=2, devices=4)
    return run


def test_two_processes_train_what_one_does(of_one, of_two):
    """Every row is read once: the loss of a step is of all its rows."""
    assert_alike(outcome(of_two), outcome(of_one))


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[1], [0, 1]])
def test_all_processes_end_at_one_step_whichever_is_asked_and_go_on_bit_for_bit(data, of_two, tmp_path, asked):
    run = tmp_path / "run"
    ends = [
        re.search(r"asked to end: step (\d+) is saved", text) for text in train(data, run, {"fsdp": 8}, 2, 4, asked)
    ]
    assert len({end and end[1] for end in ends}) == 1
    assert 0 < int(ends[0][1]) < 8
    train(data, run, {"fsdp": 8}, processes=2, devices=4)
    assert_alike(outcome(run), outcome(of_two), tolerance=0.0)


@pytest.mark.parametrize(
    ("mesh", "processes", "devices"), [({"tensor": 2}, 1, 2), ({}, 1, 1), ({"data": 2, "tensor": 2}, 2, 2)]
)
def test_a_checkpoint_goes_on_with_the_same_losses_wherever_it_is_restored(
    data, of_one, tmp_path, mesh, processes, devices
):
    """1e-4: a step of Adam divides by gradients' sizes, near 0 too, and sums are in another order."""
    run = shutil.copytree(of_one, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "8")
    train(data, run, mesh, processes, devices)
    assert_alike(outcome(run, first=7), outcome(of_one, first=7), tolerance=1e-4)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, True),
        ({"SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host0", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_a_launcher_is_recognised_by_what_it_sets(environment, expected):
    assert several(environment) == expected


def test_half_an_address_is_refused():
    with pytest.raises(ValueError, match="coordinator, count and index go together"):
        ProcessesConfig(coordinator="localhost:1")
    with pytest.raises(ValueError, match="index 2 is not below count 2"):
        ProcessesConfig(coordinator="localhost:1", count=2, index=2)
