"""What several hosts spend their time on: means, and the slowest host by its name, in the log and in TensorBoard."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.child import child_environment
from unimp_jax.training.log import read_log

ROOT = Path(__file__).resolve().parents[2]
# Data come slowly in process 1, the save after step 3 is slow in process 0.
PROGRAM = """
import json, socket, sys, time
from pathlib import Path
from types import SimpleNamespace
told = json.loads(sys.argv[1])
socket.gethostname = lambda: told["host"]
from unimp_jax.processes import ProcessesConfig, join
join(ProcessesConfig(**told["processes"]))
import jax.numpy as jnp, numpy as np
from tests.unimp_jax.test_loop import EndBefore, State, Sums, add
from unimp_jax.training.log import RunLog
from unimp_jax.training.loop import LoopConfig, train
from unimp_jax.training.prefetch import LoadedBatch, Prefetcher
def numbers():
    for number in range(1, 7):
        time.sleep(told["loading"] if number <= 3 else 0)
        yield LoadedBatch(np.float32(number), None, {"odd": 0})
checkpoints = SimpleNamespace(save=lambda step, *_: time.sleep(told["saving"] if step == 3 else 0), latest=lambda: None)
with RunLog(Path(told["run"]), step=0, steps=6, writes=told["processes"]["index"] == 0) as log:
    train(
        State(jnp.int32(0), jnp.float32(0)), add, Prefetcher(numbers(), jnp.asarray), lambda _: {},
        config=LoopConfig(steps=6, log_every=3, validate_every=6, save_every=3), window=Sums(None),
        check_skips=lambda *_: None, checkpoints=checkpoints, log=log, end=EndBefore(0),
    )
"""


def test_the_slowest_of_two_hosts_is_named(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    running = []
    for index, (loading, saving) in enumerate([(0.0, 3.0), (1.0, 0.0)]):
        told = {"processes": {"coordinator": address, "count": 2, "index": index}, "host": f"node{index}"}
        told |= {"run": str(tmp_path), "loading": loading, "saving": saving}
        command = [sys.executable, "-c", PROGRAM, json.dumps(told)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        running.append(subprocess.Popen(command, cwd=ROOT, env=child_environment(), text=True, **pipes))
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n\n".join(said)
    first, second = (row for row in read_log(tmp_path / "metrics.jsonl") if row["kind"] == "train")
    assert first["waiting_for_data_slowest_host"] == "process 1 (node1)"
    assert first["waiting_for_data_most_seconds"] > 2.9
    assert first["waiting_for_data_seconds"] == pytest.approx(first["waiting_for_data_most_seconds"] / 2, abs=0.5)
    assert second["saving_slowest_host"] == "process 0 (node0)"
    assert second["saving_most_seconds"] == pytest.approx(2 * second["saving_seconds"], abs=0.5)
    assert second["saving_most_seconds"] > 2.9
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    for tag in ("waiting_for_data_seconds", "saving_most_seconds", "computing_slowest_host"):
        assert f"train/{tag}".encode() in events
