"""Several processes are one: what they train, save and restore is what one process does."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.child import child_environment, free_port
from tests.experiments.tiny_run import prepare_source
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
from experiments import step, train
from experiments.data import ExperimentData
from tests.experiments.tiny_run import experiment
from unimp_jax.sharding import MeshConfig, make_mesh
if told["order"]:
    laid = make_mesh(MeshConfig(**told["mesh"]))
    ordered = laid.devices.ravel()[told["order"]].reshape(laid.devices.shape)
    step.make_mesh = lambda *_: jax.sharding.Mesh(ordered, laid.axis_names, axis_types=laid.axis_types)
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
train.train_run(config, Path(told["run"]))
"""


RING = (0, 4, 5, 1, 6, 2, 3, 7)
"""An order of devices, as on a torus of TPUs, in which those of a process are no neighbours."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


def train(
    data: Path,
    run: Path,
    mesh: dict[str, int],
    processes: int,
    devices: int,
    asked: Sequence[int] = (),
    order: Sequence[int] = (),
) -> list[str]:
    """What each process prints; those `asked` are sent SIGTERM before their second step; `order` is of the devices."""
    port = free_port()
    environment = child_environment()
    running = []
    for index in range(processes):
        joined = {"coordinator": f"localhost:{port}", "count": processes, "index": index} if processes > 1 else {}
        told = {"devices": devices, "processes": joined, "data": str(data), "run": str(run), "mesh": mesh}
        told |= {"asked": list(asked), "order": list(order)}
        command = [sys.executable, "-c", PROGRAM, json.dumps(told)]
        running.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    try:
        told = [process.communicate(timeout=600)[0].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, "\n\n".join(told)
    return told


def outcome(run: Path, first: int = 1, part: str = "trainable"):
    """The losses from step `first` on, and the parameters (or another part of the state) after the last one."""
    lines = [line for line in read_log(run / "metrics.jsonl") if line["kind"] == "train" and line["step"] >= first]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        folder = (run / "checkpoints" / "8" / "state").absolute()
        saved = checkpointer.metadata(folder).item_metadata.tree
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        state = checkpointer.restore(folder, shapes)
    return [(line["step"], line["loss"]) for line in lines], jax.device_get(state[part])


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
    train(data, run, {"fsdp": 8}, processes=2, devices=4, order=RING)
    return run


@pytest.mark.slow
def test_two_processes_train_what_one_does(of_one, of_two):
    """Every row is read once: the loss of a step is of all its rows, though no process has neighbouring ones."""
    assert_alike(outcome(of_two), outcome(of_one))


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[0], [1], [0, 1]])
def test_all_processes_end_at_one_step_whichever_is_asked_and_go_on_bit_for_bit(data, of_two, tmp_path, asked):
    run = tmp_path / "run"
    told = train(data, run, {"fsdp": 8}, 2, 4, asked, RING)
    ends = [re.search(r"asked to end: step (\d+) is saved", text) for text in told]
    (step,) = {int(end[1]) for end in ends}  # both say so, and `train` has seen both end with status 0
    assert 0 < step < 8
    assert max(int(folder.name) for folder in (run / "checkpoints").iterdir()) == step
    train(data, run, {"fsdp": 8}, processes=2, devices=4, order=RING)
    assert_alike(outcome(run), outcome(of_two), tolerance=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "processes", "devices", "order"),
    [
        ({"tensor": 2}, 1, 2, ()),
        ({}, 1, 1, ()),
        ({"data": 4, "tensor": 2}, 2, 4, (0, 1, 2, 4, 3, 5, 6, 7)),  # both work on some rows beside their own
    ],
)
def test_a_checkpoint_goes_on_with_the_same_losses_wherever_it_is_restored(
    data, of_one, tmp_path, mesh, processes, devices, order
):
    """1e-4: a step of Adam divides by gradients' sizes, near 0 too, and sums are in another order."""
    run = shutil.copytree(of_one, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "8")
    train(data, run, mesh, processes, devices, order=order)
    assert_alike(outcome(run, first=7), outcome(of_one, first=7), tolerance=1e-4)
