"""How processes find one another, wait for one another, and end together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.child import child_environment, free_port
from unimp_jax.processes import ProcessesConfig, check_joined, join, started

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, 4),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # the script around srun
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 1),  # its shell
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1"}, 2),
        ({"PMI_SIZE": "3"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, 2),
        ({"TPU_WORKER_HOSTNAMES": "host0", "MEGASCALE_NUM_SLICES": "2"}, 2),
        ({"TPU_PROCESS_ADDRESSES": "local"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1", "JAX_PLATFORMS": "cpu"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 2),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 1),  # a notebook
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, None),
        ({"JAX_PLATFORMS": "cuda", "JAX_COORDINATOR_ADDRESS": "host0:1"}, None),
    ],
)
def test_a_launcher_is_recognised_by_what_it_sets(environment, expected):
    assert started(environment) == expected


DETECTED = """
import json, os, sys
from unittest import mock
import jax
from jax._src import distributed
from jax._src.clusters import cloud_tpu_cluster
from unimp_jax.processes import ProcessesConfig, join
METADATA = {"agent-worker-number": "1", "worker-network-endpoints": "a:b:127.0.0.1,a:b:10.0.0.2", "tpu-env": ""}
before = {name: value for name, value in os.environ.items() if name not in ("TPU_SKIP_MDS_QUERY", "JAX_PLATFORMS")}
for environment, on_tpu_vm in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(before, **environment)
    joined = []
    class Client:
        def __init__(self, address, process, **_): joined.append([address, process])
        def connect(self): joined[-1].append(distributed.global_state.num_processes)
    state = distributed.State()
    with (
        mock.patch.object(distributed, "global_state", state),
        mock.patch.object(distributed._jax, "get_distributed_runtime_client", Client),
        mock.patch.object(distributed._jax, "get_distributed_runtime_service"),
        mock.patch.object(state, "initialize_preemption_sync_manager"),
        mock.patch.object(cloud_tpu_cluster, "running_in_cloud_tpu_vm", on_tpu_vm),
        mock.patch.object(cloud_tpu_cluster, "get_metadata", lambda key: (METADATA[key], 200)),
        mock.patch.object(jax, "process_count", lambda: 1),
    ):
        try:
            join(ProcessesConfig())
        except ValueError as error:
            joined = str(error)
    print(json.dumps(joined))
"""
SRUN = {"SLURM_JOB_ID": "4096", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_LOCALID": "0", "SLURM_PROCID": "1"}

GKE = {
    "TPU_SKIP_MDS_QUERY": "true",
    "MEGASCALE_NUM_SLICES": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "",
    "MEGASCALE_SLICE_ID": "0",
}


def test_jax_is_asked_what_it_detects():
    """[the coordinator, this process, how many] where it joins; nothing where a process is on its own."""
    cases = [
        ({}, False, []),
        (SRUN | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, False, [["node3:61440", 1, 2]]),
        (SRUN | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False, []),
        ({"SLURM_JOB_ID": "4096", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False, []),
        ({}, True, [["127.0.0.1:8482", 1, 2]]),  # a plain TPU VM
        (GKE | {"TPU_WORKER_HOSTNAMES": "localhost,b", "TPU_WORKER_ID": "1"}, True, [["localhost:8482", 1, 2]]),
        (GKE | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, True, []),
        (
            {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.9:1", "OMPI_COMM_WORLD_SIZE": "2",
             "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, False, [["10.0.0.9:61441", 1, 2]]
        ),
    ]  # fmt: skip
    told = json.dumps([case[:2] for case in cases])
    launchers = ("TPU_", "MEGASCALE_", "SLURM_", "OMPI_", "PMI_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    ran = subprocess.run(
        [sys.executable, "-c", DETECTED, told], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [case[2] for case in cases]


def test_processes_that_a_launcher_started_and_jax_does_not_find_are_reported(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(jax.distributed, "initialize", fails(ImportError("No module named 'mpi4py'")))
    with pytest.raises(ValueError, match=r"could not be joined .*No module named 'mpi4py'.*--processes.together False"):
        join(ProcessesConfig())


def test_a_taken_port_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", fails(RuntimeError("UNKNOWN: Failed to start\n RPC server")))
    with pytest.raises(ValueError, match=r"not be joined at localhost:1 \(UNKNOWN: Failed to start\).*port is free"):
        join(ProcessesConfig("localhost:1", 2, 0))


def test_metadata_out_of_reach_leave_a_process_on_its_own(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", fails(ConnectionError("metadata.google.internal")))
    join(ProcessesConfig())


def fails(error):
    def initialize(**_):
        raise error

    return initialize


def test_devices_of_others_without_a_way_to_end_together_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(
        ValueError, match=r"devices of 4 processes are visible, but jax.distributed .* would not save a checkpoint"
    ):
        join(ProcessesConfig(together=False))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    check_joined()


def test_processes_that_never_meet_end_in_one_line():
    """JAX itself would abort with a stack of C++."""
    program = "from unimp_jax.processes import *; join(ProcessesConfig('localhost:9', 2, 1, wait_seconds=1))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 2
    assert ran.stderr.startswith(
        "unimp: processes: after 1 s not all of them are connected to localhost:9; check that all"
    )
    assert ran.stderr.count("\n") == 1


FAILING = """
import os, signal, time
from pathlib import Path
from experiments import cli
from unimp_jax import processes
from unimp_jax.processes import ProcessesConfig, join, wait_for_all
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints
from unimp_jax.training.preemption import EndRequest
processes.PATIENCE = 1.0
def asked(port: int) -> None:
    join(ProcessesConfig(f"localhost:{port}", 1, 0))
    os.kill(os.getpid(), signal.SIGTERM)
