"""A run goes on with more or fewer devices by the same command: with the same batches, losses and parameters."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.atomic import write_json
from experiments.config import to_json
from experiments.elastic import FILE, Machine, described, fitted, fitted_mesh
from tests.child import child_environment, free_port
from tests.experiments.test_processes import ROOT, assert_alike, outcome
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.sharding import MeshConfig, mesh_sizes
from unimp_jax.training.log import read_log


@pytest.mark.parametrize(
    ("asked", "machine", "fits"),
    [
        (MeshConfig(data=-1), Machine(8), MeshConfig(data=8)),
        (MeshConfig(fsdp=8), Machine(4), MeshConfig(fsdp=4)),
        (MeshConfig(fsdp=8), Machine(16), MeshConfig(data=2, fsdp=8)),
        (MeshConfig(fsdp=-1), Machine(16), MeshConfig(fsdp=16)),
        (MeshConfig(fsdp=4, tensor=2), Machine(4), MeshConfig(fsdp=2, tensor=2)),
        (MeshConfig(fsdp=2, context=2, tensor=4), Machine(4), MeshConfig(tensor=4)),
        (MeshConfig(fsdp=2, tensor=4), Machine(6), MeshConfig(data=3, tensor=2)),
        (MeshConfig(slice=4, fsdp=8), Machine(16), MeshConfig(slice=2, fsdp=8)),  # nodes of GPUs
        (MeshConfig(slice=2, fsdp=16), Machine(16, slices=1), MeshConfig(fsdp=16)),
        (MeshConfig(slice=1, fsdp=16), Machine(64, slices=4), MeshConfig(slice=4, fsdp=16)),
    ],
    ids=str,
)
def test_what_divides_is_kept_and_fsdp_and_data_take_the_rest(asked, machine, fits):
    assert fitted_mesh(asked, machine) == fits


sizes = st.builds(MeshConfig, **dict.fromkeys(("slice", "data", "fsdp", "context", "tensor"), st.integers(1, 6)))


@given(sizes, st.integers(1, 4), st.integers(1, 64))
def test_a_mesh_that_fits_is_kept_and_any_other_makes_all_devices(asked, slices, count):
    asked = dataclasses.replace(asked, slice=asked.slice * slices)
    there = int(np.prod(dataclasses.astuple(asked)))
    assert fitted_mesh(asked, Machine(there, slices)) == asked
    fits = fitted_mesh(asked, Machine(count * slices, slices))
    mesh_sizes(fits, count * slices, slices)  # which raises where they make another number
    assert (asked.tensor % fits.tensor, asked.context % fits.context) == (0, 0)


def elastic(mesh: MeshConfig, accumulate: int = 1, rows: int = 16):
    config = experiment(Path("data"), mesh=mesh)
    training = dataclasses.replace(config.training, elastic=True, accumulate=accumulate)
    return dataclasses.replace(config, training=training, loader=dataclasses.replace(config.loader, batch_size=rows))


def begun(folder: Path, devices: int) -> Path:
    write_json(folder / FILE, to_json(Machine(devices)))
    return folder


def test_a_device_never_has_more_rows_at_a_time_than_where_the_run_began(tmp_path):
    run, config = begun(tmp_path, 8), elastic(MeshConfig(data=-1), accumulate=2, rows=32)  # 2 rows at a time
    parts = {n: fitted(config, run, Machine(n)).training.accumulate for n in (1, 2, 4, 8, 16, 32)}
    assert parts == {1: 16, 2: 8, 4: 4, 8: 2, 16: 1, 32: 1}
    assert fitted(config, None, Machine(4)).training.accumulate == 2  # it begins there
    assert described(fitted(config, run, Machine(4))) == "mesh data=4, 2 rows at a time, accumulate 4, remat none"


def test_what_a_smaller_context_or_tensor_adds_to_a_row_counts(tmp_path):
    run, config = begun(tmp_path, 8), elastic(MeshConfig(fsdp=2, context=2, tensor=2))  # 8 rows, 4 devices each
    fits = fitted(config, run, Machine(2))
    assert (fits.mesh, fits.training.accumulate, fits.model.remat) == (MeshConfig(tensor=2), 4, "none")
    few = fitted(config, run, Machine(1))
    assert (few.mesh, few.training.accumulate) == (MeshConfig(), 8)
    least = fitted(elastic(MeshConfig(fsdp=2, context=2, tensor=2), accumulate=8), run, Machine(1))
    assert (least.training.accumulate, least.model.remat) == (16, "full")  # a row was split over 4 devices


def test_without_the_option_nothing_is_changed_and_rows_that_cannot_be_split_are_refused(tmp_path):
    config = experiment(Path("data"))
    assert fitted(config, tmp_path, Machine(3)) is config
    says = (
        r"a batch of 16 rows cannot be split over 6 shards, which 12 devices with context=1 and tensor=2 make; use 8 d"
    )
    with pytest.raises(ValueError, match=says):
        fitted(elastic(MeshConfig(fsdp=8, tensor=2)), begun(tmp_path, 16), Machine(12))


# Each row that is loaded leaves its tokens in a file, by its place in the stream.
PROGRAM = """
import dataclasses, json, os, signal, sys
from pathlib import Path
import jax, numpy as np
told = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", told["devices"])
from unimp_jax.processes import ProcessesConfig, join
join(ProcessesConfig(**told["processes"]))
from experiments import train
from experiments.data import ExperimentData
from tests.experiments.tiny_run import experiment
from unimp_jax.sharding import MeshConfig
all_batches, examples = ExperimentData.training, Path(told["run"] + ".examples")
examples.mkdir(exist_ok=True)
def training(data, position, shard, features):
    for number, batch in enumerate(all_batches(data, position, shard, features), start=1):
        if number == told["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        after = batch.next_position
        for row, tokens in zip(shard.of(data.config.loader.batch_size), batch.arrays["tokens"], strict=True):
            np.save(examples / f"{after.block}.{after.row}.{row}.npy", tokens)
        yield batch
ExperimentData.training = training
config = experiment(Path(told["data"]), steps=8, mesh=MeshConfig(data=2, fsdp=-1))
config = dataclasses.replace(
    config,
    optimizer=dataclasses.replace(config.optimizer, eps=1e-4),
    training=dataclasses.replace(config.training, elastic=True),
)
train.train_run(config, Path(told["run"]))
"""


def train(data: Path, run: Path, devices: int, processes: int = 1, killed: int = 0) -> str:
    """What the first process prints; all are killed before they have so many batches, 0: not."""
    port, running = free_port(), []
    for index in range(processes):
        joined = {"coordinator": f"localhost:{port}", "count": processes, "index": index} if processes > 1 else {}
        told = {"devices": devices, "processes": joined, "data": str(data), "run": str(run), "killed": killed}
        command = [sys.executable, "-c", PROGRAM, json.dumps(told)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        running.append(subprocess.Popen(command, cwd=ROOT, env=child_environment(), **pipes))
    try:
        printed = [process.communicate(timeout=600)[0].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    ended = [process.returncode for process in running]
    assert -signal.SIGKILL in ended if killed else ended == [0] * processes, "\n\n".join(printed)
    return printed[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    train(data, run, devices=8)
    return run


def assert_same_run(run: Path, whole: Path) -> None:
    """1e-5: sums in another order; optimizer states are those of the last checkpoint."""
    assert_alike(outcome(run), outcome(whole), tolerance=1e-5)
    assert_alike(outcome(run, part="optimizer"), outcome(whole, part="optimizer"), tolerance=1e-5)
    seen, expected = (
        {file.name: np.load(file).tolist() for file in Path(f"{folder}.examples").iterdir()} for folder in (run, whole)
    )
    assert len(expected) >= 8 * 8
    assert seen == expected


@pytest.mark.slow
def test_eight_devices_then_four_then_eight(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    train(data, run, devices=8, killed=4)
    told = train(data, run, devices=4, killed=4)
    assert "elastic: mesh data=2 fsdp=2, 1 rows at a time, accumulate 2, remat none; where the run started: me" in told
    assert "elastic: mesh data=2 fsdp=4, 1 rows at a time, accumulate 1, remat none;" in train(data, run, devices=8)
    assert [line["step"] for line in read_log(run / "metrics.jsonl") if line["kind"] == "train"] == list(range(1, 9))
    assert_same_run(run, uninterrupted)


@pytest.mark.slow
def test_two_processes_of_two_devices_are_killed_and_one_goes_on(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    train(data, run, devices=2, processes=2, killed=6)
    assert "elastic: mesh data=2, 2 rows at a time, accumulate 2" in train(data, run, devices=2)
    assert_same_run(run, uninterrupted)