def ending(port: int, index: int) -> None:
    join(ProcessesConfig(f"localhost:{port}", 2, index))
    with EndRequest() as end:
        end.listen()
        for step in range(1001, 1100):
            if end.at(step):
                return print(step)
            if (step, index) == (1001, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # JAX's service looks once a second whether the signal has come
def failing(port: int, index: int) -> None:
    join(ProcessesConfig(f"localhost:{port}", 2, index))
    wait_for_all("both are here")
    if index == 1:
        raise ValueError("the disk of this host is full")
    wait_for_all("the other one is done")
def late(port: int, index: int, folder: Path) -> None:
    join(ProcessesConfig(f"localhost:{port}", 2, index))
    time.sleep(40 * index)  # it reads data, or the first process waits for a lock
    Checkpoints(folder, CheckpointConfig())
    print("met")
commands = {"asked": asked, "ending": ending, "failing": failing, "late": late}
cli.COMMANDS |= dict.fromkeys(commands, ("", ""))
cli.load = commands.__getitem__
cli.main()
"""


def start(*arguments: str) -> subprocess.Popen:
    environment = child_environment()
    command = [sys.executable, "-c", FAILING, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_sigterm_ends_a_process_that_has_joined_before_it_has_anything_to_save():
    """JAX's preemption service would take the signal, and whoever sent it would wait in vain."""
    process = start("asked", "--port", free_port())
    _, error = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGTERM, error


def start_two(command: str, *more: str) -> tuple[list[subprocess.Popen], list[tuple[str, str]]]:
    """Both processes, ended, and what each wrote to standard output and error."""
    port = free_port()
    running = [start(command, "--port", port, "--index", str(index), *more) for index in range(2)]
    try:
        return running, [process.communicate(timeout=200) for process in running]
    finally:
        for process in running:
            process.kill()


def test_both_processes_end_at_one_step_of_a_run_that_goes_on_where_one_is_asked():
    running, [(first, why), (second, _)] = start_two("ending")
    assert [process.returncode for process in running] == [0, 0], why
    assert 1001 < int(first) == int(second)


@pytest.mark.slow
def test_one_that_is_late_is_waited_for(tmp_path):
    """A first collective of devices would give up after 30 seconds."""
    running, written = start_two("late", "--folder", str(tmp_path))
    assert [process.returncode for process in running] == [0, 0], written
    assert all(out.endswith("met\n") for out, _ in written), written  # after what gloo prints


def test_no_process_waits_for_one_that_failed():
    running, [(_, first), (_, second)] = start_two("failing")
    assert running[1].returncode == 2
    assert second.endswith("unimp: the disk of this host is full\n")
    assert running[0].returncode not in (0, None), first


def test_half_an_address_is_refused():
    with pytest.raises(ValueError, match="give coordinator, count and index together"):
        ProcessesConfig(coordinator="localhost:1")
    with pytest.raises(ValueError, match="index 2 must be at least 0 and below count 2"):
        ProcessesConfig(coordinator="localhost:1", count=2, index=2)
    with pytest.raises(ValueError, match="'node0' must be HOST:PORT, such as node0:1234"):
        ProcessesConfig(coordinator="node0", count=2, index=1)


TOGETHER = """
import json, sys
from pathlib import Path
told = json.loads(sys.argv[1])
from unimp_jax import processes
processes.LAGS = (0.0, 0.1)
processes.join(processes.ProcessesConfig(**told["processes"]))
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints
for folder in told["folders"]:
    try:
        with Checkpoints(Path(folder), CheckpointConfig()):
            print("opened")
    except ValueError as error:
        print(error)
"""


def test_processes_with_disks_of_their_own_are_told_before_they_train(tmp_path):
    address, running = f"localhost:{free_port()}", []
    for index in range(2):
        folders = [str(tmp_path / "shared"), str(tmp_path / f"host{index}")]
        told = {"processes": {"coordinator": address, "count": 2, "index": index}, "folders": folders}
        command, pipes = [sys.executable, "-c", TOGETHER, json.dumps(told)], {"stdout": subprocess.PIPE}
        running.append(subprocess.Popen(command, cwd=ROOT, env=child_environment(), text=True, **pipes))
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n\n".join(said)
    for index, words in enumerate(said):
        assert "opened" in words
        assert f"{tmp_path / f'host{index}'} of the first process is not visible to process 1; name a folder" in words
    assert not list(tmp_path.rglob(".shared.*"))
